"""The recipes of CONTRIBUTING.md, followed from outside the package: a template, a selection back end, an exporter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import neuronllm as nl
from neuronllm import select
from neuronllm.common.files import check_new_file, write_json
from neuronllm.data import templates
from neuronllm.select import Extremes, RowExtremes, extremes, extremes_rows
from tests.checks import quiz, refused
from tests.selection import DISTRIBUTIONS, draw
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

# ---- a template ----


@pytest.fixture
def terse(monkeypatch):
    monkeypatch.setattr(templates, "TEMPLATES", dict(templates.TEMPLATES))
    templates.register("terse", "{question}\n{options}\nOne of {letters}:")


def test_a_template_is_known_by_its_name(terse):
    tokenizer = byte_level()
    questions = [nl.Question("Which is a colour?", ("red", "seven"), answer=0)]
    named, written = (
        nl.render(tokenizer, questions, orders="none", template=template)
        for template in ("terse", "{question}\n{options}\nOne of {letters}:")
    )
    assert named[0].input_ids == written[0].input_ids
    assert tokenizer.decode(named[0].input_ids).endswith("A. red\nB. seven\nOne of A or B:")
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256)
    assert nl.attribute(model, tokenizer, questions, template="terse", progress=False).provenance["template"] == "terse"


def test_a_template_that_cannot_be_is_refused(terse):
    with refused("template 'mine'", "{question} is missing"):
        templates.register("mine", "{options}")
    for name in ("", "chat", "chat:mine", "{mine}", 3):
        with refused("name of a template"):
            templates.register(name, "{question}\n{options}")
    with refused("'plain' is another template already"):
        templates.register("plain", "{question}\n{options}")
    templates.register("terse", "{question}\n{options}\nOne of {letters}:")  # the same again


# ---- a selection back end ----


class Sorting:
    """A stable sort of everything, on float32 tensors only."""

    def refusal(self, x: object) -> str | None:
        return None if isinstance(x, Tensor) and x.dtype == torch.float32 else "it sorts float32 tensors only"

    def extremes(self, x: Tensor, largest: int, smallest: int) -> Extremes:
        valid = (~x.isnan()).nonzero()[:, 0]
        ends = []
        for k, descending in ((largest, True), (smallest, False)):
            at = valid[x[valid].sort(descending=descending, stable=True).indices[:k]]
            ends.append(select.End(x[at], at))
        return Extremes(*ends, len(x) - len(valid), len(valid))

    def extremes_rows(self, x: Tensor, largest: int, smallest: int) -> RowExtremes:
        raise NotImplementedError


@pytest.fixture
def sorting(monkeypatch):
    monkeypatch.setattr(select, "ON_TENSORS", dict(select.ON_TENSORS))
    select.register("sorting", Sorting())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("sorted", [True, False])
def test_a_selection_back_end_is_asked_for_by_name(sorting, distribution, sorted):
    x = torch.from_numpy(draw(distribution, 500, np.random.default_rng(0))).float()
    found, right = (extremes(x, 20, 7, sorted=sorted, backend=name) for name in ("sorting", "torch"))
    for mine, theirs in zip(found[:2], right[:2], strict=True):
        assert torch.equal(mine.indices, theirs.indices) and torch.equal(mine.values, theirs.values)
    assert found[2:] == right[2:]


def test_a_selection_back_end_says_what_it_cannot_take(sorting):
    with refused('backend="sorting"', "float32 tensors only"):
        extremes(torch.zeros(3, dtype=torch.float64), 1, backend="sorting")
    with refused("known back ends are auto, ext, cuda, sorting, torch"):
        extremes(torch.zeros(3), 1, backend="heap")
    with refused("'torch' is another back end already"):
        select.register("torch", Sorting())
    assert extremes_rows(torch.zeros(2, 3), 1).largest.indices.tolist() == [[0], [0]]


def test_auto_takes_a_new_back_end_before_the_reference_only(sorting, monkeypatch):
    called = []
    monkeypatch.setattr(Sorting, "extremes", lambda self, x, *k: called.append(x) or select.reference.extremes(x, *k))
    extremes(torch.zeros(3), 1)
    assert bool(called) == (select.extension_refusal() is not None)
    extremes(torch.zeros(3, dtype=torch.int32), 1)  # it refuses them
    assert len(called) <= 1


# ---- an exporter ----


def export_channels(neurons: nl.NeuronSet, path: Path, good: float, bad: float) -> None:
    """{module: {channel: factor}} as JSON, for whoever edits the inputs of modules by hooks of their own."""
    check_new_file(path)
    channels: dict[str, dict[int, float]] = {}
    for layer, index, role in zip(neurons.layer.tolist(), neurons.index.tolist(), neurons.role, strict=True):
        down = next(site.down for site in neurons.anatomy.sites if site.layer == layer)
        channels.setdefault(down, {})[index] = good if role == "good" else bad
    write_json(path, {"channels": channels, "provenance": neurons.provenance})


def test_an_exporter_takes_what_a_neuron_set_says(tmp_path):
    model, prompts = tiny("llama"), quiz(2)
    neurons = nl.attribute(model, None, prompts, progress=False).find(3, 3)
    export_channels(neurons, tmp_path / "channels.json", good=0.0, bad=2.0)
    with refused("something stands there"):
        export_channels(neurons, tmp_path / "channels.json", good=0.0, bad=2.0)
    told = json.loads((tmp_path / "channels.json").read_text())
    assert told["provenance"]["method"] == "gradient" and sum(map(len, told["channels"].values())) == len(neurons)

    ids = torch.tensor([prompts[0].input_ids])
    with torch.no_grad(), neurons.apply(model, good=0.0, bad=2.0, positions="all"):
        live = model(ids).logits

    def scaled(factors: dict[str, float]):
        def hook(module, args):
            h = args[0].clone()
            h[..., [int(channel) for channel in factors]] *= torch.tensor(list(factors.values()), dtype=h.dtype)
            return (h,)

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(scaled(factors))
        for name, factors in told["channels"].items()
    ]
    with torch.no_grad():
        foreign = model(ids).logits
    for handle in handles:
        handle.remove()
    assert torch.equal(foreign, live)
