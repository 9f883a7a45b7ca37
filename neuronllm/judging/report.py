"""What a judgement says, as plain data and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ..common.checks import short
from ..common.tables import show
from ..data.prompts import Prompt, Questions
from ..data.questions import Question
from ..results.answers import SIZES, Answers
from ..results.factors import show_factor
from ..results.shown import Shown
from .shown import report_shown

# whose ("base", "edited", "change") -> of what ("accuracy", "p_right") -> 95 % interval
Intervals: TypeAlias = "dict[str, dict[str, tuple[float, float]]]"
NAMED = 3  # flipped questions of each direction that are printed
CHANGED = 5  # changed answers that are printed
TOLD = 10  # prompts that it takes to say that the length of texts decides
HARM = 0.1  # nats a token of plain text that an edit may cost before that is said
PCR = "each the mean over prompts of the relative change of P(right)"


@dataclass
class Report(Shown):
    """What `nl.evaluate` returns; `print(report)` shows all of it, and `report.show("report.html")` as a page.

    Without neurons, only the first seven fields and which options were picked say something: `letters` where letters
    were asked for; of texts `options` (by place) and `lengths` (whether short or long ones are picked, and are right).

    With an edit: `base` holds the same numbers of the unedited model; `ci` has the intervals of "base", "edited" and
    "change"; `rac` and `rcc` are the signed relative changes of accuracy and of the right option's mean probability;
    `flips` counts the questions that changed sides, and `flipped` names them; `changed` are the questions whose
    answer in words is another; `controls` describes random sets of the same size per layer. `p_change` is the mean over
    prompts of the relative change of P(right), and `pcr` its size over that of `p_change_unrelated`, the same on
    unrelated questions; `unrelated` has the accuracy there. `meaningless` names the numbers that say nothing, as the
    unedited model leans on one option.

    Of a learned edit: `learned` says where it stands among the random sets "plain" and "matched" that were learned the
    same way, with a one-sided p-value of the accuracy, and `holm` has all p-values corrected for how many they are;
    `bias` is what the unedited model is worth with one number for each option and nothing else; `plain_text` is the
    mean log-probability a token (natural) of bundled sentences.
    """

    accuracy: float
    balanced_accuracy: float
    p_right: float
    collapsed: bool
    questions: int
    ci: Intervals
    answers: str = "letters"
    length: str = "sum"
    letters: dict[str, float] | None = None
    options: dict[str, float] | None = None
    lengths: dict[str, Any] | None = None
    base: dict[str, Any] | None = None
    rac: float | None = None
    rcc: float | None = None
    flips: dict[str, int] | None = None
    flipped: dict[str, list[dict[str, Any]]] | None = None
    changed: list[dict[str, Any]] | None = None
    mcnemar: float | None = None
    p_change: float | None = None
    p_change_unrelated: float | None = None
    pcr: float | None = None
    controls: dict[str, Any] | None = None
    learned: dict[str, Any] | None = None
    bias: dict[str, Any] | None = None
    holm: dict[str, float] | None = None
    plain_text: dict[str, Any] | None = None
    unrelated: dict[str, Any] | None = None
    meaningless: list[str] = field(default_factory=list)
    edit: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(report_lines(self))

    def _shown(self) -> tuple[str, dict[str, Any]]:
        about = {"Edit": _edit(self.edit)} if self.base else {}
        cautions = _cautions(self) + plain_text_lines(self.plain_text)[1:]
        title = f"{self.questions} questions{_form(self) or ' answered by letters'}"
        return report_shown(title, about, cautions, self.to_dict(), _measures(self))


def report_lines(report: Report) -> list[str]:
    """An evaluation as lines of text: raw values before and after, then what they amount to."""
    base = report.base
    lines = [f"{report.questions} questions{_form(report)}" + (f", {_edit(report.edit)}" if base else "")]
    for name, label in _measures(report).items():
        now = show(getattr(report, name))
        lines.append(_row(label, f"{show(base[name])} -> {now}" if base else now) + _control(report.controls, name))
    lines += _bias(report)
    for name, label in (("accuracy", "accuracy"), ("p_right", "P(right)")):
        lines.append(_row(f"95 % {label}", ", ".join(_interval(whose, ci[name]) for whose, ci in report.ci.items())))
    lines += _changes(report)
    lines += _refutations(report)
    lines += _cautions(report)
    return lines


def _row(label: str, text: str) -> str:
    return f"{label:<18}{text}"


def _form(report: Report) -> str:
    if report.answers == "letters":
        return ""
    counted = {"sum": "", "own": ", lengths as the prompts say"}.get(report.length, f", length {report.length}")
    return f" answered in texts{counted}"


def _bias(report: Report) -> list[str]:
    """Which options were picked, before and after: by letter, or by place and by length."""
    kind = "letters" if report.answers == "letters" else "options"
    base, now = (report.base or {}).get(kind), getattr(report, kind)
    lines = [_row(kind, (f"{show(base)} -> " if base else "") + show(now))]
    if (lengths := report.lengths) is not None:
        before = (report.base or {}).get("lengths")
        rows = (
            f"{size} {f'{_share(before, size)} -> ' if before else ''}{_share(lengths, size)} "
            f"(right {_share(lengths, size, 'right')})"
            for size in SIZES
        )
        lines.append(_row("lengths", f"{', '.join(rows)}; {lengths['prompts']} prompts"))
    return lines


def _share(lengths: dict[str, Any], size: str, whose: str = "picked") -> str:
    return f"{lengths[whose][size]:.2f}".removeprefix("0")


def _changes(report: Report) -> list[str]:
    """What an edit amounts to."""
    if not report.base:
        return []
    lines = [f"RAC {show(report.rac)}   RCC {show(report.rcc)}"]
    if report.p_change is not None and report.p_change_unrelated is not None:
        here, elsewhere = (f"|{change:+.2%}|" for change in (report.p_change, report.p_change_unrelated))
        lines.append(f"PCR {show(report.pcr)} = {here} here / {elsewhere} on the unrelated questions, {PCR}")
    if flips := report.flips:
        lines.append(
            f"flips {flips['right_to_wrong']} right to wrong, {flips['wrong_to_right']} wrong to right, "
            f"McNemar p = {show(report.mcnemar)}"
        )
        lines += _flipped(report.flipped or {})
    if changed := report.changed:
        more = f", {CHANGED} of them" if len(changed) > CHANGED else ""
        lines.append(f"{len(changed)} questions are answered otherwise{more}:")
        lines += [f"  {_name(row)}: {row['before']} -> {row['after']}" for row in changed[:CHANGED]]
    return lines


def _refutations(report: Report) -> list[str]:
    """What else would do what the edit does, and what the edit does elsewhere."""
    measured = _measures(report)
    lines = among_learned_lines(report.learned or {}, {name: getattr(report, name) for name in measured}, measured)
    if bias := report.bias:
        lines.append(_row("a bias alone", f"accuracy {show(bias['accuracy'])} with one number for each {bias['by']}"))
    lines += holm_lines(report.holm) + plain_text_lines(report.plain_text)
    if other := report.unrelated:
        change = f"{show(other['base'])} -> {show(other['edited'])}, 95 % change {show(other['ci']['change'])}"
        lines.append(_row("unrelated", f"accuracy {change}; {other['questions']} questions"))
    return lines


def among_learned_lines(learned: dict[str, Any], now: dict[str, float], labels: dict[str, str]) -> list[str]:
    """An edit among sets learned the same way, in the measures of `labels`, which say how these are called in print."""
    lines = []
    for kind, each in learned.items():
        if kind != "forced":
            stands = ", ".join(f"{label} {_band(each[name])}" for name, label in labels.items())
            said = "learned the same way (percentile of the edit)"
            lines.append(_row(f"{each['sets']} {kind} sets", f"{stands}; {said}"))
    if learned and any(learned["forced"][name] != now[name] for name in labels):
        own = ", ".join(f"{label} {show(learned['forced'][name])}" for name, label in labels.items())
        lines.append(_row("the same, forced", f'{own}: the set compared with them, "no edit" being left out'))
    return lines


def holm_lines(corrected: dict[str, float] | None) -> list[str]:
    if not corrected:
        return []
    tests = (f"{name}{'' if name == 'McNemar' else ' sets'} {show(p)}" for name, p in corrected.items())
    return [_row("p, Holm", ", ".join(tests))]


def plain_text_lines(text: dict[str, Any] | None) -> list[str]:
    """What an edit does to plain text, and whether that is much."""
    if not text:
        return []
    change = f"{show(text['base'])} -> {show(text['edited'])}, 95 % change {show(text['change'])}"
    lines = [_row("plain text", f"log-probability a token {change}; {text['sentences']} sentences")]
    if (lost := text["base"] - text["edited"]) > HARM:
        more = "the edit costs elsewhere (a larger retain_weight= holds it back)"
        lines.append(f"plain text loses {lost:.2f} nats a token, more than {HARM}: {more}")
    return lines


def _measures(report: Report) -> dict[str, str]:
    """What is compared with other sets, and how it is called in print."""
    balanced = "letter-balanced" if report.answers == "letters" else "option-balanced"
    return {"accuracy": "accuracy", "balanced_accuracy": balanced, "p_right": "P(right)"}


def _band(drawn: dict[str, float]) -> str:
    return f"{drawn['p2.5']:.3f} to {drawn['p97.5']:.3f} ({drawn['percentile_of_edit']:.0f} %)"


def _cautions(report: Report) -> list[str]:
    kind = "letter" if report.answers == "letters" else "option"
    lines = []
    if report.collapsed:
        lines.append(f"{kind} collapse: the predictions lean on one {kind}, accuracy says little")
    lengths = report.lengths or {"prompts": 0}
    for size in ("shortest", "longest") if lengths["prompts"] >= TOLD else ():
        picked, right = lengths["picked"][size], lengths["right"][size]
        if picked - right > (1 - right) / 2:  # more than half of the way to always
            lines.append(
                f"length collapse: of options that differ in length the {size} one is picked in {picked:.0%} of the "
                f"prompts and right in {right:.0%}: accuracy says little of the task"
            )
    if report.meaningless:
        names = " and ".join({"p_right": "P(right)", "rcc": "RCC"}[name] for name in report.meaningless)
        mean = "means" if len(report.meaningless) == 1 else "mean"
        lines.append(
            f"{names} {mean} nothing here: the unedited model leans on one {kind} whatever is asked, and P(right) then "
            "moves with how strongly it does"
        )
    return lines


def _edit(edit: dict[str, Any]) -> str:
    what = edit.get("mode") or "edited"
    good, bad = (f"{role} {show_factor(edit[role], edit['own'].get(role))}" for role in ("good", "bad"))
    text = f"{what}: {edit['neurons']} neurons, {good}, {bad}, positions {edit['positions']}"
    return text if edit["positions_from"] == "as asked for" else f"{text}, {edit['positions_from']}"


def _interval(whose: str, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{whose} {show(interval)}" if whose == "change" else f"{whose} {low:.3f} to {high:.3f}"


def named(questions: Questions, groups: Sequence[Sequence[Prompt]], which: np.ndarray) -> list[dict[str, Any]]:
    """The questions at which `which` is true: place in the list, id, and text, which given prompts do not have."""
    found = []
    for n in which.nonzero()[0].tolist():
        # Given questions have a group of prompts each, in their order; given prompts are grouped by their ids.
        question = questions[n]
        text = question.stem if isinstance(question, Question) else None
        found.append({"number": n, "id": groups[n][0].question_id, "question": text})
    return found


def changed_answers(questions: Questions, base: Answers, edited: Answers) -> list[dict[str, Any]]:
    """The questions that the edited model answers otherwise, with the answers before and after, and the right one."""
    found = named(questions, base.groups, base.choice != edited.choice)
    for row in found:
        first, n = base.groups[row["number"]][0], row["number"]
        right = first.order[first.answer] if first.order else first.answer
        said = {"before": base.choice[n], "after": edited.choice[n], "right": right}
        row |= {name: _text(questions[n], first, int(choice)) for name, choice in said.items()}
    return found


def _text(question: Question | Prompt, prompt: Prompt, choice: int) -> str:
    """A choice in words, which prompts built by hand may lack."""
    if isinstance(question, Question) and not prompt.texts:
        return question.choices[choice]
    place = prompt.order.index(choice) if prompt.order else int(choice)
    return prompt.texts[place] if prompt.texts else f"option {place + 1}"


def _flipped(flipped: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A few of the questions that changed sides; `to_dict` has them all."""
    lines = []
    for direction, questions in flipped.items():
        if questions:
            shown = [_name(question) for question in questions[:NAMED]]
            more = [f"{len(questions) - NAMED} more"] if len(questions) > NAMED else []
            lines.append(f"  {direction.replace('_', ' ')}: " + "; ".join(shown + more))
    return lines


def _name(question: dict[str, Any]) -> str:
    name = question["id"] or f"number {question['number']}"
    return name if question["question"] is None else f"{name} {short(' '.join(question['question'].split()))}"


def _control(controls: dict[str, Any] | None, name: str) -> str:
    if not controls:
        return ""
    drawn = controls[name]
    return f"   ({controls['sets']} random sets: {drawn['p2.5']:.3f} to {drawn['p97.5']:.3f})"
