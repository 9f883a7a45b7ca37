"""Judge a model on questions, with and without an edit, beside random neuron sets of the same size per layer.

Accuracy alone hides two ways to fool oneself: a model that answers alike whatever is asked, and an effect that any
random edit has. So every report shows which letters are predicted (of answers in texts: which places, and whether the
short ones), accuracy balanced over them, confidence intervals by bootstrap over questions, McNemar's exact test on
flipped questions, and percentiles of random controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import InputError
from ..common.statistics import bootstrap_interval, mcnemar, relative_change
from ..common.warning import warn
from ..data.forms import ANSWERS, check_known, one_option_each
from ..data.prompts import Questions
from ..data.questions import Question
from ..engine.asking import Asker, Edit
from ..model.bridged import plain_model
from ..model.identity import baked_into
from ..results.answers import Answers
from ..results.neurons import POSITIONS, NeuronSet
from .asking import Asking, warn_if_leaning, warn_if_met_before, warn_if_one_sided
from .controls import measures, random_controls, warn_if_few
from .learned import among_learned, as_learned, corrected, on_plain_text, with_bias_alone
from .report import Intervals, Report, changed_answers, named
from .written import WrittenReport, judge_written

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    neurons: NeuronSet | None = None,
    mode: str | None = None,
    good: float | None = None,
    bad: float | None = None,
    positions: str | None = None,
    controls: int = 20,
    *,
    unrelated: Questions | None = None,
    orders: str = "none",
    template: str | list[str] | None = None,
    answers: str | None = None,
    length: str | None = None,
    batch_size: int | str = "auto",
    seed: int = 0,
    progress: bool = True,
    abstentions: Sequence[str] | None = None,
    max_new_tokens: int = 32,
) -> Report | WrittenReport:
    """Accuracy and more on questions; with `neurons`, of the edited model beside the base model and random controls.

    mode: "enhance", "degrade", "own" (the neurons' own factors) or "tuned" (what `nl.tune` chose); or give the factors
    good= and bad= (one alone leaves the other role as it is); by default the own factors, else the tuned ones.
    positions: "answer" or "all"; by default those that the set was found, learned or tuned with, so that it is judged
    where it will be lived with, and "all" where it does not say. unrelated: questions for the PCR, whose accuracy is
    reported too. orders: the questions as written by default; "rotate" asks each with every order of its choices.

    A learned set (`nl.learn`) stands beside the random sets that were learned the same way, where it has some, and
    beside what one bias alone gives; and plain text is told before and after, where there is a tokenizer to read it.

    answers: "letters", or "texts" to score the answers in words; by default the form of given prompts, else that of the
    neuron set, or of the one baked into the model, else texts for questions without choices, and letters. length: what
    a text's log-probability is divided by, "sum" (nothing), "tokens", "characters" or "bytes", or "unconditional" for
    what it gains over the text alone.
    answers="generate" lets the model write its answers, `max_new_tokens` at most each, and counts which hold an
    accepted one, which are one, and which decline (see WrittenReport); `abstentions` are further phrases that decline.
    It is the default for questions without choices, and asks with demonstrations of short answers unless `template`
    says otherwise.

    >>> nl.evaluate(model, tokenizer, questions, neurons, mode="degrade")   # doctest: +SKIP
    """
    model = plain_model(model)
    if positions is not None and positions not in POSITIONS:
        raise InputError(f"positions={positions!r}: known values are {', '.join(POSITIONS)}")
    check_known("answers", answers, (*ANSWERS, "generate"))
    if isinstance(controls, bool) or not isinstance(controls, int) or controls < 0:
        raise InputError(f"controls={controls!r}: give a whole number, 0 or more")
    change: Edit | None = None
    edit: dict[str, Any] = {}
    if neurons is not None:
        warn_if_few(controls)
        change, edit = _planned(model, neurons, mode, good, bad, positions)
    elif mode or good is not None or bad is not None or unrelated is not None:
        raise InputError("neurons=None: mode, good, bad and unrelated need a neuron set")
    found = baked_into(model) if neurons is None else neurons.provenance
    warn_if_met_before(found, questions)
    if answers == "generate" or (answers is None and one_option_each(questions)):
        if unrelated is not None:
            raise InputError('unrelated: the PCR goes by probabilities of options, which answers="generate" has not')
        if length is not None:
            raise InputError(f'length={length!r}: it counts for answers="texts", and here the model writes')
        return judge_written(
            model,
            tokenizer,
            questions,
            neurons,
            change,
            edit,
            orders=orders,
            template=template,
            controls=controls,
            abstentions=abstentions,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    if abstentions is not None:
        raise InputError('abstentions: only answers that the model writes can decline: ask with answers="generate"')
    asking = Asking.of(questions, found, orders, template, answers, length)
    prompts = asking.prompts(model, tokenizer, questions)
    warn_if_one_sided(prompts)
    ask = Asker(model, prompts, batch_size)
    base = ask(None, "base", progress)
    warn_if_leaning(base)
    if change is None:
        return _report(asking, base, _intervals(base, None, seed))

    edited = ask(change, edit["mode"] or "edited", progress)
    report = _report(asking, edited, _intervals(base, edited, seed), base)
    report.edit = edit
    _compare(report, questions, base, edited)
    if unrelated is not None:
        other = Asker(model, asking.prompts(model, tokenizer, unrelated), batch_size)
        _elsewhere(report, other(None, "unrelated", progress), other(change, "unrelated", progress), seed)
    if controls:
        report.controls = random_controls(ask, change, edited, controls, seed, progress)
    if neurons is not None and "learned" in neurons.provenance:
        report.bias = with_bias_alone(neurons, report.answers, base)
        if neurons.controls is not None and as_learned(neurons, change):
            each = (neurons.controls, neurons, measures(edited), change.positions, progress)
            report.learned = among_learned(lambda other: measures(ask(other)), *each)
            report.holm = corrected(report.learned, report.mcnemar)
        if tokenizer is not None:
            report.plain_text = on_plain_text(model, tokenizer, change, seed)
    if edited.collapsed:
        top = max(edited.options, key=lambda option: edited.options[option])
        kind, named_top = ("letter", top) if edited.form == "letters" else ("option", f"option {top}")
        warn(
            f"{kind} collapse: the edited model answers {named_top} in {edited.options[top]:.0%} of the prompts; "
            "its accuracy says little"
        )
    return report


def _report(asking: Asking, answers: Answers, intervals: Intervals, base: Answers | None = None) -> Report:
    """The numbers of the judged model, beside those of the unedited one where that is another."""
    report = Report(
        **answers.summary(),
        questions=len(answers.groups),
        ci=intervals,
        answers=asking.form.answers,
        length=asking.form.length,
    )
    if base is not None:
        report.base = base.summary()
    if (answers if base is None else base).collapsed:
        report.meaningless = ["p_right"] if base is None else ["p_right", "rcc"]
    return report


def _compare(report: Report, questions: Questions, base: Answers, edited: Answers) -> None:
    """What the edit changed."""
    report.rac = relative_change(base.accuracy, edited.accuracy)
    report.rcc = relative_change(base.mean_p_right, edited.mean_p_right)
    report.p_change = p_change(base, edited)
    lost, won = base.question_right & ~edited.question_right, ~base.question_right & edited.question_right
    report.flips = {"right_to_wrong": int(lost.sum()), "wrong_to_right": int(won.sum())}
    report.flipped = {
        "right_to_wrong": named(questions, base.groups, lost),
        "wrong_to_right": named(questions, base.groups, won),
    }
    report.mcnemar = mcnemar(int(lost.sum()), int(won.sum()))
    if report.answers == "texts" or isinstance(questions[0], Question):  # prompts of letters do not say the words
        report.changed = changed_answers(questions, base, edited)


def _elsewhere(report: Report, before: Answers, after: Answers, seed: int) -> None:
    """What the edit does to unrelated questions."""
    elsewhere = p_change(before, after)
    report.p_change_unrelated = elsewhere
    report.pcr = change_ratio(report.p_change, elsewhere)
    intervals = {whose: named["accuracy"] for whose, named in _intervals(before, after, seed).items()}
    accuracy = {"base": before.accuracy, "edited": after.accuracy}
    report.unrelated = {"questions": len(after.groups), **accuracy, "ci": intervals}


def _planned(
    model: PreTrainedModel, neurons: NeuronSet, mode: str | None, good: Any, bad: Any, positions: str | None
) -> tuple[Edit, dict[str, Any]]:
    """The edit that was asked for, and its description."""
    neurons.warn_if_empty()
    how = neurons.steering(mode, good, bad)
    source = "where the set was found or tuned" if neurons.positions else "as the set does not say"
    source = "as asked for" if positions else source
    positions = positions or neurons.positions or "all"
    change = Edit(*neurons.edits(model, how), positions)
    where = {"positions": positions, "positions_from": source}
    return change, {**neurons.steered_by(how), **where, "neurons": len(change.ids)}


def _intervals(base: Answers, edited: Answers | None, seed: int) -> Intervals:
    """95 % bootstrap intervals over questions: of the base model, of the edited one, and of the paired change."""

    def by_question(answers: Answers) -> dict[str, np.ndarray]:
        return {"accuracy": answers.by_question(answers.right), "p_right": answers.by_question(answers.p_right)}

    values = {"base": by_question(base)}
    if edited is not None:
        values["edited"] = by_question(edited)
        values["change"] = {name: value - values["base"][name] for name, value in values["edited"].items()}
    return {
        whose: {name: bootstrap_interval(value, seed) for name, value in named.items()}
        for whose, named in values.items()
    }


def p_change(before: Answers, after: Answers) -> float | None:
    """The mean over prompts of the relative change of P(right), signed; None if there was nothing before."""
    changes = relative_changes(before, after)
    return float(changes.mean()) if len(changes) else None


def relative_changes(before: Answers, after: Answers) -> np.ndarray:
    """The relative change of P(right), prompt by prompt.

    Long texts can be so unlikely that P(right) is 0 in float32: no change is relative to that, so they are left out.
    """
    there = before.p_right > 0
    first, then = before.p_right[there], after.p_right[there]
    return np.asarray((then - first) / first)


def change_ratio(here: float | None, elsewhere: float | None) -> float | None:
    """QRNCA's PCR of two mean relative changes of P(right); None where nothing changes elsewhere, or can be told."""
    return abs(here) / abs(elsewhere) if elsewhere and here is not None else None
