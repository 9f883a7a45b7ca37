"""Peak memory of a call, as the engine itself measures it."""

from neuronllm.engine.memory import peak_memory

__all__ = ["peak_memory"]
