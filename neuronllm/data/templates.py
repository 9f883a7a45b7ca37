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
from .questions import Question
from .sources import LETTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES: dict[str, str] = {
    "plain": "{question}\n{options}\nAnswer:",
    "brief": "Question: {question}\nOptions:\n{options}\nThe letter of the right option is:",
    "default": (
        "You are an expert who answers multiple-choice questions.\n"
        "Rules: read the question and every option, choose the one right option, and reply with its letter only.\n\n"
        "Question: Which of these is a day of the week?\nA. January\nB. Monday\nC. Winter\nD. Noon\nAnswer: B\n\n"
        "Question: {question}\n{options}\nAnswer:"
    ),
}
PLACEHOLDERS = ("question", "options", "subject", "letters")
NEEDED = ("question", "options")

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

    >>> register("plain", TEMPLATES["plain"])
    """
    if not isinstance(name, str) or not name or "{" in name or name == "chat" or name.startswith("chat:"):
        raise InputError(f"{short(name)}: the name of a template is a text without braces, and not chat")
    parse_wording(text, known=PLACEHOLDERS, needed=NEEDED, what=f"template {short(name)}")
    if TEMPLATES.get(name, text) != text:
        raise InputError(f"{short(name)} is another template already: take a name of your own")
    TEMPLATES[name] = text


class Template(NamedTuple):
    """A wording ready to fill. `name` is what the user wrote; with `chat` it becomes the user's turn of a chat."""

    name: str
    text: str
    pieces: Pieces
    chat: bool

    def fill(self, question: Question, order: Sequence[int]) -> str:
        """The wording with the question in it. Values are joined in, never parsed: their braces are only text."""
        letters = LETTERS[: len(order)]
        values = {
            "question": question.stem,
            "options": "\n".join(
                f"{letter}. {question.choices[choice]}" for letter, choice in zip(letters, order, strict=True)
            ),
            "letters": f"{', '.join(letters[:-1])} or {letters[-1]}",
            "subject": question.subject,
        }
        filled = []
        for literal, name in self.pieces:
            value = "" if name is None else values[name]
            if value is None:
                raise InputError(
                    f"question {question.id!r} has no subject, which the template {short(self.name)} asks for"
                )
            filled.append(literal + value)
        return "".join(filled)


def read_templates(template: str | Sequence[str] | None) -> list[Template]:
    """A template argument (a name, a text, a list of them, None for default) as parsed templates.

    >>> [template.name for template in read_templates(["plain", "chat"])]
    ['plain', 'chat']
    """
    if template is None or isinstance(template, str):
        return [_template("default" if template is None else template)]
    if not isinstance(template, Sequence) or not template:
        raise InputError(f"template must be a name, a text or a list of them, got {short(template)}")
    return [_template(item) for item in template]


def _template(given: Any) -> Template:
    if not isinstance(given, str):
        raise InputError(f"template must be a name or a text, got {short(given)}")
    wording = given.removeprefix("chat:")
    chat = given == "chat" or wording != given
    if given == "chat":
        wording = "default"
    text = TEMPLATES.get(wording, wording)
    if "{" not in text:
        names = ", ".join([*TEMPLATES, "chat", "chat:NAME"])
        raise InputError(f"template {short(given)} is not known; known are {names}, or a text with {{question}} in it")
    pieces = parse_wording(text, known=PLACEHOLDERS, needed=NEEDED, what=f"template {short(given)}")
    return Template(given, text, pieces, chat)


def template_hash(template: str | Sequence[str] | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """SHA-256 (hex) of the wording of a template argument: a name and its text have the same hash.

    With a tokenizer, the hash of a chat template argument covers that tokenizer's chat template too.

    >>> template_hash() == template_hash(["default"]) != template_hash("plain")
    True
    """
    content: list[Any] = []
    for item in read_templates(template):
        content.append([item.text, item.chat])
        if item.chat and tokenizer is not None:
            content[-1].append(tokenizer.chat_template)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Worded(NamedTuple):
    """A prompt's text, and the end of it that is the same whatever the question ("" where that is not known)."""

    text: str
    tail: str


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
    chat = _in_chat(tokenizer, text)
    inner = text.strip()  # many chat templates strip the turns
    start = chat.rfind(inner)
    return Worded(chat, tail.rstrip() + chat[start + len(inner) :] if start >= 0 else "")


def _in_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` as the user's turn, up to where the model's turn begins.

    The turn keeps its closing "Answer:": after a demonstration that ends "Answer: B" the natural continuation is then
    the letter itself, where a bare question would invite "Answer:" again. `enable_thinking=False` closes the thoughts
    of models that think aloud; templates that do not know the word ignore it.
    """
    from jinja2 import TemplateError

    try:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
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
