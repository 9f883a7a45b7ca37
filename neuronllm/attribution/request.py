"""An attribution as it was asked for: checked, rendered, and described for the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.prompts import Prompt, Questions, as_prompts, group_by_question
from ..engine.asking import check_batch_size
from ..engine.borrowed import check_prompts
from ..engine.objectives import NO_OBJECTIVE, AnyObjective, Objective, get_objective
from ..methods import Method
from ..model.anatomy import Anatomy
from ..results.per_prompt import PLACES, top_of
from ..runs.provenance import identity, prompt_hash, question_hash, type_name, versions, weights_hash, wording

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ITEMS = ("all", "wrong", "right")
KEEPS = ("mean", "topk", "all")
KEEP_TYPES = (torch.float32, torch.bfloat16)


@dataclass
class Job:
    """An attribution as it was asked for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    questions: Questions
    how: Method
    objective: AnyObjective | None = None  # after `check`, an Objective
    positions: str = "answer"
    orders: str | None = None
    template: Any = None
    items: str = "all"
    keep: str = "mean"
    k: int = 100
    keep_dtype: torch.dtype = torch.float32
    batch_size: int | str = "auto"
    backend: str = "fast"
    dtype: torch.dtype | None = None

    def check(self) -> Job:
        """Refuse what cannot be done, fill in the method's defaults, and render the prompts."""
        asked = (self.objective, self.positions, self.items, self.keep, self.k, self.keep_dtype, self.batch_size)
        self.objective = checked(self.how, *asked, self.dtype)
        self.orders = self.how.orders if self.orders is None else self.orders
        self.template = self.how.template if self.template is None else self.template
        check_prompts(self.model, self.prompts)
        return self

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.model)

    @cached_property
    def prompts(self) -> list[Prompt]:
        return as_prompts(self.tokenizer, self.questions, self.orders or "", self.template)

    @cached_property
    def groups(self) -> list[list[Prompt]]:
        return group_by_question(self.prompts)

    @property
    def row_bytes(self) -> int:
        """Bytes that are kept of one prompt."""
        if self.keep == "all":
            return self.anatomy.n_neurons * self.keep_dtype.itemsize
        return 2 * min(self.k, self.anatomy.n_neurons) * 8 if self.keep == "topk" else 0

    def rows(self, raw: Tensor, places: Tensor) -> dict[str, Tensor]:
        """What is kept of these prompts' raw scores."""
        if self.keep == "mean":
            return {}
        kept = {"scores": raw.to(self.keep_dtype)} if self.keep == "all" else top_of(raw.float(), self.k).tensors()
        return {PLACES: places, **kept}

    @property
    def asked(self) -> dict[str, Any]:
        rendered = not isinstance(self.questions[0], Prompt)  # of given prompts, the caller chose the order
        return {
            "objective": self.objective.name if isinstance(self.objective, Objective) else self.objective,
            "positions": self.positions,
            "orders": self.orders if rendered else None,
            "items": self.items,
        }

    @property
    def method(self) -> dict[str, Any]:
        return {"method": self.how.name, "options": {name: getattr(self.how, name) for name in self.how.options()}}

    def settings(self, processes: int) -> dict[str, Any]:
        """All that decides the bytes of the result."""
        return {
            **self.method,
            **self.asked,
            **identity(self.model),
            "weights": weights_hash(self.model),
            **wording(self.tokenizer, self.questions, self.template),
            "prompts": prompt_hash(self.prompts),
            "grouping": question_hash(self.groups),
            "keep": self.keep,
            "k": self.k if self.keep == "topk" else None,
            "keep_dtype": type_name(self.keep_dtype) if self.keep == "all" else None,
            "attention": self.model.config._attn_implementation,
            "judged in": type_name(self.dtype),
            "backend": self.backend,
            "batch_size": self.batch_size,
            "device": self.model.device.type,
            "processes": processes,
            **versions("torch"),
        }

    def provenance(self, groups: Sequence[Sequence[Prompt]]) -> dict[str, Any]:
        return {
            **identity(self.model),
            **self.method,
            "questions": len(groups),
            "prompts": sum(len(group) for group in groups),
            **wording(self.tokenizer, self.questions, self.template),
            "option_tokens": [list(ids) for ids in groups[0][0].option_ids],
            **versions(),
            **self.asked,
        }


def checked(
    how: Method,
    objective: AnyObjective | None = None,
    positions: str = "answer",
    items: str = "all",
    keep: str = "mean",
    k: int = 100,
    keep_dtype: torch.dtype = torch.float32,
    batch_size: int | str = "auto",
    dtype: torch.dtype | None = None,
) -> Objective:
    """The objective, after refusing what the method cannot do and values that are not known; it takes no model.

    >>> from neuronllm.methods import get_method
    >>> checked(get_method("gradient"), "margin", positions="all").name
    'margin'
    """
    if positions not in how.positions:
        takes = " or ".join(map(repr, how.positions))
        raise InputError(f"positions={positions!r}: method {how.name!r} takes {takes}")
    for name, value, known in (("items", items, ITEMS), ("keep", keep, KEEPS)):
        if value not in known:
            raise InputError(f"{name}={value!r}: known values are {', '.join(known)}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k={k!r}: give a positive whole number")
    if keep_dtype not in KEEP_TYPES:
        raise InputError(f"keep_dtype={keep_dtype!r}: give torch.float32 or torch.bfloat16")
    check_batch_size(batch_size)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype={dtype!r}: give a floating type of torch, such as torch.float64")
    if how.objective is None:
        if objective is not None:
            raise InputError(f"objective={str(objective)!r}: method {how.name!r} explains no objective, leave it out")
        return NO_OBJECTIVE
    explained = get_objective(how.objective if objective is None else objective)
    how.check_objective(explained)
    return explained
