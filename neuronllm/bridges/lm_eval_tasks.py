"""Tasks of lm-eval as questions: what a model is shown is what lm-eval itself builds, token for token.

1. lm-eval's own Task renders a document, its choices and its demonstrations, and makes requests of them: a context and
   a continuation each.
2. Such a request becomes a question in words of its own (`Wording`): the context, what stands between it and an answer,
   and the answers. White space at the end of a context goes to the continuation, as where lm-eval encodes the pair.
3. Choices that are letters which the prompt shows are answered in letters, all others in texts. lm-eval's acc is
   length="sum", its acc_norm length="characters" and its acc_bytes length="bytes".
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.checks import integer, short
from ..common.errors import InputError
from ..common.warning import warn
from ..data.questions import Question, Wording
from ..data.sources import LETTERS
from ..data.templates import tokenizer_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("neuronllm")

SHOTS_SEED = 1234  # by which lm-eval draws demonstrations unless it is told another
ASKED = ("multiple_choice", "loglikelihood")  # the kinds of tasks that have an answer to be told from others


def load_task(
    names: str | Sequence[str],
    *,
    split: str | None = "train",
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | PathLike[str] | None = None,
    seed: int = SHOTS_SEED,
    skip_bad: bool = False,
    chat: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    fewshot_as_multiturn: bool = True,
) -> list[Question]:
    """The questions of a task of lm-eval, or of several or a group, worded by lm-eval itself.

    `split` is train, validation, test or a name that the data set has; None is the one that lm-eval evaluates. A search
    should see another one than that, so naming it warns. `num_fewshot` demonstrations, drawn by `seed`, stand in front
    of a question; None is as many as the task says, and a question is never its own demonstration. `limit` takes the
    first documents of every task, `include_path` is a folder with tasks of your own (YAML). A document that is no valid
    question is an error that names it; with `skip_bad` such documents are left out and one warning counts them.

    chat: what is asked stands in the chat template of `tokenizer`, as lm-eval's apply_chat_template has it; every
    demonstration is then a turn of its own, unless fewshot_as_multiturn=False puts all of them into one.

    Templates and orders of choices have no say in how these questions are asked. Multiple-choice tasks have choices;
    tasks of one likelihood (such as lambada_openai) are open questions.

    >>> questions = nl.load_task("arc_easy", split="train", num_fewshot=0)     # doctest: +SKIP
    >>> judged = nl.load_task("arc_easy", split=None)                          # doctest: +SKIP
    """
    for name, value in (("num_fewshot", num_fewshot), ("limit", limit)):
        if value is not None and (integer(value) is None or value < (name == "limit")):
            raise InputError(f"{name}={value!r}: give a whole number, {int(name == 'limit')} or more")
    worded_by = Chat.of(tokenizer, fewshot_as_multiturn) if chat else None
    loaded = _ready(names, include_path, num_fewshot, seed)
    questions = _questions(loaded, split, limit, worded_by, skip_bad)
    if split is not None and (
        judged := [name for name, task in loaded.items() if _split(name, task, split) == _judged(task)]
    ):
        warn(
            f"{', '.join(judged)}: lm-eval evaluates on the split {split!r}; a search needs another one, and for a "
            "judgement split=None says that it is meant"
        )
    return questions


def load_splits(
    names: str | Sequence[str],
    *,
    num_fewshot: int | None = None,
    include_path: str | PathLike[str] | None = None,
    chat: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[list[Question]]:
    """What there is of a task to search on, to choose on, and, last, to judge on: the split that lm-eval evaluates.

    In front of that stand the training and the validation split, if every task of a group has them beside it.
    Documents that are no valid questions are left out.
    """
    loaded = _ready(names, include_path, num_fewshot, SHOTS_SEED)
    worded_by = Chat.of(tokenizer, True) if chat else None
    own = {"train": "training_split", "validation": "validation_split"}
    sides: list[str | None] = [
        side
        for side, name in own.items()
        if all(getattr(task.config, name) not in (None, _judged(task)) for task in loaded.values())
    ]
    return [_questions(loaded, side, None, worded_by, skip_bad=True) for side in [*sides, None]]


def _ready(
    names: str | Sequence[str], include_path: str | PathLike[str] | None, num_fewshot: int | None, seed: int
) -> dict[str, Any]:
    """The tasks of these names, with their demonstrations settled."""
    loaded = find_tasks(names, include_path)["tasks"]
    if not loaded:
        raise InputError(f"{names!r} holds no task")
    for name, task in loaded.items():
        _check_kind(name, task)
        set_shots(name, task, num_fewshot, seed)
    return dict(loaded)


def _questions(
    loaded: dict[str, Any], split: str | None, limit: int | None, chat: Chat | None, skip_bad: bool
) -> list[Question]:
    questions: list[Question] = []
    bad: list[str] = []
    for name, task in loaded.items():
        for where, question in _asked(name, task, split, limit, name if len(loaded) > 1 else None, chat):
            if isinstance(question, Question):
                questions.append(question)
            elif skip_bad:
                bad.append(f"{where}: {question}")
            else:
                raise InputError(f"{where}: {question}; skip_bad=True leaves such documents out")
    if bad:
        warn(f"left out {len(bad)} documents that are no valid questions, the first: {bad[0]}")
    if not questions:
        raise InputError(f"{', '.join(loaded)}: no document is a valid question: {bad[0] if bad else 'there is none'}")
    return questions


# ---- the library and its tasks ----


def need_lm_eval(what: str) -> None:
    """InputError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(f'{what} needs lm-eval, which is not installed: pip install "neuronllm[lm-eval]"')


def find_tasks(names: str | Sequence[str], include_path: str | PathLike[str] | None = None) -> dict[str, Any]:
    """What lm-eval loads of these names: "tasks" by name, groups and what is in them."""
    need_lm_eval("load_task (--tasks)")
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    asked = [names] if isinstance(names, str) else list(names)
    if not asked or not all(isinstance(name, str) and name for name in asked):
        raise InputError(f"tasks: give names of tasks, got {short(names)}")
    folder = None if include_path is None else fspath(include_path)
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"include_path={folder!r}: no such folder")
    # lm-eval's own tasks stand in thousands of files: they are read only where one of them is asked for.
    manager = TaskManager(include_path=folder, include_defaults=False) if folder else None
    if manager is None or not set(asked) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=folder)
    for name in asked:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise InputError(
                f"task {name!r} is not known to lm-eval: {hint}`lm_eval ls tasks` lists what there is, and "
                "include_path= (--include-path) names a folder with more"
            )
    try:
        return dict(manager.load(asked))
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, DatasetsError) as error:
        raise InputError(f"tasks {', '.join(asked)}: lm-eval cannot load them: {line_of(error)}") from error


def set_shots(name: str, task: Any, num_fewshot: int | None, seed: int = SHOTS_SEED) -> None:
    """So many demonstrations, by lm-eval's own rules: a task that says 0 itself stays without."""
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:
        task.set_config("num_fewshot", num_fewshot)
    elif own is None:
        task.set_config("num_fewshot", 0)
    elif num_fewshot:
        warn(f"{name}: the task itself says num_fewshot: 0, which lm-eval keeps to")
    task.set_fewshot_seed(seed)


def _check_kind(name: str, task: Any) -> None:
    """InputError for tasks whose documents are no questions here."""
    kind = task.OUTPUT_TYPE
    if kind not in ASKED:
        raise InputError(
            f"task {name!r} has no choices (its output_type is {kind}): take a multiple_choice or loglikelihood task; "
            "lm-eval itself judges this one, with the model neuronllm (neuronllm evaluate --tasks)"
        )
    if not hasattr(task, "doc_to_choice"):
        raise InputError(f"task {name!r} is written in Python and does not say its choices: take one written in YAML")
    if getattr(task, "multiple_input", 0):
        raise InputError(
            f"task {name!r} puts its choices into the prompt (one prompt for each), so its answers do not tell them "
            "apart: take another task, or load its data with nl.load_questions"
        )
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"task {name!r} shows more than text, which is not asked here")
    if task.config.process_results is not None:
        log.warning("%s counts results in a way of its own; here the choice that it calls right counts", name)


# ---- documents ----


def _asked(
    name: str, task: Any, split: str | None, limit: int | None, subject: str | None, chat: Chat | None
) -> Iterator[tuple[str, Question | InputError]]:
    """The question of every document, or why it is none; and where that stands."""
    where = _judged(task) if split is None else _split(name, task, split)
    documents = task.dataset[where]
    if task.config.process_docs is not None:
        documents = task.config.process_docs(documents)
    drawn = _NeverItself(task.sampler) if where == _shown_split(task) and where != _judged(task) else None
    if drawn is not None:
        task.sampler = drawn
    try:
        for number, document in enumerate(documents):
            if limit is not None and number >= limit:
                return
            if drawn is not None:
                drawn.document = document
            place = f"{name}/{where}/{number}"
            try:
                yield place, _question(task, document, place, subject, chat)
            except InputError as error:
                yield place, error
    finally:
        if drawn is not None:
            task.sampler = drawn.sampler


class _NeverItself:
    """A sampler of demonstrations that leaves out the document which is asked.

    lm-eval sees to that only on the split that it evaluates.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.document = sampler, None

    def sample(self, n: int, eval_doc: Any = None, **more: Any) -> Any:
        return self.sampler.sample(n, eval_doc=self.document, **more)


def _split(name: str, task: Any, split: str) -> str:
    """The data set's name of a split."""
    config = task.config
    named = {"train": config.training_split, "validation": config.validation_split, "test": config.test_split}
    found = named.get(split) or split
    if found not in task.dataset:
        raise InputError(f"task {name!r} has no split {split!r} (--split, --validation-split): it has {_splits(task)}")
    return str(found)


def _splits(task: Any) -> str:
    return ", ".join(map(str, task.dataset))


def _judged(task: Any) -> str:
    """The split that lm-eval evaluates; it loads no task that has neither."""
    return task.config.test_split or task.config.validation_split


def _shown_split(task: Any) -> str | None:
    """The split that demonstrations come from; None where the task lists them."""
    config, shown = task.config, task.fewshot_cfg
    if shown.split is None and shown.samples is not None:
        return None
    return shown.split or config.training_split or config.validation_split or config.test_split


class Chat(NamedTuple):
    """The chat template that contexts are put into, called as lm-eval calls that of its model."""

    tokenizer: Any
    multiturn: bool

    @classmethod
    def of(cls, tokenizer: Any, multiturn: bool) -> Chat:
        if tokenizer is None:
            raise InputError("chat=True: give the tokenizer whose chat template is meant, tokenizer=")
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(f"tokenizer {tokenizer_name(tokenizer)} has no chat template: leave chat=True out")
        return cls(tokenizer, bool(multiturn))

    def __call__(self, turns: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Templates that know no system are given the other turns, as by lm-eval."""
        from jinja2 import TemplateError

        told = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, **told))
        except TemplateError:
            others = [turn for turn in turns if turn["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(others, tokenize=False, **told))

    @property
    def settings(self) -> dict[str, Any]:
        return {"apply_chat_template": True, "chat_template": self}


def _question(task: Any, document: Any, place: str, subject: str | None, chat: Chat | None) -> Question:
    """A document as lm-eval asks it."""
    context, choices, continuations = _rendered(task, document, chat)
    prompt = context.rstrip()
    if not prompt:
        raise InputError("its prompt is empty, and an answer needs a token to be read behind")
    if not all(isinstance(choice, str) for choice in choices):
        raise InputError(f"its choices must be texts, got {short(choices)}")
    between = continuations[0][: len(continuations[0]) - len(choices[0])]
    stem = task.doc_to_text(document)
    return Question(
        stem if isinstance(stem, str) and stem.strip() else prompt,
        tuple(choices),
        _right(task, document, choices),
        subject,
        place,
        wording=Wording(prompt, context[len(prompt) :] + between, tuple(choices), _are_letters(choices, prompt)),
    )


def _rendered(task: Any, document: Any, chat: Chat | None) -> tuple[str, list[Any], list[str]]:
    """Of a document what lm-eval makes: the context, the choices, and the continuation of each."""
    from jinja2 import TemplateError

    in_chat = chat.settings if chat else {}
    turns = {"fewshot_as_multiturn": chat.multiturn} if chat else {}
    try:
        shots, prefix = task.get_config("num_fewshot"), task.doc_to_prefix(document)
        context = task.fewshot_context(document, num_fewshot=shots, gen_prefix=prefix, **in_chat, **turns)
        choices = list(task.doc_to_choice(document)) if task.OUTPUT_TYPE == "multiple_choice" else []
        made = task.construct_requests(doc=document, ctx=context, metadata=(None, None, 1), **in_chat)
    except (ValueError, TypeError, LookupError, AssertionError, SyntaxError, TemplateError) as error:
        raise InputError(f"lm-eval cannot render it: {line_of(error)}") from error
    requests = made if isinstance(made, list) else [made]
    # Where a task asks for mutual information, the same continuations follow once more behind nothing.
    continuations = [request.arguments[1] for request in requests[: len(choices) or 1]]
    return context, choices or [continuations[0].lstrip()], continuations


def line_of(error: BaseException) -> str:
    """What an exception of a library says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _right(task: Any, document: Any, choices: Sequence[str]) -> int:
    """The place of the right choice, as lm-eval reads what a task calls the target."""
    if task.OUTPUT_TYPE == "loglikelihood":
        return 0
    target = task.doc_to_target(document)
    several: Iterable[Any] = target if isinstance(target, list) else [target]
    found = {choices.index(one) if isinstance(one, str) and one in choices else one for one in several}
    if len(found) != 1:
        raise InputError(f"it has {len(found)} right choices, and there must be one")
    (right,) = found
    if integer(right) is None or not 0 <= right < len(choices):
        raise InputError(f"its target {short(target)} is none of the {len(choices)} choices")
    return int(right)


def _are_letters(choices: Sequence[str], prompt: str) -> bool:
    """Whether the choices are A, B, ... and the prompt shows options by these letters."""
    if len(choices) < 2 or list(choices) != list(LETTERS[: len(choices)]):
        return False
    return all(re.search(rf"(?<!\w){letter}(?!\w)", prompt) for letter in choices)
