"""The fingerprint of weights: any change of any value shows, and nothing else does."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import neuronllm as nl
from neuronllm.model.identity import identity, other_model
from neuronllm.runs import provenance
from neuronllm.runs.provenance import weights_hash
from tests.checks import quiz
from tests.tiny import tiny


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_change_of_a_weight_or_buffer_shows(dtype, monkeypatch):
    model = tiny("llama", dtype)
    model.register_buffer("counts", torch.arange(5))
    model.register_buffer("scalar", torch.tensor(2.0))
    before = weights_hash(model)
    assert weights_hash(copy.deepcopy(model)) == before
    for tensor in (*model.parameters(), *model.buffers()):
        flat, number = tensor.detach().view(-1), tensor.numel() * 2 // 3
        kept = flat[number].clone()
        flat[number] = kept + 1
        assert weights_hash(model) != before
        flat[number] = kept
    weight = model.model.layers[0].mlp.down_proj.weight.detach()
    for change in (lambda w: w[:, [0, 2]].neg(), lambda w: w[:, [2, 0]], lambda w: w[:, [0, 2]] * 0):
        kept = weight[:, [0, 2]].clone()
        weight[:, [0, 2]] = change(weight)
        assert weights_hash(model) != before
        weight[:, [0, 2]] = kept
    assert weights_hash(model) == before
    monkeypatch.setattr(provenance, "CHUNK", 7)
    monkeypatch.setattr(provenance, "HASHERS", 1)
    assert weights_hash(model) == before
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().T.contiguous().T)
    assert weights_hash(model) == before  # how it lies in memory is no difference
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight, device="meta"))
    assert weights_hash(model) != before


def test_scores_say_which_engine_did_the_work():
    def engine(family: str, backend: str) -> dict[str, object]:
        scores = nl.attribute(
            tiny(family), None, quiz(2), "gradient", positions="answer", backend=backend, progress=False
        )
        return {name: value for name, value in scores.provenance.items() if name.startswith("engine")}

    assert engine("llama", "fast") == {"engine": "fast"}
    assert engine("llama", "reference") == {"engine": "reference"}
    fallen_back = engine("openai-gpt", "fast")
    assert fallen_back["engine"] == "reference" and "way of their own" in str(fallen_back["engine_reason"])


def test_scores_say_what_may_turn_a_rounding_and_a_run_goes_on_without_it(tmp_path):
    def scored(family: str, output: str, dtype: torch.dtype = torch.float32) -> nl.Scores:
        model = tiny(family, dtype)
        return nl.attribute(
            model, None, quiz(2), "gradient", positions="answer", progress=False, output=tmp_path / output, resume=True
        )

    assert scored("llama", "dense").provenance["threads"] == torch.get_num_threads()
    assert "experts_implementation" not in scored("llama", "dense").provenance
    model = tiny("qwen3_moe", torch.float32)
    chosen = model.config._experts_implementation
    routed = scored("qwen3_moe", "routed").provenance
    assert chosen and routed["experts_implementation"] == chosen
    assert not {"threads", "experts_implementation"} & set(
        json.loads((tmp_path / "routed" / "run.json").read_text())["settings"]
    )
    model.set_experts_implementation("eager")  # within rounding: a run goes on with it
    again = nl.attribute(
        model, None, quiz(2), "gradient", positions="answer", progress=False, output=tmp_path / "routed", resume=True
    )
    assert again.provenance == routed
    more = nl.attribute(model, None, quiz(2), "gradient", positions="answer", progress=False)
    assert more.provenance["experts_implementation"] == "eager"


def test_dry_run_takes_the_arguments_of_attribute(tmp_path):
    model = tiny("llama")
    more = {"output": tmp_path / "scores", "progress": False, "resume": True}
    plan = nl.dry_run(model, None, quiz(2), "ace", steps=2, keep="all", **more)
    assert "method ace" in plan and plan == nl.dry_run(model, None, quiz(2), "ace", steps=2, keep="all")
    assert not list(tmp_path.iterdir())


def test_dry_run_says_in_words_why_the_reference_has_no_figures():
    def memory(**more: object) -> str:
        return nl.dry_run(tiny("llama"), None, quiz(2), "gradient", positions="answer", backend="reference", **more)

    assert "engine reference: one prompt at a time" in memory() and "MiB" not in memory()
    assert "memory: not tried out" in memory() and "near 4,096 tokens together" in memory()
    assert "at most 3" in memory(batch_size=3)
    fallen_back = nl.dry_run(tiny("openai-gpt"), None, quiz(2), "gradient")
    assert "engine reference (" in fallen_back and "way of their own" in fallen_back


# ---- which model it is ----


def named(model, name, revision=None):
    model.config._name_or_path, model.config._commit_hash = name, revision
    return model


def test_a_model_of_a_folder_is_known_by_its_configuration(tmp_path):
    model = tiny("llama", torch.float32)
    one = identity(model)
    assert one["model"] == f"llama (config {one['config'][:12]})" and len(one["config"]) == 64
    for folder in ("first", "second"):
        model.save_pretrained(tmp_path / folder)
        for dtype in (torch.float32, torch.bfloat16):
            again = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=dtype, attn_implementation="eager")
            now = identity(again)
            assert {**now, "dtype": one["dtype"]} == one and other_model(one, again) is None
            assert str(folder) not in json.dumps(now) and str(tmp_path) not in json.dumps(now)
    assert identity(tiny("llama", torch.float32, rope_theta=500.0))["config"] != one["config"]


def test_a_model_of_a_hub_is_known_by_id_and_revision():
    known = identity(named(tiny("llama"), "somebody/theirs", "0123456789abcdef"))
    assert (known["model"], known["revision"]) == ("somebody/theirs", "0123456789abcdef")
    assert identity(nl.load_model("demo")[0])["model"] == "demo"
    gone = identity(named(tiny("llama"), "/home/somebody/secret/model", None))
    assert "secret" not in json.dumps(gone) and gone["revision"] is None


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        (named(tiny("llama"), "somebody/theirs", "0123456789abcdef"), None),
        (named(tiny("llama"), "somebody/theirs", None), None),  # from a hub that tells no revision
        (tiny("llama"), None),  # saved and loaded from a folder
        (
            named(tiny("llama"), "somebody/theirs", "fedcba9876543210"),
            ["revision 0123456789ab", "revision fedcba987654"],
        ),
        (named(tiny("llama"), "somebody/others", None), ["somebody/theirs", "somebody/others"]),
        (
            tiny("llama", rope_theta=500.0),
            ["found on somebody/theirs (revision 0123456789ab, config ", "), this is llama (config "],
        ),
        (tiny("mistral"), ["found on a llama, this is a mistral"]),
    ],
)
def test_a_set_says_where_it_does_not_belong(other, parts, recwarn):
    model = named(tiny("llama"), "somebody/theirs", "0123456789abcdef")
    neurons = nl.attribute(model, None, quiz(2), progress=False).find(2, 2)
    recwarn.clear()
    with neurons.enhance(other):
        pass
    warned = [str(warning.message) for warning in recwarn]
    assert len(warned) == (parts is not None)
    for part in parts or []:
        assert part in warned[0] and warned[0].count("config") in (0, 2) and "unknown" not in warned[0]
    assert not warned or "of the same shape: its neurons may do something else" in warned[0]
