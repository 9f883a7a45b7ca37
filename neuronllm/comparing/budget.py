"""What a comparison may cost: how many questions, effects and random sets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ..common.errors import InputError

WHOLE_PROMPT = 32  # effects at the answer position that one at all positions is counted as


@dataclass(frozen=True)
class Budget:
    """Sizes; None of questions means all of them.

    >>> BUDGETS["standard"].controls
    20
    """

    search: int | None  # questions that neurons are scored on
    expensive: int | None  # the same, of methods that really run every neuron
    validation: int | None  # questions that edits are chosen on
    test: int | None  # questions that edits are judged on
    elsewhere: int | None  # test questions of every other task
    judged: int  # questions whose exact effects are measured
    effects: int  # of one neuron at one answer token of such a question; at all positions 1/32 as many
    controls: int  # random sets beside every edit
    curve_controls: int  # random sets beside every point of a curve

    def neurons(self, total: int, prompts: int, positions: str, answered: float = 1.0) -> int:
        """How many neurons' exact effects are affordable on so many prompts, with so many answer tokens each."""
        effects = self.effects / answered if positions == "answer" else self.effects / WHOLE_PROMPT
        return max(1, min(total, int(effects) // prompts))

    def checked(self) -> Budget:
        for about in fields(self):
            value, least = getattr(self, about.name), 0 if "controls" in about.name else 1
            none = value is None and "None" in str(about.type)
            if not none and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(f"budget: {about.name}={value!r}: give a whole number, {least} or more")
        return self


BUDGETS = {
    "quick": Budget(
        search=60,
        expensive=16,
        validation=60,
        test=100,
        elsewhere=50,
        judged=4,
        effects=50_000,
        controls=20,
        curve_controls=3,
    ),
    "standard": Budget(
        search=200,
        expensive=32,
        validation=100,
        test=200,
        elsewhere=100,
        judged=8,
        effects=200_000,
        controls=20,
        curve_controls=3,
    ),
    "thorough": Budget(
        search=None,
        expensive=200,
        validation=None,
        test=None,
        elsewhere=None,
        judged=16,
        effects=2_000_000,
        controls=100,
        curve_controls=20,
    ),
}


ALL = "all"  # of a size: as many as there are


def budget_of(given: Any) -> Budget:
    """A budget as it is, or by name, with other sizes behind the name.

    >>> budget_of("quick,test=all,controls=5").controls
    5
    """
    if isinstance(given, Budget):
        return given.checked()
    name, *sizes = str(given).split(",")
    if name not in BUDGETS:
        raise InputError(f"budget={given!r}: known budgets are {', '.join(BUDGETS)}")
    own: dict[str, Any] = dict(_size(given, size) for size in sizes)
    return replace(BUDGETS[name], **own).checked()


def _size(given: str, text: str) -> tuple[str, int | None]:
    name, _, value = text.partition("=")
    known = [about.name for about in fields(Budget)]
    if name not in known or not (value == ALL or value.isdecimal()):
        said = f"{text!r} is none of its sizes, write NAME=N or NAME=all of {', '.join(known)}"
        raise InputError(f"budget={given!r}: {said}")
    return name, None if value == ALL else int(value)


def budget_text(budget: Budget) -> str:
    """The words that `budget_of` makes the budget of: the name of the nearest one, and the sizes of its own.

    >>> budget_text(replace(BUDGETS["standard"], test=None))
    'standard,test=all'
    """
    asked = vars(budget)
    others = {name: [size for size in asked if asked[size] != vars(one)[size]] for name, one in BUDGETS.items()}
    name = min(others, key=lambda name: len(others[name]))
    return ",".join([name, *(f"{size}={ALL if asked[size] is None else asked[size]}" for size in others[name])])
