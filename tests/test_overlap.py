"""What neuron sets have in common, beside enumerations of all that chance could draw."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from neuronllm.model.anatomy import Anatomy
from neuronllm.results.overlap import Overlap, by_layer, overlaps, shared_by_chance, two_faced
from tests.checks import refused
from tests.test_neurons import make
from tests.tiny import tiny

WIDTH = 6


@pytest.fixture(scope="module")
def small():
    return tiny("llama", intermediate_size=WIDTH)


def drawn(ids: list[int]) -> list[set[int]]:
    """All sets with as many neurons in each of the two blocks."""
    first, second = (sum(n // WIDTH == block for n in ids) for block in (0, 1))
    return [
        {*low, *high}
        for low in combinations(range(WIDTH), first)
        for high in combinations(range(WIDTH, 2 * WIDTH), second)
    ]


@pytest.mark.parametrize("one, other", [([0, 1, 7, 8], [1, 2, 3, 8]), ([0, 9], [10, 11]), ([3], [3]), ([2, 4], [])])
def test_chance_is_the_mean_over_all_sets_of_the_same_blocks(small, one, other):
    found = Overlap.of(torch.tensor(one), torch.tensor(other, dtype=torch.int64), Anatomy.of(small))
    pairs = [(a, b) for a in drawn(one) for b in drawn(other)]
    indices = [len(a & b) / len(a | b) for a, b in pairs]
    assert found.shared == len({*one} & {*other})
    assert found.jaccard == len({*one} & {*other}) / len({*one} | {*other})
    assert found.chance == pytest.approx(sum(indices) / len(pairs))
    assert found.p == pytest.approx(sum(len(a & b) >= found.shared for a, b in pairs) / len(pairs))
    assert shared_by_chance(torch.tensor(one), torch.tensor(other), Anatomy.of(small)).sum() == pytest.approx(1)


def test_nothing_has_nothing_in_common(small):
    none = torch.tensor([], dtype=torch.int64)
    assert Overlap.of(none, none, Anatomy.of(small)) == Overlap(0, 0.0, 0.0, 1.0)


def test_matrices_of_roles(small):
    sets = {"a": make(small, good=[0, 1], bad=[7, 8]), "b": make(small, good=[1, 7], bad=[0, 9])}
    found = overlaps(sets)
    assert found["names"] == ["a", "b"]
    shared = {role: [[cell["shared"] for cell in row] for row in found[role]] for role in ("good", "bad", "good_bad")}
    assert shared == {"good": [[2, 1], [1, 2]], "bad": [[2, 0], [0, 2]], "good_bad": [[0, 1], [1, 0]]}
    assert found["good"][0][0]["jaccard"] == 1.0 and found["good"][0][1]["jaccard"] == pytest.approx(1 / 3)
    both = [{"id": 0, "layer": 0, "expert": -1, "index": 0, "good": ["a"], "bad": ["b"]}]
    both += [{"id": 7, "layer": 1, "expert": -1, "index": 1, "good": ["b"], "bad": ["a"]}]
    assert two_faced(sets) == both
    assert two_faced({"a": sets["a"]}) == []
    assert by_layer(sets["b"]) == {"good": [1, 1], "bad": [1, 1]}


def test_sets_of_other_models_are_refused(small):
    with refused("neurons: 'b' is of a llama", "28 neurons"):
        overlaps({"a": make(small, good=[1]), "b": make(tiny("llama"), good=[1])})
    with refused("neurons: 'a' is no neuron set but list"):
        overlaps({"a": [1, 2]})
    with refused("neurons: give neuron sets by the names of their tasks"):
        two_faced({})
