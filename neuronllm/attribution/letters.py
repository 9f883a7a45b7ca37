"""Letter neurons: those that push the same letter whatever is asked, which a saturated model lets pass for knowledge.

1. Every question is asked with each rotation of its choices, so that a choice stands at every letter once.
2. A neuron's pushes of a prompt are h times the gradient of each option's score, less their mean over the options.
3. Its letter profile is the mean of that by letter, over all prompts.
4. Its share is what the profile alone explains of the sum of squares of all its pushes, between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.checks import floating
from ..common.errors import InputError
from ..data.forms import check_unworded, found_template, option_name
from ..data.prompts import Prompt, Questions
from ..data.rendering import as_prompts
from ..engine import open_engine
from ..engine.asking import check_batch_size
from ..engine.borrowed import check_prompts
from ..model.anatomy import Anatomy
from ..model.bridged import plain_model
from ..model.sites import DENSE
from ..results.neurons import NeuronSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHOWN = 10  # flagged neurons that are printed


@dataclass(frozen=True, eq=False, repr=False)
class LetterNeurons:
    """What `nl.letter_neurons` found of each neuron; `print(found)` shows the flagged ones, the strongest first.

    >>> neurons = neurons.without(found.ids[found.flagged])   # doctest: +SKIP
    """

    ids: Tensor  # flat ids
    letter: list[str]  # that it moves most
    push: Tensor  # its mean push of that letter: + lifts it, - lowers it
    share: Tensor  # of its pushes that are the same whatever is asked, 0 to 1
    flagged: Tensor  # bool: the share is above the threshold
    threshold: float
    prompts: int
    anatomy: Anatomy

    def __str__(self) -> str:
        flagged = self.flagged.nonzero()[:, 0]
        chosen = flagged[self.push[flagged].abs().argsort(descending=True, stable=True)].tolist()
        what = f"of {len(self.ids)} neurons push one letter whatever is asked (share above {self.threshold:g}, "
        lines = [f"{len(chosen)} {what}{self.prompts} prompts)", *(self._line(n) for n in chosen[:SHOWN])]
        return "\n".join(lines + [f"  {len(chosen) - SHOWN} more"] * (len(chosen) > SHOWN))

    def _line(self, n: int) -> str:
        layer, expert, index = (int(part) for part in self.anatomy.locate(self.ids[n]))
        where = f"layer {layer}" + ("" if expert == DENSE else f" expert {expert}") + f" neuron {index}"
        does = "lifts" if self.push[n] > 0 else "lowers"
        return f"  {where}: {does} {self.letter[n]} by {abs(float(self.push[n])):.3g}, share {float(self.share[n]):.2f}"


@torch.inference_mode(False)
def letter_neurons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Questions,
    neurons: NeuronSet | Any = None,
    *,
    share: float = 0.5,
    orders: str = "rotate",
    template: str | list[str] | None = None,
    batch_size: int | str = "auto",
    backend: str = "fast",
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
) -> LetterNeurons:
    """Flags neurons that push the same letter whatever is asked: more than `share` of their pushes is one constant.

    `neurons`: a neuron set, which is looked at in the words it was found with, or flat ids; None takes all. Such
    neurons can be left out of a set (`NeuronSet.without`), or projected out while attributing: with
    objective="mean_margin" and rotated orders, what a neuron does to a letter whatever is asked cancels.

    >>> found = nl.letter_neurons(model, tokenizer, questions, neurons)   # doctest: +SKIP
    >>> print(found)                                                      # doctest: +SKIP
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise InputError(f"share={share!r}: give a number between 0 and 1")
    check_batch_size(batch_size)
    dtype = floating("dtype", dtype)
    check_unworded(questions, template)
    model = plain_model(model)
    anatomy = Anatomy.of(model)
    ids = torch.arange(anatomy.n_neurons) if neurons is None else neurons
    if isinstance(neurons, NeuronSet):
        if not anatomy.same_layout(neurons.anatomy):
            raise InputError(f"the neuron set is of a {neurons.anatomy.describe()}, the model a {anatomy.describe()}")
        ids, template = neurons.ids, template or found_template(neurons.provenance, "letters")
    ids = anatomy.checked(ids)
    prompts = as_prompts(tokenizer, questions, orders, template)
    _check_letters(prompts)
    check_prompts(model, prompts)
    profile = _Profile(max(len(prompt.option_ids) for prompt in prompts), len(ids))
    with (
        open_engine(model, anatomy, prompts, backend, dtype=dtype, batch_size=batch_size) as engine,
        tqdm(total=len(prompts), desc="letter neurons", disable=not progress, unit="prompt") as bar,
    ):
        for start in range(0, len(prompts), engine.at_once):
            now = prompts[start : start + engine.at_once]
            for prompt, pushes in zip(now, engine.option_gradients(now)[..., ids], strict=True):
                profile.add(pushes[: len(prompt.option_ids)])
            bar.update(len(now))
    top = profile.means.abs().argmax(0)
    return LetterNeurons(
        ids=ids,
        letter=[option_name("letters", n) for n in top.tolist()],
        push=profile.means.gather(0, top[None])[0],
        share=profile.share,
        flagged=profile.share > share,
        threshold=share,
        prompts=len(prompts),
        anatomy=anatomy,
    )


def _check_letters(prompts: Sequence[Prompt]) -> None:
    if any(prompt.form == "texts" for prompt in prompts):
        raise InputError("questions: letter neurons are those of answers in letters, and these prompts ask for texts")
    if len(prompts) < 2 or any(len(prompt.option_ids) < 2 for prompt in prompts):
        raise InputError(
            "questions: it takes two prompts, of two options each, to see what a neuron does in all of them"
        )


class _Profile:
    """A neuron's mean push of every letter, and how much of its pushes that explains."""

    def __init__(self, letters: int, neurons: int) -> None:
        self.count = torch.zeros(letters, 1, dtype=torch.float64)
        self.sum = torch.zeros(letters, neurons, dtype=torch.float64)
        self.squares = torch.zeros(neurons, dtype=torch.float64)

    def add(self, pushes: Tensor) -> None:
        """Take in a prompt: (options, neurons)."""
        pushes = pushes.double()
        pushes = pushes - pushes.mean(0)
        self.count[: len(pushes)] += 1
        self.sum[: len(pushes)] += pushes
        self.squares += pushes.square().sum(0)

    @property
    def means(self) -> Tensor:
        return self.sum / self.count

    @property
    def share(self) -> Tensor:
        """Of the sum of squares; a neuron that pushes nothing has none."""
        explained = (self.count * self.means.square()).sum(0)
        return torch.where(self.squares > 0, explained / self.squares, 0.0).clamp(max=1)
