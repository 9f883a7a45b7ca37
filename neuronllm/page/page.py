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
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import read_json, write_text
from . import across, charts, palette, tables
from .cards import card_facts
from .rendering import asset, checked, rendered

PAGE, COMPARISON, TIMINGS = "report.html", "comparison.json", "timings.json"
FORMAT, VERSION = "neuronllm-comparison", 1
Facts = dict[str, Any]


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Write report.html into the folder of a comparison, and return its path.

    >>> write_page("comparison")   # doctest: +SKIP
    PosixPath('comparison/report.html')
    """
    comparison, timings = _read(folder)
    path = Path(folder) / PAGE
    write_text(path, checked(lambda: page(comparison, timings), Path(folder) / COMPARISON))
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
    cards = [rendered("card", card=card_facts(card)) for card in comparison["cards"]]
    payload = {
        "figures": {"curves": curves, "maps": maps} if library else {},
        "cards": cards,
        "themes": {name: colours | {"--scale": palette.scale(name)} for name, colours in palette.THEMES.items()},
    }
    script = asset("page.js")
    return rendered(
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
        words=tables.words(comparison["made"]),
        tables={
            "edits": tables.edits(comparison),
            "methods": tables.methods(comparison, timings),
            "curves": tables.curves(comparison),
            "neurons": tables.neurons(comparison),
            "pcr": across.pcr(comparison),
            "faces": across.two_faced(comparison),
            "elsewhere": across.elsewhere(comparison),
            "changed": tables.changed(comparison),
        },
        across={"Method": across.by_method(comparison), "Task": across.by_task(comparison)},
        unmeasured=tables.unmeasured(comparison),
        settings=sorted(comparison["made"]["settings"].items()),
    )


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
