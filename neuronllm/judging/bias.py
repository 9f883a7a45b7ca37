"""One number added to the score of each option, and nothing else: what an edit has to beat that only moves a bias."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.forms import option_name
from ..data.prompts import Prompt
from ..data.templates import read_templates
from ..results.answers import Answers

RIDGE = 1e-4  # keeps numbers finite where one option is always right, and settles what all of them may share
LABELS, PLACES = "label", "place"


@dataclass(frozen=True)
class Bias:
    """A number for every letter, place or label, fitted by maximum likelihood.

    An option that has none, such as a label that was not met before, gets 0.

    >>> Bias.fitted(ask()).added(ask()).accuracy   # doctest: +SKIP
    """

    by: str  # "letter", "place" (of options in words that are displayed) or "label" (the options' texts)
    values: dict[str, float]

    @classmethod
    def fitted(cls, answers: Answers) -> Bias | None:
        """The numbers under which the right options are likeliest; every question counts alike, whatever its variants.

        None where there is nothing to fit: options in words that neither come back nor are displayed have no place.
        """
        prompts = [prompt for group in answers.groups for prompt in group]
        by = _by(prompts)
        if by is None or min(len(prompt.option_ids) for prompt in prompts) < 2:
            return None
        names = list(dict.fromkeys(name for prompt in prompts for name in _names(prompt, by)))
        number = {name: n for n, name in enumerate(names)}
        which = torch.full(answers.logprobs.shape, len(names))  # the last one is of options that are not there
        for row, prompt in zip(which, prompts, strict=True):
            row[: len(prompt.option_ids)] = torch.tensor([number[name] for name in _names(prompt, by)])
        weights = torch.cat([torch.full((len(group),), 1 / len(group)) for group in answers.groups])
        right = torch.from_numpy(answers.right_option)[:, None]
        found = _likeliest(answers.logprobs.double(), which, right, weights.double() / len(answers.groups), len(names))
        return cls(by, dict(zip(names, found.tolist(), strict=True)))

    @classmethod
    def of(cls, data: dict[str, Any]) -> Bias:
        """Out of plain data, as `to_dict` gives it."""
        try:
            return cls(str(data["by"]), {str(name): float(value) for name, value in data["values"].items()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"bias: the provenance of the set is not as written here ({error!r})") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def added(self, answers: Answers) -> Answers:
        """How the model would answer with it."""
        prompts = [prompt for group in answers.groups for prompt in group]
        added = torch.zeros_like(answers.logprobs)
        for row, prompt in zip(added, prompts, strict=True):
            own = [self.values.get(name, 0.0) for name in _names(prompt, self.by)]
            row[: len(own)] = torch.tensor(own)
        return Answers(prompts, (answers.logprobs + added).log_softmax(-1))


def _by(prompts: list[Prompt]) -> str | None:
    if all(prompt.form == "letters" for prompt in prompts):
        return "letter"
    labels = {text for prompt in prompts for text in prompt.texts}
    if labels and len(labels) == max(len(prompt.texts) for prompt in prompts):
        return LABELS
    return PLACES if all(_displays(prompt) for prompt in prompts) else None


def _displays(prompt: Prompt) -> bool:
    """Whether a prompt shows its options in some order; one that was built by hand may."""
    try:
        return not prompt.template or read_templates(prompt.template, "texts")[0].shows_options
    except InputError:  # a name that it was given by hand
        return True


def _names(prompt: Prompt, by: str) -> list[str]:
    """What the options of a prompt are called."""
    if by == LABELS:
        return list(prompt.texts)
    form = "texts" if by == PLACES else "letters"
    return [option_name(form, n) for n in range(len(prompt.option_ids))]


@torch.inference_mode(False)
def _likeliest(logprobs: Tensor, which: Tensor, right: Tensor, weights: Tensor, count: int) -> Tensor:
    """The minimum of a convex function, so it does not matter where the search begins."""
    logprobs, values = logprobs.clone(), torch.zeros(count, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([values], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> float:
        with torch.enable_grad():
            search.zero_grad()
            logp = (logprobs + torch.cat([values, values.new_zeros(1)])[which]).log_softmax(-1)
            far = -(weights * logp.gather(1, right)[:, 0]).sum() + RIDGE / 2 * values.square().sum()
            far.backward()
        return float(far.detach())

    search.step(loss)
    return values.detach()
