"""The bar of a comparison, which knows about how long the work takes before a piece of it is done."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

FORM = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} left"


class Bar(tqdm):
    """A bar over passes of a prompt; the time left is at first that of so many seconds a pass."""

    def __init__(self, total: float, done: float, seconds_a_pass: float | None, show: bool) -> None:
        self.seconds_a_pass = seconds_a_pass
        super().__init__(total=total, initial=done, disable=not show, bar_format=FORM, desc="comparing")

    @property
    def format_dict(self) -> dict[str, Any]:
        known: dict[str, Any] = super().format_dict
        if self.seconds_a_pass and self.n == self.initial:
            known["rate"] = 1 / self.seconds_a_pass
        return known
