"""Exact effects of the strongest neurons without running all: beside the full run, on disk, and where slopes are 0."""

from __future__ import annotations

import signal

import pytest
import torch

import neuronllm as nl
from neuronllm.attribution.dry_run import dry_run
from neuronllm.results.neurons import NeuronSet
from neuronllm.results.scores import Scores
from tests.checks import bad, quiz, refused, untouched
from tests.killing import content, dying_at, forked
from tests.test_ranks import processes
from tests.texts import text_prompts
from tests.tiny import tiny

K = 3


def exact(model, prompts, **more) -> Scores:
    return nl.attribute(model, None, prompts, "exact", progress=False, **more)


def asked(kind: str) -> list[nl.Prompt]:
    return text_prompts() if kind == "texts" else quiz(4)


@pytest.fixture(scope="module")
def wide():
    """256 neurons a layer, of which most need not be run."""
    return tiny("llama", intermediate_size=256)


def same_as_all(found: Scores, every: Scores, k: int = K) -> None:
    """Where it was run a neuron has the value of the full run, and the k best and worst are those of it."""
    ran = found.measured
    assert 2 * k <= int(ran.sum()) == found.provenance["exact"]["top"]["ran"]
    for name in ("values", "stderr", "sign_consistency"):
        mine, theirs = getattr(found, name), getattr(every, name)
        torch.testing.assert_close(mine[ran], theirs[ran], rtol=1e-4, atol=1e-7)
        assert mine[~ran].isnan().all()
    mine, theirs = found.find(k, k), every.find(k, k)
    assert mine.ids.tolist() == theirs.ids.tolist() and (mine.role == theirs.role).all()


# ---- beside the full run ----


@pytest.mark.parametrize("positions", ["answer", "all"])
@pytest.mark.parametrize("kind", ["letters", "texts"])
def test_the_strongest_are_those_of_the_judge(wide, kind, positions):
    prompts = asked(kind)[:6]
    with untouched(wide):
        found = exact(wide, prompts, positions=positions, top=K)
    every = exact(wide, prompts, positions=positions)
    same_as_all(found, every)
    assert int(found.measured.sum()) < 0.75 * len(found.values)
    said = dict(found.provenance)
    top = said.pop("exact")["top"]
    assert (top["k"], top["miss"], top["budget"], top["stopped by"]) == (K, 0.01, None, "miss")
    assert said["options"] == {"factor": 0.0, "top": K, "miss": 0.01, "budget": None, "seed": 0}
    told = {name: value for name, value in every.provenance.items() if name not in ("options", "noise")}
    assert told.items() <= said.items()


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "gpt2"])
def test_experts_and_other_families(family):
    model, prompts = tiny(family, torch.float32), quiz(3)
    same_as_all(exact(model, prompts, top=K), exact(model, prompts))


def test_the_reference_finds_the_same(wide):
    prompts = quiz(2)
    slow = exact(wide, prompts, top=K, backend="reference")
    assert slow.provenance["engine"] == "reference"
    same_as_all(slow, exact(wide, prompts))


@pytest.mark.parametrize("factor", [2.0, -1.0])
def test_of_other_factors_the_strongest_are_found_too(wide, factor):
    prompts = quiz(3)
    same_as_all(exact(wide, prompts, top=K, factor=factor), exact(wide, prompts, factor=factor))


def test_only_questions_that_are_answered_wrong(wide):
    prompts = quiz(8)
    found, every = (exact(wide, prompts, items="wrong", **more) for more in ({"top": K}, {}))
    assert 0 < found.provenance["questions"] == every.provenance["questions"] < 8
    same_as_all(found, every)


def test_a_budget_is_kept(wide):
    found = exact(wide, quiz(3), top=K, budget=20, miss=0.0)
    top = found.provenance["exact"]["top"]
    assert int(found.measured.sum()) == top["ran"] == top["budget"] == 20 and top["stopped by"] == "budget"


# ---- neurons whose gradient is 0 ----


PLANTED, WIDTH = 10, 600


def saturated(heard: bool = True):
    """A model whose ten strongest neurons have gradient 0: each keeps one unit behind it off, far from its threshold.

    Each writes into a dimension of its own that neither the head nor any attention reads. A ReLU of the next layer
    reads it, is off while the neuron is there, and pushes wrong answers where it is silenced; `heard`: whether it does.
    """
    settings = {"hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": WIDTH, "_remove_final_layer_norm": True}
    model = tiny("opt", std=0.02, **settings)
    own = torch.arange(48 - PLANTED, 48)
    decoder = model.model.decoder
    first, second = decoder.layers
    with torch.no_grad():
        decoder.embed_tokens.weight[:, own] = 0  # the head's too: they are tied
        decoder.embed_positions.weight[:, own] = 0
        second.self_attn.out_proj.weight.zero_()
        for part in (first.self_attn.out_proj, first.fc2):
            part.weight[own] = 0
        planted = torch.arange(PLANTED)
        first.fc1.weight[planted], first.fc1.bias[planted] = 0, 1
        first.fc2.weight[:, planted] = 0
        first.fc2.weight[own, planted] = 4
        second.fc2.weight.zero_()
        second.fc1.weight[planted] = 0
        second.fc1.weight[planted, own] = -1
        second.fc1.bias[planted] = 0.5
        away = decoder.embed_tokens.weight[[5, 6]].mean(0) - decoder.embed_tokens.weight[[3, 4]].mean(0)
        second.fc2.weight[:, planted] = 40.0 * heard * away[:, None] * torch.linspace(1, 2, PLANTED)
    return model


@pytest.mark.filterwarnings("ignore:the unedited model answers")
def test_the_strongest_have_gradient_zero_and_are_found_by_running_more():
    model = saturated()
    prompts = [nl.Prompt(prompt.input_ids, [[[3], [4]], [[5], [6]]], 0, prompt.question_id) for prompt in quiz(2)]
    slope = nl.attribute(model, None, prompts, "gradient", positions="answer", progress=False).values
    every = exact(model, prompts)
    planted = torch.arange(PLANTED)
    assert (slope[planted] == 0).all()  # exactly: a screen by gradient alone leaves them to the last
    assert sorted(every.find(PLANTED, 0).ids.tolist()) == planted.tolist()
    assert int((slope[PLANTED:WIDTH] != 0).sum()) > WIDTH / 3 and not slope.isnan().any()
    found = exact(model, prompts, top=PLANTED)
    assert found.find(PLANTED, 0).ids.tolist() == every.find(PLANTED, 0).ids.tolist()
    without = exact(saturated(heard=False), prompts, top=PLANTED)
    assert int(found.measured.sum()) > 1.5 * int(without.measured.sum())


# ---- scores that not all neurons have ----


@pytest.mark.filterwarnings("ignore:only .* neurons have a score")
def test_what_was_not_run_is_seen_and_never_chosen(wide, tmp_path):
    scores = exact(wide, quiz(3), top=K)
    ran = int(scores.measured.sum())
    assert repr(scores).startswith(f"Scores(exact, {ran} of 512 neurons of a llama")
    with pytest.warns(UserWarning, match="512 neurons of a role were asked for, and the 3 strongest"):
        everyone = scores.find(512, 512)
    assert len(everyone) <= ran and scores.measured[everyone.ids].all() and not everyone.score.isnan().any()
    assert int(scores.to_dataframe()["score"].isna().sum()) == 512 - ran
    scores.save(tmp_path / "scores")
    again = Scores.load(tmp_path / "scores")
    assert torch.equal(again.measured, scores.measured) and again.provenance == scores.provenance
    again.find(K, K).save_pretrained(tmp_path / "neurons")
    said = NeuronSet.from_pretrained(tmp_path / "neurons").describe()
    assert f"- the 3 best and the 3 worst, searched for among {ran} neurons: about " in said
    assert "searched for" in (tmp_path / "neurons" / "README.md").read_text()
    kept = nl.verify(wide, None, scores, quiz(3), good=1, bad=1, limit=K, progress=False)
    assert scores.measured[kept.ids].all()
    assert "searched for" not in exact(wide, quiz(2)).find(2, 2).describe()


# ---- what is refused ----


def test_what_cannot_be_done_is_refused(wide):
    for options, said in [
        ({"top": 0}, "top=0: give a whole number, 1 or more"),
        ({"top": 2.5}, "top=2.5: give a whole number"),
        ({"top": True}, "top=True"),
        ({"top": 3, "miss": 2}, "miss=2: give a number between 0 and 1"),
        ({"top": 3, "budget": 5}, "budget=5: give 6 or more, top=3 neurons of each end"),
        ({"top": 3, "seed": -1}, "seed=-1"),
        ({"budget": 5}, "budget=5: it needs top="),
        ({"miss": 0.1}, "miss=0.1: it needs top="),
        ({"top": 3, "factor": 1.0}, "factor=1 with top="),
        ({"top": 3, "keep": "all"}, "keep='all': with top= most neurons are not run"),
    ]:
        assert said in bad(lambda options=options: exact(wide, quiz(2), **options)), options
    assert "has no option 'top'" in bad(lambda: nl.attribute(wide, None, quiz(2), "gradient", top=3))


# ---- on disk ----


def on_disk(model, output, **more) -> Scores:
    return exact(model, quiz(6), top=K, output=output, batch_size=2, **more)


@pytest.mark.slow
def test_killed_in_front_of_changes_of_the_disk_it_ends_with_the_same_bytes(wide, tmp_path):
    on_disk(wide, tmp_path / "whole" / "scores")
    whole, step, died = content(tmp_path / "whole"), 0, True
    while died:
        output = tmp_path / str(step) / "scores"
        died = forked(dying_at(step, lambda output=output: on_disk(wide, output))) == -signal.SIGKILL
        if died and (output.parent / "scores.partial" / "run.json").exists():
            with refused(str(output), "no finished scores"):
                Scores.load(output)
            assert "under way" in bad(lambda output=output: on_disk(wide, output))
        assert forked(lambda output=output: on_disk(wide, output, resume=True)) == 0
        assert content(output.parent) == whole, step
        step += 9
    assert step > 60


def test_what_is_done_is_taken_up_and_a_finished_run_is_read(wide, tmp_path):
    output = tmp_path / "scores"
    first = on_disk(wide, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores"]
    assert sorted(path.name for path in output.iterdir()) == ["run.json", "scores.json", "scores.safetensors"]
    again = on_disk(wide, output, resume=True)
    assert torch.equal(first.values.nan_to_num(), again.values.nan_to_num()) and first.provenance == again.provenance
    assert "begun with top 3, not 4" in bad(
        lambda: exact(wide, quiz(6), top=4, output=output, batch_size=2, resume=True)
    )
    other = on_disk(wide, output, overwrite=True)
    assert torch.equal(other.measured, first.measured)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_two_processes_find_the_same(wide, tmp_path, kept):
    def work(rank: int) -> None:
        more = {"output": tmp_path / "shared"} if kept else {}
        exact(wide, quiz(6), top=K, **more).save(tmp_path / f"rank-{rank}")

    assert processes(tmp_path / "group", work) == [0, 0]
    alone, first, second = exact(wide, quiz(6), top=K), *(Scores.load(tmp_path / f"rank-{n}") for n in (0, 1))
    assert content(tmp_path / "rank-0") == content(tmp_path / "rank-1")
    assert torch.equal(first.measured, alone.measured) and not (tmp_path / "shared.partial").exists()
    same_as_all(first, exact(wide, quiz(6)))
    torch.testing.assert_close(second.values, alone.values, rtol=1e-4, atol=1e-7, equal_nan=True)


def test_a_failing_start_leaves_nothing(wide, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr("neuronllm.methods.gradient.Gradient.score", fail)
    with pytest.raises(RuntimeError):
        on_disk(wide, tmp_path / "scores")
    assert not list(tmp_path.iterdir())


def test_the_plan_says_that_not_all_are_run(wide):
    said = dry_run(wide, None, quiz(2), "exact", top=K)
    assert "top: as many of the 512 neurons are run as it takes; figures are of all of them" in said
