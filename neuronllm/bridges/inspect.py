"""Inspect: a Hugging Face model under a live edit, as the model provider `neuronllm`.

    inspect eval task.py --model neuronllm/MODEL -M neurons=FOLDER -M mode=enhance

Inspect finds this module by its entry point. How a model is loaded, asked and sampled is that of its own provider `hf`.
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

from ..common.errors import InputError


def steered_provider() -> type[Any]:
    """The provider's class. Inspect asks for it when it is used, and nothing large is imported before that."""
    try:
        from inspect_ai.model import GenerateConfig
        from inspect_ai.model._providers.hf import HuggingFaceAPI
    except ModuleNotFoundError as error:
        what = "the provider neuronllm of Inspect takes the package inspect-ai; pip install 'neuronllm[doors]'"
        raise InputError(what) from error

    from ..results.neurons import NeuronSet

    class SteeredAPI(HuggingFaceAPI):  # type: ignore[misc, no-any-unimported, unused-ignore]
        """Inspect's `hf`, with the neurons of a set multiplied by factors for as long as it is open.

        neurons: a folder, or user/name of the Hub; mode, good, bad, positions: as in `neurons.apply`.
        """

        def __init__(
            self,
            model_name: str,
            base_url: str | None = None,
            api_key: str | None = None,
            config: GenerateConfig | None = None,
            *,
            neurons: str | None = None,
            mode: str | None = None,
            good: float | None = None,
            bad: float | None = None,
            positions: str | None = None,
            **model_args: Any,
        ) -> None:
            if neurons is None:
                raise InputError("neurons: name a neuron set, a folder or user/name of the Hub (-M neurons=FOLDER)")
            chosen = NeuronSet.from_pretrained(str(neurons))
            chosen.steering(mode, good, bad)  # refused before a model is loaded
            super().__init__(model_name, base_url, api_key, config or GenerateConfig(), **model_args)
            self.edit = ExitStack()
            self.edit.enter_context(chosen.apply(self.model, good, bad, positions, mode=mode))

        def close(self) -> None:
            self.edit.close()
            super().close()

    return SteeredAPI


if find_spec("inspect_ai") is not None:
    from inspect_ai.model import modelapi

    neuronllm = modelapi(name="neuronllm")(steered_provider)
