"""Rows whose answer is a text: open questions, pairs of a better and a worse answer, statements, labelled texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..common.checks import integer, short
from ..common.errors import InputError
from .labels import TRUTH, answer_placed, distinct, label_index, labelled, read_truth
from .sources import LETTERS

ONE_TEXT = "Text: {text}\nWhich label fits the text?"
TRUE_OR_FALSE = "Statement: {text}\nIs the statement true or false?"
YES_NO = ("yes", "no")
WORDS = (YES_NO, ("true", "false"))
CONTEXTS = ("context", "passage")  # what a question is about, which goes in front of it
OPEN_FIELDS = {"id", "question", "stem", "answer", "answers", "subject", *CONTEXTS}
LANGUAGES = {  # of the pairs of WMT
    "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French",
    "gu": "Gujarati", "hi": "Hindi", "ja": "Japanese", "kk": "Kazakh", "lt": "Lithuanian", "lv": "Latvian",
    "ro": "Romanian", "ru": "Russian", "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip

Fields = Mapping[str, Any]
Turn = tuple[str, str]  # of a chat: whose, and what was said


class Parts(NamedTuple):
    """What a layout found in a row; Question checks it. An open question has no choices, and a text as its answer."""

    stem: Any
    choices: Any
    answer: Any
    subject: Any = None
    answers: Sequence[Any] = ()
    in_words: bool = False


def listed(value: Any) -> Any:
    """Rows of a Parquet file hold arrays where those of a dataset hold lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def stem_of(row: Fields) -> Any:
    return row["stem"] if "stem" in row else row["question"]


def _stem_in_context(row: Fields) -> Any:
    stem = stem_of(row)
    contexts = [row[name].strip() for name in CONTEXTS if isinstance(row.get(name), str)]
    return "\n".join([*filter(None, contexts), stem.strip()]) if isinstance(stem, str) else stem


def accepted_answers(row: Fields) -> Sequence[Any]:
    """Further right answers of one of our own rows: a list of texts, or a single one, as a cell of a CSV file is."""
    given = listed(row.get("answers"))
    if given is None or given == "":
        return ()
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Sequence):
        raise InputError(f"answers must be a list of texts, got {short(given)}")
    return given


def _first_of(stem: Any, texts: Any) -> Parts:
    """An open question whose answers are all right: the first is shown, the others are accepted where it is written."""
    given = [text for text in listed(texts) if not isinstance(text, str) or text.strip()]
    if not given:
        raise InputError("the row has no answer: leave such rows out (skip_bad=True does)")
    answer, *more = dict.fromkeys(given)
    return Parts(stem, (), answer, answers=more)


# ------------------------------------------------------------------------------------------------------ open questions


def own_open(row: Fields) -> Parts:
    """A question and the text of its answer; yes and no, true and false are chosen between."""
    given = row["answer"].strip() if isinstance(row["answer"], str) else row["answer"]
    if given == "":
        raise InputError("the answer is empty: give its text, or leave the row out (skip_bad=True does)")
    if given != "-1":  # in words that is a number, where an index would hide the answer
        labelled(given)
    if not isinstance(given, (str, bool)):
        kind = "a number" if integer(given) is not None or isinstance(given, float) else f"a {type(given).__name__}"
        raise InputError(
            f"no field choices, and answer {short(given)} is {kind}: give the choices, or the answer as a text"
        )
    parts = Parts(_stem_in_context(row), (), given, row.get("subject"), accepted_answers(row))
    word = ("yes" if given else "no") if isinstance(given, bool) else given.casefold()
    for pair in WORDS:
        if word in pair:
            return parts._replace(choices=pair, answer=pair.index(word))
    _refuse_a_letter(row, given)
    return parts


def _refuse_a_letter(row: Fields, answer: Any) -> None:
    """An answer that names another field, or is a letter beside fields that nobody reads, is one of choices."""
    beside = [name for name in row if name not in OPEN_FIELDS]
    if "options" in beside or answer in beside or (beside and answer in list(LETTERS)):
        raise InputError(
            f"answer {short(answer)} seems to be one of choices in other fields ({', '.join(map(str, beside))}): "
            "say which is which with columns="
        )


def triviaqa(row: Fields) -> Parts:
    answer = row["answer"]
    if answer["value"] == "<unk>":
        raise InputError("the row is unlabelled (answer '<unk>'): use a split whose answers are public")
    aliases = [alias for name in ("aliases", "normalized_aliases") for alias in listed(answer.get(name)) or ()]
    return _first_of(row["question"], [answer["value"], *aliases])


def several_answers(row: Fields) -> Parts:
    """NQ-open and WebQuestions."""
    return _first_of(row["question"], row["answer"] if "answer" in row else row["answers"])


def squad(row: Fields) -> Parts:
    return _first_of(_stem_in_context(row), row["answers"]["text"])


def gsm8k(row: Fields) -> Parts:
    """The number behind the worked solution; thousands may be written without their commas."""
    number = row["answer"].rsplit("####", 1)[1].strip()
    return _first_of(row["question"], [number, number.replace(",", "")])


def lambada(row: Fields) -> Parts:
    words = row["text"].rsplit(maxsplit=1)
    if len(words) < 2:
        raise InputError(f"text needs two words at least, the last of which is the answer, got {short(row['text'])}")
    return Parts(words[0], (), words[1])


def translation(row: Fields) -> Parts:
    """From the language that the row names first to the other."""
    pair = row["translation"]
    if len(pair) != 2:
        raise InputError(f"translation must hold two languages, got {', '.join(map(str, pair))}")
    (source, text), (target, answer) = pair.items()
    names = [LANGUAGES.get(code, code) for code in (source, target)]
    return Parts(f"Translate from {names[0]} to {names[1]}: {str(text).strip()}", (), answer)


# ------------------------------------------------------------------------------------------------- choices in few words


def boolq(row: Fields) -> Parts:
    given = row["label"] if "label" in row else row["answer"]
    stem = _stem_in_context(row).removesuffix("?") + "?"
    return Parts(stem, YES_NO, 0 if read_truth(given, "answer") else 1)


def is_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in TRUTH)


def statement(row: Fields) -> Parts:
    stem = TRUE_OR_FALSE.replace("{text}", str(row["statement"]).strip())
    return Parts(stem, ("true", "false"), 0 if read_truth(row["label"], "label") else 1)


def labelled_text(row: Fields, names: Mapping[Any, str] | None = None) -> Parts:
    """A text and its label, where `names` has the names of the labels of all rows."""
    if names is None:
        raise InputError("a text and its label among rows of another kind: put them into a source of their own")
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise InputError(f"text must be a text that is not empty, got {short(row['text'])}")
    return Parts(
        ONE_TEXT.replace("{text}", row["text"].strip()), distinct(names), label_index(row["label"], names, "label")
    )


# ----------------------------------------------------------------------------------------------------------- two texts


def pair(row: Fields) -> Parts:
    return preferred(row.get("prompt", row.get("question")), row["chosen"], row["rejected"])


def preferred(prompt: Any, chosen: Any, rejected: Any) -> Parts:
    """A prompt with a better and a worse answer; of chats the last messages answer what was said before."""
    *before, right = _turns(chosen, "chosen", "assistant")
    *other, wrong = _turns(rejected, "rejected", "assistant")
    if before != other:
        raise InputError("chosen and rejected differ before their last message, so they answer different things")
    asked = [] if prompt is None else _turns(prompt, "prompt", "user")
    turns = [*(turn for turn in asked if turn not in before), *before]
    if not turns:
        raise InputError("no field prompt, and nothing in front of the last message of chosen: say what is answered")
    stem = turns[0][1] if len(turns) == 1 else "\n".join(f"{role}: {content}" for role, content in turns)
    return Parts(stem, *answer_placed(right[1], [wrong[1]]), in_words=True)


def _turns(given: Any, name: str, role: str) -> list[Turn]:
    """The messages of a chat; a plain text is one of them."""
    messages = [{"role": role, "content": given}] if isinstance(given, str) else listed(given)
    turns = []
    for message in messages if isinstance(messages, Sequence) else ():
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise InputError(f"{name} must be a text or a list of messages with role and content, got {short(given)}")
        turns.append((str(message.get("role")), message["content"].strip()))
    if not turns or not turns[-1][1]:
        raise InputError(f"{name} must be a text or a list of messages, and not empty, got {short(given)}")
    return turns
