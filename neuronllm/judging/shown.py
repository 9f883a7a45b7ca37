"""What a notebook shows of a report: a sentence, and its numbers in tables of the page. It knows plain data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..page.cells import Cell, Column, Row, Table, count, decimals, interval, number, p_value, text
from ..page.tables import left, strip
from .verdicts import outcome

MOST = 40  # changed answers that are shown
LONG = 24  # characters of an answer that may take several lines
Facts = dict[str, Any]
Labels = Mapping[str, str]  # what is measured -> how it is called in print; the first is what is tested
SAID = {
    "shown": "raised beyond random sets and chance",
    "hurts": "lowered beyond random sets and chance",
    "not shown": "no effect beyond random sets and chance is shown",
    "collapse": "the predictions lean on one option, so this says little",
}


def report_shown(title: str, about: Facts, cautions: Sequence[str], facts: Facts, labels: Labels) -> tuple[str, Facts]:
    """The part of the page, and what it shows: `facts` are those of a report as `to_dict` gives them."""
    tables = [_measures(facts, labels), _effects(facts), _rivals(facts, labels), *_picked(facts), _changed(facts)]
    shown = {
        "title": title,
        "about": about,
        "said": [sentence(facts, labels), *cautions],
        "tables": [_filled(table) for table in tables if table.rows],
    }
    return "tables", shown


def sentence(facts: Facts, labels: Labels) -> str:
    """What the report comes to.

    >>> facts = {"accuracy": 0.5, "base": None, "questions": 60, "ci": {"base": {"accuracy": (0.375, 0.625)}}}
    >>> sentence(facts, {"accuracy": "accuracy"})
    'Accuracy 0.500 of 60 questions, 95 % interval 0.375 to 0.625.'
    """
    name, label = next(iter(labels.items()))
    label, now, base, ci = label[0].upper() + label[1:], facts[name], facts["base"], facts["ci"]
    if not base:
        return f"{label} {decimals(now)} of {facts['questions']} questions, 95 % interval {_range(ci['base'][name])}."
    band, kind = _band(facts, name)
    holm = (facts.get("holm") or {}).get("McNemar")
    p, which = (facts["mcnemar"], "p") if holm is None else (holm, "p (Holm)")
    verdict = outcome(now - base[name], now, band, p, collapsed=facts.get("collapsed", False))
    said = SAID[verdict]
    if band is None and verdict == "not shown":
        said = "no effect is shown, as no random sets stand beside it"
    change = f"{label} {decimals(base[name])} → {decimals(now)}, 95 % of the change {_range(ci['change'][name], True)}"
    beside = "" if band is None else f", {kind} {_range(band)}"
    return f"{change}, {which} = {p_value(p).text}{beside}: {said}."


def _range(ends: Sequence[float], sign: bool = False) -> str:
    return " to ".join(decimals(end, sign=sign) for end in ends)


def _band(facts: Facts, name: str) -> tuple[list[float] | None, str]:
    """The band that a verdict goes by: of sets learned the same way where there are some, else of those edited so."""
    learned = facts.get("learned") or {}
    kind = next((kind for kind in ("matched", "plain") if kind in learned), None)
    if kind is not None:
        return _ends(learned[kind][name]), f"{kind} sets learned the same way"
    found = facts["controls"]
    return (_ends(found[name]), f"{found['sets']} random sets") if found else (None, "")


def _ends(drawn: Mapping[str, float]) -> list[float]:
    return [drawn["p2.5"], drawn["p97.5"]]


def _measures(facts: Facts, labels: Labels) -> Table:
    """What was measured, before and after."""
    base, ci = facts["base"] or {}, facts["ci"]
    columns = [
        left("Measure"),
        Column("Without the edit"),
        Column("With it" if base else "Value"),
        left("0 to 1", "the value with its interval; the bar is the band of random sets, the stroke no edit"),
        Column("95 % without", "interval over questions"),
        Column("95 % with it" if base else "95 % interval", "interval over questions"),
        Column("95 % of the change", "of the same questions, paired"),
    ]
    rows = []
    for name, label in labels.items():
        ends = {whose: ci.get(whose, {}).get(name) for whose in ("base", "edited", "change")}
        own = ends["edited" if base else "base"]
        band = _band(facts, name)[0] if base else None
        now, before = facts[name], base.get(name)
        picture = strip(now, own, band, now if before is None else before)
        cells = [number(before), number(now), picture, interval(ends["base"] if base else None)]
        rows.append(Row([text(label), *cells, interval(own), interval(ends["change"])]))
    if other := facts.get("unrelated"):
        values = [number(other["base"]), number(other["edited"]), text(None)]
        rows.append(Row([text("accuracy, unrelated"), *values, *(interval(end) for end in other["ci"].values())]))
    if said := facts.get("plain_text"):
        values = [number(said["base"]), number(said["edited"]), *[text(None)] * 3]
        rows.append(Row([text("log-probability a token of plain text"), *values, interval(said["change"])]))
    return Table("measures", "What was measured", columns, rows)


def _effects(facts: Facts) -> Table:
    """What the edit amounts to; nothing without one."""
    flips, holm = facts["flips"] or {}, facts.get("holm") or {}
    rows = [
        ("RAC", number(facts.get("rac"), sign=True), "relative change of the accuracy"),
        ("RCC", number(facts.get("rcc"), sign=True), "relative change of the right answer's mean probability"),
        ("PCR", number(facts.get("pcr"), 2), "size of the change of P(right) over that on the unrelated questions"),
        ("To right", count(flips.get("wrong_to_right")), "questions that the edit made right"),
        ("To wrong", count(flips.get("right_to_wrong")), "questions that the edit made wrong"),
        ("p", p_value(facts["mcnemar"]), "McNemar's exact test of these questions"),
        ("p (Holm)", p_value(holm.get("McNemar")), "the same, corrected for all tests of this report"),
    ]
    columns = [left("Effect"), Column("Value"), left("What it is", wide=True)]
    cells = [Row([text(name), value, text(what)]) for name, value, what in rows if value.values]
    return Table("effects", "What the edit amounts to", columns, cells)


def _rivals(facts: Facts, labels: Labels) -> Table:
    """What else would do what the edit does: random sets edited or learned the same way, and a bias alone."""
    learned, holm = facts.get("learned") or {}, facts.get("holm") or {}
    columns = [left("Instead"), Column("Sets")]
    for label in labels.values():
        columns += [Column(label, "95 % of the sets"), Column("Place", "per cent of the sets that are below the edit")]
    columns += [Column("p", "how likely a set like these does as well"), Column("p (Holm)")]
    rows = []
    if drawn := facts["controls"]:
        rows.append(_among("random sets, edited", drawn, labels, None))
    for kind in ("plain", "matched"):
        if kind in learned:
            rows.append(_among(f"{kind} random sets, learned", learned[kind], labels, holm.get(kind)))
    if learned and any(learned["forced"][name] != facts[name] for name in labels):
        rows.append(_alone("the same set, forced", learned["forced"], labels))
    if bias := facts.get("bias"):
        rows.append(_alone(f"one number for each {bias['by']}", bias, labels))
    return Table("rivals", "What else might do the same", columns, rows)


def _among(name: str, drawn: Facts, labels: Labels, holm: float | None) -> Row:
    cells = [text(name), count(drawn["sets"])]
    for measure in labels:
        cells += [interval(_ends(drawn[measure])), number(drawn[measure]["percentile_of_edit"], 0)]
    return Row([*cells, p_value(drawn.get("p")), p_value(holm)])


def _alone(name: str, found: Facts, labels: Labels) -> Row:
    cells = [cell for measure in labels for cell in (number(found.get(measure)), number(None))]
    return Row([text(name), count(None), *cells, number(None), number(None)])


def _picked(facts: Facts) -> list[Table]:
    """Which options were picked, and whether the short ones: a model may answer without reading."""
    base = facts["base"] or {}
    with_it = "With the edit" if base else "Share"
    tables = []
    kind = "letters" if facts.get("letters") else "options"
    if shares := facts.get(kind):
        before = base.get(kind) or {}
        rows = [Row([text(name), number(before.get(name), 2), number(share, 2)]) for name, share in shares.items()]
        columns = [left("Letter" if kind == "letters" else "Option"), Column("Without the edit"), Column(with_it)]
        tables.append(Table("options", "How often each is picked", columns, rows))
    if lengths := facts.get("lengths"):
        columns = [left("Length"), Column("Without the edit"), Column(with_it), Column("Right")]
        before = (base.get("lengths") or {}).get("picked", {})
        rows = [
            Row([text(size), number(before.get(size), 2), number(share, 2), number(lengths["right"][size], 2)])
            for size, share in lengths["picked"].items()
        ]
        tables.append(Table("lengths", "How long the picked answers are, of options that differ", columns, rows))
    return tables


def _changed(facts: Facts) -> Table:
    """Questions that are answered otherwise, with the answers before and after."""
    found = facts["changed"] or []
    more = f", {MOST} of {len(found)}" if len(found) > MOST else ""
    rows = []
    for seen in found[:MOST]:
        name = seen["question"] or seen["id"] or f"number {seen['number']}"
        right = seen["right"] if "right" in seen else " / ".join(seen["accepted"])
        known = {"right_before": seen["before"] == right, "right_after": seen["after"] == right} | seen
        cells = [text(words) for words in (name, seen["before"], seen["after"], right)]
        rows.append(Row([*cells, text(_became(known["right_before"], known["right_after"]))]))
    wide = any(len(cell.text) > LONG for row in rows for cell in row.cells[1:])
    columns = [left("Question", wide=True)]
    columns += [left(title, wide=wide) for title in ("Without the edit", "With it", "Right answer")]
    return Table("changed", f"Questions that are answered otherwise{more}", [*columns, left("Became")], rows)


def _became(before: bool, after: bool) -> str:
    """Right or wrong where it changed sides, else another answer."""
    if before == after:
        return "other"
    return "right" if after else "wrong"


def _filled(table: Table) -> Table:
    """The table without columns in which nothing stands."""
    kept = [n for n in range(len(table.columns)) if any(_says(row.cells[n]) for row in table.rows)]
    rows = [Row([row.cells[n] for n in kept], row.marks) for row in table.rows]
    return Table(table.name, table.caption, [table.columns[n] for n in kept], rows)


def _says(cell: Cell) -> bool:
    return cell.text != text(None).text or bool(cell.values)
