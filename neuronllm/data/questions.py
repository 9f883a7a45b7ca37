"""Questions: what the model is asked. Checked here, however they were made; `loading.py` reads them from files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..common.checks import integer, short
from ..common.errors import InputError


@dataclass(frozen=True)
class Wording:
    """How a question is shown to the letter, where it comes in words of its own, such as those of a benchmark.

    A model reads `prompt`, then `delimiter` and one of `answers`, one for each choice: nothing is stripped, and no
    template or order of the choices has a say. `letters` tells that the prompt shows the options with the letters that
    are its answers.

    >>> Wording("Which is warm?\\nA. ice\\nB. fire\\nAnswer:", " ", ("A", "B"), letters=True).answers[1]
    'B'
    """

    prompt: str
    delimiter: str
    answers: tuple[str, ...]
    letters: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(self.answers))
        for text in (self.prompt, self.delimiter, *self.answers):
            if not isinstance(text, str):
                raise InputError(f"wording: prompt, delimiter and answers are texts, got {short(text)}")


@dataclass(frozen=True)
class Question:
    """A stem, its choices, and the index of the right choice. Texts are stripped; bad content raises InputError.

    An open question has a right answer and no choices: `answer` is then its text, and becomes the only choice.
    `answers` are further texts that count as right where the model writes its answer.

    `wording` is how the question is shown where that is settled, as for `nl.load_task`. `in_words`: it is answered in
    texts unless letters are asked for, as a preference pair is.

    >>> Question("Which is a colour?", ("red", "seven"), answer=0).choices[0]
    'red'
    >>> Question("What is the capital of France?", answer="Paris").open
    True
    """

    stem: str
    choices: tuple[str, ...] = ()
    answer: int = 0
    subject: str | None = None
    id: str = ""
    answers: tuple[str, ...] = ()
    wording: Wording | None = field(default=None, repr=False)
    in_words: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.choices, str) or not isinstance(self.choices, Sequence):
            raise InputError(f"choices must be a list of texts, got {type(self.choices).__name__}")
        given: Any = self.answer
        if not self.choices and isinstance(given, str):
            object.__setattr__(self, "choices", (_text(given, "the answer"),))
            object.__setattr__(self, "answer", 0)
        choices = tuple(_text(choice, f"choice {number}") for number, choice in enumerate(self.choices))
        if not choices:
            raise InputError("a question needs choices, or the text of its answer")
        for number, choice in enumerate(choices):
            if choice in choices[:number]:
                first = choices.index(choice)
                raise InputError(f"choices {first} and {number} are both {short(choice)}: choices must differ")
        answer = integer(self.answer)
        if answer is None:
            raise InputError(f"answer must be a whole number (0 = the first choice), got {short(self.answer)}")
        if not 0 <= answer < len(choices):
            raise InputError(f"answer {answer} is out of range: {len(choices)} choices go from 0 to {len(choices) - 1}")
        if not isinstance(self.id, str):
            raise InputError(f"id must be a text, got {type(self.id).__name__}")
        object.__setattr__(self, "stem", _text(self.stem, "the question"))
        object.__setattr__(self, "choices", choices)
        object.__setattr__(self, "answer", answer)
        object.__setattr__(self, "id", self.id.strip())
        if self.subject is not None:
            object.__setattr__(self, "subject", _text(self.subject, "the subject"))
        if isinstance(self.answers, str) or not isinstance(self.answers, Sequence):
            raise InputError(f"answers must be a list of texts, got {short(self.answers)}")
        accepted = tuple(dict.fromkeys(_text(text, "an accepted answer") for text in self.answers))
        if wrong := next((choice for n, choice in enumerate(choices) if n != answer and choice in accepted), None):
            raise InputError(f"answers holds {short(wrong)}, which is a wrong choice")
        object.__setattr__(self, "answers", accepted)
        if self.wording is not None and len(self.wording.answers) != len(choices):
            raise InputError(
                f"wording: it has answers for {len(self.wording.answers)} choices, and the question has {len(choices)}"
            )

    @property
    def open(self) -> bool:
        """Whether there is nothing to choose from."""
        return len(self.choices) == 1


def _text(value: Any, what: str) -> str:
    """`value` stripped, or InputError: an empty text or half a surrogate pair would only fail much later."""
    if not isinstance(value, str):
        raise InputError(f"{what} must be a text, got {short(value)}")
    if not value.strip():
        raise InputError(f"{what} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{what} holds a character that is not valid Unicode (half of a surrogate pair)") from None
    return value.strip()


def fingerprint(questions: Iterable[Question]) -> str:
    """SHA-256 (hex) of what the questions ask, in their order: stems, choices, answers, subjects. Ids do not count.

    >>> fingerprint([Question("Warm?", ("yes", "no"), 0, id="a")]) == fingerprint([Question("Warm?", ("yes", "no"), 0)])
    True
    """
    content = [
        [question.stem, question.choices, question.answer, question.subject, *_more(question)] for question in questions
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _more(question: Question) -> list[Any]:
    """What only some questions have: fingerprints of the others stay what they always were."""
    more: list[Any] = [question.answers] if question.answers else []
    return [*more, asdict(question.wording)] if question.wording else more
