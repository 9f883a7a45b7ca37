"""Questions of made-up tasks, for comparisons."""

from __future__ import annotations

from neuronllm.data.questions import Question

WORDS = ("red", "blue", "seven", "door", "sky", "word")


def questions(name: str, count: int, options: int) -> list[Question]:
    """Questions about different numbers; every third right choice stands elsewhere."""
    return [
        Question(
            f"Which {name} is word {n}?",
            tuple(WORDS[(n + j) % len(WORDS)] for j in range(options)),
            n % options,
            id=f"{name}-{n}",
        )
        for n in range(count)
    ]
