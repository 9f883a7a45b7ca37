"""Neuron sets: algebra, subsets, factors, files, and the import of QRNCA's key neurons."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import neuronllm as nl
from neuronllm.common.errors import InputError
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.edit import edit
from neuronllm.results.neurons import NeuronSet
from tests.checks import refused, untouched
from tests.tiny import VOCABULARY, tiny


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


def make(owner, good=(), bad=(), **provenance) -> NeuronSet:
    """A set whose scores are 10, 9, ... for good and -10, -9, ... for bad ones."""
    score = [10.0 - n for n in range(len(good))] + [n - 10.0 for n in range(len(bad))]
    role = np.array(["good"] * len(good) + ["bad"] * len(bad), dtype="<U4")
    ids = torch.tensor([*good, *bad], dtype=torch.int64)
    return NeuronSet(ids, role, torch.tensor(score), Anatomy.of(owner), provenance)


def pairs(neurons: NeuronSet) -> list[tuple[int, str]]:
    return list(zip(neurons.ids.tolist(), neurons.role.tolist(), strict=True))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 14)[None] % VOCABULARY).logits


# ---- algebra ----


@pytest.mark.noext
def test_algebra(model):
    left, right = make(model, good=[1, 2, 3], bad=[30, 31]), make(model, good=[3, 30, 4], bad=[2, 31, 32])
    assert pairs(left | right) == [
        (1, "good"),
        (2, "good"),
        (3, "good"),
        (30, "bad"),
        (31, "bad"),
        (4, "good"),
        (32, "bad"),
    ]
    assert pairs(left & right) == [(3, "good"), (31, "bad")]  # 2 and 30 are in both, in other roles
    assert pairs(left - right) == [(1, "good")]  # whatever the role there
    assert pairs(right - left) == [(4, "good"), (32, "bad")]
    assert dict(zip((left | right).ids.tolist(), (left | right).score.tolist(), strict=True))[3] == 8.0  # the left's
    assert dict(zip((right | left).ids.tolist(), (right | left).score.tolist(), strict=True))[3] == 10.0


def test_algebra_with_nothing_and_with_itself(model):
    some, none = make(model, good=[1, 2], bad=[30]), make(model)
    for result in (some | none, none | some, some - none, some & some, some | some):
        assert pairs(result) == pairs(some)
    for result in (some - some, some & none, none & some, none | none):
        assert len(result) == 0


def test_unions_remember_both_origins(model):
    union = make(model, good=[1], method="ace") | make(model, bad=[2], method="exact")
    assert union.provenance == {"union": [{"method": "ace"}, {"method": "exact"}]}


def test_sets_of_other_models_do_not_mix(model):
    other = tiny("llama", intermediate_size=20)
    for operation in ("__or__", "__and__", "__sub__"):
        with refused("different models", "28", "20"):
            getattr(make(model, [1]), operation)(make(other, [1]))
    with refused("28", "20"), make(model, [1]).enhance(other):
        pytest.fail("the body ran")
    same = tiny("opt")  # other modules, the same numbering
    assert len(make(model, [1]) | make(same, [2])) == 2


# ---- parts of a set ----


def test_top_and_take(model):
    neurons = make(model, good=[5, 1, 9], bad=[40, 20])
    assert pairs(neurons.top(2, 1)) == [(5, "good"), (1, "good"), (40, "bad")]
    assert pairs(neurons.top(good=1)) == [(5, "good"), (40, "bad"), (20, "bad")]
    assert pairs(neurons.top(0, 0)) == [] and pairs(neurons.top(99, 99)) == pairs(neurons)
    assert pairs(neurons.take(neurons.layer == 1)) == [(40, "bad")]
    assert pairs(neurons.take([4, 0])) == [(20, "bad"), (5, "good")]
    assert neurons.take([4, 0]).score.tolist() == [-9.0, 10.0]
    assert pairs(neurons.take([])) == [] and pairs(neurons.take(np.array([False] * 5))) == []
    for bad in ({"good": -1}, {"bad": 0.5}):
        with refused(next(iter(bad))):
            neurons.top(**bad)
    assert neurons.take([4]).anatomy is neurons.anatomy


def test_addresses(model):
    neurons = make(model, good=[5, 28], bad=[55])
    assert neurons.layer.tolist() == [0, 1, 1] and neurons.index.tolist() == [5, 0, 27]
    assert neurons.expert.tolist() == [-1] * 3 and len(neurons) == 3


@pytest.mark.parametrize(
    ("ids", "role", "score", "parts"),
    [
        ([1, 1], ["good", "bad"], [1.0, 2.0], ["named twice"]),
        ([1, 2], ["good"], [1.0, 2.0], ["differ in length", "2, 1, 2"]),
        ([1], ["fine"], [1.0], ["good, bad"]),
        ([56], ["good"], [1.0], ["0..55"]),
        ([-1], ["good"], [1.0], ["0..55"]),
    ],
)
def test_nonsense_is_refused(model, ids, role, score, parts):
    with refused(*parts):
        NeuronSet(torch.tensor(ids), np.array(role), torch.tensor(score), Anatomy.of(model))


# ---- positions ----


def test_a_set_says_where_it_is_lived_with(model):
    """Tuning is later than learning, and that later than finding; a union says it only where both halves agree."""
    found, tuned = {"positions": "answer"}, {"positions": "all", "good": 1.0, "bad": 0.0}
    for provenance, expected in (
        ({}, None),
        ({"positions": None}, None),
        ({"positions": "last"}, None),
        (found, "answer"),
        ({"positions": "all"}, "all"),
        (found | {"verified": {"positions": "all"}}, "all"),
        (found | {"learned": {"positions": "all"}}, "all"),
        (found | {"tuned": tuned}, "all"),
        (found | {"learned": found, "tuned": tuned}, "all"),
    ):
        assert make(model, [1], **provenance).positions == expected
    answer, everywhere, unsaid = make(model, [1], **found), make(model, [2], positions="all"), make(model, [3])
    assert (answer | make(model, [4], **found)).positions == "answer"
    assert ((everywhere | make(model, [4], positions="all")) | everywhere).positions == "all"
    assert (answer | everywhere).positions is (answer | unsaid).positions is None
    assert answer.top(1).positions == (answer - everywhere).positions == "answer"


def test_live_edits_are_where_the_set_was_found(model):
    def asked(neurons, **keywords):
        with neurons.apply(model, good=3.0, **keywords):
            return logits(model)

    everywhere, unsaid, answer = (make(model, [1, 40], positions=p) for p in ("all", None, "answer"))
    assert torch.equal(asked(everywhere), asked(unsaid)) and torch.equal(asked(answer, positions="all"), asked(unsaid))
    assert torch.equal(asked(unsaid, positions="answer", answer_start=4), asked(answer, answer_start=4))
    assert not torch.equal(asked(answer, answer_start=4), asked(everywhere))
    for steer in (answer.enhance, answer.degrade):
        with steer(model), refused("answer_start="):
            logits(model)
        with steer(model, positions="all"):
            logits(model)
        with steer(model, answer_start=4):
            logits(model)
    with refused("answer_start"), everywhere.enhance(model, answer_start=4):
        pytest.fail("the body ran")


# ---- factors ----


def test_factors_by_default_by_mode_and_by_hand(model):
    neurons = make(model, good=[1], bad=[2])
    assert neurons.steering("enhance") == ("enhance", 2.0, 0.0, ())
    assert neurons.steering("degrade") == ("degrade", 0.0, 2.0, ())
    assert neurons.steering("enhance", good=4.0) == ("enhance", 4.0, 0.0, ())
    assert neurons.steering("degrade", bad=0.0) == ("degrade", 0.0, 0.0, ())  # 0 is a factor, not a missing one
    assert neurons.steering(None, bad=0.5) == (None, None, 0.5, ())
    with refused("mode='boost'", "enhance, degrade, own, tuned"):
        neurons.steering("boost")
    for arguments in ((None,), ("tuned",)):
        with refused("nl.tune", "with_factors"):
            neurons.steering(*arguments)
    with refused('mode="own"', "with_factors"):
        neurons.steering("own")
    tuned = make(model, good=[1], bad=[2], tuned={"good": 1.5, "bad": 0.25, "positions": "answer"})
    assert tuned.steering() == tuned.steering("tuned") == ("tuned", 1.5, 0.25, ())
    assert tuned.steering("tuned", bad=0.0) == ("tuned", 1.5, 0.0, ())
    assert tuned.steering("enhance") == ("enhance", 2.0, 0.0, ())


def test_steering_edits_what_it_says(model):
    neurons = make(model, good=[1, 40], bad=[2])
    cases = [
        (neurons.enhance(model), [2.0, 2.0, 0.0]),
        (neurons.degrade(model), [0.0, 0.0, 2.0]),
        (neurons.enhance(model, good=3.0), [3.0, 3.0, 0.0]),
        (neurons.apply(model, bad=0.5), [1.0, 1.0, 0.5]),
        (neurons.apply(model, good=0.0), [0.0, 0.0, 1.0]),
        (neurons.apply(model, 1.5, 0.25), [1.5, 1.5, 0.25]),
    ]
    with untouched(model):
        for context, factors in cases:
            with context:
                steered = logits(model)
            with edit(model, [1, 40, 2], factors):
                assert torch.equal(logits(model), steered)
        with neurons.degrade(model, positions=-1):
            last = logits(model)
        with edit(model, [1, 40, 2], [0.0, 0.0, 2.0], positions=-1):
            assert torch.equal(logits(model), last)


def test_apply_takes_the_tuned_factors_and_positions(model):
    tuned = {"good": 1.5, "bad": 0.25, "positions": "all"}
    neurons = make(model, good=[1, 40], bad=[2], tuned=tuned)
    with neurons.apply(model):
        steered = logits(model)
    with edit(model, [1, 40, 2], [1.5, 1.5, 0.25]):
        assert torch.equal(logits(model), steered)
    answer = make(model, good=[1], tuned=tuned | {"positions": "answer"})
    with answer.apply(model), refused("answer_start="):
        logits(model)
    with answer.apply(model, answer_start=10):
        begun = logits(model)
    with edit(model, [1], 1.5, positions=slice(10, None)):
        assert torch.equal(logits(model), begun)
    with answer.apply(model, positions=-1):
        last = logits(model)
    with edit(model, [1], 1.5, positions=-1):
        assert torch.equal(logits(model), last)
    with refused("nl.tune"), make(model, good=[1]).apply(model):
        pytest.fail("nothing says how hard to steer")


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_factors_that_are_no_numbers(model, factor):
    with untouched(model), refused("finite"), make(model, good=[1]).apply(model, good=factor):
        pytest.fail("the body ran")


# ---- files ----


@pytest.mark.noext
def test_what_is_saved_is_loaded(model, tmp_path):
    tuned = {"good": 1.5, "bad": 0.25, "positions": "all", "curve": [{"k_good": 1, "accuracy": 0.5}]}
    neurons = make(model, good=[5, 1, 33], bad=[40, 0], method="ace", model="some/model", tuned=tuned)
    neurons.save_pretrained(tmp_path / "my-neurons")
    again = NeuronSet.from_pretrained(tmp_path / "my-neurons")
    assert pairs(again) == pairs(neurons) and torch.equal(again.score, neurons.score)
    assert again.provenance == neurons.provenance and again.tuned == tuned and again.anatomy == neurons.anatomy
    assert sorted(os.listdir(tmp_path / "my-neurons")) == ["README.md", "neuron_config.json", "neurons.safetensors"]
    card = (tmp_path / "my-neurons" / "README.md").read_text()
    assert "# my-neurons" in card and "3 good and 2 bad" in card and "method: ace" in card and "some/model" in card
    addresses = load_file(tmp_path / "my-neurons" / "neurons.safetensors")
    assert addresses["layer"].tolist() == [0, 0, 1, 1, 0] and addresses["index"].tolist() == [5, 1, 5, 12, 0]
    make(model).save_pretrained(tmp_path / "none")
    assert len(NeuronSet.from_pretrained(tmp_path / "none")) == 0


@pytest.mark.parametrize("how", ["json", "tensors", "missing tensor", "other json", "outside"])
def test_broken_sets_are_one_line(model, tmp_path, how):
    folder = tmp_path / "set"
    make(model, good=[5, 1]).save_pretrained(folder)
    tensors = load_file(folder / "neurons.safetensors")
    if how == "json":
        (folder / "neuron_config.json").write_text("{")
    elif how == "other json":
        (folder / "neuron_config.json").write_text("{}")
    elif how == "tensors":
        (folder / "neurons.safetensors").write_bytes(b"nothing")
    elif how == "missing tensor":
        save_file({"layer": tensors["layer"]}, folder / "neurons.safetensors")
    else:
        save_file({**tensors, "index": tensors["index"] + 100}, folder / "neurons.safetensors")
    with refused("not in this model" if how == "outside" else str(folder)):
        NeuronSet.from_pretrained(folder)


# ---- QRNCA's files ----


def qrnca_file(tmp_path, *rows, blank: int = 0) -> str:
    path = tmp_path / "key_neurons.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n" * blank + "\n".join(lines) + "\n")
    return path


def test_qrnca_files_are_summed_and_ranked(model, tmp_path):
    path = qrnca_file(
        tmp_path,
        {"neurons": [[0, 3], [1, 4]], "scores": [0.5, 1.0]},
        {"common_neuron": [[0, 9]]},
        {"neurons": [[0, 3], [1, 27]], "scores": [0.75, 0.25]},
        {"neurons": [], "scores": []},
    )
    neurons = NeuronSet.from_qrnca(path, model)
    assert pairs(neurons) == [(3, "good"), (28 + 4, "good"), (28 + 27, "good")]
    assert neurons.score.tolist() == [1.25, 1.0, 0.25]
    assert neurons.provenance == {"method": "qrnca", "source": "key_neurons.jsonl"}
    with neurons.enhance(model):
        logits(model)


GOOD = {"neurons": [[0, 3]], "scores": [0.5]}


@pytest.mark.parametrize(
    "row",
    [
        "{broken",
        {"neurons": [[0, 3]]},
        {"neurons": [[0, 3]], "scores": [0.5, 0.6]},
        {"neurons": [3], "scores": [0.5]},
        {"neurons": [[0, 3]], "scores": ["high"]},
        {"neurons": [[0, 3]], "scores": None},
        {"neurons": [[2, 0]], "scores": [0.5]},
        {"neurons": [[0, 28]], "scores": [0.5]},
        {"neurons": [[0, 1.5]], "scores": [0.5]},
        [1, 2],
        7,
    ],
)
def test_a_bad_line_of_qrnca_is_named_as_an_editor_counts(model, tmp_path, row):
    path = qrnca_file(tmp_path, GOOD, "", row, GOOD, blank=1)
    with refused(f"{path}:4"):
        NeuronSet.from_qrnca(path, model)


def test_a_missing_or_binary_qrnca_file(model, tmp_path):
    with refused("nowhere.jsonl", "no such file"):
        NeuronSet.from_qrnca(tmp_path / "nowhere.jsonl", model)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with refused(str(binary), "UTF-8"):
        NeuronSet.from_qrnca(binary, model)
    assert issubclass(InputError, ValueError)


def test_a_set_combines_with_sets_only():
    neurons = NeuronSet(torch.tensor([1]), np.array(["good"]), torch.ones(1), Anatomy.of(tiny("llama")))
    for combine in (lambda: neurons | 3, lambda: neurons & [1], lambda: neurons - None):
        with refused("another neuron set only"):
            combine()


def test_a_set_of_another_family_of_the_same_shape_is_remarked_on(model):
    other = tiny("mistral")
    neurons = make(model, good=[1])
    assert Anatomy.of(other).same_layout(Anatomy.of(model))
    remark = pytest.warns(UserWarning, match="found on a llama, this is a mistral of the same shape")
    with remark, untouched(other), neurons.degrade(other):
        pass


def test_apply_takes_a_mode_by_name(model):
    neurons = make(model, good=[1], bad=[2])
    with neurons.degrade(model):
        right = logits(model)
    with neurons.apply(model, mode="degrade"):
        assert torch.equal(logits(model), right)


def test_an_empty_set_is_remarked_on(model):
    empty = make(model, good=[1]).take([])
    with pytest.warns(UserWarning, match="the neuron set is empty"), empty.degrade(model):
        pass
    with pytest.warns(UserWarning, match="the neuron set is empty"):
        nl.bake(model, empty, mode="degrade").undo()
