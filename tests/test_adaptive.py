"""Integrals to a tolerance: against very fine rules, against the judge, and what a prompt's points depend on."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import neuronllm as nl
from neuronllm.attribution import driver
from neuronllm.engine.adaptive import BOOLE, ERROR, FINEST, Interval, Refined, alphas_of, attainable
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.quadrature import TOLERANCES, quadrature
from neuronllm.engine.reference import ReferenceEngine
from tests.checks import bad, quiz
from tests.test_fast import differences, ragged
from tests.texts import mixed_prompts
from tests.tiny import tiny

SMOOTH = ("llama", "gpt2")


def by_intervals(slope, tolerance: float, layers: int = 1) -> tuple[list[float], Refined]:
    """The integrals of scalar slopes, layer by layer, as an engine does them."""
    refined = Refined(layers, tolerance)

    def total(layer: int, weights: dict[int, float]) -> float:
        return sum(
            w * slope(layer, a) for a, w in zip(alphas_of(list(weights)).tolist(), weights.values(), strict=True)
        )

    waiting = refined.first()
    while waiting:
        for layer, interval in waiting:
            refined.errors[layer, interval] = abs(total(layer, interval.weights(ERROR)))
        for layer in dict(waiting):
            refined.norms[layer] = abs(total(layer, refined.weights(layer)))
        waiting = refined.split()
    return [total(layer, refined.weights(layer)) for layer in range(layers)], refined


# ---- the rule ----


@pytest.mark.parametrize("power", [0, 1, 2])
def test_what_is_of_low_degree_takes_four_points(power):
    (found,), refined = by_intervals(lambda _, a: (power + 1) * a**power, 10.0)
    assert found == pytest.approx(1, abs=1e-12) and refined.points == 4  # t ** (2 power + 1) is of degree 5 at most


def test_a_peak_takes_points_where_it_is_and_nowhere_else():
    width = 0.02

    def peak(layer: int, a: float) -> float:
        return 1.0 if layer else 1 / (1 + ((a - 0.37) / width) ** 2)

    truth = width * (math.atan((1 - 0.37) / width) + math.atan(0.37 / width))
    (found, flat), refined = by_intervals(peak, 1e-5, layers=2)
    assert flat == pytest.approx(1) and found == pytest.approx(truth, abs=1e-5)
    points = sorted(alphas_of(list(refined.weights(0))).tolist())
    near = [a for a in points if abs(a - 0.37) < 0.05]
    assert len(refined.weights(1)) == 4 and len(near) > len(points) / 3  # in a tenth of the way


def test_halves_use_the_points_of_the_whole_again():
    whole = Interval()
    for half in whole.halves:
        assert len(set(half.points) & set(whole.points)) == 3
        assert sum(half.weights(ERROR).values()) == pytest.approx(0, abs=1e-3)
    (left, right), narrow = whole.halves, Interval(0, 4)
    assert left.points[-1] == right.points[0] == FINEST // 2 and narrow.points == (0, 1, 2, 3, 4)
    assert sum(left.weights(BOOLE).values()) + sum(right.weights(BOOLE).values()) == pytest.approx(1)


def test_only_what_matters_is_split():
    """Two layers, of which one is a thousandth of the other: its errors are within the tolerance of both."""
    _, refined = by_intervals(lambda layer, a: math.sin(40 * a) * (1 if layer else 1e-3) + 1, 1e-4, layers=2)
    assert len(refined.weights(1)) > 4 * len(refined.weights(0)) and refined.error <= 1e-4


def test_a_jump_ends():
    (found,), refined = by_intervals(lambda _, a: float(a > 1 / 3), 1e-9)
    assert found == pytest.approx(2 / 3, abs=1e-3) and refined.error > 1e-9  # and says so


# ---- on models ----


@pytest.mark.parametrize("name", SMOOTH)
def test_scores_are_within_the_tolerance(name):
    model, prompts = tiny(name), [*ragged(), *quiz(3)]
    with FastEngine(model) as fast:
        assert fast.unusable(prompts) is None
        truth = fast.integrate(prompts, "logp_options", *quadrature("gauss", 64))
        for tolerance in TOLERANCES.values():
            found = fast.integrate_to(prompts, "logp_options", tolerance)
            off = (found - truth).norm(dim=1) / truth.norm(dim=1)
            assert 0 < float(off.max()) <= tolerance
        assert fast.plan.integrals == 2 * len(prompts) and fast.plan.error <= max(TOLERANCES.values())
        assert 4 <= fast.plan.points / fast.plan.integrals <= 16


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
@pytest.mark.parametrize("name", ["llama", "mixtral", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_fast_equals_the_judge_with_the_same_points(name, tolerance):
    model, prompts = tiny(name), mixed_prompts()[:3]
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        found = fast.integrate_to(prompts, "logp_options", tolerance)
        assert differences(found, judge.integrate_to(prompts, "logp_options", tolerance)) <= 1e-9
        assert fast.plan.points == judge.plan.points > 4 * len(prompts)


def test_a_prompts_points_are_its_own():
    model, prompts = tiny("llama"), ragged()
    points = []
    with FastEngine(model) as together:
        every = together.integrate_to(prompts, "logp_options", 1e-5)
    for prompt, row in zip(prompts, every, strict=True):
        with FastEngine(model) as alone:
            assert differences(alone.integrate_to([prompt], "logp_options", 1e-5), row[None]) <= 1e-12
            points.append(alone.plan.points)
    assert len(set(points)) > 1 and together.plan.points == pytest.approx(sum(points))


def test_rounding_bounds_the_tolerance():
    assert attainable(1e-2, torch.float32) == 1e-2 and attainable(1e-2, torch.bfloat16) == 4 * 2**-7


# ---- the method ----


def test_ace_says_how_sure_its_integrals_are():
    model, prompts = tiny("llama"), quiz(2)
    scores = nl.attribute(model, None, prompts, "ace", progress=False)
    told = scores.provenance["integral"]
    assert 0 < told["error"] <= 0.01 and 4 <= told["points"] <= 16
    equal = nl.attribute(model, None, prompts, "ace", progress=False, steps=64, quadrature="gauss")
    assert "integral" not in equal.provenance
    assert float((scores.values - equal.values).norm()) <= 0.01 * float(equal.values.norm())
    steps, midpoint = (
        nl.attribute(model, None, prompts, "ace", progress=False, **how).values
        for how in ({"steps": 8}, {"steps": 8, "quadrature": "midpoint"})
    )
    assert torch.equal(steps, midpoint)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path, monkeypatch):
    model, prompts = tiny("llama", torch.float32), quiz(9)
    how = {"progress": False, "batch_size": 2}
    nl.attribute(model, None, prompts, "ace", output=tmp_path / "whole", **how)
    calls, score = [], driver.raw_scores

    def stopping(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(driver, "raw_scores", stopping)
        nl.attribute(model, None, prompts, "ace", output=tmp_path / "stopped", **how)
    nl.attribute(model, None, prompts, "ace", output=tmp_path / "stopped", resume=True, **how)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert whole == {path.name: path.read_bytes() for path in (tmp_path / "stopped").iterdir()}


def test_a_warning_where_no_number_of_points_is_enough(monkeypatch):
    model, prompts = tiny("llama"), quiz(2)
    for doubtful, expected in ((0.05, 0), (0.0, 1)):
        monkeypatch.setattr(driver, "DOUBTFUL", doubtful)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            nl.attribute(model, None, prompts, "ace", progress=False)
        told = [w for w in seen if "off by an estimated" in str(w.message)]
        assert len(told) == expected and all(w.filename == __file__ for w in told)


def test_a_provenance_says_which_rule_ran():
    model, prompts = tiny("llama"), quiz(1)
    for asked, ran in (
        ({}, ("adaptive", None)),
        ({"quadrature": "fast"}, ("fast", None)),
        ({"steps": 3}, ("midpoint", 3)),
        ({"quadrature": "right"}, ("right", 16)),
    ):
        options = nl.attribute(model, None, prompts, "ace", progress=False, **asked).provenance["options"]
        assert (options["quadrature"], options["steps"]) == ran


def test_unknown_rules_are_refused():
    refusal = "quadrature='simpson': known rules are adaptive, fast, right, midpoint, endpoints, gauss"
    for method in ("ace", "qrnca", "knowledge"):
        assert bad(lambda method=method: nl.methods.get_method(method, {"quadrature": "simpson"})) == refusal
    for method in ("ace", "qrnca", "knowledge"):
        both = {"steps": 8, "quadrature": "fast"}
        said = bad(lambda method=method, both=both: nl.methods.get_method(method, both))
        assert said == "steps=8: quadrature='fast' takes as many points as it needs; leave it out"
        assert nl.methods.get_method(method, {"quadrature": "adaptive"}).steps is None
    assert "from 1 to 10,000" in bad(lambda: nl.methods.get_method("ace", {"steps": 10**6}))
