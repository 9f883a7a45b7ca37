"""Tasks of lm-eval as questions: a model is shown what lm-eval itself builds, token for token."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "neuronllm[lm-eval]"')

import torch

import neuronllm as nl
from neuronllm.bridges.lm_eval_tasks import load_task
from neuronllm.common.errors import InputError
from neuronllm.data.questions import Wording, fingerprint
from neuronllm.results.neurons import NeuronSet
from tests import tiny_tokenizers
from tests.cli.tools import refused, run
from tests.harness import harness, write_yaml
from tests.tiny import tiny

COLOURS = ["red", "pale blue", "a very dark green", "white", "café au lait"]
THINGS = ["the sky", "a door", "the letter", "grass and leaves", "snow"]
LETTERED = "Question: {{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nAnswer:"
ACCURACIES = [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_bytes"}]
CHOICE = {
    "output_type": "multiple_choice",
    "training_split": "train",
    "test_split": "test",
    "doc_to_target": "answer",
    "metric_list": ACCURACIES,
}
WORDINGS: dict[str, dict[str, Any]] = {
    "letters": {"doc_to_text": LETTERED, "doc_to_choice": ["A", "B", "C"], "fewshot_split": "train"},
    "texts": {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "choices"},
    # White space before the answer, by the prompt and by the choices, and a description in front.
    "spaced": {
        "doc_to_text": "{{question}}\nThe colour is  ",
        "doc_to_choice": "{{padded}}",
        "target_delimiter": "",
        "description": " Of {{thing}}.\n\n",
    },
    "marked": {
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "target_delimiter": " -> ",
        "gen_prefix": "So",
    },
}


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    made = []
    for n in range(first, first + count):
        choices = [COLOURS[(n + k) % 5] for k in range(3)]
        padded = [f" {choice}" for choice in choices]
        stem = f"which colour has {THINGS[n % 5]} number {n}?"
        made.append({"question": stem, "thing": THINGS[n % 5], "choices": choices, "padded": padded, "answer": n % 3})
    return made


TEXTS = [{"text": f"Question: which of these is the letter {n}? Answer: B. " * (1 + 5 * (n == 1))} for n in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every wording of one task, and tasks of other kinds."""
    folder = tmp_path_factory.mktemp("tasks")
    splits = {"train": rows(6, first=20), "test": rows(8)}
    for name, wording in WORDINGS.items():
        write_yaml(folder, name, splits, **CHOICE, **wording)
    common = {"test_split": "test", "doc_to_text": "Say {{question}}"}
    write_yaml(
        folder, "written", splits, **common, output_type="generate_until", doc_to_target="{{choices[0]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 5}, metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    last = {"doc_to_target": " {{choices[1]}}", "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}]}
    write_yaml(folder, "last_word", splits, **common, **last, output_type="loglikelihood")
    rolling = {"doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": [{"metric": "byte_perplexity"}]}
    write_yaml(folder, "read", {"test": TEXTS}, **rolling, output_type="loglikelihood_rolling", test_split="test")
    return folder


def made(kind: str) -> tuple[Any, Any]:
    tokenizer = getattr(tiny_tokenizers, kind)()
    return tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256), tokenizer


def requests_of(folder: Path, name: str, shots: int, **config: Any) -> list[list[Any]]:
    """What lm-eval asks of every document of the split that it evaluates."""
    from lm_eval.tasks import TaskManager

    task = TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1234)
    task.build_all_requests(rank=0, world_size=1)
    documents: dict[int, list[Any]] = {}
    for instance in task.instances:
        documents.setdefault(instance.doc_id, []).append(instance)
    return [documents[n] for n in sorted(documents)]


# ---- token for token ----


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", WORDINGS)
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_a_model_is_shown_what_lm_eval_builds(folder: Path, kind: str, name: str, shots: int) -> None:
    model, tokenizer = made(kind)
    lm = harness(model, made(kind)[1], 8)
    questions = load_task(name, split=None, num_fewshot=shots, include_path=folder)
    prompts = nl.render(tokenizer, questions)
    asked = requests_of(folder, name, shots)
    assert len(questions) == len(prompts) == len(asked) == 8
    for row, question, prompt, instances in zip(rows(8), questions, prompts, asked, strict=True):
        pairs = [lm._encode_pair(*instance.args) for instance in instances]
        assert [prompt.input_ids] * 3 == [context for context, _ in pairs]
        assert prompt.option_ids == [[continuation] for _, continuation in pairs]
        assert prompt.answer == row["answer"] and question.answer == row["answer"]
        assert row["question"] in question.stem and question.stem.count("number") == 1
        assert tokenizer.decode(prompt.input_ids).count("number") == 1 + shots
    assert {prompt.form for prompt in prompts} == {"letters" if name == "letters" else "texts"}
    assert nl.render(tokenizer, questions, "rotate", "plain" if name == "letters" else "cloze") == prompts


def test_where_a_tokenizer_joins_prompt_and_answer_the_text_is_the_same(folder: Path) -> None:
    model, tokenizer = made("byte_fallback")
    lm = harness(model, made("byte_fallback")[1], 8)
    for name in WORDINGS:
        prompts = nl.render(tokenizer, load_task(name, split=None, include_path=folder), answers="texts")
        for prompt, instances in zip(prompts, requests_of(folder, name, 0), strict=True):
            whole = [sum(lm._encode_pair(*instance.args), []) for instance in instances]
            assert [prompt.input_ids + option[0] for option in prompt.option_ids] == whole


def test_one_likelihood_is_an_open_question(folder: Path) -> None:
    model, tokenizer = made("byte_level")
    lm = harness(model, made("byte_level")[1], 8)
    questions = load_task("last_word", split=None, num_fewshot=0, include_path=folder)
    assert all(question.open for question in questions)
    for prompt, (instance,) in zip(nl.render(tokenizer, questions), requests_of(folder, "last_word", 0), strict=True):
        context, continuation = lm._encode_pair(*instance.args)
        assert (prompt.input_ids, prompt.option_ids) == (context, [[continuation]])


def test_a_tokenizer_that_opens_and_closes_texts(folder: Path) -> None:
    """A closing token, which lm-eval would score with the answer, is left out; all before it is the same."""
    model, tokenizer = made("chat")
    lm = harness(model, made("chat")[1], 8)
    prompts = nl.render(tokenizer, load_task("texts", split=None, include_path=folder))
    for prompt, instances in zip(prompts, requests_of(folder, "texts", 0), strict=True):
        whole = [lm.tok_encode("".join(instance.args)) for instance in instances]
        assert [prompt.input_ids + option[0] + [tokenizer.eos_token_id] for option in prompt.option_ids] == whole
        assert prompt.input_ids[0] == tokenizer.bos_token_id


# ---- what is counted ----


@pytest.mark.parametrize("name", ["texts", "letters"])
def test_accuracies_are_those_of_lm_eval(folder: Path, name: str) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    model, tokenizer = made("byte_level")
    questions = load_task(name, split=None, num_fewshot=0, include_path=folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    told = simple_evaluate(harness(model, made("byte_level")[1], 8), tasks=[name], task_manager=manager)
    lengths = {"acc": "sum", "acc_norm": "characters", "acc_bytes": "bytes"} if name == "texts" else {"acc": "sum"}
    for metric, length in lengths.items():
        report = nl.evaluate(model, tokenizer, questions, length=length, progress=False)
        assert report.answers == name
        assert report.accuracy == pytest.approx(told["results"][name][f"{metric},none"])


def test_lengths_in_bytes(folder: Path) -> None:
    _, tokenizer = made("byte_level")
    questions = load_task("texts", split=None, include_path=folder)
    for question, prompt in zip(questions, nl.render(tokenizer, questions, length="bytes"), strict=True):
        assert prompt.lengths == [[float(len(choice.encode("utf-8")))] for choice in question.choices]


# ---- splits and demonstrations ----


def test_the_split_that_lm_eval_evaluates_is_not_for_a_search(folder: Path) -> None:
    with pytest.warns(UserWarning, match="texts: lm-eval evaluates on the split 'test'") as caught:
        tested = load_task("texts", split="test", include_path=folder)
    assert len(caught) == 1
    trained = load_task("texts", include_path=folder)
    assert tested == load_task("texts", split=None, include_path=folder)
    assert [question.id for question in trained] == [f"texts/train/{n}" for n in range(6)]
    assert {question.stem for question in trained}.isdisjoint(question.stem for question in tested)


def test_a_question_is_never_its_own_demonstration(folder: Path) -> None:
    """Five demonstrations out of six documents: lm-eval, left to itself, would show most of them their answer."""
    for name in ("letters", "texts"):
        for question in load_task(name, num_fewshot=5, include_path=folder):
            assert question.wording is not None
            numbers = [line.split("number ")[1] for line in question.wording.prompt.splitlines() if "number" in line]
            assert len(set(numbers)) == len(numbers) == 6


def test_several_tasks_stand_together(folder: Path) -> None:
    both = load_task(["texts", "letters"], split=None, limit=2, include_path=folder)
    assert [question.id for question in both] == ["texts/test/0", "texts/test/1", "letters/test/0", "letters/test/1"]
    assert [question.subject for question in both] == ["texts"] * 2 + ["letters"] * 2
    _, tokenizer = made("byte_level")
    assert {prompt.form for prompt in nl.render(tokenizer, both)} == {"texts"}


# ---- questions in words of their own ----


def test_their_words_are_kept_in_files_and_count(folder: Path, tmp_path: Path) -> None:
    for name in ("letters", "spaced", "last_word"):
        questions = load_task(name, split=None, num_fewshot=1, include_path=folder)
        nl.save_questions(tmp_path / f"{name}.jsonl", questions)
        assert nl.load_questions(tmp_path / f"{name}.jsonl") == questions
        bare = [nl.Question(q.stem, q.choices, q.answer, q.subject, q.id) for q in questions]
        assert bare != questions and fingerprint(bare) != fingerprint(questions)
        other = [replace(q, wording=replace(q.wording, delimiter="\t")) for q in questions if q.wording]
        assert fingerprint(other) != fingerprint(questions)


def test_what_does_not_fit_their_words_is_refused(folder: Path) -> None:
    _, tokenizer = made("byte_level")
    texts = load_task("texts", split=None, limit=2, include_path=folder)
    letters = load_task("letters", split=None, limit=2, include_path=folder)
    plain = nl.Question("Which?", ("red", "blue"), 0, id="plain")
    with pytest.raises(InputError, match="which ask for texts"):
        nl.render(tokenizer, texts, answers="letters")
    with pytest.raises(InputError, match="ask one kind at a time"):
        nl.render(tokenizer, [plain, *texts])
    with pytest.raises(InputError, match="'letters/test/0': a letter of its own words is not a single token"):
        nl.render(tiny_tokenizers.split_letter("C"), letters)
    with pytest.raises(InputError, match="answers for 2 choices, and the question has 1"):
        nl.Question("Say", answer="red", wording=Wording("Say", " ", ("red", "blue")))
    with pytest.raises(InputError, match="prompt, delimiter and answers are texts, got 3"):
        Wording("Say", " ", ("red", 3))  # type: ignore[arg-type]
    assert nl.render(tokenizer, letters, answers="texts")[0].form == "texts"


# ---- what is no task ----


def test_tasks_that_cannot_be_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(*arguments: Any, **more: Any) -> str:
        with pytest.raises(InputError) as caught:
            load_task(*arguments, **{"include_path": folder, "split": None} | more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "task 'written' has no choices (its output_type is generate_until)" in line("written")
    assert "task 'read' has no choices (its output_type is loglikelihood_rolling)" in line("read")
    absent = "task 'texts' has no split 'dev' (--split, --validation-split): it has train, test"
    assert absent in line("texts", split="dev")
    assert "no such folder" in line("texts", include_path=folder / "absent")
    assert "num_fewshot=-1" in line("texts", num_fewshot=-1) and "limit=0" in line("texts", limit=0)
    assert "names of tasks" in line([])
    assert "lm-eval cannot draw" in (told := line("texts", num_fewshot=50)) or "lm-eval cannot render it" in told
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'not installed: pip install "neuronllm[lm-eval]"' in line("texts")


@pytest.mark.slow
def test_an_unknown_task_is_named_with_those_that_sound_like_it(folder: Path) -> None:
    """Slow, as lm-eval reads the files of all of its own tasks to say so."""
    with pytest.raises(InputError, match=r"task 'arc_eazy' is not known to lm-eval: did you mean arc_easy"):
        load_task("arc_eazy", include_path=folder)


def test_documents_that_are_no_questions(tmp_path: Path) -> None:
    bad = rows(5)
    bad[1]["choices"] = ["red", "red", "blue"]
    bad[3]["answer"] = 7
    write_yaml(tmp_path, "flawed", {"train": bad, "test": rows(2)}, **CHOICE, **WORDINGS["texts"])
    with pytest.raises(InputError, match=r"^flawed/train/1: choices 0 and 1 are both 'red'.*skip_bad=True"):
        load_task("flawed", include_path=tmp_path)
    with pytest.warns(UserWarning, match="left out 2 documents that are no valid questions, the first: flawed/train/1"):
        kept = load_task("flawed", include_path=tmp_path, skip_bad=True)
    assert [question.id for question in kept] == [f"flawed/train/{n}" for n in (0, 2, 4)]

    several = {**CHOICE, **WORDINGS["texts"], "doc_to_target": "{{[0, 1]}}"}
    write_yaml(tmp_path, "several", {"train": rows(2), "test": rows(2)}, **several)
    with pytest.raises(InputError, match=r"several/train/0: it has 2 right choices"):
        load_task("several", include_path=tmp_path)
    empty = {**CHOICE, **WORDINGS["texts"], "doc_to_text": ""}
    write_yaml(tmp_path, "empty", {"train": rows(2), "test": rows(2)}, **empty)
    with pytest.raises(InputError, match="its prompt is empty"):
        load_task("empty", include_path=tmp_path)
    inputs = {**CHOICE, "doc_to_text": "{{answer}}", "doc_to_choice": "choices", "doc_to_target": "{{thing}}"}
    write_yaml(tmp_path, "inputs", {"train": rows(2), "test": rows(2)}, **inputs)
    with pytest.raises(InputError, match="task 'inputs' puts its choices into the prompt"):
        load_task("inputs", include_path=tmp_path)


# ---- the command line ----


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for part in made("byte_level"):
        part.save_pretrained(folder)
    return folder


def test_tasks_in_place_of_a_file(folder: Path, model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    scores, sets = tmp_path / "scores", tmp_path / "set"
    asked = ("--model", model_folder, "--tasks", "texts,letters", "--include-path", folder, "--quiet")
    assert run("attribute", *asked, "--num-fewshot", 1, "--output", scores) == 0
    said = json.loads((scores / "scores.json").read_text())["provenance"]
    expected = load_task(["texts", "letters"], num_fewshot=1, include_path=folder)
    assert said["question_fingerprint"] == fingerprint(expected)
    assert (said["questions"], said["prompts"], said["answers"]) == (12, 12, "texts")
    assert said["template"] is said["template_hash"] is said["orders"] is None

    assert run("find", scores, "--good", 8, "--bad", 8, "--output", sets) == 0
    learned = (*asked, "--neurons", sets, "--steps", 1, "--seeds", 1, "--output", tmp_path / "learned")
    assert run("learn", *learned) == 0


def test_a_split_that_stops_the_learning(folder: Path, model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    where = ("learn", "--model", model_folder, "--quiet", "--steps", 1, "--seeds", 1, "--margin", "none")
    tasks = ("--tasks", "texts", "--include-path", folder, "--limit", 3)
    output = ("--output", tmp_path / "learned")
    held = ("--validation-split", "test")
    file = ("--validation", "demo:facts/search")
    assert "this split is learned on" in refused(capsys, *where, *tasks, *output, "--validation-split", "train")
    assert "this split is learned on" in refused(capsys, *where, *tasks, *output, *held, "--split", "test")
    assert "has no split 'dev'" in refused(capsys, *where, *tasks, *output, "--validation-split", "dev")
    assert "give one of them" in refused(capsys, *where, *tasks, *output, *held, *file)
    questions = ("--questions", "demo:facts/search")
    assert "--validation-split: it goes with --tasks" in refused(capsys, *where, *questions, *output, *held)
    assert not (tmp_path / "learned").exists()
    assert run(*where, *tasks, *output, *held) == 0
    told = NeuronSet.from_pretrained(tmp_path / "learned").provenance["learned"]
    assert (told["questions"], told["validation_questions"]) == (3, 3)


def test_flags_that_do_not_go_with_tasks(folder: Path, model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    where = ("--model", model_folder, "--quiet")
    tasks = ("--tasks", "texts", "--include-path", folder)
    output = ("--output", tmp_path / "out")
    assert "--template: tasks word" in refused(capsys, "attribute", *where, *tasks, *output, "--template", "plain")
    assert "--orders: tasks word" in refused(capsys, "attribute", *where, *tasks, *output, "--orders", "none")
    file = ("--questions", "demo:facts/search")
    assert "--split: it goes with --tasks" in refused(capsys, "attribute", *where, *file, *output, "--split", "train")
    assert "--length: lm-eval judges" in refused(capsys, "evaluate", *where, *tasks, "--length", "sum")
    with pytest.raises(SystemExit):
        run("attribute", *where, *tasks, *file, *output)
    assert "not allowed with argument" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_library_is_only_asked_for_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: nl.load_task("texts"), lambda: nl.evaluate_tasks(None, None, "texts")):
        with pytest.raises(InputError, match="lm-eval, which is not installed"):
            call()
