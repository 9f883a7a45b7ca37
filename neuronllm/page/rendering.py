"""The templates of the page, and what they are given: everything escaped but our own style sheet and script."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from ..common.errors import InputError
from . import palette
from .cards import visible
from .cells import between, decimals, whole

HERE = Path(__file__).parent


def rendered(name: str, **facts: Any) -> str:
    made = _environment().get_template(f"{name}.html.j2").render(style=style, **facts)
    return made.encode(errors="backslashreplace").decode()  # half a pair of UTF-16 fits into no file


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,  # tokens, questions and names are anybody's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"decimals": decimals, "between": between, "whole": whole, "visible": visible, "json": _json}
    return environment


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def style() -> str:
    """The style sheet, with the colours of the palette as its variables."""
    light, dark = palette.css()
    variables = f".neuronllm{light}@media screen and (prefers-color-scheme:dark){{.neuronllm{dark}}}"
    return variables + asset("page.css")


def checked(make: Callable[[], str], where: object) -> str:
    """What is missing or of another kind in the facts, as one clear line."""
    try:
        return make()
    except (jinja2.UndefinedError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"missing {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{where}: not as neuronllm compare writes it ({what}); make the comparison again") from error
