"""Scores on disk: whole or not at all, never over anything foreign, broken files named in one line."""

from __future__ import annotations

import json
import os
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuronllm.common.errors import InputError
from neuronllm.model.anatomy import Anatomy
from neuronllm.results.neurons import NeuronSet
from neuronllm.results.scores import Scores
from tests.checks import refused
from tests.tiny import tiny


def some_scores(per_prompt: bool = True, name: str = "llama") -> Scores:
    anatomy = Anatomy.of(tiny(name))
    values = torch.randn(anatomy.n_neurons)
    stderr = torch.full_like(values, float("nan"))  # as after a single question
    raw = torch.randn(3, anatomy.n_neurons) if per_prompt else None
    return Scores(values, stderr, torch.rand_like(values), anatomy, {"method": "ace", "options": {"z": 0.01}}, raw)


def some_neurons() -> NeuronSet:
    return some_scores().find(good=3, bad=2)


def content(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b or (a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32)))


@pytest.mark.noext
@pytest.mark.parametrize("per_prompt", [True, False])
def test_what_is_saved_is_loaded(tmp_path, per_prompt):
    scores = some_scores(per_prompt)
    scores.save(tmp_path / "deep" / "scores")
    again = Scores.load(tmp_path / "deep" / "scores")
    for name in ("values", "stderr", "sign_consistency", "per_prompt"):
        assert same(getattr(scores, name), getattr(again, name))
    assert again.anatomy == scores.anatomy and again.provenance == scores.provenance
    assert os.listdir(tmp_path / "deep") == ["scores"]
    assert sorted(os.listdir(tmp_path / "deep" / "scores")) == ["scores.json", "scores.safetensors"]
    assert (tmp_path / "deep" / "scores").stat().st_mode & 0o777 == 0o755


def test_views_are_saved(tmp_path):
    """What slicing and expanding leave behind is not contiguous."""
    scores = some_scores()
    scores.values = torch.randn(112)[::2]
    scores.per_prompt = torch.randn(56).expand(3, -1)
    scores.save(tmp_path / "scores")
    assert torch.equal(Scores.load(tmp_path / "scores").per_prompt, scores.per_prompt)
    assert torch.equal(Scores.load(tmp_path / "scores").values, scores.values)


def test_saving_again_replaces_the_folder(tmp_path):
    first, second = some_scores(True), some_scores(False)
    for scores in (first, second):
        scores.save(tmp_path / "scores")
    again = Scores.load(tmp_path / "scores")
    assert torch.equal(again.values, second.values) and again.per_prompt is None
    assert os.listdir(tmp_path) == ["scores"]


@pytest.mark.parametrize("what", [some_scores, some_neurons])
@pytest.mark.parametrize("broken", ["tensors", "json", "rename"])
@pytest.mark.parametrize("existing", [False, True])
def test_nothing_half_written_stays(tmp_path, monkeypatch, what, broken, existing):
    thing = what()
    save = thing.save if isinstance(thing, Scores) else thing.save_pretrained
    if existing:
        save(tmp_path / "out")
    before = content(tmp_path)

    def fail(*args, **keywords):
        raise OSError(28, "No space left on device")

    if broken == "tensors":
        monkeypatch.setattr("safetensors.torch.save_file", fail)
    elif broken == "json":
        thing.provenance["bad"] = object()
    else:
        monkeypatch.setattr("pathlib.Path.rename", fail)
    with pytest.raises((OSError, TypeError, InputError)):
        save(tmp_path / "out")
    monkeypatch.undo()
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == (["out"] if existing else [])


def test_an_exchange_that_fails_halfway_puts_the_old_folder_back(tmp_path, monkeypatch):
    """The old folder is moved away before the new one takes its place: if the second step fails, it comes back."""
    some_scores().save(tmp_path / "out")
    before = content(tmp_path)
    from pathlib import Path

    rename, calls = Path.rename, []

    def fail_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="Input/output"):
        some_scores().save(tmp_path / "out")
    monkeypatch.undo()
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.noext
@pytest.mark.parametrize("what", [some_scores, some_neurons])
def test_foreign_folders_and_files_are_refused_and_untouched(tmp_path, what):
    thing = what()
    save = thing.save if isinstance(thing, Scores) else thing.save_pretrained
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years of work")
    before = content(tmp_path)
    with refused(str(foreign), "not empty"):
        save(foreign)
    with refused("chapter.txt", "a file stands there"):
        save(foreign / "chapter.txt")
    with refused("chapter.txt", "cannot be made"):
        save(foreign / "chapter.txt" / "inside")
    assert content(tmp_path) == before and os.listdir(tmp_path) == ["thesis"]
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    assert os.listdir(tmp_path / "empty")


def test_a_folder_of_ours_with_something_foreign_in_it_is_refused(tmp_path):
    some_scores().save(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("what I learnt")
    before = content(tmp_path)
    with refused("notes.txt", "not ours"):
        some_scores().save(tmp_path / "out")
    assert content(tmp_path) == before


def test_scores_and_neuron_sets_do_not_replace_each_other(tmp_path):
    some_scores().save(tmp_path / "scores")
    some_neurons().save_pretrained(tmp_path / "neurons")
    before = content(tmp_path)
    with refused("scores", "not one of ours of this kind"):
        some_neurons().save_pretrained(tmp_path / "scores")
    with refused("neurons", "not one of ours of this kind"):
        some_scores().save(tmp_path / "neurons")
    assert content(tmp_path) == before


def test_the_current_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", str(tmp_path), tmp_path / "x" / ".."):
        with refused("current folder"):
            some_scores().save(name)
    assert os.listdir(tmp_path) == []


def spoil(folder, how: str) -> None:
    config = json.loads((folder / "scores.json").read_text())
    tensors = load_file(folder / "scores.safetensors")
    if how == "no json":
        (folder / "scores.json").unlink()
    elif how == "broken json":
        (folder / "scores.json").write_text('{"anatomy": {')
    elif how == "binary json":
        (folder / "scores.json").write_bytes(b"\xff\xfe\x00")
    elif how == "other json":
        (folder / "scores.json").write_text('{"accuracy": 1}')
    elif how == "list json":
        (folder / "scores.json").write_text("[1, 2]")
    elif how == "other anatomy":
        del config["anatomy"]["sites"][0]["down"]
        (folder / "scores.json").write_text(json.dumps(config))
    elif how == "no tensors":
        (folder / "scores.safetensors").unlink()
    elif how == "empty tensors":
        (folder / "scores.safetensors").write_bytes(b"")
    elif how == "cut tensors":
        (folder / "scores.safetensors").write_bytes((folder / "scores.safetensors").read_bytes()[:-7])
    elif how == "missing tensor":
        save_file({"values": tensors["values"]}, folder / "scores.safetensors")
    elif how == "strange tensor":
        save_file({**tensors, "extra": torch.zeros(1)}, folder / "scores.safetensors")
    else:
        save_file({**tensors, "values": torch.zeros(5)}, folder / "scores.safetensors")


BROKEN_JSON = ["no json", "broken json", "binary json", "other json", "list json", "other anatomy"]
BROKEN_TENSORS = ["no tensors", "empty tensors", "cut tensors", "missing tensor", "strange tensor", "wrong size"]


@pytest.mark.parametrize("how", BROKEN_JSON + BROKEN_TENSORS)
def test_broken_scores_are_one_line(tmp_path, how):
    some_scores().save(tmp_path / "out")
    spoil(tmp_path / "out", how)
    with refused("values" if how == "wrong size" else str(tmp_path / "out")):
        Scores.load(tmp_path / "out")


def test_a_folder_that_is_not_there(tmp_path):
    with refused(str(tmp_path / "nowhere"), "no scores there"):
        Scores.load(tmp_path / "nowhere")


def test_values_must_fit_the_model():
    scores = some_scores()
    with refused("values", "(5,)", "llama"):
        Scores(torch.zeros(5), scores.stderr, scores.sign_consistency, scores.anatomy)


def test_dataframe_has_a_row_a_neuron():
    pytest.importorskip("pandas")
    scores = some_scores()
    frame = scores.to_dataframe()
    assert len(frame) == 56 and list(frame.columns[:4]) == ["layer", "expert", "index", "score"]
    row = frame.iloc[28 + 5]
    assert (row["layer"], row["expert"], row["index"]) == (1, -1, 5)
    assert row["score"] == pytest.approx(scores.values[33].item())


@pytest.mark.noext
def test_find_takes_the_strongest_of_each_sign():
    scores = some_scores()
    scores.values[[7, 30, 50]] = torch.tensor([9.0, -9.0, 8.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        neurons = scores.find(good=5, bad=4)
    assert neurons.ids[0] == 7 and neurons.ids[1] == 50 and neurons.ids[5] == 30
    order = torch.argsort(scores.values, descending=True)
    assert neurons.ids.tolist() == [*order[:5].tolist(), *order.flip(0)[:4].tolist()]
    assert neurons.role.tolist() == ["good"] * 5 + ["bad"] * 4
    assert torch.equal(neurons.score, scores.values[neurons.ids])


@pytest.mark.parametrize(
    ("values", "good", "bad"),
    [
        ([1.0, 2.0, 3.0], 3, 0),
        ([-1.0, -2.0], 0, 2),
        ([0.0, -0.0, 1.0, -1.0], 1, 1),
        ([float("nan"), 1.0], 1, 0),
        ([0.0] * 5, 0, 0),
        ([float("nan")] * 56, 0, 0),
    ],
)
def test_find_never_gives_the_wrong_sign(values, good, bad):
    scores = some_scores()
    scores.values[:] = 0.0
    scores.values[: len(values)] = torch.tensor(values)
    with pytest.warns(UserWarning, match="were asked for") as caught:
        neurons = scores.find(good=10, bad=10)
    assert (neurons.role == "good").sum() == good and (neurons.role == "bad").sum() == bad
    assert bool((neurons.score[neurons.role == "good"] > 0).all()) and bool(
        (neurons.score[neurons.role == "bad"] < 0).all()
    )
    assert len(caught) == 2 and all(w.filename == __file__ for w in caught)


def test_find_nothing_or_nonsense():
    scores = some_scores()
    assert len(scores.find(good=0, bad=0)) == 0
    assert scores.find(good=0, bad=2).role.tolist() == ["bad", "bad"]
    for role, asked in (("good", -1), ("bad", 1.5), ("good", None), ("bad", True)):
        with refused(f"{role}={asked}"):
            scores.find(**{role: asked})
