"""lm-eval's Hugging Face model with neurons turned: registered there under the name `neuronllm`.

lm-eval finds models by name in a registry of its own, and looks for none in other packages: one that it does not ship
is known once it is imported. So import this module before `lm_eval.simple_evaluate(model="neuronllm", ...)`, or give
lm-eval's command line to ours, which does: `neuronllm lm-eval --model neuronllm --model_args pretrained=M,neurons=DIR
--tasks arc_easy`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from typing import Any

from tqdm.auto import tqdm

from ..common.errors import InputError
from ..engine.asking import Edit
from ..model.anatomy import Anatomy
from ..model.edit import edit
from ..model.loading import DEMO, demo_path
from ..results.neurons import POSITIONS, NeuronSet
from .lm_eval_tasks import need_lm_eval

need_lm_eval("the model neuronllm of lm-eval")

from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

Request = tuple[Any, list[int], list[int]]  # its texts, and the tokens of context and continuation


@register_model("neuronllm")
class NeuronLM(HFLM):
    """HFLM with a neuron set applied: `neurons` is its folder, and mode, good, bad and positions are as in `apply`.

    At positions="answer" the edit begins at the last token of the context, as it does inside `generate`; a text that is
    only read (loglikelihood_rolling) is all answer.

    >>> import neuronllm.bridges.lm_eval_model                                      # doctest: +SKIP
    >>> told = "pretrained=HuggingFaceTB/SmolLM2-135M,neurons=my-neurons"           # doctest: +SKIP
    >>> lm_eval.simple_evaluate("neuronllm", told, tasks=["arc_easy"])              # doctest: +SKIP
    """

    def __init__(
        self,
        pretrained: Any,
        neurons: str | PathLike[str] | NeuronSet | None = None,
        mode: str | None = None,
        good: float | None = None,
        bad: float | None = None,
        positions: str | None = None,
        **settings: Any,
    ) -> None:
        if neurons is None:
            raise InputError("neurons=: name the folder of a neuron set (--model_args pretrained=...,neurons=DIR)")
        if positions not in (None, *POSITIONS):
            raise InputError(f"positions={positions!r}: known values are {', '.join(POSITIONS)}")
        found = neurons if isinstance(neurons, NeuronSet) else NeuronSet.from_pretrained(neurons)
        how = found.steering(mode, good, bad)  # what is wrong with these is said before a model is loaded
        super().__init__(demo_path() if pretrained == DEMO else pretrained, **settings)
        self.anatomy = Anatomy.of(self.model)
        self.change: Edit | None = Edit(*found.edits(self.model, how), positions or found.positions or "all")
        self._starts: list[int] | None = None  # of every row of a batch, where its answer begins
        if self.change.positions == "answer":
            # One pass would serve continuations that begin at different tokens of the same text.
            self.logits_cache = False

    def _edited(self, starts: list[int] | None = None) -> AbstractContextManager[Any]:
        if self.change is None:
            return nullcontext()
        ids, factors, positions = self.change
        return edit(self.model, ids, factors, positions=positions, answer_start=starts, anatomy=self.anatomy)

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        """A forward pass; one that measures how large a batch may be shows no answer, and none is edited there."""
        answer = self.change is not None and self.change.positions == "answer"
        with nullcontext() if answer and self._starts is None else self._edited(self._starts):
            return super()._model_call(*args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._edited():
            return super()._model_generate(*args, **kwargs)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """At the answer lm-eval is given one batch at a time, so that it is known where each row's answer begins."""
        if self.change is None or self.change.positions != "answer":
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return found
        size = self.batch_size if self.batch_size != "auto" else override_bs or self._detect_batch_size(requests)
        # The order in which lm-eval itself sorts a batch: its rows stay where they are here.
        tokens = [request[1] + request[2] for request in requests]
        order = sorted(range(len(requests)), key=lambda n: (-len(tokens[n]), tokens[n]))
        told: dict[int, tuple[float, bool]] = {}
        for first in tqdm(range(0, len(order), size), disable=disable_tqdm, desc="batches"):
            rows = order[first : first + size]
            self._starts = [self._answer_start(*requests[n]) for n in rows]
            try:
                batch = super()._loglikelihood_tokens([requests[n] for n in rows], True, len(rows))
            finally:
                self._starts = None
            told.update(zip(rows, batch, strict=True))
        return [told[n] for n in range(len(requests))]

    def _answer_start(self, texts: Any, context: list[int], continuation: list[int]) -> int:
        """The place of the token behind which the continuation's first one is read; long contexts lose their front.

        A window of a text that is only read comes without texts, and may begin with what an earlier one has read.
        """
        if texts is None:
            return 0
        read = min(len(context) + len(continuation) - 1, self.max_length)
        return read - len(continuation)


def command_line(given: Sequence[str]) -> None:
    """lm-eval's own command line, in which the model `neuronllm` is known."""
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["lm_eval", *given]
    try:
        cli_evaluate()
    except ValueError as error:
        if str(error).startswith("Tasks not found"):
            raise InputError(f"--tasks: lm-eval does not know {str(error).partition(': ')[2]}") from None
        raise
    finally:
        sys.argv = before
