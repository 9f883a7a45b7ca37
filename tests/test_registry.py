"""Methods by name: what each one takes, what it refuses, and how a user adds one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import neuronllm as nl
from neuronllm import methods, objectives
from neuronllm.common.errors import InputError
from neuronllm.methods import METHODS, Method, get_method, register
from tests import plain
from tests.checks import refused
from tests.tiny import DENSE, POST_NORMED, tiny

EVERYWHERE = {"gradient", "neurgrad", "relp", "exact", "activation", "contrast", "random"}
ANSWER_ONLY = {"ace", "qrnca", "knowledge", "logprob"}
INTEGRATED = {"ace", "qrnca", "knowledge"}
NO_OBJECTIVE = {"activation", "contrast", "random"}


@pytest.fixture(scope="module")
def llama():
    return tiny("llama", torch.float32)


def attributed(model, method: str, prompts=None, **options) -> nl.Scores:
    if method in INTEGRATED:
        options = {"steps": 2, **options}
    options = {"positions": "answer", "progress": False, **options}
    return nl.attribute(model, None, prompts or plain.questions(2, 2), method, **options)


def test_the_table_of_methods_is_complete():
    assert set(METHODS) == EVERYWHERE | ANSWER_ONLY


def test_one_file_a_method_named_after_it():
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert files == set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name and method.__module__ == f"neuronllm.methods.{name}"
        assert method.__name__.lower() == name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.filterwarnings("ignore:.*normalises what its FFNs put out")
def test_every_method_scores_every_neuron(family, method):
    model, prompts = tiny(family, torch.float32), plain.questions(3, 2, 3, 2, 4, 4)
    for positions in ("answer", "all") if method in EVERYWHERE else ("answer",):
        scores = attributed(model, method, prompts, positions=positions, keep="all")
        assert scores.values.shape == (56,) and scores.values.dtype == torch.float32
        assert scores.values.isfinite().all() and scores.stderr.isfinite().all()
        assert scores.per_prompt.shape == (18, 56) and scores.per_prompt.abs().max() > 0
        assert (scores.values > 0).any()
        assert (scores.values < 0).any() == (method != "knowledge")  # which knows no bad neurons
        assert scores.provenance["method"] == method and scores.provenance["positions"] == positions


@pytest.mark.parametrize("method", sorted(METHODS))
def test_positions_that_a_method_cannot_take_are_refused(llama, method):
    wrong = ["last", 3] if method in EVERYWHERE else ["last", 3, "all"]
    for positions in wrong:
        with pytest.raises(InputError) as error:
            attributed(llama, method, positions=positions)
        takes = "'answer' or 'all'" if method in EVERYWHERE else "'answer'"
        assert str(error.value) == f"positions={positions!r}: method {method!r} takes {takes}"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_objectives(llama, method):
    if method in NO_OBJECTIVE:
        with pytest.raises(InputError, match="explains no objective, leave it out"):
            attributed(llama, method, objective="margin")
        return
    scores, other = attributed(llama, method), attributed(llama, method, objective="margin")
    assert scores.provenance["objective"] == (
        "p_vocab" if method in {"qrnca", "knowledge", "neurgrad"} else "logp_options"
    )
    assert other.provenance["objective"] == "margin" and not torch.equal(scores.values, other.values)
    with pytest.raises(
        InputError, match="known objectives are logp_options, p_options, margin, mean_margin, logp_vocab"
    ):
        attributed(llama, method, objective="nll")


# ---- options ---------------------------------------------------------------------------------------------------------


def test_an_unknown_method_lists_the_known_ones(llama):
    with pytest.raises(InputError, match="method='lime': known methods are ace, qrnca, .*, random"):
        attributed(llama, "lime")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_unknown_option_lists_the_known_ones(llama, method):
    options = METHODS[method].options()
    known = f"its options are {', '.join(options)}" if options else "it has no options"
    with pytest.raises(InputError) as error:
        attributed(llama, method, step=3)
    assert str(error.value) == f"method {method!r} has no option 'step': {known}"


DEFAULTS = {
    "ace": {"steps": None, "quadrature": "adaptive", "mask": "consistent"},
    "qrnca": {"steps": 16, "quadrature": "right", "threshold": 0.2, "common": 0.3, "compat": None},
    "knowledge": {"steps": 20, "threshold": 0.3, "share": 0.5},
    "exact": {"factor": 0.0},
}


def test_documented_defaults():
    for method, options in DEFAULTS.items():
        assert {name: getattr(get_method(method), name) for name in options} == options
    assert METHODS["qrnca"].template == ("default", "plain", "brief") and METHODS["qrnca"].orders == "none"
    assert METHODS["ace"].orders == METHODS["gradient"].orders == METHODS["exact"].orders == "rotate"


BAD_OPTIONS = [
    ("ace", {"steps": 0}, "steps=0"),
    ("ace", {"steps": 2.5}, "steps=2.5"),
    ("ace", {"steps": True}, "steps=True"),
    ("ace", {"steps": "16"}, "steps='16'"),
    (
        "ace",
        {"quadrature": "simpson"},
        "quadrature='simpson': known rules are adaptive, fast, right, ",
    ),
    ("ace", {"mask": "soft"}, "mask='soft': known values are consistent, ambiguous, none"),
    ("ace", {"tau": 1.5}, "tau=1.5: give a number between 0 and 1"),
    ("ace", {"tau": "high"}, "tau='high'"),
    ("ace", {"tau": float("nan")}, "tau=nan"),
    ("ace", {"z": -1}, "z=-1"),
    ("qrnca", {"steps": -3}, "steps=-3"),
    ("qrnca", {"threshold": 2}, "threshold=2"),
    ("qrnca", {"common": -0.1}, "common=-0.1"),
    ("qrnca", {"compat": "paper"}, "compat='paper': known values are released-code"),
    ("qrnca", {"compat": "released-code", "quadrature": "gauss"}, "quadrature='gauss'"),
    ("knowledge", {"threshold": None}, "threshold=None"),
    ("knowledge", {"share": 1.1}, "share=1.1"),
    ("knowledge", {"quadrature": 3}, "quadrature=3"),
    ("exact", {"factor": float("inf")}, "factor=inf"),
    ("exact", {"factor": True}, "factor=True"),
    ("relp", {"attention": "dead"}, "attention='dead': known values are live, detached"),
    ("activation", {"statistic": "max"}, "statistic='max': known values are value, frequency"),
    ("random", {"seed": -1}, "seed=-1"),
    ("random", {"seed": 1.5}, "seed=1.5"),
]


@pytest.mark.parametrize("method, options, words", BAD_OPTIONS, ids=[f"{m}-{w}" for m, _, w in BAD_OPTIONS])
def test_bad_options_are_refused_by_name(method, options, words):
    with pytest.raises(InputError) as error:
        get_method(method, options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_released_code_explains_the_bare_letter_only(llama):
    with pytest.raises(InputError, match="objective='margin': compat=\"released-code\""):
        attributed(llama, "qrnca", compat="released-code", objective="margin")
    default, named = (
        attributed(llama, "qrnca", compat="released-code", **o) for o in ({}, {"objective": "p_vocab_bare"})
    )
    assert torch.equal(default.values, named.values)
    options = {"compat": "released-code", "quadrature": "endpoints"}
    assert torch.equal(default.values, attributed(llama, "qrnca", **options).values)


# ---- warnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DENSE)
def test_integrated_gradients_warn_behind_norms_of_the_ffn_output(family):
    model, prompts = tiny(family, torch.float32), plain.questions(1)
    for method in sorted(INTEGRATED) if family in POST_NORMED else ["ace"]:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            attributed(model, method, prompts, steps=1)
        told = [str(warning.message) for warning in seen if "normalises" in str(warning.message)]
        assert len(told) == (family in POST_NORMED)
        assert all('use method="gradient" or "exact"' in text and f"({method})" in text for text in told)


@pytest.mark.parametrize("family", sorted(POST_NORMED))
@pytest.mark.parametrize("method", sorted(ANSWER_ONLY - INTEGRATED | {"gradient", "neurgrad", "relp", "activation"}))
def test_other_methods_do_not_warn(family, method):
    model = tiny(family, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = attributed(model, method, plain.questions(1, 1))
    assert scores.values.abs().max() > 0


# ---- a method of one's own -------------------------------------------------------------------------------------------


@pytest.fixture
def own_method():
    before = dict(METHODS)

    @register
    @dataclass(frozen=True)
    class Energy(Method):
        """|h| to a power."""

        name: ClassVar[str] = "energy"
        positions: ClassVar[tuple[str, ...]] = ("answer", "all")
        objective: ClassVar[None] = None
        power: float = 2.0

        def score(self, engine, prompts: Sequence[nl.Prompt], objective: str, positions: str) -> torch.Tensor:
            return engine.activations(prompts, positions).abs() ** self.power

    yield Energy
    METHODS.clear()
    METHODS.update(before)


def test_a_users_own_method(llama, own_method, tmp_path):
    prompts = plain.questions(2, 1)
    plain_h = attributed(llama, "activation", prompts, keep="all")
    scores = attributed(llama, "energy", prompts, power=3.0)
    cubed = plain_h.per_prompt.abs() ** 3
    assert torch.allclose(scores.values, (cubed[:2].mean(0) + cubed[2]) / 2, rtol=1e-5)
    assert scores.provenance["method"] == "energy" and scores.provenance["options"] == {"power": 3.0}
    scores.save(tmp_path / "scores")
    assert torch.equal(nl.Scores.load(tmp_path / "scores").values, scores.values)
    with pytest.raises(InputError, match="its options are power"):
        attributed(llama, "energy", strength=1)
    with pytest.raises(InputError, match="method 'energy' explains no objective"):
        attributed(llama, "energy", objective="margin")


def test_a_method_that_is_not_registered_is_unknown(llama):
    assert "energy" not in METHODS
    with pytest.raises(InputError, match="method='energy'"):
        attributed(llama, "energy")


def test_methods_are_taken_by_name_as_classes_and_as_they_are() -> None:
    made = get_method("ace", {"steps": 8})
    assert get_method(METHODS["ace"], {"steps": 8}) == made and get_method(made) is made


def test_names_of_ours_are_not_replaced_and_names_are_needed() -> None:
    class Nameless(Method):
        def score(self, engine, prompts, objective, positions):
            raise AssertionError

    class Gradient(Nameless):
        name = "gradient"

    with refused("method 'gradient' is one of ours"):
        register(Gradient)
    with refused("method: give it a name"):
        register(Nameless)
    with refused("derives from Method"):
        register(METHODS["ace"]())
    with refused("objective 'margin' is one of ours"):
        objectives.register(objectives.Objective("margin", lambda read: read.options.sum(-1)))
    assert METHODS["gradient"].__module__ == "neuronllm.methods.gradient"
