"""What neurons are, to look at: where they lie, which tokens they promote, and where in texts they are active."""

from __future__ import annotations

import html
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import check_new_file, read_json, write_json
from ..common.tables import show
from ..model.sites import DENSE, SHARED
from ..select.results import printable
from .shown import Shown

FORMAT, VERSION = "neuronllm-description", 1
ENDS = ("promoted", "suppressed")
COLUMNS = ("neuron", "role", "score", "above 0", "promotes", "suppresses", "most active")
SHOWN = 4  # tokens of each end in a table
EITHER_SIDE = 5  # tokens around the most active one in a table


@dataclass(frozen=True)
class Description(Shown):
    """What `nl.describe` returns.

    `cards` has a dictionary a neuron, in the order of the set: layer, expert, index, id; role, score and factor, where
    a set says them; "promoted" and "suppressed", lists of {"token", "id", "value"} with the strongest first; "spans",
    the places where it is most active, each {"question", "tokens": [{"text", "activation"}], "peak", "activation"};
    "positive", the share of the tokens read at which its activation is above 0, and "read", how many these were. What
    is not known is None: so it is with "task", "interval" and "exact", which others fill in, and "also" is empty.

    `layers` counts the neurons of every layer by role. `texts` says what was read, `settings` what was asked for.

    >>> description = nl.describe(model, tokenizer, neurons, questions)        # doctest: +SKIP
    >>> [token["token"] for token in description.cards[0]["promoted"]]          # doctest: +SKIP
    """

    cards: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    model: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Description({len(self.cards)} neurons, {self.texts.get('count', 0)} texts)"

    def __len__(self) -> int:
        return len(self.cards)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {"format": FORMAT, "version": VERSION} | asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the description into a new JSON file."""
        check_new_file(path)
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Description:
        """Read what `save` wrote."""
        data = read_json(Path(path).parent, Path(path).name, "description")
        if not isinstance(data, dict) or (data.pop("format", None), data.pop("version", None)) != (FORMAT, VERSION):
            raise InputError(f"{path}: not a description as nl.describe(...).save writes it")
        try:
            return cls(**data)
        except TypeError as error:
            raise InputError(f"{path}: not a description as written here ({error})") from error

    def rows(self) -> list[list[str]]:
        """A line of text for every column of `COLUMNS`, neuron by neuron."""
        return [[*_facts(card), *(_tokens(card[end]) for end in ENDS), _span(card)] for card in self.cards]

    def _shown(self) -> tuple[str, dict[str, Any]]:
        """Every neuron as a card."""
        return "cards", {"title": f"{len(self)} neurons", "cards": self.cards}

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def address(card: dict[str, Any]) -> str:
    """A neuron as a person says it.

    >>> address({"layer": 3, "expert": -1, "index": 17})
    'layer 3 neuron 17'
    """
    expert = {DENSE: "", SHARED: " shared expert"}.get(card["expert"], f" expert {card['expert']}")
    return f"layer {card['layer']}{expert} neuron {card['index']}"


def _facts(card: dict[str, Any]) -> list[str]:
    positive = "" if card["positive"] is None else f"{card['positive']:.0%}"
    return [address(card), card["role"] or "", "" if card["score"] is None else show(card["score"]), positive]


def _tokens(tokens: list[dict[str, Any]]) -> str:
    return " ".join(_quoted(token["token"]) for token in tokens[:SHOWN])


def _span(card: dict[str, Any]) -> str:
    """The most active place with the token in brackets, and what the neuron holds there."""
    if not card["spans"]:
        return ""
    span = card["spans"][0]
    peak, texts = span["peak"], [token["text"] for token in span["tokens"]]
    before, after = texts[max(0, peak - EITHER_SIDE) : peak], texts[peak + 1 : peak + 1 + EITHER_SIDE]
    said = " ".join(f"{''.join(before)}[{texts[peak]}]{''.join(after)}".split())
    return f"{printable(said)} ({span['activation']:.3g})"


def _quoted(text: str) -> str:
    """A token by itself, with the spaces that belong to it."""
    return f'"{printable(text)}"'
