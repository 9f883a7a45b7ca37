"""The tables of the page, row by row, of what a comparison holds: what worked and what did not, in the order given."""

from __future__ import annotations

from typing import Any

from .cells import (
    NOTHING,
    Cell,
    Column,
    Row,
    Table,
    count,
    decimals,
    interval,
    number,
    p_value,
    places_for,
    text,
    whole,
)


def left(title: str, hint: str = "", wide: bool = False) -> Column:
    """A column of words."""
    return Column(title, hint, numeric=False, wide=wide)


TASK, METHOD, EDIT = left("Task"), left("Method"), left("Edit")
Facts = dict[str, Any]

EDITS = [
    TASK,
    METHOD,
    EDIT,
    Column("Neurons", "edited neurons, good and bad together"),
    Column("Accuracy", "share of the test questions answered right under the edit"),
    left("0 to 1", "accuracy with its interval; the bar is the band of random sets, the stroke no edit"),
    Column("Change", "accuracy with the edit less without"),
    Column("p (Holm)", "McNemar's exact test of the questions that changed, corrected for all edits side by side"),
    Column("Beats", "share of the random sets that the edit beats in the direction that it is for"),
    left("Verdict", wide=True),
    Column("95 % interval", "of the accuracy, over questions"),
    Column("P(right)", "mean probability of the right answer"),
    Column("RAC", "relative change of the accuracy"),
    Column("RCC", "relative change of the right answer's mean probability"),
    Column("PCR", "size of the change of P(right) over that on the other tasks"),
    Column("To right", "questions that the edit made right"),
    Column("To wrong", "questions that the edit made wrong"),
    Column("Other", "questions wrong before and after, with another answer"),
    Column("Random band", "accuracy of random sets, 95 % of them"),
    left("Random sets", "how many, and whether they were edited as given or learned the same way"),
    Column("Most given", "the answer given most often, and its share: 1 says that the questions are not read"),
    Column("Length", "of answers in words: the length picked most beyond what is right, its share, that of right ones"),
]

METHODS = [
    TASK,
    METHOD,
    left("Positions"),
    Column("Questions"),
    Column("Cost", "time as a multiple of reading the same prompts once"),
    Column("Seconds"),
    Column("Spearman", "rank correlation of the scores with exact effects"),
    Column("95 % interval", "of the rank correlation, where the neurons are a sample"),
    Column("Best 1 %", "share of the best neurons by exact effect that are among the best by score"),
    Column("Worst 1 %", "the same of the worst"),
    Column("Measured", "neurons whose exact effect was measured, and whether they are all or a sample"),
    Column("Halves", "rank correlation of the scores of two halves of the questions"),
    Column("Overlap", "share of the best neurons that both halves name"),
    left("Layers", "neurons found in each layer: good ones upwards, bad ones downwards"),
]

# How the neurons of an edit come about that are not simply those found.
MADE = {
    "tuned": "their number, factors and positions chosen on validation questions",
    "verified": "of the neurons found those that do, really silenced, what their score says",
    "learned": "for every neuron found a factor of its own, learned on the search questions",
}


def edits(comparison: Facts) -> Table:
    """The comparison itself: first each task without an edit, then its edits."""
    rows = []
    for task in comparison["tasks"]:
        rows.append(row_of(task["name"], "none", "no edit", _unedited(task)))
        found = [edit for edit in comparison["edits"] if edit["task"] == task["name"]]
        rows += [row_of(task["name"], edit["method"], edit["edit"], _edited(edit, task["base"])) for edit in found]
    columns = EDITS
    if not any(row.cells[-1].values for row in rows):  # letters are all of the same length
        columns, rows = EDITS[:-1], [Row(row.cells[:-1], row.marks) for row in rows]
    caption = "Every task, method and edit on the test questions"
    return Table("edits", caption, columns, rows, ("task", "method", "edit"), page=40)


def words(made: Facts) -> dict[str, str]:
    """What every method and every edit is."""
    return made["methods"] | {name: _edit(how) for name, how in made["edits"].items()}


def _edit(how: Facts) -> str:
    factors = [f"{role} neurons times {how[role]:g}" for role in ("good", "bad") if how[role] is not None]
    said = ", ".join([*([MADE[how["made"]]] if how["made"] in MADE else []), *factors])
    return f"to {'raise' if how['aim'] == 'enhance' else 'lower'} the accuracy: {said}"


def row_of(task: str, method: str, edit: str, cells: list[Cell]) -> Row:
    return Row([text(task), text(method), text(edit), *cells], {"task": task, "method": method, "edit": edit})


def _unedited(task: Facts) -> list[Cell]:
    base = task["base"]
    worth = f"chance is {decimals(task['chance'])}"
    return [
        count(None),
        number(base["accuracy"]),
        strip(base["accuracy"], base["interval"], None, base["accuracy"]),
        *[number(None)] * 3,
        Cell(worth, (task["chance"],)),
        interval(base["interval"]),
        number(base["p_right"]),
        *[number(None)] * 7,
        text(None),
        leaning(base["leaning"]),
        lengths(base["lengths"]),
    ]


def _edited(edit: Facts, base: Facts) -> list[Cell]:
    controls, flips = edit["controls"], edit["flips"]
    band = controls and controls["band"]
    return [
        count(edit["neurons"]),
        number(edit["accuracy"]),
        strip(edit["accuracy"], edit["interval"], band, base["accuracy"]),
        number(edit["gain"], sign=True),
        p_value(edit["p_holm"]),
        number(controls and controls["place"], 2),
        text(edit["verdict"]),
        interval(edit["interval"]),
        number(edit["p_right"]),
        number(edit["rac"], sign=True),
        number(edit["rcc"], sign=True),
        number(edit["pcr"], 2),
        *(count(flips[way]) for way in ("to_right", "to_wrong", "other")),
        interval(band),
        Cell(f"{controls['count']} {controls['kind']}", (controls["count"],)) if controls else text(None),
        leaning(edit["leaning"]),
        lengths(edit["lengths"]),
    ]


def leaning(shares: dict[str, float] | None) -> Cell:
    """The answer that is given most often, with its share."""
    if not shares:
        return Cell(NOTHING, (), "number")
    label = max(shares, key=lambda name: shares[name])
    return Cell(f"{label} {decimals(shares[label], 2)}", (shares[label],), "number")


def lengths(found: Facts | None) -> Cell:
    """Whether short or long answers are picked, whatever is right."""
    if not found:
        return Cell(NOTHING, (), "number")
    picked, right = found["picked"], found["right"]
    size = max(picked, key=lambda name: picked[name] - right[name])
    said = f"{size} {decimals(picked[size], 2)} (right {decimals(right[size], 2)})"
    return Cell(said, (picked[size], right[size]), "number")


def strip(value: float | None, ends: Any, band: Any, base: float) -> Cell:
    """A small picture of an accuracy from 0 to 1; its numbers stand in other cells of the row."""
    if value is None:
        return text(None)
    percent: Facts = {"value": 100 * value, "base": 100 * base}
    for name, pair in (("interval", ends), ("band", band)):
        percent |= {name: pair and {"x": 100 * pair[0], "width": 100 * (pair[1] - pair[0])}}
    return Cell("", (value,), "strip", percent)


def methods(comparison: Facts, timings: Facts) -> Table:
    rows = []
    for found in comparison["methods"]:
        task, method = found["task"], found["method"]
        cost = timings["methods"].get(method, {}).get(task, {})
        agreement, stability = found["agreement"] or {}, found["stability"] or {}
        cells = [
            text(found["positions"]),
            count(found["questions"]),
            number(cost.get("ratio"), 1),
            number(cost.get("seconds"), 1),
            number(agreement.get("spearman")),
            interval(agreement.get("interval")),
            number(agreement.get("top"), 2),
            number(agreement.get("bottom"), 2),
            _measured(agreement),
            number(stability.get("spearman")),
            number(stability.get("overlap"), 2),
            layers(found["layers"]),
        ]
        rows.append(Row([text(task), text(method), *cells], {"task": task, "method": method}))
    caption = "What each method costs, whether it agrees with exact effects, and whether it is stable"
    return Table("methods", caption, METHODS, rows, ("task", "method"), page=40)


def unmeasured(comparison: Facts) -> list[str]:
    """Why methods have no agreement with exact effects, a sentence each."""
    why = {found["method"]: found.get("no_agreement") for found in comparison["methods"]}
    return [f"{method} has no agreement: {reason}." for method, reason in why.items() if reason]


def _measured(agreement: Facts) -> Cell:
    if not agreement:
        return count(None)
    of = "sampled" if agreement["sampled"] else "all"
    return Cell(f"{whole(agreement['neurons'])} {of}", (agreement["neurons"],), "number")


def layers(counts: Facts | None) -> Cell:
    """A bar a layer, good neurons above the line and bad ones below it."""
    if not counts or not any(counts["good"] + counts["bad"]):
        return text(None)
    tallest = max(counts["good"] + counts["bad"])
    bars = [(100 * g / tallest, 100 * b / tallest) for g, b in zip(counts["good"], counts["bad"], strict=True)]
    said = "; ".join(f"{role}: {', '.join(str(n) for n in counts[role])}" for role in ("good", "bad"))
    return Cell(f"by layer, {said}", (), "bars", {"bars": bars})


def curves(comparison: Facts) -> Table:
    """The numbers of the figures of accuracy against how many neurons are edited."""
    columns = [TASK, METHOD, EDIT, Column("k", "neurons of each role"), Column("Accuracy"), Column("95 % interval")]
    columns += [Column("Random mean"), Column("Random band")]
    rows = []
    for curve in comparison["curves"]:
        for point in curve["points"]:
            controls = point["controls"] or {"mean": None, "band": None}
            cells = [count(point["k"]), number(point["accuracy"]), interval(point["interval"])]
            cells += [number(controls["mean"]), interval(controls["band"])]
            rows.append(row_of(curve["task"], curve["method"], curve["edit"], cells))
    return Table("curves", "The numbers of these curves", columns, rows, ("task", "method", "edit"), page=25)


def neurons(comparison: Facts) -> Table:
    """One row for every method and neuron that it found; the first cell opens the neuron's card."""
    columns = [
        left("Neuron", "layer · neuron: opens the card"),
        TASK,
        METHOD,
        left("Role", "good ones help the right answer, bad ones hurt it"),
        Column("Score", "what the method gives it: + helps, − hurts"),
        Column("Exact", "change of the objective when the neuron is really silenced, where that was measured"),
        left("Promotes", "tokens that it makes more likely when it is active"),
    ]
    rows = []
    for task, method in ((found["task"], found["method"]) for found in comparison["methods"]):
        cards = list(enumerate(comparison["cards"]))
        mine = [(n, card, said) for n, card in cards if card["task"] == task and (said := said_by(card, method))]
        scored, exact = (places_for([said[name] for *_, said in mine]) for name in ("score", "exact"))
        for n, card, said in sorted(mine, key=lambda each: (each[2]["role"] == "bad", -abs(each[2]["score"]))):
            cells = [
                opens(card, n),
                *(text(value) for value in (task, method, said["role"])),
                number(said["score"], scored, sign=True),
                number(said["exact"], exact, sign=True),
                Cell("", (), "tokens", {"tokens": [pair["token"] for pair in card["promoted"][:3]]}),
            ]
            rows.append(Row(cells, {"task": task, "method": method, "role": said["role"]}))
    return Table("neurons", "The neurons with a card", columns, rows, ("task", "method", "role"), page=20)


def said_by(card: Facts, method: str) -> Facts | None:
    """What a method says of the neuron of a card, if that is among those that it found."""
    return next((said for said in card["methods"] if said["method"] == method), None)


def opens(card: Facts, number: int) -> Cell:
    """The address of a neuron, which opens its card."""
    return Cell(address(card), (card["id"],), "opens", {"card": number})


def address(card: Facts) -> str:
    """
    >>> address({"layer": 3, "expert": -1, "index": 17}), address({"layer": 3, "expert": 5, "index": 17})
    ('3 · 17', '3 · expert 5 · 17')
    """
    expert = {-1: [], -2: ["shared"]}.get(card["expert"], [f"expert {card['expert']}"])
    return " · ".join([str(card["layer"]), *expert, str(card["index"])])


def changed(comparison: Facts) -> Table:
    """Questions whose answer an edit changed, for the better or not."""
    columns = [TASK, METHOD, EDIT]
    columns += [left("Question", wide=True)]
    columns += [left(title) for title in ("Without the edit", "With it", "Right answer", "Became")]
    rows = []
    for edit in comparison["edits"]:
        for seen in edit["examples"]:
            answers = [seen[name] for name in ("question", "before", "after", "right")]
            cells = [text(words) for words in (*answers, _became(seen))]
            rows.append(row_of(edit["task"], edit["method"], edit["edit"], cells))
    caption = "Questions that are answered differently under an edit"
    return Table("changed", caption, columns, rows, ("task", "method", "edit"), page=20)


def _became(seen: Facts) -> str:
    if seen["after"] == seen["right"]:
        return "right"
    return "wrong" if seen["before"] == seen["right"] else "other"


def members(facts: Facts) -> Table:
    """Neurons of a set or the ends of scores, a row each: for a part of the page by itself."""
    rows = facts["rows"]
    places = places_for([row["score"] for row in rows])
    columns = [left("Neuron"), left("Role"), Column("Score"), Column("Factor")]
    lines = [
        [text(address(row)), text(row["role"]), number(row["score"], places, sign=True), number(row["factor"], 2)]
        for row in rows
    ]
    if all(row["factor"] is None for row in rows):
        columns, lines = columns[:-1], [cells[:-1] for cells in lines]
    return Table("members", "The strongest: layer · neuron", columns, [Row(cells) for cells in lines])
