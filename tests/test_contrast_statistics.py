"""Contrast of two sets of prompts against statistics worked out here, on activations seen by hooks of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import neuronllm as nl
from neuronllm.common.statistics import auroc
from neuronllm.engine.borrowed import DoublePrecision
from tests import plain
from tests.checks import quiz, untouched
from tests.experts_by_hand import experts_by_hand
from tests.tiny import VOCABULARY, tiny

BACKENDS = ("fast", "reference")
READ_AT = ("answer", "prompt", "all", 0, 2, -1, -3)
QUIET: dict[str, Any] = {"progress": False, "dtype": torch.float64}


def prompts_of(count: int, seed: int, answers: Sequence[int] = (2, 1, 4)) -> list[nl.Prompt]:
    """Prompts of random tokens with answers of so many in turn; 0: without one."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in range(count):
        length, answer = 4 + n % 5, answers[n % len(answers)]
        ids = torch.randint(3, VOCABULARY, (length + answer,), generator=generator).tolist()
        told = nl.Prompt(ids[:length], [[ids[length:] or [3]]], 0, texts=("said",))
        found.append(told if answer else replace(told, texts=()))
    return found


def tokens_of(prompt: nl.Prompt) -> tuple[list[int], int]:
    """All tokens of a prompt with its answer, and how many are the answer's."""
    answer = prompt.option_ids[0][0] if prompt.texts else []
    return prompt.input_ids + answer, len(answer)


def read(per_token: Tensor, answer: int, positions: Any) -> Tensor:
    """The mean of (tokens, n_neurons) over what is read."""
    before = len(per_token) - answer
    if isinstance(positions, int):
        return per_token[positions]
    cut = {"answer": slice(before if answer else -1, None), "prompt": slice(before), "all": slice(None)}[positions]
    return per_token[cut].mean(0)


def held_by_hand(model: Any, prompts: Sequence[nl.Prompt], positions: Any = "answer") -> Tensor:
    rows = []
    for prompt in prompts:
        ids, answer = tokens_of(prompt)
        h = plain.activity(model, nl.Prompt(ids, [[[3]]], 0))
        rows.append(read(torch.cat(list(h.values()), -1), answer, positions))
    return torch.stack(rows)


# ---- what is read ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", READ_AT)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_activations_at_every_position(name: str, positions: Any, backend: str) -> None:
    model, prompts = tiny(name), prompts_of(6, 1, answers=(2, 0, 1, 5))
    with untouched(model):
        found = nl.activations(model, None, prompts, positions=positions, backend=backend, **QUIET)
    torch.testing.assert_close(found, held_by_hand(model, prompts, positions), rtol=1e-9, atol=1e-12)
    size = nl.activations(model, None, prompts, positions=-1, activation="size", backend=backend, **QUIET)
    torch.testing.assert_close(size, held_by_hand(model, prompts, -1).abs(), rtol=1e-9, atol=1e-12)


def cett_of_dense(model: Any, ids: list[int]) -> Tensor:
    """(tokens, n_neurons), one neuron and token at a time."""
    shares = []
    for name, h in plain.activity(model, nl.Prompt(ids, [[[3]]], 0)).items():
        down = model.get_submodule(name)
        columns = (
            down.weight.detach().double() if model.config.model_type == "gpt2" else down.weight.detach().double().T
        )
        bias = 0 if getattr(down, "bias", None) is None else down.bias.detach()
        part = torch.zeros_like(h)
        for token in range(len(h)):
            output = bias + sum(h[token, j] * columns[j] for j in range(h.shape[1]))
            for j in range(h.shape[1]):
                part[token, j] = h[token, j].abs() * columns[j].square().sum().sqrt() / output.square().sum().sqrt()
        shares.append(part)
    return torch.cat(shares, -1)


def cett_of_experts(model: Any, ids: list[int]) -> Tensor:
    """The same of a mixture, whose experts write with their routing weights."""
    met: list[tuple[int, int, int, Tensor]] = []
    weights: list[Tensor] = []

    def keep(layer: int, expert: int, token: int, h: Tensor) -> Tensor:
        met.append((layer, expert, token, h.detach()))
        return h

    def weigh(weight: Tensor) -> Tensor:
        weights.append(weight.detach())
        return weight

    with torch.no_grad(), DoublePrecision(), experts_by_hand(model, keep, weigh):
        model(input_ids=torch.tensor([ids]), use_cache=False)
    config = model.config
    experts, width = config.num_local_experts, config.intermediate_size
    shares = torch.zeros(len(ids), config.num_hidden_layers, experts, width, dtype=torch.float64)
    output = torch.zeros(len(ids), config.num_hidden_layers, config.hidden_size, dtype=torch.float64)
    for (layer, expert, token, h), weight in zip(met, weights, strict=True):
        down = model.model.layers[layer].mlp.experts.down_proj[expert].detach()
        output[token, layer] += weight * (down @ h)
        for j in range(width):
            shares[token, layer, expert, j] = (weight * h[j]).abs() * down[:, j].square().sum().sqrt()
    return (shares / output.square().sum(-1).sqrt()[..., None, None]).flatten(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", ["answer", "prompt", "all", -1])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_cett_is_the_share_of_the_output(name: str, positions: Any, backend: str) -> None:
    model, prompts = tiny(name), prompts_of(3, 2)
    by_hand = cett_of_experts if name == "mixtral" else cett_of_dense
    expected = torch.stack([read(by_hand(model, ids), n, positions) for ids, n in map(tokens_of, prompts)])
    with untouched(model):
        found = nl.activations(model, None, prompts, positions=positions, activation="cett", backend=backend, **QUIET)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_cett_is_a_statistic_of_the_method_activation() -> None:
    model, prompts = tiny("llama"), quiz(3, variants=False)
    scores = nl.attribute(model, None, prompts, "activation", statistic="cett", positions="all", **QUIET)
    expected = torch.stack([cett_of_dense(model, prompt.input_ids).mean(0) for prompt in prompts]).mean(0)
    torch.testing.assert_close(scores.values, expected.float())


# ---- the statistics ----


def two_sets() -> tuple[list[nl.Prompt], list[nl.Prompt]]:
    return prompts_of(12, 3), prompts_of(9, 4)


@pytest.mark.parametrize("positions", ["answer", "all", -1])
def test_the_mean_is_a_difference_of_means(positions: Any) -> None:
    model, sides = tiny("llama"), two_sets()
    yes, no = (held_by_hand(model, side, positions).numpy() for side in sides)
    scores = nl.contrast(model, None, *sides, positions=positions, **QUIET)
    np.testing.assert_allclose(scores.values.numpy(), yes.mean(0) - no.mean(0), rtol=1e-5, atol=1e-7)
    variance = yes.var(0, ddof=1) / len(yes) + no.var(0, ddof=1) / len(no)
    np.testing.assert_allclose(scores.stderr.numpy(), np.sqrt(variance), rtol=1e-5)
    assert scores.provenance["method"] == "contrast" and scores.provenance["statistic"] == "mean"
    assert scores.provenance["positions"] == ("all" if positions == "all" else "answer")
    assert (scores.provenance["shown"], scores.provenance["not_shown"]) == (12, 9)


@pytest.mark.parametrize("activation", ["value", "cett"])
def test_t_is_welchs(activation: str) -> None:
    stats = pytest.importorskip("scipy.stats")
    model, sides = tiny("llama"), two_sets()
    if activation == "value":
        yes, no = (held_by_hand(model, side).numpy() for side in sides)
    else:
        rows = [[read(cett_of_dense(model, ids), n, "answer") for ids, n in map(tokens_of, side)] for side in sides]
        yes, no = (torch.stack(side).numpy() for side in rows)
    scores = nl.contrast(model, None, *sides, statistic="t", activation=activation, **QUIET)
    np.testing.assert_allclose(scores.values.numpy(), stats.ttest_ind(yes, no, equal_var=False).statistic, rtol=1e-5)


@pytest.mark.parametrize("C", [10.0, 300.0])
def test_the_probe_is_sklearns(C: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    model, sides = tiny("llama"), two_sets()
    values = torch.cat([held_by_hand(model, side, "all") for side in sides]).numpy()
    labels = np.array([1] * 12 + [0] * 9)
    fitted = linear_model.LogisticRegression(l1_ratio=1.0, C=C, solver="liblinear", max_iter=1000, random_state=0)
    expected = fitted.fit(values, labels).coef_[0]
    scores = nl.contrast(model, None, *sides, statistic="probe", C=C, positions="all", **QUIET)
    np.testing.assert_allclose(scores.values.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert 0 < np.count_nonzero(expected) < len(expected) // 2
    assert scores.provenance["C"] == C and scores.provenance["scikit-learn"]
    top = scores.find(good=int((expected > 0).sum()), bad=0)
    assert set(top.ids.tolist()) == set(np.flatnonzero(expected > 0).tolist())


def test_others_count_as_not_shown() -> None:
    model, sides = tiny("llama"), two_sets()
    scores = nl.contrast(model, None, *sides, others=True, **QUIET)
    yes, no = (held_by_hand(model, side) for side in sides)
    rest = torch.cat([no, *(held_by_hand(model, side, "prompt") for side in sides)])
    torch.testing.assert_close(scores.values, (yes.mean(0) - rest.mean(0)).float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("statistic", ["mean", "t"])
def test_the_method_contrast_takes_a_statistic(statistic: str) -> None:
    model, prompts = tiny("llama"), plain.questions(3, 2, 3, 2)
    right = np.array([int(plain.option_scores(plain.logits(model, p), p).argmax()) == p.answer for p in prompts])
    rows = np.stack([torch.cat([h[-1] for h in plain.activity(model, p).values()]).numpy() for p in prompts])
    yes, no = rows[right], rows[~right]
    expected = yes.mean(0) - no.mean(0)
    if statistic == "t":
        expected = expected / np.sqrt(yes.var(0, ddof=1) / len(yes) + no.var(0, ddof=1) / len(no))
    scores = nl.attribute(model, None, prompts, "contrast", positions="answer", statistic=statistic, **QUIET)
    np.testing.assert_allclose(scores.values.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    generator = np.random.default_rng(0)
    values, positive = generator.integers(0, 9, 60) / 2, generator.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in values[positive] for b in values[~positive]]
    assert auroc(values, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(values, np.ones(60, dtype=bool)))


# ---- a planted behaviour ----

CUE, REPLY, LAYER, PLANTED = 5, 7, 1, 11


def ending(token: int | None, count: int, seed: int) -> list[nl.Prompt]:
    """Prompts that end with a token, or with any other one."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(8, VOCABULARY, (count, 6), generator=generator).tolist()
    return [
        nl.Prompt([*row[:-1], token or row[-1]], [[[REPLY]], [[3]]], 0, question_id=f"{seed}.{n}")
        for n, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def planted() -> tuple[Any, int]:
    """A GPT-2 with a neuron that fires behind the cue and makes the model say the reply."""
    model = tiny("gpt2")
    mlp, seen = model.transformer.h[LAYER].mlp, []
    handle = mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1].detach()))
    with torch.no_grad():
        for block in model.transformer.h:  # so that the last token says nearly all
            block.attn.c_proj.weight *= 0.1
        model.transformer.wpe.weight *= 0.1
        for prompt in ending(CUE, 30, 1):
            model(torch.tensor([prompt.input_ids]))
        handle.remove()
        cue = torch.stack(seen).mean(0)
        mlp.c_fc.weight[:, PLANTED] = 100 * cue / cue.norm() ** 2
        mlp.c_fc.bias[PLANTED] = -80  # about 20 behind the cue
        mlp.c_proj.weight[PLANTED] = 3 * model.transformer.wte.weight[REPLY]
    return model, LAYER * 28 + PLANTED


@pytest.mark.parametrize("statistic", ["mean", "t", "probe"])
@pytest.mark.parametrize("activation", ["value", "cett"])
def test_a_planted_behaviour_is_found(planted: tuple[Any, int], statistic: str, activation: str) -> None:
    model, neuron = planted
    shown, not_shown = ending(CUE, 40, 3), ending(None, 40, 4)
    how = {"statistic": statistic, "activation": activation}
    scores = nl.contrast(model, None, shown, not_shown, **how, **QUIET)
    assert int(scores.values.argmax()) == neuron
    found = scores.find(good=1, bad=0)
    assert found.positions == "answer" and found.ids.tolist() == [neuron]

    def replies(prompts: list[nl.Prompt]) -> float:
        with torch.no_grad():
            return float(
                np.mean([int(model(torch.tensor([p.input_ids])).logits[0, -1].argmax()) == REPLY for p in prompts])
            )

    others = ending(CUE, 40, 5)
    assert replies(others) > 0.9 > 0.3 > replies(not_shown)
    with nl.edit(model, found.ids, 0.0):
        assert replies(others) < 0.3


def test_scores_are_scores(planted: tuple[Any, int], tmp_path: Any) -> None:
    model, neuron = planted
    scores = nl.contrast(model, None, ending(CUE, 20, 3), ending(None, 20, 4), **QUIET)
    scores.save(tmp_path / "scores")
    again = nl.Scores.load(tmp_path / "scores")
    assert torch.equal(again.values, scores.values) and again.provenance == scores.provenance
    neurons = again.find(good=3, bad=3)
    with pytest.warns(UserWarning):  # few controls
        report = nl.evaluate(model, None, ending(CUE, 20, 6), neurons, "degrade", controls=2, progress=False)
    assert report.base["accuracy"] == 1.0 > report.accuracy
    learned = nl.learn(
        model,
        None,
        ending(CUE, 24, 7),
        neurons=neurons,
        goal="degrade",
        steps=1,
        seeds=1,
        retain_weight=0.0,
        margin=None,
        progress=False,
    )
    assert len(learned) == 6 and neuron in learned.ids.tolist()


# ---- what scores nothing ----


def test_neurons_to_ignore(planted: tuple[Any, int]) -> None:
    model, neuron = planted
    sides = ending(CUE, 20, 3), ending(None, 20, 4)
    plainly = nl.contrast(model, None, *sides, **QUIET)
    few = plainly.find(good=2, bad=1)
    for ignore in (few, few.ids, few.ids.numpy(), few.ids.tolist()):
        scores = nl.contrast(model, None, *sides, ignore=ignore, **QUIET)
        assert neuron in few.ids.tolist() and not scores.values[few.ids].any()
        rest = torch.ones(len(scores.values), dtype=torch.bool).index_fill(0, few.ids, False)
        assert torch.equal(scores.values[rest], plainly.values[rest]) and scores.provenance["ignored"] == 3
    probe = nl.contrast(model, None, *sides, statistic="probe", ignore=few, C=10.0, **QUIET)
    assert not probe.values[few.ids].any() and probe.values.any()


@pytest.mark.parametrize(("often", "expected"), [(5, [39]), (4, [])])
def test_frequent_neurons_of_other_prompts_are_ignored(
    planted: tuple[Any, int], often: int, expected: list[int]
) -> None:
    """One neuron of 56 is 1 %: the planted one, wherever its cue is."""
    model, _ = planted
    other = ending(CUE, often, 8) + ending(None, 9 - often, 9)
    strongest = held_by_hand(model, other).abs().argmax(-1).tolist()
    assert [n for n in set(strongest) if 2 * strongest.count(n) >= 9] == expected
    scores = nl.contrast(model, None, *two_sets(), ignore=other, **QUIET)
    assert (scores.values == 0).nonzero()[:, 0].tolist() == expected
    assert scores.provenance["ignored"] == len(expected)
