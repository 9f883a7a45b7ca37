"""An installed package adds a method and an objective by entry points alone: a real distribution on the path."""

from __future__ import annotations

import sys

import pytest
import torch

import neuronllm as nl
from neuronllm.common.errors import InputError
from neuronllm.methods import METHODS
from tests import plain
from tests.tiny import tiny

SOURCE = """
from dataclasses import dataclass

from neuronllm.methods import Method
from neuronllm import objectives
Objective, Readout = objectives.Objective, objectives.Readout

@dataclass(frozen=True)
class Doubled(Method):
    name = "doubled"
    objective = "second"
    times: float = 2.0

    def score(self, engine, prompts, objective, positions):
        return self.times * engine.gradients(prompts, objective)

def of_second(read: Readout):
    return read.options[..., 1]

second = Objective("second", of_second)
misnamed = Objective("another", of_second)
"""
POINTS = """
[neuronllm.methods]
doubled = doubled_method:Doubled
no_method = doubled_method:second
absent = doubled_method:Absent

[neuronllm.objectives]
second = doubled_method:second
misnamed = doubled_method:misnamed
broken = doubled_nowhere:second
"""


@pytest.fixture
def installed(monkeypatch, tmp_path):
    info = tmp_path / "doubled-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doubled\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "doubled_method.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("doubled_method", None)


def attributed(method, **options):
    return nl.attribute(tiny("llama"), None, plain.questions(1, options=3), method, progress=False, **options)


def test_a_method_and_an_objective_of_an_installed_package(installed):
    scores = attributed("doubled")
    assert scores.provenance["method"] == "doubled" and scores.provenance["objective"] == "second"
    assert scores.provenance["options"] == {"times": 2.0}
    plainly = attributed("gradient", objective="second", positions="answer")
    assert torch.allclose(scores.values, 2 * plainly.values) and scores.values.abs().max() > 0
    assert torch.equal(attributed("doubled", times=1.0).values, plainly.values)
    assert "doubled" not in METHODS and "second" not in nl.objectives.OBJECTIVES


def test_methods_are_accepted_as_objects(installed):
    made = nl.methods.get_method("doubled", {"times": 3.0})
    assert torch.equal(attributed(made).values, attributed("doubled", times=3.0).values)
    with pytest.raises(InputError, match="times: give the options of a method object when it is made"):
        attributed(made, times=4.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "lime"}, "method='lime': known methods are ace, .*, random, doubled, no_method"),
        ({"method": "gradient", "objective": "loss"}, "known objectives are logp_options, .*, second, misnamed"),
        ({"method": "no_method"}, "calls itself 'second'"),
        ({"method": "absent"}, "doubled_method:Absent cannot be loaded .AttributeError: "),
        ({"method": "gradient", "objective": "misnamed"}, "doubled_method:misnamed calls itself 'another'"),
        ({"method": "gradient", "objective": "broken"}, "cannot be loaded .ModuleNotFoundError: "),
    ],
)
def test_what_is_offered_wrongly_is_refused_in_one_line(installed, given, words):
    with pytest.raises(InputError, match=words) as error:
        attributed(given.pop("method"), **given)
    assert "\n" not in str(error.value)
