"""All positions: a full forward and backward of a batch with frozen parameters.

The score of a layer is formed inside its FFN's backward, as soon as the gradient is there, so that gradients of
different layers never stand beside each other. Where memory asks for it, a block keeps its input only and runs again on
the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..model.discovery import decoder_layers
from .attention import piece_attention
from .borrowed import DoublePrecision, answer_logits, held_states, running_instead
from .prefill import piece_inputs
from .tree import with_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.prompts import Prompt
    from ..data.question_trees import QuestionTree


def full_pass(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Logits (sequences, 1, ids) at the last tokens of whole sequences."""
    return answer_logits(model, *padded(sequences))[:, None]


def whole_trees(model: PreTrainedModel, prompts: Sequence[Prompt], *, constant_patterns: bool = False) -> Tensor:
    """Logits (prompts x nodes, 1, ids) of the answer trees of whole prompts, each of which is run once."""
    level, pieces = with_answers(prompts, [0] * len(prompts))
    with piece_attention(model, level, [], None, constant_patterns=constant_patterns):
        inputs = piece_inputs(model, level, pieces)
        return answer_logits(model, inputs.pop("input_ids"), None, level.nodes, **inputs).flatten(0, 1)[:, None]


def paths_of(prompts: Sequence[Prompt]) -> list[list[tuple[int, ...]]]:
    """The answers of each prompt as paths through its tree, those that are the same once, of all as many."""
    found = [list(dict.fromkeys(tuple(path) for option in p.tree.paths for path in option)) for p in prompts]
    most = max(map(len, found))
    return [paths + paths[:1] * (most - len(paths)) for paths in found]


def whole_answers(model: PreTrainedModel, prompts: Sequence[Prompt]) -> Tensor:
    """`whole_trees` by plain passes: a sequence for each answer, prompt by prompt as many (see `paths_of`)."""
    every = paths_of(prompts)
    most, width = len(every[0]), max(len(prompt.tree.tokens) for prompt in prompts)
    shown = [
        [*prompt.input_ids, *(prompt.tree.tokens[node] for node in path[1:])]
        for prompt, paths in zip(prompts, every, strict=True)
        for path in paths
    ]
    ids, mask, last = padded(shown)
    lengths = torch.tensor([len(prompt.input_ids) for prompt in prompts for _ in range(most)])
    deepest = max(len(path) for paths in every for path in paths)
    at = torch.minimum(lengths[:, None] - 1 + torch.arange(deepest), last[:, None])
    logits = answer_logits(model, ids, mask, at)
    places = [(n * most, 0) for n in range(len(prompts)) for _ in range(width)]  # where nodes are read
    for row, path in enumerate(path for paths in every for path in paths):
        for depth, node in enumerate(path):
            places[row // most * width + node] = (row, depth)
    rows, depths = torch.tensor(places, device=logits.device).T
    if (held := held_states(model)) is not None and held.states is not None:
        held.states = held.states[rows, depths]
    return logits[rows, depths][:, None]


def whole_questions(
    model: PreTrainedModel, trees: Sequence[QuestionTree], *, constant_patterns: bool = False
) -> Tensor:
    """Logits (prompts x nodes, 1, ids) of the answer trees of all prompts; every question has as many."""
    level, pieces = with_answers(trees, [0] * len(trees))
    width = max(len(own) for tree in trees for own in tree.nodes)
    padded = [[node for own in tree.nodes for node in own + own[:1] * (width - len(own))] for tree in trees]
    at = level.nodes.gather(1, torch.tensor(padded))
    with piece_attention(model, level, [], None, constant_patterns=constant_patterns):
        inputs = piece_inputs(model, level, pieces)
        return answer_logits(model, inputs.pop("input_ids"), None, at, **inputs).flatten(0, 1)[:, None]


def plain_trees(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    edited: Callable[[Tensor], AbstractContextManager[Any]] = lambda answer: nullcontext(),
) -> Tensor:
    """Logits (prompts x nodes, ids) of answer trees, one full forward a prompt, whose rows are its sequences.

    `edited` is entered around it with the mask of the tokens that answer.
    """
    width = max(len(p.tree.tokens) for p in prompts)
    return torch.cat([_plain_tree(model, prompt, width, edited) for prompt in prompts])


def _plain_tree(
    model: PreTrainedModel, prompt: Prompt, width: int, edited: Callable[[Tensor], AbstractContextManager[Any]]
) -> Tensor:
    paths = [path for option in prompt.tree.paths for path in option]
    shown = [[*prompt.input_ids, *(prompt.tree.tokens[node] for node in path[1:])] for path in paths]
    ids, mask, last = padded(shown)
    first = len(prompt.input_ids) - 1
    columns = torch.arange(ids.shape[1])
    with edited((columns >= first) & (columns <= last[:, None])):
        logits = answer_logits(model, ids, mask, columns[first:].expand(len(ids), -1))
    found: list[Any] = [logits[0, 0]] * width
    for row, path in zip(logits, paths, strict=True):
        for at, node in enumerate(path):
            found[node] = row[at]
    return torch.stack(found)


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Token ids padded on the right, their mask (None without padding), and the place of every last token."""
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, tokens in zip(ids, sequences, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    # Sequences of one length need no mask: the model may then take its plain causal path.
    return ids, None if bool(mask.all()) else mask.long(), lengths - 1


@contextmanager
def recomputing(model: PreTrainedModel, wanted: bool = True, double: bool = False) -> Iterator[None]:
    """Blocks keep their inputs only, and run again on the way back; `double` says that they ran in DoublePrecision.

    On the way back torch has left every mode of its functions, that one too.
    """

    def there_and_back() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), DoublePrecision() if double else nullcontext()

    def again(forward: Callable[..., Any]) -> Callable[..., Any]:
        return partial(checkpoint, forward, use_reentrant=False, context_fn=there_and_back)

    blocks: list[Any] = [*decoder_layers(model)[1]] if wanted else []
    with running_instead({block: again(block.forward) for block in blocks}):
        yield
