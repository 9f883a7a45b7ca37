"""How the texts of flags are read as values."""

from __future__ import annotations

import argparse


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
