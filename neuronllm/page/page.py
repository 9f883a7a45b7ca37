"""report.html: one file with everything in it, made of comparison.json and timings.json alone.

Nothing is ever loaded: the policy in its head forbids it, and allows the two scripts of the page by their hash. Tables
are plain HTML; figures and cards are data, compressed, which the script of the page unpacks and shows.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from ..common.errors import InputError
from ..common.files import read_json, write_text
from . import charts, palette, tables
from .cards import card_facts, visible
from .cells import between, decimals, whole

HERE = Path(__file__).parent
PAGE, COMPARISON, TIMINGS = "report.html", "comparison.json", "timings.json"
FORMAT, VERSION = "neuronllm-comparison", 1
PARTS = ("comparison", "card", "neurons")
Facts = dict[str, Any]


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Write report.html into the folder of a comparison, and return its path.

    >>> write_page("comparison")   # doctest: +SKIP
    PosixPath('comparison/report.html')
    """
    comparison, timings = _read(folder)
    path = Path(folder) / PAGE
    write_text(path, _checked(lambda: page(comparison, timings), Path(folder) / COMPARISON))
    return path


def _read(folder: str | os.PathLike[str]) -> tuple[Facts, Facts]:
    comparison, timings = (read_json(folder, name, "comparison") for name in (COMPARISON, TIMINGS))
    path = Path(folder) / COMPARISON
    if not isinstance(comparison, dict) or comparison.get("format") != FORMAT:
        raise InputError(f"{path}: not a comparison, its format is not {FORMAT!r}; name a folder of neuronllm compare")
    if comparison.get("version") != VERSION:
        raise InputError(f"{path}: version {comparison.get('version')!r} is not known here; update neuronllm")
    return comparison, timings


def page(comparison: Facts, timings: Facts) -> str:
    """The whole page as text."""
    curves, maps = charts.curve_figures(comparison), charts.map_figures(comparison)
    library, missing = plotly() if curves or maps else (None, "")
    cards = [_template("card", card=card_facts(card)) for card in comparison["cards"]]
    payload = {
        "figures": {"curves": curves, "maps": maps} if library else {},
        "cards": cards,
        "themes": {name: colours | {"--scale": palette.scale(name)} for name, colours in palette.THEMES.items()},
    }
    script = _asset("page.js")
    return _template(
        "report",
        policy=_policy(script, library),
        script=script,
        library=library and pack(library),
        payload=pack(json.dumps(payload, separators=(",", ":"))),
        figures={"curves": curves, "maps": maps},
        missing=missing,
        card=cards[0] if cards else None,
        comparison=comparison,
        timings=timings,
        tables={
            "edits": tables.edits(comparison),
            "methods": tables.methods(comparison, timings),
            "curves": tables.curves(comparison),
            "neurons": tables.neurons(comparison),
            "elsewhere": tables.elsewhere(comparison),
            "changed": tables.changed(comparison),
        },
        matrices=tables.matrices(comparison),
        settings=sorted(comparison["made"]["settings"].items()),
    )


def part(name: str, facts: Facts) -> str:
    """A part of the page by itself, for a notebook: "comparison", "card" or "neurons", of the facts that it shows.

    >>> "Layer 3, neuron 17" in part("card", card)   # doctest: +SKIP
    True
    """
    if name not in PARTS:
        raise InputError(f"part {name!r}: known parts are {', '.join(PARTS)}")
    ready: dict[str, Callable[[], Facts]] = {
        "comparison": lambda: {"comparison": facts, "table": tables.edits(facts)},
        "card": lambda: {"card": card_facts(facts)},
        "neurons": lambda: {"facts": facts, "table": tables.members(facts)},
    }
    return _checked(lambda: _template(f"part_{name}", **ready[name]()), f"part {name}")


def _checked(make: Callable[[], str], where: object) -> str:
    """What is missing or of another kind in the facts, as one clear line."""
    try:
        return make()
    except (jinja2.UndefinedError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"missing {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{where}: not as neuronllm compare writes it ({what}); make the comparison again") from error


# --- templates ---


def _template(name: str, **facts: Any) -> str:
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


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def style() -> str:
    """The style sheet, with the colours of the palette as its variables."""
    light, dark = palette.css()
    variables = f".neuronllm{light}@media screen and (prefers-color-scheme:dark){{.neuronllm{dark}}}"
    return variables + _asset("page.css")


# --- what is embedded ---


def plotly() -> tuple[str | None, str]:
    """The source of plotly.js; where the package plotly is missing None, and what to do."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None, "Figures need plotly: pip install 'neuronllm[report]', then write the page again."
    return get_plotlyjs(), ""


def pack(text: str) -> str:
    """Text compressed, in letters that end no tag: the page unpacks it with DecompressionStream."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _policy(*scripts: str | None) -> str:
    """Load nothing, run these scripts and no other: not even one that somebody's text had smuggled in."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts if script)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    # plotly.js writes style attributes, and draws the map as an image that it holds itself
    style, images = "style-src 'unsafe-inline'", "img-src data: blob:"
    return f"default-src 'none'; script-src {allowed}; {style}; {images}; base-uri 'none'; form-action 'none'"
