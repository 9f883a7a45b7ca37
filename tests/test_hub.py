"""Neuron sets on the Hub, without a network: a client that records what it is asked, and a folder in its place."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors

import neuronllm as nl
from neuronllm.model.anatomy import Anatomy
from tests.checks import quiz, refused
from tests.tiny import tiny

REPOSITORY = "someone/facts"


class FakeHub:
    """The client's calls that are used, on a folder; `fails` is raised by whatever comes next."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.fails = folder, [], None

    def __call__(self, **settings: Any) -> FakeHub:
        self.calls.append(("HfApi", settings))
        return self

    def create_repo(self, repo_id: str, **settings: Any) -> None:
        self.note("create_repo", repo_id, settings)

    def upload_folder(self, *, repo_id: str, folder_path: Path, **settings: Any) -> str:
        self.note("upload_folder", repo_id, settings)
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot_download(self, repo_id: str, **settings: Any) -> str:
        self.note("snapshot_download", repo_id, settings)
        return str(self.folder / repo_id)

    def note(self, name: str, repo_id: str, settings: dict[str, Any]) -> None:
        if self.fails is not None:
            raise self.fails
        self.calls.append((name, repo_id, settings))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


def some_neurons(of: Any, **provenance: Any) -> nl.NeuronSet:
    role = np.array(["good", "good", "bad"])
    return nl.NeuronSet(torch.tensor([3, 30, 5]), role, torch.tensor([2.0, 1.0, -1.0]), Anatomy.of(of), provenance)


def card_of(hub: FakeHub) -> tuple[dict[str, Any], str]:
    """What the Hub would read of the card, by its own reader, and the text below it."""
    text = (hub.folder / REPOSITORY / "README.md").read_text(encoding="utf-8")
    card = huggingface_hub.ModelCard(text)
    return card.data.to_dict(), card.text


def test_what_is_pushed_is_read_back(hub: FakeHub, model: Any) -> None:
    neurons = some_neurons(model, method="ace", model="some/model", positions="all").with_factors([0.5, 2.5, np.nan])
    said = neurons.push_to_hub(REPOSITORY, private=True, token="secret", license="apache-2.0")
    assert said == "https://huggingface.co/someone/facts/commit/1"
    message = {"commit_message": "A neuron set of neuronllm", "revision": None}
    assert hub.calls == [
        ("HfApi", {"token": "secret", "library_name": "neuronllm"}),
        ("create_repo", REPOSITORY, {"private": True, "exist_ok": True}),
        ("upload_folder", REPOSITORY, message),
    ]
    data, text = card_of(hub)
    assert data == {
        "library_name": "neuronllm",
        "tags": ["neuronllm"],
        "base_model": "some/model",
        "license": "apache-2.0",
    }
    assert text.strip().startswith("# someone/facts") and 'NeuronSet.from_pretrained("someone/facts")' in text

    again = nl.NeuronSet.from_pretrained(REPOSITORY, revision="v2", token=False)
    assert hub.calls[-2] == ("HfApi", {"token": False, "library_name": "neuronllm"})
    files = ["neuron_config.json", "neurons.safetensors", "controls.safetensors"]
    assert hub.calls[-1] == ("snapshot_download", REPOSITORY, {"revision": "v2", "allow_patterns": files})
    assert torch.equal(again.ids, neurons.ids) and again.provenance == neurons.provenance
    assert torch.equal(again.factor.nan_to_num(9), neurons.factor.nan_to_num(9))


def test_the_card_shows_the_report(hub: FakeHub, model: Any) -> None:
    neurons, questions = some_neurons(model, model="a folder"), quiz(6, variants=False)
    report = nl.evaluate(model, None, questions, neurons, "enhance", controls=20, progress=False)
    neurons.push_to_hub(REPOSITORY, report=report, base_model="other/model")
    data, text = card_of(hub)
    assert data["base_model"] == "other/model" and "license" not in data
    assert "\n6 questions, edited with mode enhance, good 2.0, bad 0.0, positions all:\n\n|  | unedited |" in text
    assert "\n|  | unedited | edited | 95 % change | 20 random sets, 95 % |\n" in text
    band = report.controls["p_right"]
    (row,) = re.findall(r"^\| p_right \| (.*) \|$", text, re.MULTILINE)
    assert row.split(" | ") == [
        f"{report.base['p_right']:.3f}",
        f"{report.p_right:.3f}",
        "{:+.3f} to {:+.3f}".format(*report.ci["change"]["p_right"]),
        f"{band['p2.5']:.3f} to {band['p97.5']:.3f}",
    ]
    assert {line.split()[1] for line in text.splitlines() if line.startswith("| ") and line[2:3].isalpha()} == {
        "accuracy",
        "balanced_accuracy",
        "p_right",
    }


def test_a_card_without_a_model_id(hub: FakeHub, model: Any) -> None:
    some_neurons(model, model="a folder").push_to_hub(REPOSITORY)
    assert card_of(hub)[0] == {"library_name": "neuronllm", "tags": ["neuronllm"]}


def test_a_report_without_an_edit_is_refused_before_anything_is_sent(hub: FakeHub, model: Any) -> None:
    report = nl.evaluate(model, None, quiz(6, variants=False), progress=False)
    with refused("report: it is of the unedited model"):
        some_neurons(model).push_to_hub(REPOSITORY, report=report)
    with refused("repo_id='facts': give user/name"):
        some_neurons(model).push_to_hub("facts")
    assert hub.calls == []


def http(kind: type[Exception], message: str) -> Exception:
    return kind(message, response=SimpleNamespace(headers={}, request=None))  # type: ignore[call-arg]


NOT_SHOWN = "the Hub shows no repository of that name: check it, and log in"
FAILURES = [
    (http(errors.RepositoryNotFoundError, "401\n\nlong"), NOT_SHOWN),
    (http(errors.GatedRepoError, "403\n\nlong"), NOT_SHOWN),
    (http(errors.RevisionNotFoundError, "404\n\nlong"), "someone/facts: the Hub has no revision 'v2' of it"),
    (errors.OfflineModeIsEnabled("Cannot\nreach"), "the Hub cannot be reached: go online"),
    (errors.LocalEntryNotFoundError("Cannot find\nthem"), "the Hub cannot be reached: go online"),
    (http(errors.HfHubHTTPError, "500 Server Error\n\n(Request ID)"), "the Hub says: 500 Server Error"),
    (errors.HfHubHTTPError.__bases__[0]("refused"), "the Hub says: refused"),  # as when the line is down
    (errors.LocalTokenNotFoundError("Token is required"), "the Hub says: Token is required"),
]


@pytest.mark.parametrize(("failure", "words"), FAILURES, ids=[type(failure).__name__ for failure, _ in FAILURES])
def test_what_the_hub_refuses_is_one_line(hub: FakeHub, model: Any, failure: Exception, words: str) -> None:
    hub.fails = failure
    with refused("someone/facts: ", words):
        nl.NeuronSet.from_pretrained(REPOSITORY, revision="v2")
    with refused("someone/facts: ", words):
        some_neurons(model).push_to_hub(REPOSITORY, revision="v2")
    assert not hub.folder.exists()


def test_offline_the_real_client_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """tests/conftest.py takes the network away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with refused("someone/facts: no such folder here, and the Hub cannot be reached"):
        nl.NeuronSet.from_pretrained(REPOSITORY)
    with refused("someone/facts: the Hub cannot be reached"):
        some_neurons(model).push_to_hub(REPOSITORY)


def test_names_of_folders_never_reach_the_hub(hub: FakeHub, model: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in (tmp_path / "none", "none", "./none/set", "../none", "out/none", "a/b/c"):
        with refused(f"{name}: no neuron set there"):
            nl.NeuronSet.from_pretrained(name)
    some_neurons(model).save_pretrained("someone/facts")
    assert len(nl.NeuronSet.from_pretrained(REPOSITORY)) == 3
    with refused("revision='v2': someone/facts is a folder"):
        nl.NeuronSet.from_pretrained(REPOSITORY, revision="v2")
    assert hub.calls == []
    assert json.loads(Path("someone/facts/neuron_config.json").read_text())["provenance"] == {}
