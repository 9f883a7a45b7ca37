"""How the texts of flags are read as values, and plain files as texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import InputError


def flag_names(name: str) -> tuple[str, ...]:
    """The flag of an argument's name; one of several words may be written with _ too.

    >>> flag_names("keep_dtype")
    ('--keep-dtype', '--keep_dtype')
    """
    return tuple(dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")))


def batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: give a positive whole number or "auto"')
    return int(text)


def count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 0 or more")
    return int(text)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a positive whole number")
    return int(text)


def margin(text: str) -> float | None:
    """A number of standard errors, or None."""
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of standard errors, or none") from None


def read_at(text: str) -> int | str:
    """Positions that are read: by a name, or the place of a token."""
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() else text


def text_lines(source: str) -> list[str]:
    """The lines of a text file that are not blank."""
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{source}: no such file")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text") from error
    if not lines:
        raise InputError(f"{source}: there is no text in it")
    return lines


def options(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, whose values are numbers where they can be read so.

    >>> options(["steps=8", "quadrature=right"])
    {'steps': 8, 'quadrature': 'right'}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--option {pair}: write NAME=VALUE")
        found[name] = literal(value)
    return found


def literal(text: str) -> Any:
    """A number where the text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_form(args: argparse.Namespace, questions: Sequence[Any], neurons: Any = None) -> None:
    """InputError for questions that cannot be answered in the form asked for, before the model is loaded."""
    from ..data.forms import form_of

    form_of(questions, args.answers, args.length, {} if neurons is None else neurons.provenance)
