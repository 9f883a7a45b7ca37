"""Contrast of two sets of prompts: which neurons hold something else where a behaviour is shown?

1. Every prompt of either set becomes one row: what each neuron holds, the mean over the positions that are read.
2. A statistic tells the sets apart: the difference of the means ("mean"), Welch's t, which is that over its standard
   error ("t"), or the weights of a sparse logistic regression ("probe").
3. Neurons that are strong whatever is asked score 0 on request (`ignore=`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.checks import floating, integer, short
from ..common.errors import InputError
from ..common.warning import warn
from ..data.prompt_sets import Positions, Sequenced, Worded, check_read_at, encoded, word_prompts
from ..data.prompts import Prompt
from ..engine import BACKENDS, open_engine
from ..engine.activity import ACTIVITY
from ..engine.asking import check_batch_size
from ..engine.borrowed import check_prompts
from ..engine.writing import Writer
from ..methods.base import Summary, one_of
from ..methods.contrast import DIFFERENCES, difference
from ..model.anatomy import Anatomy
from ..model.identity import identity
from ..results.neurons import NeuronSet
from ..results.scores import Scores
from ..results.streaming import Statistics
from ..runs.provenance import prompt_hash, versions
from .probe import check_probe, l1_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATISTICS = (*DIFFERENCES, "probe")
STRONGEST, FREQUENT = 0.01, 0.5  # among the strongest 1 % in at least half of the prompts
Take = Callable[[Tensor], None]


@dataclass(frozen=True)
class Reading:
    """What is read of prompts, and how."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    positions: Positions
    activation: str
    chat: bool
    max_new_tokens: int | None
    batch_size: int | str
    backend: str
    dtype: torch.dtype | None
    progress: bool

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, given: dict[str, Any]) -> Reading:
        """The reading that keywords ask for, checked."""
        check_read_at(given["positions"])
        one_of("activation", given["activation"], ACTIVITY)
        one_of("backend", given["backend"], BACKENDS)
        check_batch_size(given["batch_size"])
        most = given["max_new_tokens"]
        if most is not None and (integer(most) or 0) < 1:
            raise InputError(f"max_new_tokens={most!r}: give a positive whole number, or None to write nothing")
        return cls(model, tokenizer, **given)

    def sequences(self, prompts: Any, name: str) -> list[Sequenced]:
        """The prompts as tokens; the model answers those without an answer where it is to."""
        worded = word_prompts(self.tokenizer, prompts, name, self.chat)
        if self.max_new_tokens is not None:
            worded = self._answered(worded, name, self.max_new_tokens)
        return encoded(self.tokenizer, worded, name)

    def _answered(self, worded: list[Worded | Prompt], name: str, most: int) -> list[Worded | Prompt]:
        open_ones = [n for n, item in enumerate(worded) if isinstance(item, Worded) and item.before == item.whole]
        if not open_ones:
            return worded
        asked = [one.read_at(-1, name)[0] for one in encoded(self.tokenizer, [worded[n] for n in open_ones], name)]
        write = Writer(self.model, self.tokenizer, asked, most, self.batch_size, stop=None)
        answered = list(worded)
        for n, text in zip(open_ones, write(None, label=f"answers of {name}", progress=self.progress), strict=True):
            item = worded[n]
            if not text or not isinstance(item, Worded):
                raise InputError(f"{name}[{n}]: the model writes nothing to it: leave it out, or give it an answer")
            answered[n] = item.answered(text)
        return answered

    def rows(
        self, sequences: Sequence[Sequenced], name: str, take: Take, positions: Positions | None = None
    ) -> list[Prompt]:
        """Hand `take` what the neurons hold, (n_neurons,), prompt by prompt; the prompts that were read."""
        where = self.positions if positions is None else positions
        asked = [one.read_at(where, f"{name}[{n}]") for n, one in enumerate(sequences)]
        prompts, (everywhere, *_) = [prompt for prompt, _ in asked], [at for _, at in asked]
        check_prompts(self.model, prompts)
        with (
            open_engine(
                self.model,
                Anatomy.of(self.model),
                prompts,
                self.backend,
                dtype=self.dtype,
                batch_size=self.batch_size,
            ) as engine,
            tqdm(total=len(prompts), desc=f"reading {name}", disable=not self.progress, unit="prompt") as bar,
        ):

            def read(some: Sequence[Prompt]) -> Tensor:
                return engine.activations(some, everywhere, self.activation)

            engine.fit(read, prompts)
            for start in range(0, len(prompts), engine.at_once):
                for row in read(prompts[start : start + engine.at_once]):
                    take(row)
                    bar.update()
        return prompts


@torch.inference_mode(False)
def activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[Any],
    *,
    positions: Positions = "answer",
    activation: str = "value",
    chat: bool = False,
    max_new_tokens: int | None = None,
    batch_size: int | str = "auto",
    backend: str = "fast",
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
) -> Tensor:
    """(prompts, n_neurons): what every neuron holds, the mean over what is read; the arguments are those of `contrast`.

    >>> rows = nl.activations(model, tokenizer, ["Thank you!", "Go away."], activation="cett")   # doctest: +SKIP
    >>> rows @ scores.values                          # how much each is like what was shown     # doctest: +SKIP
    """
    given: dict[str, Any] = {"positions": positions, "activation": activation, "chat": chat}
    given |= {"max_new_tokens": max_new_tokens}
    given |= {"batch_size": batch_size, "backend": backend, "dtype": floating("dtype", dtype), "progress": progress}
    reading = Reading.of(model, tokenizer, given)
    found: list[Tensor] = []
    reading.rows(reading.sequences(prompts, "prompts"), "prompts", found.append)
    return torch.stack(found)


@torch.inference_mode(False)
def contrast(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    shown: Sequence[Any],
    not_shown: Sequence[Any],
    *,
    statistic: str = "mean",
    positions: Positions = "answer",
    activation: str = "value",
    others: bool = False,
    ignore: Any = None,
    C: float = 1.0,
    chat: bool = False,
    max_new_tokens: int | None = None,
    batch_size: int | str = "auto",
    backend: str = "fast",
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
) -> Scores:
    """Scores of what tells prompts that show a behaviour (+) from prompts that do not (-).

    shown, not_shown: lists of texts, of chats ([{role, content}, ...]), of {"prompt", "answer"} with either as the
    prompt, or of `nl.Prompt`s, whose right answer in words counts as given. chat: plain texts are what a user says, in
    the tokenizer's chat template. max_new_tokens: where no answer is given, the model writes one of at most so many
    tokens.
    statistic: "mean", the difference of the means; "t", Welch's t (that over its standard error); "probe", the weights
    of an L1 logistic regression (scikit-learn; C as there), where most neurons have none.
    positions: the mean over the tokens of the "answer" (of prompts without one the last token), over those of the
    "prompt" in front of it, or over "all"; or the place of one token, -1 for the last.
    activation: "value" (h), "size", "frequency" (gate above 0) or "cett", the neuron's share of its FFN's output.
    others: the tokens in front of the answers count as not shown, too (H-Neurons' way to leave out what is strong
    everywhere). ignore: neurons that score 0: a neuron set, flat ids, or prompts of another kind; of these, neurons
    that are among the strongest 1 % in at least half of them.

    Neurons found so are edited at the answer if it was read, or a last token; else at all tokens.

    >>> scores = nl.contrast(model, tokenizer, polite, curt, statistic="t")   # doctest: +SKIP
    >>> neurons = scores.find(good=50, bad=50)                               # doctest: +SKIP
    """
    one_of("statistic", statistic, STATISTICS)
    given: dict[str, Any] = {"positions": positions, "activation": activation, "chat": chat}
    given |= {"max_new_tokens": max_new_tokens}
    given |= {"batch_size": batch_size, "backend": backend, "dtype": floating("dtype", dtype), "progress": progress}
    reading = Reading.of(model, tokenizer, given)
    if statistic == "probe":
        check_probe(C)
    anatomy = Anatomy.of(model)
    sides = {"shown": reading.sequences(shown, "shown"), "not_shown": reading.sequences(not_shown, "not_shown")}
    if statistic == "t" and (few := [name for name, side in sides.items() if len(side) < 2]):
        raise InputError(f'{few[0]}: statistic="t" needs two prompts at least, to see how far they scatter')
    if others:
        _check_answers(sides, positions)
    ignored = _ignored(reading, anatomy, ignore)

    collect = _Probe(anatomy.n_neurons, C) if statistic == "probe" else _Difference(anatomy.n_neurons, statistic)
    read = {name: reading.rows(side, name, collect.of(name)) for name, side in sides.items()}
    if others:
        for name, side in sides.items():
            reading.rows(side, name, collect.of("not_shown"), "prompt")
    summary = collect.summary(ignored)
    values = summary.values.float()
    values[ignored] = 0
    if statistic == "probe" and not bool(values.any()):
        warn(f"the probe gives no neuron a weight at C={C:g}: raise C")
    provenance = {
        "method": "contrast",
        "statistic": statistic,
        "activation": activation,
        "positions": "answer" if positions in ("answer", -1) else "all",
        "read_at": positions,
        "others": others,
        "chat": chat,
        "max_new_tokens": max_new_tokens,
        **{name: len(side) for name, side in sides.items()},
        "prompt_hashes": {name: prompt_hash(prompts) for name, prompts in read.items()},
        "ignored": len(ignored),
        **({"C": C} if statistic == "probe" else {}),
        **identity(model),
        **versions(*(["scikit-learn"] if statistic == "probe" else [])),
    }
    return Scores(values, summary.stderr.float(), summary.sign_consistency.float(), anatomy, provenance)


def _check_answers(sides: dict[str, list[Sequenced]], positions: Positions) -> None:
    """The tokens in front of an answer are other ones only where an answer is read."""
    if positions != "answer":
        raise InputError(f'others=True: it goes with positions="answer", not {short(positions)}')
    for name, side in sides.items():
        for n, one in enumerate(side):
            if not one.answer:
                raise InputError(f"others=True: {name}[{n}] has no answer whose tokens could be told from the others")


# ---- the statistics ----


class _Difference:
    """Two means, prompt by prompt."""

    def __init__(self, n_neurons: int, statistic: str) -> None:
        self.statistic = statistic
        self.sides = {name: Statistics(n_neurons) for name in ("shown", "not_shown")}

    def of(self, name: str) -> Take:
        return self.sides[name].add

    def summary(self, ignored: Tensor) -> Summary:
        return difference(self.sides["shown"], self.sides["not_shown"], self.statistic)


class _Probe:
    """All rows, which a fit needs at once."""

    def __init__(self, n_neurons: int, C: float) -> None:
        self.n_neurons, self.C = n_neurons, C
        self.rows: dict[str, list[Tensor]] = {"shown": [], "not_shown": []}

    def of(self, name: str) -> Take:
        return self.rows[name].append

    def summary(self, ignored: Tensor) -> Summary:
        kept = torch.ones(self.n_neurons, dtype=torch.bool)
        kept[ignored] = False
        values = torch.stack([row[kept] for rows in self.rows.values() for row in rows]).double().numpy()
        weights = torch.zeros(self.n_neurons, dtype=torch.float64)
        are_shown = np.arange(len(values)) < len(self.rows["shown"])
        weights[kept] = torch.from_numpy(l1_weights(values, are_shown, self.C))
        unknown = torch.full_like(weights, float("nan"))
        return Summary(weights, unknown, unknown)


# ---- what scores nothing ----


def _ignored(reading: Reading, anatomy: Anatomy, ignore: Any) -> Tensor:
    """Flat ids of a neuron set, as given, or of neurons that are often strong in prompts of another kind."""
    if ignore is None:
        return torch.zeros(0, dtype=torch.int64)
    if isinstance(ignore, NeuronSet):
        if not anatomy.same_layout(ignore.anatomy):
            raise InputError(f"ignore: the set is of a {ignore.anatomy.describe()}, the model a {anatomy.describe()}")
        return ignore.ids
    if isinstance(ignore, (Tensor, np.ndarray)) or (
        isinstance(ignore, Sequence) and ignore and all(integer(number) is not None for number in ignore)
    ):
        return anatomy.checked(ignore)
    strongest = max(1, round(STRONGEST * anatomy.n_neurons))
    times = torch.zeros(anatomy.n_neurons)
    sequences = reading.sequences(ignore, "ignore")

    def count(row: Tensor) -> None:
        top = row.abs().topk(strongest)
        times[top.indices[top.values > 0]] += 1

    reading.rows(sequences, "ignore", count)
    return (times >= FREQUENT * len(sequences)).nonzero()[:, 0]
