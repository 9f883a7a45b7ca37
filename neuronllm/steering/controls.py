"""What could refute a learned edit: random neurons learned the same way, and answers that mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.prompts import Prompt
from ..engine.base import Engine
from ..model.anatomy import Anatomy
from ..model.outputs import output_norms
from ..model.random_sets import matched_like, random_like
from ..results.learned import KINDS, Controls
from ..runs.processes import Ranks
from .trainings import Trained

SEED = 1_000_003  # apart from each other as far as the kinds are


def forced(trained: Sequence[Trained]) -> Tensor:
    """The mean of the seeds, none of which was left without an edit: else every gain beats sets that gain nothing."""
    return torch.stack([one.forced for one in trained]).mean(0)


def learned_controls(
    learn: Callable[[str, Tensor], list[Trained]],
    ids: Tensor,
    trained: Sequence[Trained],
    anatomy: Anatomy,
    strength: Tensor,
    count: int,
) -> Controls:
    """`count` plain and as many matched sets, learned by `learn(name, ids)`, behind the set itself."""
    rows = [(KINDS[0], ids, forced(trained))]
    for kind, number, drawn in random_sets(ids, anatomy, strength, count):
        rows.append((kind, drawn, forced(learn(f"{kind}-{number:02d}-seed", drawn))))
    kinds, sets, factors = zip(*rows, strict=True)
    return Controls(kinds, torch.stack(sets), torch.stack(factors).float())


def random_sets(ids: Tensor, anatomy: Anatomy, strength: Tensor, count: int) -> Iterator[tuple[str, int, Tensor]]:
    """Kind, number and neurons of every random set; each is the same however many there are."""
    for place, kind in enumerate(KINDS[1:]):
        for number in range(count):
            generator = torch.Generator().manual_seed(SEED * place + number)
            matched = kind == "matched"
            drawn = matched_like(ids, strength, anatomy, generator) if matched else random_like(ids, anatomy, generator)
            yield kind, number, drawn


@torch.no_grad()
def strengths(engine: Engine, prompts: Sequence[Prompt], ranks: Ranks) -> Tensor:
    """(n_neurons,): the mean of |h| over the tokens of the prompts, times the norm of what the neuron then writes."""
    mine, size = prompts[ranks.rank :: ranks.size], engine.at_once
    total = torch.zeros(1, engine.anatomy.n_neurons, dtype=torch.float64)
    for start in range(0, len(mine), size):
        total += engine.activations(mine[start : start + size], "all", "size").double().sum(0)
    # As all processes have it, to the bit: they have to draw the same neurons.
    held = ranks.concatenate({"held": total})["held"].sum(0) / len(prompts)
    return held * output_norms(engine.model, engine.anatomy)


def shuffled(groups: Sequence[list[Prompt]], seed: int) -> list[list[Prompt]]:
    """The same questions, of each of which any of its choices is called the right one, in all of its variants."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for group in groups:
        choice = int(torch.randint(len(group[0].option_ids), (1,), generator=generator))
        found.append([replace(p, answer=p.order.index(choice) if p.order else choice) for p in group])
    return found


def check_controls(count: int, learned: int, anatomy: Anatomy) -> None:
    """Refuse random sets of all neurons, which would be the set itself; `learned` of them have factors."""
    if count and learned == anatomy.n_neurons:
        raise InputError(
            f"controls={count}: the factors of all {learned} neurons are learned, so that random sets of as many are "
            "the same set: choose some with neurons= or k="
        )


def check_shuffled(groups: Sequence[list[Prompt]]) -> None:
    if any(len(group[0].option_ids) < 2 for group in groups):
        raise InputError("shuffled=True: a question has only one option, so no other one can be called right")
