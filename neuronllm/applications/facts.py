"""Editing facts: a question's answer is flipped by its own neurons, boosted or suppressed (QRNCA's application).

1. The question is asked as it is; what the model answers, and what it is to answer, are known then.
2. Its neurons are those of `queries.py` for the answer that is wanted, or for the one that is to go: the question is
   scored as if that answer were the right one.
3. What speaks for the wanted answer is boosted, what speaks for the old one suppressed; or factors are learned.
4. Question, paraphrases and unrelated questions are asked again, and so under the same edit of random neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..data.prompts import Questions
from ..data.questions import Question
from ..engine.objectives import AnyObjective
from ..methods import Method
from .fact_editing import Editing
from .fact_report import FactEdit, FactEdits
from .fact_request import FactRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def edit_fact(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    *,
    to: str | None = None,
    paraphrases: Sequence[str | Question] = (),
    unrelated: Questions | None = None,
    **how: Any,
) -> FactEdit:
    """Flip a question's answer by its own neurons; further keywords are those of `nl.edit_facts`.

    to: the choice that is to be the answer, in its words as they stand in `question.choices`, not by its place or its
    letter. Without it the right one, where the model is wrong; and where it is right,
    any other. paraphrases: the same question in other words, or other questions that hold the answer among their
    choices. unrelated: questions whose answers are to stay.

    >>> edit = nl.edit_fact(model, tokenizer, question, to="Rome", background=others)   # doctest: +SKIP
    >>> print(edit)                                                                     # doctest: +SKIP
    >>> edit.neurons.save_pretrained("rome")                                            # doctest: +SKIP
    """
    given: dict[str, Any] = {"to": [to], "paraphrases": [paraphrases], "unrelated": unrelated}
    return edit_facts(model, tokenizer, [question], **given, **how).edits[0]


@torch.inference_mode(False)
def edit_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    to: Sequence[str | None] | None = None,
    how: str | None = None,
    paraphrases: Sequence[Sequence[str | Question]] | None = None,
    unrelated: Questions | None = None,
    background: Questions | None = None,
    method: str | Method = "qrnca",
    k: int = 20,
    factors: tuple[float, float] = (2.0, 0.0),
    steps: int = 64,
    objective: AnyObjective | None = None,
    positions: str | None = None,
    orders: str = "rotate",
    template: str | list[str] | None = None,
    answers: str | None = None,
    length: str | None = None,
    controls: int = 20,
    seed: int = 0,
    batch_size: int | str = "auto",
    backend: str = "fast",
    progress: bool = True,
    **method_options: Any,
) -> FactEdits:
    """Flip the answers of several questions, each by an edit of its own; means, and where random neurons stand.

    to, paraphrases: one for each question, as in `nl.edit_fact`. unrelated: without them the other questions.
    how: "boost" multiplies the k neurons of the wanted answer by the first of `factors`, "suppress" those of the old
    answer by the second, "both" does both (neurons of both answers stay as they are), and "learn" learns a factor for
    each of the k neurons of the wanted answer and the k of the old one (`nl.learn`, in `steps`). By default "suppress"
    where any other answer will do, and else "boost".

    background: further questions, whose clusters tell qrnca which neurons all questions share; the questions
    themselves do so too. method, objective, positions, template, answers, length, and options of the method: as in
    `nl.attribute`. orders: how questions and paraphrases are asked when they are judged, "rotate" in every order of the
    choices, so that an edit that only moves a letter does not count; unrelated ones are asked as they are written.
    controls: random sets of as many neurons in every block, edited the same way.

    >>> edits = nl.edit_facts(model, tokenizer, questions)   # doctest: +SKIP
    >>> edits.summary()["efficacy"]["edited"]["mean"]        # doctest: +SKIP
    """
    request = FactRequest(
        to=to,
        how=how,
        paraphrases=paraphrases,
        unrelated=unrelated,
        background=background,
        method=method,
        k=k,
        factors=factors,
        steps=steps,
        objective=objective,
        positions=positions,
        orders=orders,
        template=template,
        answers=answers,
        length=length,
        controls=controls,
        seed=seed,
        batch_size=batch_size,
        backend=backend,
        progress=progress,
        options=method_options,
    ).checked(questions)
    return Editing(model, tokenizer, questions, request).run()
