"""A model with mixers is asked behind the states of what its prompts share, as it is scored."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from neuronllm.engine.asking import Asker, Edit
from neuronllm.model.edit import edit
from tests.test_mixers import family
from tests.texts import text_prompts
from tests.tiny import tiny

IDS = torch.arange(3, 40, 6)
EDITS = [None, *(Edit(IDS, torch.full((len(IDS),), 0.5), where) for where in ("answer", "all"))]
LETTERS = ["lfm3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("falcon_h1", "gptj"))]
# Nothing goes on from Jamba's states but answers behind a prompt.
TEXTS = ["jamba", pytest.param("qwen3_next", marks=pytest.mark.slow)]


def tokens_of(ask: Asker, change: Edit | None) -> int:
    """How many tokens the model runs."""
    counts: list[int] = []
    embeddings = ask.model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda module, args, output: counts.append(args[0].numel()))
    try:
        ask.scores(change)
    finally:
        handle.remove()
    return sum(counts)


@torch.no_grad()
def logp(model: Any, prompt: list[int], answer: list[int], change: Edit | None) -> torch.Tensor:
    """Of an answer behind a prompt, from one plain pass."""
    ids, first = torch.tensor([[*prompt, *answer[:-1]]]), len(prompt) - 1
    where: Any = torch.arange(ids.shape[1])[None] >= first if change and change.positions == "answer" else "all"
    with edit(model, change.ids, change.factors, positions=where) if change else nullcontext():
        found = model(ids).logits[0, first:].log_softmax(-1)
    return found[torch.arange(len(answer)), torch.tensor(answer)].sum()


@pytest.mark.parametrize("name", LETTERS)
@pytest.mark.parametrize("change", EDITS, ids=["unedited", "answer", "all"])
def test_letters_behind_what_prompts_share(name, change):
    model, prompts = tiny(name, torch.float32), family()
    ask = Asker(model, prompts)
    alone = torch.cat([Asker(model, [prompt]).scores(change) for prompt in prompts])
    assert torch.allclose(ask.scores(change), alone, atol=1e-5, rtol=1e-5)
    assert 2 * tokens_of(ask, change) < sum(prompt.n_tokens for prompt in prompts)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("change", EDITS, ids=["unedited", "answer", "all"])
def test_answers_in_words_behind_their_prompt(name, change):
    model, prompts = tiny(name, torch.float32), text_prompts((5, 14, 6))
    ask = Asker(model, prompts)
    whole = torch.full_like(ask.scores(change), float("-inf"))
    for row, prompt in zip(whole, prompts, strict=True):
        for n, option in enumerate(prompt.option_ids):
            row[n] = torch.stack([logp(model, prompt.input_ids, tokens, change) for tokens in option]).logsumexp(0)
    assert torch.allclose(ask.scores(change), whole, atol=1e-5, rtol=1e-5)
    sequences = [(prompt, form) for prompt in prompts for option in prompt.option_ids for form in option]
    assert tokens_of(ask, change) < sum(len(prompt.input_ids) + len(form) - 1 for prompt, form in sequences)
