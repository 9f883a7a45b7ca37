"""Scores, neuron sets and descriptions show themselves in a notebook, and as a file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from neuronllm.model.anatomy import Anatomy
from neuronllm.results.description import Description
from neuronllm.results.neurons import NeuronSet
from neuronllm.results.scores import Scores

from .tiny import tiny

NAMES = re.compile(r'<td class="text">([\d ·]+)</td>')


def anatomy() -> Anatomy:
    return Anatomy.of(tiny("llama", torch.float32))


def test_a_neuron_set_shows_its_strongest(tmp_path: Path) -> None:
    where = anatomy()
    width = where.sizes[0]
    ids, score = torch.tensor([3, width + 5, 7]), torch.tensor([0.5, 0.75, -0.25])
    neurons = NeuronSet(ids, np.array(["good", "good", "bad"]), score, where, {"method": "ace <b>"})
    html = neurons._repr_html_()
    assert NAMES.findall(html) == ["1 · 5", "0 · 3", "0 · 7"]
    assert "ace &lt;b&gt;" in html and "by layer, good: 1, 1" in html and "; bad: 1, 0" in html
    assert [text for text in ("+0.7500", "+0.5000", "−0.2500") if text in html] == ["+0.7500", "+0.5000", "−0.2500"]
    assert "Factor" not in html and "1.70" in neurons.with_factors([1.7, float("nan"), 0.0])._repr_html_()
    shown = neurons.show(tmp_path / "neurons.html")
    assert shown.html == html and html in (tmp_path / "neurons.html").read_text(encoding="utf-8")
    assert "0 good and 0 bad" in neurons.take([])._repr_html_()


def test_scores_show_both_ends() -> None:
    where = anatomy()
    values = torch.linspace(-1, 1, where.n_neurons)
    scores = Scores(values, torch.zeros_like(values), torch.ones_like(values), where)
    shown = NAMES.findall(scores._repr_html_())
    count = max(1, where.n_neurons // 100)
    best = [where.locate([where.n_neurons - 1 - n]) for n in range(min(count, 20))]
    worst = [where.locate([n]) for n in range(min(count, 20))]
    assert shown == [f"{int(layer)} · {int(index)}" for layer, _, index in best + worst]


def test_a_description_shows_cards() -> None:
    where = {"layer": 1, "expert": -2, "index": 5, "id": 9, "role": None, "score": None, "factor": None}
    unknown = {"task": None, "interval": None, "exact": None, "also": [], "promoted": [], "suppressed": []}
    tokens = [{"text": "a", "activation": None}, {"text": "<b>", "activation": -2.0}]
    spans = [{"question": "q", "tokens": tokens, "peak": 1, "activation": -2.0}]
    html = Description([where | unknown | {"spans": spans, "positive": 0.25, "read": 1200}], []).show().html
    assert "Layer 1, shared expert, neuron 5" in html and "0.25 of 1,200 tokens" in html
    assert 'a<mark class="down-5" title="−2">&lt;b&gt;</mark>' in html
