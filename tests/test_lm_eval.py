"""lm-eval's own loop over a live-edited model gives what it gives over the baked model.

lm-eval appends the continuation to the prompt and pads on the right, so a live edit must not depend on where the answer
stands: it holds at all positions, as the baked weights do. The task is a local file; nothing is downloaded.
"""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "neuronllm[lm-eval]"')

import neuronllm as nl
from tests.harness import evaluated, write_task
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

pytestmark = pytest.mark.slow

COLOURS = ["red", "pale blue", "a very dark green", "white"]
THINGS = ["the sky", "a door", "the letter", "grass and leaves in the summer rain", "snow"]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Twenty questions whose stems and choices differ in length, so that batches are padded."""
    rows = []
    for n in range(20):
        stem = f"Question: which colour has {THINGS[n % 5]}{' of the option' * (n % 3)}?"
        choices = [COLOURS[(n + k) % 4] for k in range(2 + n % 3)]
        letters = list("ABCD")[: len(choices)]
        rows.append({"id": f"q{n}", "question": stem, "choices": choices, "letters": letters, "answer": n % 2})
    return rows


@pytest.fixture(scope="module")
def tasks(rows, tmp_path_factory) -> dict[str, dict]:
    """Answers in full, which are cut into several tokens, and answers by letter, which lm-eval scores in one pass."""
    folder = tmp_path_factory.mktemp("task")
    kinds = {"texts": "{{choices}}", "letters": "{{letters}}"}
    return {kind: write_task(folder, kind, rows, choices) for kind, choices in kinds.items()}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = byte_level()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer):
    import torch

    return tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256)


@pytest.fixture(scope="module")
def neurons(model, tokenizer, rows):
    questions = nl.load_questions(rows)
    scores = nl.attribute(
        model, tokenizer, questions, "gradient", positions="all", template="plain", orders="none", progress=False
    )
    return scores.find(good=16, bad=16)


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("mode", ["enhance", "degrade"])
@pytest.mark.parametrize("kind", ["texts", "letters"])
def test_live_edit_equals_baked_model(model, tokenizer, tasks, neurons, kind, mode, batch_size):
    """Bit for bit: the factors are 2 and 0, which round nowhere."""
    plain = evaluated(model, tokenizer, tasks[kind], batch_size)
    with getattr(neurons, mode)(model):
        live = evaluated(model, tokenizer, tasks[kind], batch_size)
    baked = copy.deepcopy(model)
    nl.bake(baked, neurons, mode=mode)

    assert live == evaluated(baked, tokenizer, tasks[kind], batch_size)
    assert [len(sample) for sample in live[1]] == [2 + n % 3 for n in range(20)]
    moved = [abs(a[0] - b[0]) for pair in zip(plain[1], live[1], strict=True) for a, b in zip(*pair, strict=True)]
    assert min(moved) > 1e-5, "every sample must feel the edit"
    if kind == "letters":  # in full, a random model prefers the shortest choice whatever is edited
        assert live[0] != plain[0], "the reported accuracy must feel the edit"
    assert evaluated(model, tokenizer, tasks[kind], batch_size) == plain, "the model must be as it was"


def test_a_saved_baked_model_is_an_ordinary_checkpoint(model, tokenizer, tasks, neurons, tmp_path):
    """lm-eval loads it by its path, knowing nothing of neuronllm."""
    baked = copy.deepcopy(model)
    nl.bake(baked, neurons, mode="enhance")
    baked.save_pretrained(tmp_path)
    with neurons.enhance(model):
        live = evaluated(model, tokenizer, tasks["texts"], 8)
    assert evaluated(str(tmp_path), tokenizer, tasks["texts"], 8) == live


def test_batch_size_changes_log_likelihoods_by_rounding_only(model, tokenizer, tasks, neurons):
    with neurons.enhance(model):
        (_, one), (_, eight) = (evaluated(model, tokenizer, tasks["texts"], size) for size in (1, 8))
    for a, b in zip(one, eight, strict=True):
        assert [value for value, _ in a] == pytest.approx([value for value, _ in b], abs=1e-4)
