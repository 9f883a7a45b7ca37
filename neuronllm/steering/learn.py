"""Learn how hard to turn every neuron: factors by gradient descent, stopped by questions that they were not learned on.

Scores say which neurons an answer depends on; how hard each has to be turned they do not say. Here a few steps of Adam
find a factor for each. The first gradient is the score of every neuron, so learning begins where attribution ends.

Several seeds learn, and their mean is the result. "No edit" takes part, as in tuning: it wins unless the edit gains
more than `margin` standard errors on validation questions. Where none are given, every seed holds out another part of
the questions, and the gain is that on the parts held out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..common.interrupts import one_interrupt
from ..data.prompts import Questions
from ..engine.objectives import AnyObjective
from ..model.bridged import plain_model
from ..results.neurons import NeuronSet
from ..runs.checkpoint import Interrupted
from ..runs.processes import Ranks
from .learning import Learning
from .recipe import Goal, Recipe
from .request import LearnRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@one_interrupt()
@torch.inference_mode(False)  # a caller's inference mode would forbid gradients
def learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    validation: Questions | None = None,
    *,
    neurons: NeuronSet | None = None,
    k: int | None = None,
    goal: AnyObjective = "enhance",
    objective: AnyObjective | None = None,
    positions: str | None = None,
    orders: str = "none",
    template: str | list[str] | None = None,
    answers: str | None = None,
    length: str | None = None,
    steps: int = Recipe.steps,
    batch: int = Recipe.batch,
    lr: float | None = Recipe.lr,
    l1: float = Recipe.l1,
    signed: bool = Recipe.signed,
    retain: Sequence[Any] | None = None,
    retain_weight: float = Recipe.retain_weight,
    seeds: int = 3,
    seed: int = 0,
    margin: float | None = 2.0,
    controls: int = 0,
    shuffled: bool = False,
    batch_size: int | str = "auto",
    backend: str = "fast",
    cache_gib: float = 2.0,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> NeuronSet:
    """The neurons with a factor of its own for each, learned on questions; empty where no edit is better.

    neurons: whose factors are learned, as `scores.find` chose them; None: all. k: learn on the strongest 4k of them,
    keep the k whose factors matter most, and learn those again.
    goal: "enhance" raises `objective` ("logp_options" unless told otherwise), "degrade" makes all options as likely
    where the right one is likelier than chance; or an objective of your own, which is raised. positions: where factors
    act, "answer" or "all"; by default where the neurons were found, else "all". validation: questions that stop the
    learning and decide whether the edit is worth it, by `margin` standard errors (None: it is kept whatever it gains);
    by default every seed holds out a part of the questions.

    steps, batch, lr: of Adam, questions a step. signed: factors below 0 are allowed too. l1: pulls every factor towards
    1. retain: texts, or questions, whose next-token distributions are to stay as they are; a small bundled text unless
    told otherwise. retain_weight: how strongly, 0 not at all.

    controls: so many sets of random neurons, and as many of random ones about as strong as those learned, are learned
    the same way and saved with the set; `nl.evaluate` says where the edit stands among them. Each takes as long as the
    set itself. shuffled: learn once more with any answer called right, and say what that gains (provenance).

    seeds: how many learn; the factors are their mean. seed: of the split and of the order of the questions. cache_gib:
    of prefixes kept at positions="answer", GiB at most.
    output: a folder for the set; what is done is written beside it as it goes, and resume=True takes up a run that was
    stopped or killed. Inside torch.distributed (torchrun) every process calls this alike, works on its share of the
    questions, and gets the same set.

    >>> learned = nl.learn(model, tokenizer, questions, neurons=scores.find(128, 128))   # doctest: +SKIP
    >>> nl.evaluate(model, tokenizer, test, learned)                                     # doctest: +SKIP
    """
    recipe = Recipe(
        positions=positions or (neurons.positions if isinstance(neurons, NeuronSet) else None) or "all",
        steps=steps,
        batch=batch,
        lr=lr,
        l1=l1,
        signed=signed,
        retain_weight=retain_weight,
    )
    with Ranks.here() as ranks:
        with ranks.together():
            request = LearnRequest(
                goal=Goal.of(goal, objective),
                recipe=recipe,
                neurons=neurons,
                k=k,
                orders=orders,
                template=template,
                answers=answers,
                length=length,
                retain=retain,
                seeds=seeds,
                seed=seed,
                margin=margin,
                controls=controls,
                shuffled=bool(shuffled),
                batch_size=batch_size,
                backend=backend,
                cache_gib=cache_gib,
                output=output,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
            ).checked()
            learning = Learning(plain_model(model), tokenizer, questions, validation, request, ranks)
        try:
            return learning.run()
        except KeyboardInterrupt as stop:
            if isinstance(stop, Interrupted) or output is None:
                raise
            raise Interrupted("interrupted; go on with resume=True (--resume)") from None
