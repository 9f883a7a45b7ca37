"""How the work is cut into batches: a plan, made before the start and followed for the whole run.

The same prompts under the same plan give the same bytes, which is why a run writes its plan down and a resumed run
takes it from there.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.errors import InputError
from .memory import available
from .tree import root_length, siblings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt
    from ..model.anatomy import Anatomy
    from .adaptive import Refined

_log = logging.getLogger("neuronllm")
# Answer tokens, and tokens of prompts, of one pass: enough to keep the hardware busy, and memory small.
ANSWER_TOKENS, CUDA_ANSWER_TOKENS, FEWEST_ANSWER_TOKENS = 2048, 8192, 64
TOKENS, CUDA_TOKENS = 4096, 16384
WINDOW = 32
# What is said of it by the CPU's allocator, and by cuBLAS, whose workspace is not PyTorch's.
NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
ENOUGH = 4  # prompts of a batch, below which blocks had better run again on the way back


@dataclass
class Plan:
    """Sizes of batches, and what was learnt on the way.

    >>> Plan.from_dict(Plan(prompts=4, answer_tokens=64, window=8).to_dict()).prompts
    4
    """

    prompts: int  # of one batch, at most
    answer_tokens: int  # answer tokens of one pass, at most
    window: int  # prompts that the engine is handed at once
    root: int = 0  # tokens that all prompts start with, computed once
    recompute: bool = False  # with positions="all", blocks run again on the way back
    can_recompute: bool = False
    estimate: dict[str, int] = field(default_factory=dict)  # bytes: what -> how many
    backoffs: list[str] = field(default_factory=list)  # what ran out of memory, and what was done
    batch: int = 0  # prompts of a batch of this very work, once that is known
    noise: float = 0.0  # of exact effects: what a rounding of h did to the objective, at most
    integrals: int = 0  # to a tolerance: of so many prompts
    points: float = 0.0  # of a layer on average, summed over these prompts
    error: float = 0.0  # the largest estimated one, relative

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        return cls(**data)

    def note(self, prompts: Sequence[Refined]) -> None:
        """What integrals to a tolerance took."""
        self.integrals += len(prompts)
        self.points += sum(prompt.points for prompt in prompts)
        self.error = max([self.error, *(prompt.error for prompt in prompts)])

    def __str__(self) -> str:
        return f"batches of {self.batch or self.prompts} prompts, passes of {self.answer_tokens} answer tokens"


def make_plan(model: PreTrainedModel, prompts: Sequence[Prompt], *, batch_size: int | str = "auto") -> Plan:
    """The plan for these prompts on this model, as long as memory does not ask for less (see `fit`)."""
    root = root_length(prompts)
    longest = max(p.n_tokens for p in prompts) - root
    cuda = model.device.type == "cuda"
    size = batch_size if isinstance(batch_size, int) else max(1, (CUDA_TOKENS if cuda else TOKENS) // longest)
    window = size if isinstance(batch_size, int) else max(WINDOW, size)
    return Plan(prompts=size, answer_tokens=CUDA_ANSWER_TOKENS if cuda else ANSWER_TOKENS, window=window, root=root)


class Sized(Exception):
    """Raised in the place of work whose size alone was asked for."""

    def __init__(self, answer_tokens: int) -> None:
        super().__init__(answer_tokens)
        self.answer_tokens = answer_tokens  # of a prompt, in one pass


def roomy(model: PreTrainedModel, anatomy: Anatomy, prompts: Sequence[Prompt], answer_tokens: int) -> bool:
    """Whether even a whole graph of a batch is small beside the memory of this computer, so that no trial is needed.

    `answer_tokens` is how many a pass has of each prompt.
    """
    if model.device.type == "cuda":
        return False
    hidden = next(model.get_input_embeddings().parameters()).shape[1]
    lengths = [p.n_tokens for p in prompts]
    tokens = max(*lengths, min(TOKENS, sum(lengths)), min(ANSWER_TOKENS, answer_tokens * len(prompts)))
    numbers = tokens * len(anatomy.blocks) * (24 * hidden + 10 * max(site.size for site in anatomy.sites))
    return bool(numbers * model.dtype.itemsize < available(model.device) // 4)


def fit(plan: Plan, work: Callable[[Plan, Sequence[Prompt]], int], prompts: Sequence[Prompt], budget: int) -> Plan:
    """The plan, with batches as large as memory allows and what they will take.

    `work` does a batch under a trial plan and says how many bytes it held; what one and two of the longest prompts
    took says what more would take.
    """
    longest = sorted(prompts, key=lambda p: -p.n_tokens)[:2]
    while True:
        alone = replace(plan, prompts=1)
        first = work(alone, longest[:1])
        plan.can_recompute = alone.can_recompute
        further = max(0, work(replace(plan, prompts=2), longest) - first) if len(longest) == 2 else 0
        most = 1 + (budget - first) // max(1, further) if first <= budget else 0
        if most < min(plan.prompts, ENOUGH) and not plan.recompute and plan.can_recompute:
            plan = replace(plan, recompute=True)
        elif most < 1 and plan.answer_tokens > FEWEST_ANSWER_TOKENS:
            plan = replace(plan, answer_tokens=plan.answer_tokens // 2)
        else:
            break
    size = max(1, min(plan.prompts, most))
    return replace(plan, prompts=size, estimate={"first prompt": first, "each further prompt": further})


def alike(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Places of the prompts that are read at their last token, and of those that are read behind it."""
    letters = [n for n, prompt in enumerate(prompts) if prompt.one_token]
    texts = [n for n, prompt in enumerate(prompts) if not prompt.one_token]
    return [places for places in (letters, texts) if places]


def run_batches(prompts: Sequence[Any], score: Callable[[Any], Tensor], plan: Plan, per_prompt: int = 1) -> Tensor:
    """Scores (prompts, ...) from those of batches, in the order given; `per_prompt` answer tokens a prompt and pass.

    A batch that runs out of memory is cut in half, and the plan with it; what is done stays done.
    """
    score_places = lambda places: score([prompts[n] for n in places])  # noqa: E731
    found: dict[int, Tensor] = {}
    for places, part in backing_off(in_batches(prompts, plan, per_prompt), score_places, plan, per_prompt):
        found.update(zip(places, part, strict=True))
    return torch.stack([found[n] for n in range(len(prompts))])


def backing_off(
    batches: list[list[int]], score: Callable[[list[int]], Tensor], plan: Plan, per_prompt: int = 1
) -> Iterator[tuple[list[int], Tensor]]:
    """(places, scores) of each batch; where one runs out of memory, the plan and all that is left are cut smaller.

    `per_prompt` 0 says that the pass of a prompt cannot be shortened.
    """
    waiting = list(batches)
    while waiting:
        places = waiting.pop(0)
        part = unless_memory_ends(score, places)
        if part is None:
            smaller(plan, len(places), per_prompt)
            waiting = cut([n for batch in [places, *waiting] for n in batch], plan, per_prompt)
        else:
            yield places, part


def in_batches(prompts: Sequence[Prompt], plan: Plan, per_prompt: int = 1) -> list[list[int]]:
    """Places of prompts, batch by batch: like lengths beside each other, siblings together."""
    groups = siblings(prompts, plan.root)
    groups.sort(key=lambda group: max(prompts[n].n_tokens for n in group))
    batches: list[list[int]] = [[]]
    size = batch_size(plan, per_prompt, len(prompts))
    for group in groups:
        if len(batches[-1]) + len(group) > size:
            batches.append([])
        batches[-1] += group
    return [part for batch in batches for part in cut(batch, plan, per_prompt)]


def batch_size(plan: Plan, per_prompt: int, prompts: int) -> int:
    """Prompts of a batch, of so many in all, whose passes have so many answer tokens a prompt.

    Batches are about even: a small one at the end would be slow, and the others need more memory for it.
    """
    most = max(1, min(plan.prompts, plan.answer_tokens // max(1, per_prompt)))
    batches = math.ceil(max(1, prompts) / most)
    return max(1, math.ceil(prompts / batches))


def cut(places: list[int], plan: Plan, per_prompt: int) -> list[list[int]]:
    size = batch_size(plan, per_prompt, len(places))
    return [places[start : start + size] for start in range(0, len(places), size)]


def smaller(plan: Plan, prompts: int, per_prompt: int = 1) -> None:
    """Halve what ran out of memory, and say so."""
    if prompts > 1:
        plan.prompts = (prompts + 1) // 2
        said = f"out of memory with {prompts} prompts: now {plan.prompts} at a time"
    elif plan.can_recompute and not plan.recompute:
        plan.recompute = True
        said = "out of memory with one prompt: now blocks run again on the way back"
    elif not per_prompt:
        raise InputError("out of memory with one prompt: shorten it, or use a device with more memory")
    elif plan.answer_tokens > 1:
        plan.answer_tokens //= 2
        said = f"out of memory with one prompt: now {plan.answer_tokens} answer tokens a pass"
    else:
        raise InputError("out of memory with a single answer token: use a smaller dtype or a device with more memory")
    plan.backoffs.append(said)
    _log.warning("%s", said)


def unless_memory_ends(score: Callable[[Any], Tensor], batch: Any) -> Tensor | None:
    """The scores, or None out of memory; by then the frames that held the memory are gone."""
    try:
        return score(batch)
    except RuntimeError as error:  # torch.OutOfMemoryError is one too
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in NO_MEMORY):
            raise
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
