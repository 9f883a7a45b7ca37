"""How the work is cut: questions into the shares of processes, a share into windows that go to the engine together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..data.prompts import Prompt
from ..runs.processes import share_out


class Share(NamedTuple):
    """One question of a process, and the number of its first prompt among all prompts."""

    first: int
    prompts: list[Prompt]


def share_of(groups: list[list[Prompt]], rank: int, size: int) -> list[Share]:
    """The questions of a process, by the tokens of their prompts."""
    firsts = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0).tolist()
    costs = [sum(prompt.n_tokens for prompt in group) for group in groups]
    return [Share(firsts[number], groups[number]) for number in share_out(costs, size)[rank]]


def windows_of(shares: list[Share], prompts: int) -> Iterator[list[Share]]:
    """Questions that go to the engine together: at least so many prompts, so that it can fill its passes."""
    window: list[Share] = []
    held = 0
    for share in shares:
        window.append(share)
        held += len(share.prompts)
        if held >= prompts:
            yield window
            window, held = [], 0
    if window:
        yield window
