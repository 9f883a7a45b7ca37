"""What was asked of a comparison, but for the model and its tasks: every argument and its check, in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..attribution.request import POSITIONS, Request
from ..common.errors import InputError
from ..data.forms import ANSWERS, LENGTHS, check_known
from ..runs.checkpoint import check_output
from .budget import Budget, budget_of, budget_text
from .edits import check_edits
from .presets import Preset, preset_of
from .splits import BY

COMPARISON, MANIFEST = "comparison.json", "compare.json"


@dataclass(frozen=True)
class CompareRequest:
    """The arguments of `nl.compare`, which says what each means; None is what the preset says.

    >>> CompareRequest(preset="qrnca").checked().edits
    ('good', 'suppress')
    """

    methods: Sequence[str] | None = None
    edits: Sequence[str] | None = None
    preset: str | None = None
    k: int | None = None
    answers: str | None = None
    length: str | None = None
    positions: str | None = None
    edit_positions: str | None = None
    orders: str | None = None
    template: str | Sequence[str] | None = None
    seeds: Sequence[int] = (0,)
    budget: str | Budget = "standard"
    controls: int | None = None
    learned_controls: int = 0
    split_by: str = "id"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    batch_size: int | str = "auto"
    output: str | os.PathLike[str] | None = None
    resume: bool = False
    overwrite: bool = False
    progress: bool = True

    @property
    def published(self) -> Preset:
        return preset_of(self.preset)

    @property
    def unknown(self) -> list[str]:
        """What is not known of the preset, and plays a part in what was asked for."""
        own = self.published
        given = {"k": self.k not in (None, own.k), "template": self.template is not None}
        return [
            one.said
            for one in own.unknown
            if one.method in (None, *(self.methods or own.methods))
            and not given.get(one.argument or "", one.argument in self.options.get(one.method or "", {}))
        ]

    @property
    def sizes(self) -> Budget:
        """The budget, with the number of random sets that was asked for."""
        budget = budget_of(self.budget)
        return budget if self.controls is None else replace(budget, controls=self.controls).checked()

    def checked(self) -> CompareRequest:
        """The request with what the preset says filled in, after refusing what cannot be done without the model."""
        own = self.published
        filled = replace(
            self,
            methods=_names("methods", self.methods, own.methods),
            edits=_names("edits", self.edits, own.edits),
            k=own.k if self.k is None else self.k,
            positions=own.positions if self.positions is None else self.positions,
            seeds=(self.seeds,) if isinstance(self.seeds, int) else tuple(self.seeds),
        )
        filled._check_values()
        check_edits(filled.edits or ())
        for method in filled.methods or ():
            filled.attribution(method).checked()
        if self.output is not None:
            check_output(self.output, self.resume, self.overwrite, COMPARISON, MANIFEST)
        elif self.resume or self.overwrite:
            name = "resume" if self.resume else "overwrite"
            raise InputError(f"{name}=True: it needs output=, the folder of the comparison")
        return filled

    def _check_values(self) -> None:
        for name, least in (("k", 1), ("learned_controls", 0)):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name}={value!r}: give a whole number, {least} or more")
        whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in self.seeds)
        if not self.seeds or not whole or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds={list(self.seeds)!r}: give one or more different whole numbers, 0 or more")
        known = {"edit_positions": POSITIONS, "answers": ANSWERS, "length": LENGTHS, "split_by": BY}
        for name, values in known.items():
            check_known(name, getattr(self, name), values)
        if other := next((name for name in self.options if name not in (self.methods or ())), None):
            raise InputError(f"options: {other!r} is not among the methods, {', '.join(self.methods or ())}")
        assert self.sizes  # which refuses a budget that is none

    def attribution(self, method: str, **more: Any) -> Request:
        """How a method scores: as it was asked for, else as the preset says, else as the method does by itself."""
        own = self.published
        options = {**own.options.get(method, {}), **self.options.get(method, {})}
        if method == "random":
            options = {"seed": self.seeds[0], **options}
        return Request(
            method,
            positions=self.positions,
            orders=own.orders.get(method) if self.orders is None else self.orders,
            template=self.template,
            answers=self.answers,
            length=self.length,
            batch_size=self.batch_size,
            progress=False,
            options=options,
            **more,
        )

    def settings(self) -> dict[str, Any]:
        """What of it decides the bytes of a comparison, as plain data."""
        budget = self.sizes
        return {
            "methods": list(self.methods or ()),
            "edits": list(self.edits or ()),
            "seeds": list(self.seeds),
            "template": [self.template] if isinstance(self.template, str) else list(self.template or ()) or None,
            "options": {method: dict(self.options[method]) for method in sorted(self.options)},
            "budget": budget_text(budget_of(self.budget)),
            "sizes": vars(budget),
            **{name: getattr(self, name) for name in _PLAIN},
        }


_PLAIN = (
    "preset",
    "k",
    "answers",
    "length",
    "positions",
    "edit_positions",
    "orders",
    "learned_controls",
    "split_by",
    "batch_size",
)


def _names(argument: str, given: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else default if given is None else tuple(given)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{argument}={given!r}: give one or more names")
    if twice := next((name for n, name in enumerate(names) if name in names[:n]), None):
        raise InputError(f"{argument}: {twice!r} is given twice")
    return names
