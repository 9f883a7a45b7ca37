"""What was asked of an attribution: every argument with its default, its help and its check, in one place.

The keywords of `nl.attribute` and the flags of `neuronllm attribute` are the fields of `Request`. What a field's
metadata says is used where it is named: `help`, `choices`, `nargs`, `metavar`, `flags`, `when_none` and `only_with` by
the command line. A field without a flag, or one that is no setting of a run, says why (`no_flag`, `no_setting`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch

from ..common.checks import floating
from ..common.errors import InputError
from ..data.forms import ANSWERS, LENGTHS, check_choice, check_unworded, form_of, one_option_each, wording_of
from ..data.prompts import Questions
from ..engine import BACKENDS
from ..engine.asking import check_batch_size
from ..engine.objectives import NO_OBJECTIVE, AnyObjective, Objective, get_objective
from ..methods import Method, get_method
from ..methods.exact import Exact
from ..runs.checkpoint import check_output

ITEMS = ("all", "wrong", "right")
KEEPS = ("mean", "topk", "all")
KEEP_TYPES = (torch.float32, torch.bfloat16)
POSITIONS = ("answer", "all")
NO_BYTES = "it decides no byte of the scores"
OF_ONE = "logp_vocab"  # the objective where no prompt has a second option to compare the right one with


def _argument(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class Request:
    """What was asked, as it was asked: None means the method's own default, which `checked` fills in.

    >>> Request("gradient", objective="margin").checked().template
    'default'
    """

    method: str | Method = _argument("gradient", "how to score")
    objective: AnyObjective | None = _argument(None, "what to explain", when_none="the method's own")
    positions: str | None = _argument(
        None,
        "score h at the answer position, or its sum over all positions",
        choices=POSITIONS,
        when_none="all, where the method can; of exact, answer",
    )
    orders: str | None = _argument(
        None, "how choices are permuted", choices=("rotate", "shuffle3", "none"), when_none="the method's own"
    )
    template: str | Sequence[str] | None = _argument(
        None,
        "default, plain, brief, for texts cloze, or a text with {question}",
        nargs="+",
        metavar="T",
        when_none="the method's own",
    )
    answers: str | None = _argument(
        None,
        "a letter asked for, or the answer in words",
        choices=ANSWERS,
        when_none="texts for questions without choices, else letters",
    )
    length: str | None = _argument(
        None,
        "of texts: what their log-probability is divided by, nothing (sum), or what a text alone has taken off",
        choices=LENGTHS,
        when_none="sum",
    )
    items: str = _argument("all", "score only questions that the model answers so", choices=ITEMS)
    keep: str = _argument(
        "mean", "of every prompt keep its --k highest and lowest scores too (topk), or all", choices=KEEPS
    )
    k: int = _argument(100, "for --keep topk", metavar="K", only_with=("keep", "topk"))
    keep_dtype: torch.dtype = _argument(torch.float32, "for --keep all", choices=KEEP_TYPES, only_with=("keep", "all"))
    batch_size: int | str = _argument("auto", "prompts of a batch, or auto, which goes by memory", metavar="N")
    backend: str = _argument("fast", "fast, or the plain and slow judge of it", choices=BACKENDS)
    dtype: torch.dtype | None = _argument(
        None, "judge a copy of the model in this type", no_flag="--dtype loads the weights in a type, without a copy"
    )
    output: str | os.PathLike[str] | None = _argument(
        None, "a new folder for the scores", metavar="DIR", no_setting=NO_BYTES
    )
    resume: bool = _argument(False, "go on with a run that was stopped or killed, if there is one", no_setting=NO_BYTES)
    overwrite: bool = _argument(False, "replace an earlier result that stands at --output", no_setting=NO_BYTES)
    progress: bool = _argument(
        True, "show a bar", no_flag="--quiet turns it off, as in every command", no_setting=NO_BYTES
    )
    options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "an option of the method", "flags": ("--option", "-o")}
    )

    @classmethod
    def of(cls, **arguments: Any) -> Request:
        """The request of keywords as `nl.attribute` takes them, where every other name is an option of the method.

        >>> Request.of(method="ace", steps=8, keep="all").options
        {'steps': 8}
        """
        known = {argument.name for argument in fields(cls)} - {"options"}
        options = {name: value for name, value in arguments.items() if name not in known}
        return cls(**{name: value for name, value in arguments.items() if name in known}, options=options)

    @cached_property
    def how(self) -> Method:
        """The method with its options."""
        return get_method(self.method, dict(self.options))

    @property
    def explained(self) -> Objective:
        """The objective of a request that was checked, as a method is handed it."""
        return NO_OBJECTIVE if self.objective is None else get_objective(self.objective)

    def checked(self, questions: Questions = ()) -> Request:
        """The request with its defaults filled in, after refusing what cannot be done; it needs no model.

        The form of the answers goes by the questions, and with it the wording; without questions it is letters.
        """
        self._check_place()
        self._check_values()
        check_unworded(questions, self.template, self.orders)
        own, form = self.how, form_of(questions, self.answers, self.length)
        letters = form.answers == "letters"
        return replace(
            self,
            objective=self._checked_objective(questions),
            positions=own.default_positions if self.positions is None else self.positions,
            answers=form.answers,
            length=form.length,
            keep_dtype=floating("keep_dtype", self.keep_dtype),
            dtype=floating("dtype", self.dtype),
            orders=own.orders if self.orders is None and letters else self.orders,
            template=wording_of(form.answers, self.template, own.template if letters else own.text_template),
        )

    def _check_place(self) -> None:
        if self.output is not None:
            check_output(self.output, self.resume, self.overwrite)
        elif self.resume:
            raise InputError("resume=True: there is nothing to go on with without output=, the folder of the run")
        elif self.overwrite:
            raise InputError("overwrite=True: there is nothing to replace without output=, a folder")

    def _check_values(self) -> None:
        if self.positions is not None and self.positions not in self.how.positions:
            takes = " or ".join(map(repr, self.how.positions))
            raise InputError(f"positions={self.positions!r}: method {self.how.name!r} takes {takes}")
        for name, known in (("items", ITEMS), ("keep", KEEPS), ("backend", BACKENDS)):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name}={value!r}: known values are {', '.join(known)}")
        if self.keep != "mean" and isinstance(self.how, Exact) and self.how.top is not None:
            raise InputError(
                f'keep={self.keep!r}: with top= most neurons are not run on any prompt; leave it at "mean"'
            )
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise InputError(f"k={self.k!r}: give a positive whole number")
        if floating("keep_dtype", self.keep_dtype) not in KEEP_TYPES:
            raise InputError(f"keep_dtype={self.keep_dtype!r}: give float32 or bfloat16")
        check_batch_size(self.batch_size)

    def _checked_objective(self, questions: Questions) -> Objective | None:
        """The objective to explain; None for a method that explains none.

        Where nobody asked for one, and no prompt has options to compare, it is that of the right answer alone.
        """
        if self.how.objective is None:
            if self.objective is not None:
                raise InputError(
                    f"objective={str(self.objective)!r}: method {self.how.name!r} explains no objective, leave it out"
                )
            return None
        objective = get_objective(self.how.objective if self.objective is None else self.objective)
        if objective.least > 1:
            if self.objective is None and one_option_each(questions):
                objective = get_objective(OF_ONE)
            else:
                without = f', or explain the right answer alone with objective="{OF_ONE}"'
                check_choice(questions, f"objective={objective.name!r}", without)
        self.how.check_objective(objective)
        return objective
