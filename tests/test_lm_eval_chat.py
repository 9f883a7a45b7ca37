"""Tasks of lm-eval in a chat template: a model is shown what lm-eval itself builds, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "neuronllm[lm-eval]"')

import torch

import neuronllm as nl
from neuronllm.data.questions import fingerprint
from tests.checks import refused as refuses
from tests.cli.tools import refused, run
from tests.harness import harness, write_yaml
from tests.test_lm_eval_tasks import CHOICE, WORDINGS, rows
from tests.tiny import tiny
from tests.tiny_tokenizers import CHAT_TEMPLATE, byte_level, chat

WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
SPACED = CHAT_TEMPLATE.replace("<|model|>\n", "<|model|> ")  # the model speaks behind a space
TEMPLATES = {"plain": CHAT_TEMPLATE, "no system": WITHOUT_SYSTEM, "spaced": SPACED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, wording in WORDINGS.items():
        write_yaml(folder, name, {"train": rows(6, first=20), "test": rows(4)}, **CHOICE, **wording)
    return folder


def asked_by_lm_eval(lm: Any, folder: Path, name: str, shots: int, multiturn: bool) -> list[list[Any]]:
    """What lm-eval asks of every document of the split that it evaluates, in the chat template of its own model."""
    from lm_eval.tasks import TaskManager

    task = TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1234)
    task.build_all_requests(
        rank=0,
        world_size=1,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        chat_template=lm.apply_chat_template,
    )
    documents: dict[int, list[Any]] = {}
    for instance in task.instances:
        documents.setdefault(instance.doc_id, []).append(instance)
    return [documents[n] for n in sorted(documents)]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", WORDINGS)
def test_a_model_is_shown_what_lm_eval_builds(folder: Path, name: str, template: str) -> None:
    tokenizer, theirs = chat(TEMPLATES[template]), chat(TEMPLATES[template])
    lm = harness(tiny("llama", torch.float32, vocab_size=len(tokenizer)), theirs, 8)
    for shots, multiturn in ((0, True), (2, True), (2, False)):
        given: dict[str, Any] = {"chat": True, "tokenizer": tokenizer, "fewshot_as_multiturn": multiturn}
        questions = nl.load_task(name, split=None, num_fewshot=shots, include_path=folder, **given)
        prompts = nl.render(tokenizer, questions)
        asked = asked_by_lm_eval(lm, folder, name, shots, multiturn)
        assert len(prompts) == len(asked) == 4
        for prompt, instances in zip(prompts, asked, strict=True):
            pairs = [lm._encode_pair(*instance.args) for instance in instances]
            assert [prompt.input_ids + ids for (ids,) in prompt.option_ids] == [sum(pair, []) for pair in pairs]
            if name == "letters":
                assert prompt.form == "letters" and prompt.span == 1
            else:
                assert [prompt.input_ids] * 3 == [context for context, _ in pairs]
            shown = tokenizer.decode(prompt.input_ids)
            assert shown.startswith("<s>") and not shown.startswith("<s><s>")
            assert shown.count("<|user|>") == 1 + shots * multiturn


def test_letters_behind_a_line_break_are_as_likely_as_with_it(folder: Path) -> None:
    """The line break, which lm-eval counts with every answer, takes the same off each of them."""
    tokenizer = chat()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256)
    lm = harness(model, chat(), 8)
    questions = nl.load_task("letters", split=None, num_fewshot=1, include_path=folder, chat=True, tokenizer=tokenizer)
    report = nl.evaluate(model, tokenizer, questions, progress=False)
    flat = [instance for group in asked_by_lm_eval(lm, folder, "letters", 1, True) for instance in group]
    theirs = torch.tensor([told for told, _ in lm.loglikelihood(flat, disable_tqdm=True)]).view(4, 3)
    right = torch.tensor([row["answer"] for row in rows(4)])
    assert report.answers == "letters" and report.accuracy == float((theirs.argmax(-1) == right).float().mean())
    expected = theirs.softmax(-1)[torch.arange(4), right].mean()
    assert report.p_right == pytest.approx(float(expected), abs=1e-5)


def test_tables_are_of_chats_too(folder: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tokenizer = chat()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256)
    more = {"num_fewshot": 1, "include_path": folder, "progress": False, "chat": True, "fewshot_as_multiturn": False}
    table = nl.evaluate_tasks(model, tokenizer, "texts", **more)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    told = simple_evaluate(
        harness(model, chat(), 8),
        tasks=["texts"],
        task_manager=manager,
        num_fewshot=1,
        apply_chat_template=True,
        fewshot_as_multiturn=False,
    )
    found = {row.metric: row.base.value for row in table.rows}
    assert found == {metric: told["results"]["texts"][f"{metric},none"] for metric in ("acc", "acc_norm", "acc_bytes")}


def test_a_chat_needs_a_template(folder: Path) -> None:
    with refuses("chat=True: give the tokenizer"):
        nl.load_task("texts", include_path=folder, chat=True)
    with refuses("has no chat template"):
        nl.load_task("texts", include_path=folder, chat=True, tokenizer=byte_level())
    with refuses("has no chat template"):
        nl.evaluate_tasks(None, byte_level(), "texts", include_path=folder, chat=True)  # type: ignore[arg-type]


def test_the_flags(folder: Path, tmp_path: Path, capsys: Any) -> None:
    tokenizer, model_folder = chat(), tmp_path / "model"
    tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)
    asked = ("--model", model_folder, "--tasks", "texts", "--include-path", folder, "--num-fewshot", 1, "--quiet")
    for name, flags in (("turns", ()), ("turn", ("--single-turn",))):
        output = ("--output", tmp_path / name)
        assert run("attribute", *asked, "--apply-chat-template", *flags, *output) == 0
        said = json.loads((tmp_path / name / "scores.json").read_text())["provenance"]
        given: dict[str, Any] = {"chat": True, "tokenizer": tokenizer, "fewshot_as_multiturn": not flags}
        expected = nl.load_task("texts", num_fewshot=1, include_path=folder, **given)
        assert said["question_fingerprint"] == fingerprint(expected) and said["template"] is None
    output = ("--output", tmp_path / "out")
    assert "--single-turn: it says how" in refused(capsys, "attribute", *asked, *output, "--single-turn")
    file = ("--model", model_folder, "--questions", "demo:facts/search", "--quiet")
    assert "--single-turn: it goes with --tasks" in refused(capsys, "attribute", *file, *output, "--single-turn")
    byte_level().save_pretrained(model_folder)
    (model_folder / "chat_template.jinja").unlink(missing_ok=True)
    said = refused(capsys, "attribute", *asked, "--apply-chat-template", *output)
    assert "has no chat template" in said and not (tmp_path / "out").exists()
