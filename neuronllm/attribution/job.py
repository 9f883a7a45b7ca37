"""A request together with what it is asked of: the model and the questions, rendered, and described for the records."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..data.forms import Form, check_choice, one_option_each
from ..data.prompts import Prompt, Questions, group_by_question
from ..data.rendering import as_prompts
from ..data.seen import packed
from ..engine.borrowed import check_prompts
from ..engine.unconditional import with_offsets
from ..methods import Method
from ..model.anatomy import Anatomy
from ..model.bridged import plain_model
from ..model.identity import identity
from ..results.per_prompt import PROMPTS, top_of
from ..runs.provenance import prompt_hash, question_hash, type_name, versions, weights_hash, wording
from .request import Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger("neuronllm")


@dataclass(frozen=True, eq=False)
class Job:
    """A request, checked, on a model and its questions.

    >>> Job.of(model, tokenizer, questions, Request("gradient")).prompts   # doctest: +SKIP
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    questions: Questions
    request: Request

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        questions: Questions,
        request: Request,
    ) -> Job:
        """The job, after refusing what cannot be done: in the request, then with this model and these questions."""
        job = cls(plain_model(model), tokenizer, questions, request.checked(questions))
        if request.items != "all" or job.how.needs_answers:
            needs = f"method {job.how.name!r}" if job.how.needs_answers else f'items="{request.items}"'
            check_choice(questions, needs)
        check_prompts(job.model, job.prompts)
        for line in job.remarks():
            _say(line)
        return job

    def remarks(self) -> list[str]:
        """What a reader of the log should know of the scores to come; their provenance says the same."""
        lines = []
        if reads := self.reads:
            lines.append(f"method {self.how.name} explains the {reads} only")
        if self.how.objective is not None and one_option_each(self.questions):
            lines.append(f"every prompt has one option, so {self.request.explained.name} of that is explained")
        return lines

    @property
    def reads(self) -> str | None:
        """What of the answers' tokens the method explains, where that is not all of them."""
        return self.how.reads if self.request.answers == "texts" else None

    @property
    def how(self) -> Method:
        return self.request.how

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.model)

    @property
    def form(self) -> Form:
        return Form(self.request.answers or "letters", self.request.length or "sum")

    @cached_property
    def rendered(self) -> list[Prompt]:
        request = self.request
        return as_prompts(self.tokenizer, self.questions, request.orders, request.template, **self.form.rendered)

    @cached_property
    def prompts(self) -> list[Prompt]:
        asked = self.model, self.tokenizer, self.questions, self.rendered, self.form, self.request.batch_size
        return with_offsets(*asked)

    @cached_property
    def groups(self) -> list[list[Prompt]]:
        return group_by_question(self.prompts)

    @property
    def bytes_a_prompt(self) -> int:
        """Bytes of the scores that are kept of one prompt."""
        if self.request.keep == "all":
            return self.anatomy.n_neurons * self.request.keep_dtype.itemsize
        return 2 * min(self.request.k, self.anatomy.n_neurons) * 8 if self.request.keep == "topk" else 0

    def per_prompt(self, raw: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        """What is kept of the raw scores of single prompts, with the numbers of the prompts."""
        request = self.request
        if request.keep == "mean":
            return {}
        kept = (
            {"scores": raw.to(request.keep_dtype)}
            if request.keep == "all"
            else top_of(raw.float(), request.k).tensors()
        )
        return {PROMPTS: prompts, **kept}

    @property
    def config(self) -> dict[str, Any]:
        """What provenance and settings both say of the request."""
        first = self.questions[0]  # of given prompts, and of questions in words of their own, the order is settled
        rendered = not isinstance(first, Prompt) and first.wording is None
        return {
            "method": self.how.name,
            "options": {name: getattr(self.how, name) for name in self.how.options()},
            "objective": self.request.explained.name,
            "positions": self.request.positions,
            "orders": self.request.orders if rendered else None,
            "items": self.request.items,
            "answers": self.request.answers,
            "length": self.request.length,
        }

    def settings(self, processes: int) -> dict[str, Any]:
        """All that decides the bytes of the result."""
        request = self.request
        return {
            **self.config,
            **identity(self.model),
            "weights": weights_hash(self.model),
            **wording(self.tokenizer, self.questions, request.template),
            # The offsets that the model gives follow from the rest, but for a rounding.
            "prompts": prompt_hash(self.rendered),
            "grouping": question_hash(self.groups),
            "keep": request.keep,
            "k": request.k if request.keep == "topk" else None,
            "keep_dtype": type_name(request.keep_dtype) if request.keep == "all" else None,
            "attention": self.model.config._attn_implementation,
            "judged in": type_name(request.dtype),
            "backend": request.backend,
            "batch_size": request.batch_size,
            "device": self.model.device.type,
            "processes": processes,
            **versions("torch"),
        }

    def provenance(self, groups: Sequence[Sequence[Prompt]]) -> dict[str, Any]:
        """Where scores of these groups of prompts come from."""
        more = {"reads": self.reads} if self.reads else {}
        if one_option_each(self.questions):
            more["options_compared"] = "none, every prompt has one"
        return {
            **more,
            **identity(self.model),
            "questions": len(groups),
            "prompts": sum(len(group) for group in groups),
            **wording(self.tokenizer, self.questions, self.request.template),
            "seen": packed(self.questions),
            "option_tokens": first.first_tokens if (first := groups[0][0]).one_token else first.option_ids,
            **versions(),
            **self.config,
        }


@cache
def _say(line: str) -> None:
    """Once in the log, however many attributions there are."""
    _log.warning(line)
