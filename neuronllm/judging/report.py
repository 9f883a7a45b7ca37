"""What a judgement says, as plain data and as lines of text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..common.tables import show
from ..results.factors import show_factor


@dataclass
class Report:
    """What `nl.evaluate` returns; `print(report)` shows all of it.

    Without neurons, only the first five fields, `ci` and `questions` say something.

    With an edit: `base` holds the same numbers of the unedited model; `rac` and `rcc` are the signed relative changes
    of accuracy and of the right option's mean probability; `flips` counts questions; `pcr` is the change on these
    questions over the change on unrelated ones; `controls` describes random sets of the same size per layer.
    """

    accuracy: float
    balanced_accuracy: float
    p_right: float
    letters: dict[str, float]
    collapsed: bool
    questions: int
    ci: dict[str, tuple[float, float]]
    base: dict[str, Any] | None = None
    rac: float | None = None
    rcc: float | None = None
    flips: dict[str, int] | None = None
    mcnemar: float | None = None
    pcr: float | None = None
    controls: dict[str, Any] | None = None
    edit: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(report_lines(self))


def report_lines(report: Report) -> list[str]:
    """An evaluation as lines of text: raw values before and after, then what they amount to."""
    base = report.base
    lines = [f"{report.questions} questions" + (f", {_edit(report.edit)}" if base else "")]
    for name, label in (("accuracy", "accuracy"), ("balanced_accuracy", "letter-balanced"), ("p_right", "P(right)")):
        now = show(getattr(report, name))
        lines.append(
            f"{label:<18}" + (f"{show(base[name])} -> {now}" if base else now) + _control(report.controls, name)
        )
    lines.append(f"{'letters':<18}" + (f"{show(base['letters'])} -> " if base else "") + show(report.letters))
    for name, interval in report.ci.items():
        sign = show(interval) if name.endswith("change") else f"{interval[0]:.3f} to {interval[1]:.3f}"
        lines.append(f"{'95 % ' + name.replace('_', ' '):<26}{sign}")
    if base:
        lines.append(f"RAC {show(report.rac)}   RCC {show(report.rcc)}   PCR {show(report.pcr)}")
    if flips := report.flips:
        lines.append(
            f"flips {flips['right_to_wrong']} right to wrong, {flips['wrong_to_right']} wrong to right, "
            f"McNemar p = {show(report.mcnemar)}"
        )
    if report.collapsed:
        lines.append("letter collapse: the predictions lean on one letter, accuracy says little")
    return lines


def _edit(edit: dict[str, Any]) -> str:
    what = edit.get("mode") or "edited"
    good, bad = (f"{role} {show_factor(edit[role], edit['own'].get(role))}" for role in ("good", "bad"))
    text = f"{what}: {edit['neurons']} neurons, {good}, {bad}, positions {edit['positions']}"
    return text if edit["positions_from"] == "as asked for" else f"{text}, {edit['positions_from']}"


def _control(controls: dict[str, Any] | None, name: str) -> str:
    if not controls:
        return ""
    drawn = controls[name]
    return f"   ({controls['sets']} random sets: {drawn['p2.5']:.3f} to {drawn['p97.5']:.3f})"
