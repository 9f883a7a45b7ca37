"""export: a saved set as an adapter, a model or hooks; what cannot be ends with one line and nothing written."""

from __future__ import annotations

import json
import re

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import neuronllm as nl
from tests.cli.tools import refused, run


@pytest.fixture(scope="module")
def neurons(model_folder, tmp_path_factory):
    """A set of a saved model with factors of its own, as `learn` writes one."""
    anatomy, ids = nl.Anatomy.of(nl.load_model(model_folder)[0]), torch.tensor([3, 11, 20, 30])
    folder = tmp_path_factory.mktemp("sets") / "neurons"
    own, role = torch.tensor([1.5, 2.0, 0.25, 0.0]), np.array(["good", "good", "bad", "bad"])
    nl.NeuronSet(ids, role, torch.zeros(4), anatomy, {"positions": "all"}, own).save_pretrained(folder)
    return folder


def live(model_folder, neurons, inputs, **how):
    model, _ = nl.load_model(model_folder)
    with torch.no_grad(), nl.NeuronSet.from_pretrained(neurons).apply(model, positions="all", **how):
        return model(inputs).logits


INPUTS = torch.arange(5, 14)[None]


@pytest.mark.parametrize("kind", ["ia3", "lora"])
@pytest.mark.parametrize(
    ("flags", "how"), [((), {}), (("--good", 3, "--mode", "degrade"), {"good": 3, "mode": "degrade"})]
)
def test_an_adapter_is_the_live_edit(kind, flags, how, model_folder, neurons, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    asked = ("export", neurons, "--kind", kind, "--model", model_folder, "--output", tmp_path / "out", *flags)
    assert run(*asked) == 0 and f"4 neurons as {kind}" in capsys.readouterr().out
    adapted = peft.PeftModel.from_pretrained(nl.load_model(model_folder)[0], tmp_path / "out")
    with torch.no_grad():
        distance = (adapted(INPUTS).logits - live(model_folder, neurons, INPUTS, **how)).abs().max()
    assert distance == 0 if kind == "ia3" else distance < 1e-5
    assert "overwrite" in refused(capsys, *asked)
    assert run(*asked, "--overwrite") == 0


def test_a_baked_model_is_what_bake_writes(model_folder, neurons, tmp_path):
    shared = ("--model", model_folder, "--mode", "enhance")
    assert run("export", neurons, "--kind", "baked", *shared, "--output", tmp_path / "exported") == 0
    assert run("bake", "--neurons", neurons, *shared, "--output", tmp_path / "baked") == 0
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("exported", "baked"))
    first["README.md"] = first["README.md"].replace(b"exported", b"baked")  # the name of the folder
    assert first == second
    card = huggingface_hub.ModelCard(second["README.md"].decode())
    assert card.data.to_dict() == {"library_name": "transformers", "tags": ["neuronllm", "baked"]}
    for part in ("# baked\n\n2 good and 2 bad neurons", "- factors: mode enhance, good 2.0, bad 0.0\n", 'd("baked", '):
        assert part in card.text


@pytest.mark.filterwarnings("ignore::UserWarning")  # a tiny model leans on an option
@pytest.mark.parametrize("kind", ["ia3", "lora", "baked"])
def test_the_card_shows_a_saved_report(kind, model_folder, neurons, questions, tmp_path, capsys):
    model, found, out = ("--model", model_folder), tmp_path / "found.json", tmp_path / "out"
    judged = ("evaluate", *model, "--questions", questions, "--quiet", "--controls", 2)
    assert run(*judged, "--neurons", neurons, "--output", found) == 0
    asked = ("export", neurons, "--kind", kind, *model, "--output", out, "--report")
    assert run(*asked, found) == 0
    report, card = json.loads(found.read_text()), (out / "README.md").read_text()
    (row,) = re.findall(r"^\| p_right \| (.*) \|$", card, re.MULTILINE)
    low, high = report["ci"]["change"]["p_right"]
    shown = [f"{report['base']['p_right']:.3f}", f"{report['p_right']:.3f}", f"{low:+.3f} to {high:+.3f}"]
    assert (
        row.split(" | ")[:3] == shown
        and f"{report['questions']} questions, edited with mode own, " in card
        and "2 random sets" in card
    )
    before = (out / "README.md").read_bytes()
    assert run(*judged, "--output", tmp_path / "base.json") == 0
    (tmp_path / "other.json").write_text("[]")
    for name, part in (("base", "unedited model"), ("other", "not a report"), ("none", "no report there")):
        assert part in refused(capsys, *asked, tmp_path / f"{name}.json", "--overwrite")
    assert (out / "README.md").read_bytes() == before


def test_hooks_take_no_report(model_folder, neurons, tmp_path, capsys):
    asked = ("export", neurons, "--kind", "nnsight", "--model", model_folder, "--output", tmp_path / "out")
    assert "--report: hooks" in refused(capsys, *asked, "--report", tmp_path / "report.json")


@pytest.mark.filterwarnings("ignore::UserWarning")  # a tiny model leans on an option
def test_a_baked_model_is_asked_as_its_neurons_were_found(model_folder, questions, tmp_path, capsys):
    scores, found, baked = (tmp_path / name for name in ("scores", "found", "baked"))
    asked = ("--questions", questions, "--quiet")
    form = ("--answers", "texts", "--length", "tokens", "--template", "cloze_brief", "--positions", "all")
    assert run("attribute", "--model", model_folder, *asked, *form, "--output", scores) == 0
    assert run("find", scores, "--good", 5, "--bad", 5, "--output", found) == 0
    assert run("bake", "--model", model_folder, "--neurons", found, "--mode", "enhance", "--output", baked) == 0

    def judged(*flags):
        report = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        assert run("evaluate", *asked, "--output", report, *flags) == 0
        return json.loads(report.read_text())

    live = judged("--model", model_folder, "--neurons", found, "--mode", "enhance", "--controls", 0)
    report = judged("--model", baked)
    assert (report["answers"], report["length"]) == (live["answers"], live["length"]) == ("texts", "tokens")
    assert report["p_right"] == pytest.approx(live["p_right"], rel=1e-5)
    other = judged("--model", baked, "--template", "cloze_plain")
    assert other["p_right"] != pytest.approx(live["p_right"], rel=1e-5)
    assert judged("--model", baked, "--answers", "letters")["answers"] == "letters"
    (baked / "neuronllm_bake.json").write_text("{")
    assert "neuronllm_bake.json: not valid JSON" in refused(capsys, "evaluate", "--model", baked, *asked)
    (baked / "neuronllm_bake.json").unlink()
    assert judged("--model", baked)["answers"] == "letters"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("transformer-lens", ["blocks.0.mlp.out.hook_in", "blocks.1.mlp.out.hook_in"]),
        ("nnsight", ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]),
    ],
)
def test_factors_for_hooks(kind, names, model_folder, neurons, tmp_path):
    assert run("export", neurons, "--kind", kind, "--model", model_folder, "--output", tmp_path / "out") == 0
    tensors = load_file(tmp_path / "out" / "factors.safetensors")
    assert sorted(tensors) == names and all(len(row) == 28 for row in tensors.values())
    assert tensors[names[0]][[3, 11, 20]].tolist() == [1.5, 2.0, 0.25] and tensors[names[1]][2] == 0
    assert sum(int((row != 1).sum()) for row in tensors.values()) == 4
    assert json.loads((tmp_path / "out" / "neuronllm_hooks.json").read_text())["kind"] == kind
    block = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    compile(block, "README.md", "exec")
    assert 'load_file("factors.safetensors")' in block


def test_what_cannot_be_exported(model_folder, neurons, tmp_path, capsys):
    def asked(which, *flags, model=model_folder):
        return ("export", which, "--model", model, "--output", tmp_path / "out", *flags)

    tuned = nl.NeuronSet.from_pretrained(neurons)
    tuned.provenance["positions"] = "answer"
    tuned.save_pretrained(tmp_path / "answer")
    for kind in ("ia3", "lora", "nnsight", "transformer-lens", "baked"):
        assert "--positions all" in refused(capsys, *asked(tmp_path / "answer", "--kind", kind))
    assert "no neuron set there" in refused(capsys, *asked(tmp_path / "nowhere", "--kind", "ia3"))
    for flags, part in (
        (("--kind", "ia3", "--good", "much"), "--good"),
        (("--kind", "gguf"), "invalid choice: 'gguf'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*asked(neurons, *flags))
        assert stopped.value.code == 2 and part in capsys.readouterr().err
    assert "no neuron is edited" in refused(
        capsys, *asked(neurons, "--kind", "ia3", "--good", 1, "--bad", 1, "--quiet")
    )
    bare = nl.NeuronSet.from_pretrained(neurons).with_factors(None)
    bare.save_pretrained(tmp_path / "bare")
    said = refused(capsys, *asked(tmp_path / "bare", "--kind", "ia3"))
    assert all(part in said for part in ("(--mode)", "--good, --bad", "neuronllm tune"))
    assert not (tmp_path / "out").exists()
