"""What a comparison may cost: how many questions, effects and random sets."""

from __future__ import annotations

from dataclasses import dataclass, fields
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
    effects: int  # of one neuron on one of these questions at the answer position; at all positions 1/32 as many
    controls: int  # random sets beside every edit
    curve_controls: int  # random sets beside every point of a curve

    def neurons(self, total: int, prompts: int, positions: str) -> int:
        """How many neurons' exact effects are affordable on so many prompts."""
        effects = self.effects if positions == "answer" else self.effects // WHOLE_PROMPT
        return max(1, min(total, effects // prompts))

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


def budget_of(given: Any) -> Budget:
    """A budget by name, or as it is."""
    if isinstance(given, Budget):
        return given.checked()
    if not isinstance(given, str) or given not in BUDGETS:
        raise InputError(f"budget={given!r}: known budgets are {', '.join(BUDGETS)}")
    return BUDGETS[given]
