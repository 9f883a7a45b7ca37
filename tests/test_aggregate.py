"""From the scores of prompts to one value a neuron: statistics against NumPy, collectors by small sums done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.common.errors import InputError
from neuronllm.methods import get_method
from neuronllm.results.streaming import Statistics
from tests import plain
from tests.tiny import tiny

RNG = np.random.default_rng(0)
DATA = {
    "normal": RNG.normal(size=(50, 7)),
    "large offset": 1e9 + RNG.normal(size=(1000, 3)),
    "tiny": 1e-30 * RNG.normal(size=(20, 4)),
    "wide": RNG.normal(size=(30, 5)) * 10.0 ** RNG.integers(-8, 8, size=(30, 5)),
    "one question": RNG.normal(size=(1, 6)),
    "two questions": RNG.normal(size=(2, 6)),
    "zeros": np.zeros((9, 3)),
    "zeros among values": RNG.normal(size=(40, 5)) * RNG.integers(0, 2, size=(40, 5)),
    "constant": np.full((10, 2), 0.1),
    "cancelling": np.array([[1.0, -2.5], [-1.0, 2.5]]),
}


@pytest.mark.parametrize("name", DATA)
def test_statistics_equal_numpy(name):
    data = DATA[name]
    stats = Statistics(data.shape[1])
    for row in data:
        stats.add(torch.from_numpy(row))
    mean = data.mean(0)
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-12, atol=1e-15 * np.abs(data).max())
    consistency = np.where(mean == 0, 0, np.mean(np.sign(data) == np.sign(mean), axis=0))
    assert np.array_equal(stats.sign_consistency, consistency)
    assert stats.count == len(data) and stats.stderr.dtype == torch.float64
    if len(data) == 1:
        assert stats.stderr.isnan().all()
    else:
        error = data.std(0, ddof=1) / math.sqrt(len(data))
        np.testing.assert_allclose(stats.stderr, error, rtol=1e-7, atol=1e-16 * np.abs(data).max())


def test_statistics_of_nothing_and_of_float32():
    stats = Statistics(2)
    assert stats.count == 0 and stats.mean.tolist() == [0, 0] == stats.sign_consistency.tolist()
    assert stats.stderr.isnan().all()
    for value in (16777216.0, 1.0, 1.0, 1.0):  # a float32 sum would lose the ones
        stats.add(torch.tensor([value, -value]))
    assert stats.mean.tolist() == [16777219 / 4, -16777219 / 4]


def test_statistics_hand_out_copies():
    stats = Statistics(1)
    stats.add(torch.tensor([2.0]))
    stats.mean.zero_()
    assert stats.mean.item() == 2


def test_a_question_counts_once_however_many_variants_it_has():
    model, prompts = tiny("llama"), plain.questions(10, 2)
    scores = nl.attribute(model, None, prompts, "gradient", positions="answer", keep="all", progress=False)
    ten, two = scores.per_prompt[:10].double().mean(0), scores.per_prompt[10:].double().mean(0)
    assert torch.allclose(scores.values.double(), (ten + two) / 2, atol=1e-7)
    assert not torch.allclose(scores.values.double(), scores.per_prompt.double().mean(0), atol=1e-3)
    assert torch.allclose(scores.stderr.double(), (ten - two).abs() / 2, atol=1e-7)


# ---- collectors ------------------------------------------------------------------------------------------------------


def collected(method: str, *questions: list[list[float]], right: list[list[bool]] | None = None, **options):
    """The summary of questions, each a list of prompts' scores."""
    collector = get_method(method, options).collector(len(questions[0][0]))
    for n, scores in enumerate(questions):
        collector.add(torch.tensor(scores, dtype=torch.float64), None if right is None else torch.tensor(right[n]))
    return collector.summary()


# Means over the variants: neuron 0: 1 2 3, neuron 1: 3 -1 -1, neuron 2: -1 -1 .5, neuron 3: 0 0 0, neuron 4: 1 1 0.
STREAM = [
    [[0.0, 4.0, -1.0, 2.0, 0.0], [2.0, 2.0, -1.0, -2.0, 2.0]],
    [[2.0, -1.0, -1.0, 0.0, 1.0]],
    [[3.0, -1.0, 0.5, 0.0, 0.0]],
]
MEANS = [2, 1 / 3, -0.5, 0, 2 / 3]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"mask": "none"}, MEANS),
        ({"mask": "consistent", "tau": 0.3}, MEANS),
        ({}, [2, 0, -0.5, 0, 2 / 3]),  # consistent, tau .6: neuron 1 has the mean's sign in one question of three
        ({"tau": 0.7}, [2, 0, 0, 0, 0]),  # neuron 4: a score of 0 agrees with no sign
    ],
)
def test_ace_consistent(options, expected):
    summary = collected("ace", *STREAM, **options)
    assert summary.values.tolist() == pytest.approx(expected)
    assert summary.sign_consistency.tolist() == pytest.approx([1, 1 / 3, 2 / 3, 0, 2 / 3])
    assert summary.stderr.tolist() == pytest.approx([math.sqrt(1 / 3), 4 / 3, 0.5, 0, 1 / 3])


def test_ace_consistent_keeps_a_neuron_at_its_bound():
    five = [[[1.0]], [[1.0]], [[1.0]], [[-0.5]], [[-0.5]]]
    assert collected("ace", *five).values.tolist() == pytest.approx([0.4])  # 3 of 5 agree, tau is .6
    assert collected("ace", *five, tau=0.61).values.tolist() == [0]


@pytest.mark.parametrize("z", [1, 0.25])
def test_ace_ambiguous(z):
    """Tops: neurons 0, 2, 2. Bottoms: 3, 0, 3. Neuron 0 was seen on both sides."""
    summary = collected("ace", [[5.0, 1, -1, -4]], [[-6.0, 2, 3, 1]], [[1.5, 0, 4, -9]], mask="ambiguous", z=z)
    assert summary.values.tolist() == pytest.approx([0, 0, (3 + 4) / 3, (-4 - 9) / 3])
    assert summary.sign_consistency.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2 / 3])


def test_ace_ambiguous_counts_a_neuron_that_is_top_and_bottom_of_one_question():
    summary = collected("ace", [[3.0, 1, -2]], mask="ambiguous", z=2)  # top 0 and 1, bottom 2 and 1
    assert summary.values.tolist() == [3, 0, -2]
    assert collected("ace", [[3.0, 1, -2]], mask="ambiguous", z=99).values.tolist() == [0, 0, 0]


def test_knowledge():
    """Question 1: neuron 1 exceeds .3 of the largest in one prompt of two, which is not more than half."""
    summary = collected("knowledge", [[1.0, 0.31, -5, 0.4], [2.0, 0.6, 0.61, 0.8]], [[-1.0, -2, -3, -4]])
    assert summary.values.tolist() == pytest.approx([1.5 / 2, 0, 0, 0.6 / 2])
    lenient = collected("knowledge", [[1.0, 0.31, -5, 0.4], [2.0, 0.6, 0.61, 0.8]], threshold=0.2, share=0.4)
    assert lenient.values.tolist() == pytest.approx([1.5, 0.455, (0.61 - 5) / 2, 0.6])


def test_qrnca_of_the_paper():
    """Clusters: {0, 1} {0} {0} {0, 2}; the fifth question's scores sum below zero, its cluster is {2}."""
    questions = [
        [[3.0, 1, 0.5], [3.0, 2, 0.5]],
        [[4.0, 0.8, -0.8]],
        [[1.0, 0.0, 0.0]],
        [[1.0, 0.0, 1]],
        [[-9.0, -9, 1]],
    ]
    na = [[0.6, 0.3, 0.1], [1, 0.2, -0.2], [1, 0, 0], [0.5, 0, 0.5], [0, 0, 0]]
    mean = np.mean(na, axis=0)
    ica = np.log(5 / (np.array([4, 1, 2]) + 1))
    assert collected("qrnca", *questions).values.tolist() == pytest.approx([0, mean[1] * ica[1], 0])
    assert collected("qrnca", *questions, common=0.4).values.tolist() == pytest.approx([0, *(mean * ica)[1:]])
    # A neuron of 4 clusters in 5 has an ICA of log 1.
    assert collected("qrnca", *questions, common=1).values.tolist() == pytest.approx([0, *(mean * ica)[1:]])


def test_qrnca_of_the_released_code():
    """The threshold cuts each prompt by itself, what survives is rounded and summed, nothing is common."""
    first = [[1.0, 0.1999, 0.3, -7.0], [0.3, 0.2, 0.05, 0.1234564]]  # survivors: 0 2 | 0 1 3
    second = [[4e-7, 1e-7, -1.0, 0.0]]  # the survivors 0 and 1 round to nothing, yet they are the cluster
    third = [[-1.0, -2, -3, -4]]  # nobody survives
    fourth = [[0.0, 0.0, 2.0, 0.0]]
    summary = collected("qrnca", first, second, third, fourth, compat="released-code")
    total = 1.3 + 0.2 + 0.3 + 0.123456
    na = np.array([1.3 / total, 0.2 / total, 0.3 / total + 1, 0.123456 / total]) / 4
    ica = np.log(4 / (np.array([2, 2, 2, 1]) + 1))
    assert summary.values.tolist() == pytest.approx((na * ica).tolist(), rel=1e-12)


def test_contrast():
    right = [[True, False], [True], [False]]
    summary = collected("contrast", [[1.0, 2], [5.0, 2]], [[3.0, 4]], [[7.0, 2]], right=right)
    assert summary.values.tolist() == [2 - 6, 3 - 2]
    assert summary.stderr.tolist() == pytest.approx([math.sqrt(2), 1])
    assert summary.sign_consistency.isnan().all()
    with pytest.raises(InputError, match="all 2 prompts were answered wrong"):
        collected("contrast", [[1.0, 2], [5.0, 2]], right=[[False, False]])
