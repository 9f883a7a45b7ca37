"""What could refute a learned edit: random neurons learned the same way, one bias, and what it does to other text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..common.statistics import bootstrap_interval, holm
from ..data.plain_text import plain_sentences
from ..engine.asking import Edit
from ..engine.borrowed import borrowed, context_length
from ..engine.retain import LONGEST, Text, text_logprobs
from ..model.anatomy import Anatomy
from ..results.answers import Answers
from ..results.learned import KINDS, Controls
from ..results.neurons import NeuronSet
from .bias import Bias
from .controls import all_among, measures

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def as_learned(neurons: NeuronSet, change: Edit) -> bool:
    """Whether an edit is that which was learned, or none where learning found none."""
    if "learned" not in neurons.provenance or change.positions != neurons.provenance["learned"].get("positions"):
        return False
    own = torch.ones(0) if neurons.factor is None else neurons.factor
    if len(own) != len(neurons):
        return False
    moved = own != 1
    return torch.equal(change.ids, neurons.ids[moved]) and torch.equal(change.factors, own[moved].to(change.factors))


def among_learned(
    measured: Callable[[Edit], dict[str, float]],
    controls: Controls,
    neurons: NeuronSet,
    edited: dict[str, float],
    positions: str,
    progress: bool,
    by: str = "accuracy",
) -> dict[str, Any]:
    """Where a learned edit stands among random neurons learned the same way, none of them left without an edit.

    `measured` says what an edit is worth, `edited` what this one is, and `by` is the measure that is tested. For the
    edit itself "no edit" does not count here either; "forced" says what it is worth then.
    """
    drawn: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    rows = list(zip(controls.kind, controls.ids, controls.factors, strict=True))
    for kind, ids, factors in tqdm(rows, desc="learned sets", disable=not progress, unit="set", leave=False):
        itself = torch.equal(ids, neurons.ids) and neurons.factor is not None and torch.equal(factors, neurons.factor)
        drawn[kind].append(edited if itself else measured(Edit(ids, factors.double(), positions)))
    (own,), lower = drawn.pop(KINDS[0]), neurons.provenance["learned"].get("goal") == "degrade"
    found: dict[str, Any] = {"forced": own}
    for kind, each in drawn.items():
        if each:
            found[kind] = {**all_among(each, own), "p": _p_value([one[by] for one in each], own[by], lower)}
    return found


def _p_value(drawn: list[float], own: float, lower: bool) -> float:
    """How likely a set that is like the others would do at least as well, the edit itself counted among them."""
    as_good = [value <= own if lower else value >= own for value in drawn]
    return (1 + sum(as_good)) / (1 + len(drawn))


def corrected(found: dict[str, Any], mcnemar: float | None) -> dict[str, float]:
    """Every p-value of a report, each of which counts as one of several (Holm)."""
    tests = {kind: each["p"] for kind, each in found.items() if "p" in each}
    if mcnemar is not None:
        tests = {"McNemar": mcnemar, **tests}
    return dict(zip(tests, holm(list(tests.values())), strict=True))


def with_bias_alone(neurons: NeuronSet, form: str, base: Answers) -> dict[str, Any] | None:
    """What the unedited model is worth with the bias that was learned beside the edit."""
    learned = neurons.provenance["learned"]
    if "bias" not in learned or learned.get("answers") != form:
        return None
    bias = Bias.of(learned["bias"])
    return {"by": bias.by, **measures(bias.added(base))}


def on_plain_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, change: Edit, seed: int
) -> dict[str, Any] | None:
    """The mean log-probability a token of the bundled sentences that no edit learned to leave alone, before and after.

    At positions="answer" a sentence is edited, and counted, from some token of its own on.
    """
    longest = min(LONGEST, context_length(model) or LONGEST)
    read = [tokenizer(sentence).input_ids[:longest] for sentence in plain_sentences("judge")]
    cut = [Text.cut(tokens, number) for number, tokens in enumerate(read) if len(tokens) > 1]
    texts = cut if change.positions == "answer" else [Text(text.tokens) for text in cut]
    if not texts:
        return None
    anatomy = Anatomy.of(model)
    with borrowed(model, attention=None):
        before = text_logprobs(model, anatomy, texts).double().numpy()
        after = text_logprobs(model, anatomy, texts, change.ids, change.factors).double().numpy()
    return {
        "sentences": len(texts),
        "base": float(before.mean()),
        "edited": float(after.mean()),
        "change": bootstrap_interval(after - before, seed),
    }
