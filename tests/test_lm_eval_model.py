"""lm-eval's model `neuronllm`: by its command line, beside an IA3 adapter and beside a live edit, the same numbers."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "neuronllm[lm-eval]"')

import torch
from safetensors.torch import save_file

import neuronllm as nl
from neuronllm.bridges.lm_eval_model import NeuronLM
from neuronllm.common.errors import InputError
from neuronllm.model.random_sets import random_like
from tests.cli.tools import refused, run
from tests.harness import Instance, harness, write_yaml
from tests.test_lm_eval_tasks import CHOICE, TEXTS, WORDINGS, rows
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

PERPLEXITIES = [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of choices and one that is only read; one of its texts is longer than the model's context."""
    folder = tmp_path_factory.mktemp("tasks")
    write_yaml(folder, "choose", {"train": rows(6, first=20), "test": rows(12)}, **CHOICE, **WORDINGS["texts"])
    read = {"doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": PERPLEXITIES, "test_split": "test"}
    write_yaml(folder, "read", {"test": TEXTS}, **read, output_type="loglikelihood_rolling")
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=96)


@pytest.fixture(scope="module")
def neurons(model: Any, tokenizer: Any) -> nl.NeuronSet:
    questions = nl.load_questions([{"question": r["question"], "choices": r["choices"], "answer": 0} for r in rows(4)])
    scores = nl.attribute(model, tokenizer, questions, "gradient", positions="all", answers="texts", progress=False)
    return scores.find(good=16, bad=16)


@pytest.fixture(scope="module")
def saved(model: Any, tokenizer: Any, neurons: nl.NeuronSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saved")
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    neurons.save_pretrained(place / "set")
    return place


def turned(model: Any, tokenizer: Any, neurons: Any, batch_size: int = 8, **how: Any) -> NeuronLM:
    return NeuronLM(model, neurons, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, **how)


def asked(kind: str, *pairs: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, pair, n) for n, pair in enumerate(pairs)]


# Continuations of one and of several tokens, contexts that begin alike, and one that ends inside another's answer.
PAIRS = [
    ("Question: which of these is a colour?\nAnswer:", " red"),
    ("Question: which of these is a colour?\nAnswer:", " the letter of the sky"),
    ("Question: which of these is a colour?\nAnswer: the letter", " of the sky"),
    ("Question: which of these is a colour?\nAnswer: the letter of the", " sky"),
    ("Say", " blue"),
    ("A. red\n" * 30 + "Answer:", " B"),  # longer than the context of the model
]


# ---- where an edit holds ----


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_edit_of_the_answer_begins_at_the_last_token_of_the_context(
    model: Any, tokenizer: Any, neurons: nl.NeuronSet, batch_size: int
) -> None:
    lm = turned(model, tokenizer, neurons, batch_size, mode="enhance", positions="answer")
    found = lm.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    everywhere = turned(model, tokenizer, neurons, batch_size, mode="enhance", positions="all")
    other = everywhere.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    for pair, (value, greedy), (elsewhere, _) in zip(PAIRS, found, other, strict=True):
        context, continuation = lm._encode_pair(*pair)
        whole = torch.tensor([(context + continuation)[-97:]])
        start = whole.shape[1] - len(continuation) - 1
        with torch.no_grad(), neurons.enhance(model, positions="answer", answer_start=start):
            logprobs = model(whole[:, :-1]).logits[0, start:].log_softmax(-1)
        assert value == pytest.approx(logprobs.gather(1, whole[0, start + 1 :, None]).sum().item(), abs=1e-4)
        assert greedy == (logprobs.argmax(-1) == whole[0, start + 1 :]).all().item()
        assert abs(value - elsewhere) > 1e-3, "the prompt must feel an edit of all tokens"


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("mode", ["enhance", "degrade"])
def test_an_edit_of_all_tokens_is_the_live_edit(
    model: Any, tokenizer: Any, neurons: nl.NeuronSet, mode: str, batch_size: int
) -> None:
    lm = turned(model, tokenizer, neurons, batch_size, mode=mode)
    plain = harness(model, copy.deepcopy(tokenizer), batch_size)
    texts = [(row["text"],) for row in TEXTS]
    with getattr(neurons, mode)(model):
        choices = plain.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
        read = plain.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True)
    unedited = plain.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    assert lm.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True) == choices
    assert lm.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True) == read
    assert min(abs(a - b) for (a, _), (b, _) in zip(choices, unedited, strict=True)) > 1e-4


def test_a_text_that_is_only_read_is_all_answer(model: Any, tokenizer: Any, neurons: nl.NeuronSet) -> None:
    texts = asked("loglikelihood_rolling", *((row["text"],) for row in TEXTS))
    values = []
    for where in ("answer", "all"):
        lm = turned(model, tokenizer, neurons, mode="degrade", positions=where)
        values.append(lm.loglikelihood_rolling(texts, disable_tqdm=True))
    assert values[0] == pytest.approx(values[1], abs=1e-3)


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_what_it_writes_is_written_under_the_edit(
    model: Any, tokenizer: Any, neurons: nl.NeuronSet, positions: str
) -> None:
    lm = turned(model, tokenizer, neurons, 2, mode="enhance", positions=positions)
    contexts = ["Question: which of these is a colour?\nAnswer:", "Say the letter", "A. red\nB. blue\nAnswer:"]
    settings = {"until": ["<never>"], "max_gen_toks": 6}
    written = lm.generate_until(asked("generate_until", *((c, settings) for c in contexts)), disable_tqdm=True)
    for context, text in zip(contexts, written, strict=True):
        ids = tokenizer(context, return_tensors="pt")["input_ids"]
        with neurons.enhance(model, positions=positions):
            whole = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert text == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_model_is_left_as_it_was(model: Any, tokenizer: Any, neurons: nl.NeuronSet) -> None:
    before = dict(vars(model))
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    lm = turned(model, tokenizer, neurons, positions="answer", mode="enhance")
    lm.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    with pytest.raises(AssertionError):  # lm-eval takes no empty continuation
        lm._loglikelihood_tokens([(None, [5, 6], [7]), (None, [5], [])], disable_tqdm=True)
    assert lm._starts is None
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert vars(model).keys() == before.keys()


def test_what_cannot_be_applied_is_refused(model: Any, tokenizer: Any, neurons: nl.NeuronSet, tmp_path: Path) -> None:
    for given, line in (
        ({"neurons": None}, "neurons=: name the folder of a neuron set"),
        ({"neurons": tmp_path}, "no neuron set there"),
        ({"neurons": neurons, "mode": "backwards"}, "mode='backwards'"),
        ({"neurons": neurons, "mode": "enhance", "positions": "last"}, "positions='last'"),
    ):
        with pytest.raises(InputError, match=line):
            NeuronLM(model, tokenizer=copy.deepcopy(tokenizer), **given)


# ---- the command lines ----


@pytest.fixture
def quietly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lm-eval's command line sets up logging and reads sys.argv."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    before = list(sys.argv)
    yield
    assert sys.argv == before


def told(folder: Path, output: Path, model: str, arguments: str, batch_size: int) -> dict[str, Any]:
    """What lm-eval's command line says: its results, and what it heard of every document."""
    given = ["--model", model, "--model_args", arguments, "--tasks", "choose,read", "--include_path", folder]
    given += ["--device", "cpu", "--batch_size", batch_size, "--output_path", output, "--log_samples"]
    assert run("lm-eval", *given) == 0
    (results,) = output.rglob("results_*.json")
    heard = {}
    for task in ("choose", "read"):
        (samples,) = output.rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        heard[task] = [line["filtered_resps"] for line in sorted(lines, key=lambda line: line["doc_id"])]
    return {"results": json.loads(results.read_text())["results"], "heard": heard}


def logged(heard: Any) -> Any:
    """Values as lm-eval writes them of its samples, which loses none of their digits."""
    return [logged(each) for each in heard] if isinstance(heard, (list, tuple)) else str(heard)


def write_ia3(neurons: nl.NeuronSet, model: Any, place: Path, good: float, bad: float) -> None:
    """The edit as an adapter of PEFT, written by hand: a factor for every input of every down projection."""
    place.mkdir()
    width, tensors = model.config.intermediate_size, {}
    for layer in sorted(set(neurons.layer.tolist())):
        factors = torch.ones(1, width)
        for index, role, at in zip(neurons.index.tolist(), neurons.role, neurons.layer.tolist(), strict=True):
            if at == layer:
                factors[0, index] = good if role == "good" else bad
        tensors[f"base_model.model.model.layers.{layer}.mlp.down_proj.ia3_l"] = factors
    edited = r".*\.layers\.(" + "|".join(str(n) for n in sorted(set(neurons.layer.tolist()))) + r")\.mlp\.down_proj"
    config = {"peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": edited, "feedforward_modules": edited}
    (place / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "tiny"}))
    save_file(tensors, place / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("quietly")
@pytest.mark.parametrize("batch_size", [1, 8])
def test_command_line_adapter_and_live_edit_say_the_same(
    model: Any, tokenizer: Any, neurons: nl.NeuronSet, saved: Path, folder: Path, tmp_path: Path, batch_size: int
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    arguments = f"pretrained={saved / 'model'},dtype=float32"
    plain = told(folder, tmp_path / "plain", "hf", arguments, batch_size)
    by_name = told(
        folder, tmp_path / "named", "neuronllm", f"{arguments},neurons={saved / 'set'},good=0.5,bad=3.0", batch_size
    )
    assert by_name["heard"] != plain["heard"] and by_name["results"] != plain["results"]

    with neurons.apply(model, good=0.5, bad=3.0):
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        live = simple_evaluate(
            harness(model, copy.deepcopy(tokenizer), batch_size), tasks=["choose", "read"], task_manager=manager
        )
    for task, numbers in by_name["results"].items():
        for name, value in numbers.items():
            assert live["results"][task][name] == value
        samples = sorted(live["samples"][task], key=lambda sample: sample["doc_id"])
        assert logged([sample["filtered_resps"] for sample in samples]) == logged(by_name["heard"][task])

    pytest.importorskip("peft")
    write_ia3(neurons, model, tmp_path / "ia3", 0.5, 3.0)
    adapter = told(folder, tmp_path / "peft", "hf", f"{arguments},peft={tmp_path / 'ia3'}", batch_size)
    assert adapter["heard"] == by_name["heard"] and adapter["results"] == by_name["results"]


@pytest.mark.slow
@pytest.mark.usefixtures("quietly")
def test_the_command_line_refuses_in_one_line(saved: Path, folder: Path, capsys: Any) -> None:
    given = ("--model", "neuronllm", "--tasks", "choose", "--include_path", folder, "--device", "cpu")
    assert run("lm-eval", *given, "--model_args", f"pretrained={saved / 'model'}") == 2
    assert "neuronllm lm-eval: error: neurons=: name the folder" in capsys.readouterr().err.splitlines()[-1]
    assert run("lm-eval", *given, "--tasks", "nosuch", "--model_args", f"pretrained={saved / 'model'}") == 2
    said = "neuronllm lm-eval: error: --tasks: lm-eval does not know nosuch"
    assert capsys.readouterr().err.splitlines()[-1] == said


# ---- the table ----


def by_hand(model: Any, tokenizer: Any, folder: Path) -> list[float]:
    """lm-eval's numbers of the model as it is now, by its own front door."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    lm = harness(model, copy.deepcopy(tokenizer), 8)
    out = simple_evaluate(lm, tasks=["choose", "read"], task_manager=manager, bootstrap_iters=0)["results"]
    return [
        out[task][f"{metric},none"]
        for task, metrics in (("choose", CHOICE["metric_list"]), ("read", PERPLEXITIES))
        for metric in (each["metric"] for each in metrics)
    ]


def test_the_table_has_base_edited_and_random_sets(
    model: Any, tokenizer: Any, neurons: nl.NeuronSet, folder: Path
) -> None:
    model.train()
    table = nl.evaluate_tasks(
        model, tokenizer, ["choose", "read"], neurons, "degrade", controls=3, include_path=folder, progress=False
    )
    assert model.training and tokenizer.pad_token is None
    model.eval()

    base = by_hand(model, tokenizer, folder)
    with neurons.degrade(model):
        edited = by_hand(model, tokenizer, folder)
    anatomy, generator, drawn = neurons.anatomy, torch.Generator().manual_seed(0), []
    factors = [0.0 if role == "good" else 2.0 for role in neurons.role]
    for _ in range(3):
        with nl.edit(model, random_like(neurons.ids, anatomy, generator), factors):
            drawn.append(by_hand(model, tokenizer, folder))

    assert [row.base.value for row in table.rows] == base
    assert [row.edited.value for row in table.rows if row.edited] == edited
    assert [(row.task, row.higher_is_better) for row in table.rows] == [("choose", True)] * 3 + [("read", False)] * 3
    expected = []
    for row, before, after, others in zip(table.rows, base, edited, zip(*drawn, strict=True), strict=True):
        far = sum(abs(other - before) >= abs(after - before) for other in others)
        expected.append((1 + far) / 4)
        assert row.p == expected[-1] and row.controls is not None
        assert row.controls["p50"] == pytest.approx(float(np.median(others)))
    least = [min(1.0, (6 - rank) * p) for rank, p in enumerate(sorted(expected))]
    assert sorted(row.p_holm for row in table.rows if row.p_holm) == pytest.approx(np.maximum.accumulate(least))
    assert table.rows[0].base.stderr is not None

    printed = str(table).splitlines()
    assert len(printed) == 2 + 6 + 2
    assert printed[0] == "| task | shots | metric | base | edited | random sets | percentile | p | p (Holm) |"
    assert printed[2].startswith("| choose | 0 | acc ↑ | ") and "3 of as many neurons" in printed[-2]


def test_the_command_prints_the_table(saved: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    where = ("--model", saved / "model", "--tasks", "choose", "--include-path", folder, "--quiet", "--limit", 5)
    assert run("evaluate", *where) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert printed[0] == "| task | shots | metric | base |" and len(printed) == 2 + 3
    more = ("--neurons", saved / "set", "--mode", "enhance", "--controls", 2, "--num-fewshot", 1)
    assert run("evaluate", *where, *more, "--output", tmp_path / "table.json") == 0
    assert "| edited | random sets | percentile |" in capsys.readouterr().out
    report = json.loads((tmp_path / "table.json").read_text())
    assert [row["metric"] for row in report["rows"]] == ["acc", "acc_norm", "acc_bytes"]
    assert (report["sets"], report["edit"]["mode"], report["rows"][0]["num_fewshot"]) == (2, "enhance", 1)
    assert report["rows"][0]["edited"].keys() == {"value", "stderr"}
    assert "mode, good, bad and positions need a neuron set" in refused(capsys, "evaluate", *where, "--mode", "enhance")
