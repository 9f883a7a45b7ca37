"""The flags of `neuronllm attribute`, made of the fields of the request: no default is written twice."""

from __future__ import annotations

import argparse
from dataclasses import Field, fields
from typing import Any

from ..attribution.request import Request
from ..common.errors import InputError
from .values import batch_size, count, flag_names, positive

READERS = {"int": count, "int | str": batch_size}  # how the text of a flag is read, by the type of the field
SEARCH = ("top", "miss", "budget")  # options of method exact
FIELDS = {argument.name: argument for argument in fields(Request)}


def add_request_flags(sub: argparse.ArgumentParser, *names: str) -> None:
    """The flags of all fields, or of some; None in the namespace means that a flag was not given."""
    for name in names or FIELDS:
        about = FIELDS[name].metadata
        if "no_flag" not in about:
            sub.add_argument(*about.get("flags", flag_names(name)), dest=name, **_reading(FIELDS[name]))


def request_of(args: argparse.Namespace, **more: Any) -> Request:
    """What the flags ask for; `more` are the arguments whose flag does not hold them as they are."""
    given: dict[str, Any] = {}
    for name, argument in FIELDS.items():
        value = getattr(args, name, None)
        if name not in more and "no_flag" not in argument.metadata and value is not None:
            words = _words(argument)
            given[name] = words[value] if words else value
    request = Request(**given, **more)
    for name, argument in FIELDS.items():
        other, needed = argument.metadata.get("only_with", ("", ""))
        if other and name in given and getattr(request, other) != needed:
            raise InputError(f"{flag_names(name)[0]} {_word(given[name])}: it needs {flag_names(other)[0]} {needed}")
    return request


def add_search_flags(sub: argparse.ArgumentParser) -> None:
    """Options of method exact that are worth a flag each."""
    found = "with --method exact: find the N best and the N worst neurons, without running all"
    sub.add_argument("--top", type=positive, metavar="N", help=found)
    share = "with --top: go on until no more than so large a share of N is expected to be missed (default: 0.01)"
    sub.add_argument("--miss", type=float, metavar="X", help=share)
    sub.add_argument("--budget", type=positive, metavar="N", help="with --top: run no more than N neurons")


def search_options(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """The options with those that have a flag of their own."""
    given = {name: value for name in SEARCH if (value := getattr(args, name)) is not None}
    if twice := next((name for name in given if name in options), None):
        raise InputError(f"--{twice} with --option {twice}: it is the same option, give it once")
    return options | given


def _reading(argument: Field[Any]) -> dict[str, Any]:
    about, default = argument.metadata, argument.default
    if argument.name == "options":
        return {"action": "append", "default": [], "metavar": "NAME=VALUE", "help": about["help"]}
    if default is False:
        return {"action": "store_true", "default": None, "help": about["help"]}
    shown = about.get("when_none") if default is None else _word(default)
    return {
        "help": f"{about['help']} (default: {shown})" if shown else about["help"],
        "type": READERS.get(str(argument.type)),
        "choices": tuple(_words(argument)) or None,
        "nargs": about.get("nargs"),
        "metavar": about.get("metavar"),
    }


def _words(argument: Field[Any]) -> dict[Any, Any]:
    """The values that a field may have, by the words that a flag takes for them."""
    return {_word(value): value for value in argument.metadata.get("choices", ())}


def _word(value: Any) -> str:
    return str(value).removeprefix("torch.")
