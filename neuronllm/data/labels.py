"""What the answer and the label of a row mean: an index, a letter, a word for yes or no, the name of a class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..common.checks import integer, short
from ..common.errors import InputError
from .sources import LETTERS

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def is_unlabelled(value: Any) -> bool:
    """Whether `value` is one of the marks by which datasets hide the answers of a test split."""
    return value is None or integer(value) == -1 or (isinstance(value, str) and value.strip() in ("", "-1"))


def labelled(value: Any) -> Any:
    if is_unlabelled(value):
        raise InputError(f"the row is unlabelled (answer {value!r}): use a split whose answers are public")
    return value.strip() if isinstance(value, str) else value


def answer_index(value: Any, choices: Sequence[str]) -> int:
    """The index that `value` means: a number from 0, the same as digits, a letter from A, or the text of a choice.

    >>> answer_index("B", ["red", "blue"])
    1
    """
    text = labelled(value)
    if (number := integer(text)) is not None:
        return number
    if not isinstance(text, str):
        raise InputError(f"answer must be a number, a letter or the text of a choice, got {short(value)}")
    readings = {number for number, choice in enumerate(choices) if isinstance(choice, str) and choice.strip() == text}
    if text.isascii() and text.isdigit():
        readings.add(int(text))
    if len(text) == 1 and text.upper() in LETTERS:
        readings.add(LETTERS.index(text.upper()))
    possible = {number for number in readings if number < len(choices)} or readings
    if not possible:
        raise InputError(f"answer {short(value)} is no number, no letter and none of the choices")
    if len(possible) > 1:
        found = " or ".join(str(number) for number in sorted(possible))
        raise InputError(f"answer {short(value)} is ambiguous: it can mean choice {found}; give the index as a number")
    return possible.pop()


def answer_in(value: Any, labels: Sequence[Any]) -> int:
    """The position of `value` among a row's own labels ("A".. or "1"..), both stripped."""
    known = [str(label).strip() for label in labels]
    wanted = str(labelled(value)).strip()
    if known.count(wanted) != 1:
        raise InputError(f"answer {short(value)} is not one of the labels {', '.join(known)}")
    return known.index(wanted)


def answer_placed(right: Any, wrong: Sequence[Any]) -> tuple[list[Any], int]:
    """The choices of a set that always gives the right one first, with the right one at a place drawn from its text.

    Without this every right answer would carry the same letter wherever choices are not permuted.
    """
    digest = hashlib.sha256(json.dumps([right, *wrong]).encode()).digest()
    place = int.from_bytes(digest[:8], "big") % (len(wrong) + 1)
    return [*wrong[:place], right, *wrong[place:]], place


def read_label(value: Any, name: str) -> str | int | bool:
    """A label as a text, a whole number (also where it was written as digits, as in a CSV file) or a boolean.

    >>> read_label(" 1", "label")
    1
    """
    if is_unlabelled(value):
        raise InputError(f"the row is unlabelled ({name} is {value!r}): leave such rows out")
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _number_or_text(value)
    number = integer(value)
    if number is None:
        raise InputError(f"{name} must be a text, a whole number or a boolean, got {short(value)}")
    return number


def _number_or_text(text: str) -> str | int:
    bare = text.strip()
    return int(bare) if bare.isascii() and bare.isdigit() else bare


def read_truth(value: Any, name: str) -> bool:
    """What a label says of a statement: a boolean, 1 or 0, or true, false, yes or no.

    >>> read_truth("No", "label")
    False
    """
    label = read_label(value, name)
    word = label.lower() if isinstance(label, str) else str(int(label))
    if word not in TRUTH:
        raise InputError(f"label must be true or false, 1 or 0, yes or no, got {short(value)}")
    return TRUTH[word]


def label_names(values: Iterable[Any], names: Any, *, label: str, argument: str) -> dict[Any, str]:
    """From each label to its name, in the order in which the names are displayed.

    Labels that are texts name themselves, in sorted order, and a list of names only fixes their order; numbers index a
    list of names. `label` is the field and `argument` the keyword for the names, as errors call them.

    >>> label_names(["pos", "neg"], None, label="label", argument="names")
    {'neg': 'neg', 'pos': 'pos'}
    """
    if isinstance(names, Mapping):
        return {_number_or_text(key) if isinstance(key, str) else key: name for key, name in names.items()}
    if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
        raise InputError(f"{argument} must be a list or a mapping of label names, got {short(names)}")
    read = [_number_or_text(value) for value in values if isinstance(value, str) and not is_unlabelled(value)]
    texts = sorted({value for value in read if isinstance(value, str)})
    if texts:
        return {name: name for name in names or texts}
    if names is None:
        raise InputError(f"the labels in {label!r} are not texts: say what they mean with {argument}=[...]")
    return dict(enumerate(names))


def label_index(value: Any, names: Mapping[Any, str], label: str) -> int:
    """Which of the names a row's label means, as `distinct` lists them."""
    read = read_label(value, label)
    if read not in names:
        raise InputError(f"label {short(value)} has no name; names are known for {short(list(names))}")
    return distinct(names).index(names[read])


def distinct(names: Mapping[Any, str]) -> list[str]:
    """The names once each; a mapping may give two labels one name."""
    return list(dict.fromkeys(names.values()))


def dataset_names(rows: Any, label: str) -> Any:
    """The names that a Hugging Face dataset itself gives the labels of a field (ClassLabel); None if it does not."""
    features = getattr(rows, "features", None) or {}
    return getattr(features.get(label), "names", None)
