"""What a neuron card shows, ready for its template: tokens coloured by activation, everything else as text."""

from __future__ import annotations

from typing import Any

from .cells import NOTHING, decimals, digits, places_for, plain

Facts = dict[str, Any]
LEVELS = 5  # of colour
FACTS = {"Score": "score", "95 % interval": "interval", "Exact effect": "exact", "Factor": "factor"}
PICTURES = {"\n": "⏎\n", "\t": "⇥\t", "\r": "␍"}


def card_facts(card: Facts) -> Facts:
    """Of a description, which says one thing of a neuron, or of a comparison, in which every method has a say."""
    spans = card["spans"]
    largest = max((abs(token["activation"] or 0.0) for span in spans for token in span["tokens"]), default=0.0)
    pairs = card["promoted"] + card["suppressed"]
    places = min(4, places_for([pair["value"] for pair in pairs]))
    return {
        "title": _title(card),
        "task": card["task"],
        "role": card.get("role"),
        "facts": _facts(card),
        "methods": [_said(said) for said in card.get("methods", ())],
        "measured": any(said["exact"] is not None for said in card.get("methods", ())),
        "promoted": [_pushed(pair, places) for pair in card["promoted"]],
        "suppressed": [_pushed(pair, places) for pair in card["suppressed"]],
        "largest": digits(largest),
        "spans": [{"question": span["question"], "pieces": _pieces(span["tokens"], largest)} for span in spans],
        "also": [_also(other) for other in card["also"]],
    }


def _title(card: Facts) -> str:
    expert = {-1: "", -2: ", shared expert"}.get(card["expert"], f", expert {card['expert']}")
    return f"Layer {card['layer']}{expert}, neuron {card['index']}"


def _facts(card: Facts) -> dict[str, str]:
    facts = {}
    if "methods" not in card:
        said = _said(card)
        facts = {name: said[key] for name, key in FACTS.items()}
    if card.get("positive") is not None:
        facts["Above 0"] = f"{decimals(card['positive'], 2)} of {card['read']:,} tokens"
    if judged := card.get("judged"):
        facts["Exact effects"] = f"on {judged:,} question{'s' if judged > 1 else ''}"
    return facts


def _said(said: Facts) -> dict[str, str]:
    """Who says so, and the numbers, as text."""
    return {
        "method": said.get("method", ""),
        "role": said["role"] or "",
        "score": digits(said["score"]),
        "interval": NOTHING if said["interval"] is None else " to ".join(digits(end) for end in said["interval"]),
        "exact": "not measured" if said["exact"] is None else digits(said["exact"]),
        "factor": "of its role" if said["factor"] is None else decimals(said["factor"], 2),
    }


def _also(other: Facts) -> str:
    return f"{other['role']} for {other['task']} ({', '.join(other['methods'])})"


def _pushed(pair: Facts, places: int) -> Facts:
    return {"token": visible(pair["token"]), "value": decimals(pair["value"], places)}


def _pieces(tokens: list[Facts], largest: float) -> list[Facts]:
    """Neighbours of no colour are one piece, so that a page of many cards stays small."""
    pieces: list[Facts] = []
    for token in tokens:
        activation = token["activation"] or 0.0  # none where the token did not reach the neuron's expert
        level = round(LEVELS * abs(activation) / largest) if largest else 0
        text = readable(token["text"])
        if not level and pieces and not pieces[-1]["level"]:
            pieces[-1]["text"] += text
            continue
        pieces.append(
            {"text": text, "level": level, "sign": "up" if activation > 0 else "down", "value": digits(activation)}
        )
    return pieces


def readable(text: str) -> str:
    """A token inside a text: line ends are kept, and shown."""
    return "".join(PICTURES.get(char) or plain(char) for char in text)


def visible(token: str) -> str:
    """A token by itself: its spaces are shown, too.

    >>> visible(" Paris"), visible("\\n")
    ('␣Paris', '⏎')
    """
    return "".join("␣" if char == " " else PICTURES.get(char, "").rstrip() or plain(char) for char in token)
