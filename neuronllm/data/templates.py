"""Templates: the wordings around a question, their placeholders, and the tokenizer's chat template around them.

A wording is parsed once into literals and placeholders; values are joined in and never parsed, so that braces in a
question are only text. The exact wordings of TEMPLATES matter: models are trained and judged on them.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.checks import short
from ..common.errors import InputError
from .questions import Question, Wording
from .sources import LETTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES: dict[str, str] = {  # answered with a letter
    "plain": "{question}\n{options}\nAnswer:",
    "brief": "Question: {question}\nOptions:\n{options}\nThe letter of the right option is:",
    "default": (
        "You are an expert who answers multiple-choice questions.\n"
        "Rules: read the question and every option, choose the one right option, and reply with its letter only.\n\n"
        "Question: Which of these is a day of the week?\nA. January\nB. Monday\nC. Winter\nD. Noon\nAnswer: B\n\n"
        "Question: {question}\n{options}\nAnswer:"
    ),
}
CLOZES: dict[str, str] = {  # answered in words
    "cloze": "Question: {question}\nAnswer:",
    "cloze_plain": "{question}\nAnswer:",
    "cloze_brief": "Q: {question}\nA:",
    "cloze_options": "Question: {question}\nOptions:\n{choices}\nAnswer:",
    "cloze_short": (  # demonstrations, after which models write a short answer and end the line
        "Question: What colour is a ripe banana?\nAnswer: yellow\n\n"
        "Question: Who wrote the play Hamlet?\nAnswer: William Shakespeare\n\n"
        "Question: How many legs does a spider have?\nAnswer: 8\n\n"
        "Question: {question}\nAnswer:"
    ),
    "continue": "{question}",  # a text to be continued
}
DEFAULTS = {"letters": "default", "texts": "cloze"}
PLACEHOLDERS = ("question", "options", "subject", "letters", "choices")
SHOW_OPTIONS = {"options", "letters", "choices"}
STAND_IN = "neuronllm-answer"  # for an answer, to see what a chat template puts in front of it

Pieces = list[tuple[str, str | None]]


def parse_wording(text: str, *, known: Sequence[str], needed: Sequence[str], what: str) -> Pieces:
    """A text with {placeholders} as (literal, placeholder or None) pieces; "{{" and "}}" stand for plain braces.

    >>> parse_wording("Q: {question}", known=["question"], needed=["question"], what="template")
    [('Q: ', 'question')]
    """
    listed = ", ".join(f"{{{name}}}" for name in known)
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"{what}: {error} (write {{{{ and }}}} for braces that are text)") from None
    for _, name, spec, conversion in parsed:
        if name is not None and (name not in known or spec or conversion):
            raise InputError(f"{what}: unknown placeholder {{{name}}}; known are {listed}")
    present = {name for _, name, _, _ in parsed}
    for name in needed:
        if name not in present:
            raise InputError(f"{what}: the placeholder {{{name}}} is missing; known are {listed}")
    return [(literal, name) for literal, name, _, _ in parsed]


def register(name: str, text: str) -> None:
    """Make a wording known by a name, as template= and --template take it; what it may hold is in PLACEHOLDERS.

    One without {options} is for answers in words.

    >>> register("plain", TEMPLATES["plain"])
    """
    if not isinstance(name, str) or not name or "{" in name or name == "chat" or name.startswith("chat:"):
        raise InputError(f"{short(name)}: the name of a template is a text without braces, and not chat")
    parse_wording(text, known=PLACEHOLDERS, needed=("question",), what=f"template {short(name)}")
    if (TEMPLATES | CLOZES).get(name, text) != text:
        raise InputError(f"{short(name)} is another template already: take a name of your own")
    if name not in CLOZES:
        TEMPLATES[name] = text


class Template(NamedTuple):
    """A wording ready to fill. `name` is what the user wrote; with `chat` it becomes the user's turn of a chat."""

    name: str
    text: str
    pieces: Pieces
    chat: bool

    @property
    def shows_options(self) -> bool:
        """Whether a prompt says what there is to choose from, and in which order."""
        return any(name in SHOW_OPTIONS for _, name in self.pieces)

    def fill(self, question: Question, order: Sequence[int]) -> str:
        """The wording with the question in it. Values are joined in, never parsed: their braces are only text."""
        return "".join(
            literal + ("" if name is None else self._value(name, question, order)) for literal, name in self.pieces
        )

    def _value(self, name: str, question: Question, order: Sequence[int]) -> str:
        if name == "question":
            return question.stem
        if name == "subject":
            if question.subject is None:
                raise InputError(
                    f"question {question.id!r} has no subject, which the template {short(self.name)} asks for"
                )
            return question.subject
        if question.open:
            raise InputError(
                f"question {question.id!r} is open: it has no choices that the template {short(self.name)} could show; "
                "use 'cloze' or another template without them"
            )
        shown = [question.choices[choice] for choice in order]
        if name == "choices":
            return "\n".join(f"- {choice}" for choice in shown)
        letters = LETTERS[: len(shown)]
        if len(letters) < len(shown):
            raise InputError(
                f"question {question.id!r} has {len(shown)} choices, more than there are letters for the template "
                f"{short(self.name)}: list them with {{choices}} instead"
            )
        if name == "letters":
            return f"{', '.join(letters[:-1])} or {letters[-1]}"
        return "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, shown, strict=True))


def read_templates(template: str | Sequence[str] | None, answers: str | None = None) -> list[Template]:
    """A template argument (a name, a text, a list of them, None for the default) as parsed templates.

    `answers` is the form in which they ask for the answer, "letters" or "texts"; where it is known, None and chat mean
    the default wording of that form, and letters need a place for the options.

    >>> [template.name for template in read_templates(["plain", "chat"])]
    ['plain', 'chat']
    >>> read_templates(None, "texts")[0].text
    'Question: {question}\\nAnswer:'
    """
    if template is None or isinstance(template, str):
        return [_template(DEFAULTS[answers or "letters"] if template is None else template, answers)]
    if not isinstance(template, Sequence) or not template:
        raise InputError(f"template must be a name, a text or a list of them, got {short(template)}")
    return [_template(item, answers) for item in template]


def _template(given: Any, answers: str | None) -> Template:
    if not isinstance(given, str):
        raise InputError(f"template must be a name or a text, got {short(given)}")
    wording = given.removeprefix("chat:")
    chat = given == "chat" or wording != given
    if given == "chat":
        wording = DEFAULTS[answers or "letters"]
    text = (TEMPLATES | CLOZES).get(wording, wording)
    if "{" not in text:
        names = ", ".join([*TEMPLATES, "chat", "chat:NAME", *CLOZES])
        raise InputError(f"template {short(given)} is not known; known are {names}, or a text with {{question}} in it")
    pieces = parse_wording(text, known=PLACEHOLDERS, needed=("question",), what=f"template {short(given)}")
    if answers == "letters" and all(name != "options" for _, name in pieces):
        raise InputError(
            f"template {short(given)}: the placeholder {{options}} is missing, and answers are letters: add it, or "
            "ask with answers='texts' (--answers texts)"
        )
    return Template(given, text, pieces, chat)


def template_hash(
    template: str | Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    answers: str | None = None,
) -> str:
    """SHA-256 (hex) of the wording of a template argument: a name and its text have the same hash.

    With a tokenizer, the hash of a chat template argument covers that tokenizer's chat template too. None and chat mean
    the default wording of `answers`, that of letters where it is None.

    >>> template_hash() == template_hash(["default"]) != template_hash("plain")
    True
    """
    content: list[Any] = []
    for item in read_templates(template, answers):
        content.append([item.text, item.chat])
        if item.chat and tokenizer is not None:
            content[-1].append(tokenizer.chat_template)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Worded(NamedTuple):
    """A prompt's text, and the end of it that is the same whatever the question ("" where that is not known)."""

    text: str
    tail: str


class Variant(NamedTuple):
    """A question in one template and one order, worded; `tail` is as in `Worded`, `wording` the question's own."""

    question: Question
    id: str
    template: Template
    order: tuple[int, ...]
    text: str
    tail: str
    wording: Wording | None = None

    @classmethod
    def own(cls, question: Question, name: str, wording: Wording) -> Variant:
        """A question in its own words, which is no template's."""
        order = tuple(range(len(question.choices)))
        return cls(question, name, Template("", "", [], chat=False), order, wording.prompt, "", wording)

    @property
    def shown(self) -> list[str]:
        """The answers in their order."""
        answers = self.question.choices if self.wording is None else self.wording.answers
        return [answers[choice] for choice in self.order]

    @property
    def words(self) -> str:
        """Whose words these are, for a message."""
        return f"template {short(self.template.name)}" if self.wording is None else "the question's own words"


def word(tokenizer: PreTrainedTokenizerBase, template: Template, question: Question, order: Sequence[int]) -> Worded:
    """The text of a question in a template and an order, up to the answer position.

    >>> question = Question("Which is a colour?", ("red", "seven"), answer=0)
    >>> word(tokenizer, read_templates("plain")[0], question, (1, 0)).tail  # doctest: +SKIP
    '\\nAnswer:'
    """
    text = template.fill(question, order)
    literal, name = template.pieces[-1]
    tail = literal if name is None else ""
    if not template.chat:
        return Worded(text, tail)
    chat = in_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
    inner = text.strip()  # many chat templates strip the turns
    start = chat.rfind(inner)
    return Worded(chat, tail.rstrip() + chat[start + len(inner) :] if start >= 0 else "")


def before_an_answer(tokenizer: PreTrainedTokenizerBase, variant: Variant) -> str | None:
    """What a chat template puts between the beginning of the model's turn and what the model says; None if unknown.

    Unknown where it begins a turn that is told in another way than one that is asked for.
    """
    asked = variant.template.fill(variant.question, variant.order)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": STAND_IN}]
    try:
        chat = in_chat(tokenizer, turns, add_generation_prompt=False)
    except InputError:  # it knows no turns of a model
        return None
    place = chat.rfind(STAND_IN)
    begun = chat.startswith(variant.text) and place >= len(variant.text)
    return chat[len(variant.text) : place] if begun else None


def in_chat(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """The turns as a text, up to where the model's own turn begins if a generation prompt is asked for.

    The user's turn keeps its closing "Answer:": after a demonstration that ends "Answer: B" the natural continuation is
    then the letter itself, where a bare question would invite "Answer:" again. `enable_thinking=False` closes the
    thoughts of models that think aloud; templates that do not know the word ignore it.
    """
    from jinja2 import TemplateError

    try:
        chat = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
        )
    except (TemplateError, ValueError) as error:
        name = tokenizer_name(tokenizer)
        raise InputError(
            f"the chat template of tokenizer {name} cannot be used: {' '.join(str(error).split())}"
        ) from None
    return str(chat)


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to call a tokenizer in a message: where it was loaded from, else its class."""
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
