"""What was found out about a model is remembered with it: a second call runs nothing that is not its own work."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch

from neuronllm.attribution.driver import attribute
from neuronllm.data.prompts import Prompt
from neuronllm.engine.asking import Asker, Edit
from neuronllm.engine.batching import Plan, run_batches
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.engine.verdicts import reach, verdicts
from neuronllm.judging.evaluate import evaluate
from tests import plain
from tests.tiny import DENSE, EXPERTS, HYBRIDS, OWN_ATTENTION, POST_NORMED, random_prompts, tiny

WORK = 2  # passes of a prompt: its prefix, its answer token
CAUSAL = 1  # that shows whether the model is causal
COUNTING = 2  # that end in front of the first layer, to see whether the model counts positions itself


@contextmanager
def counted(model):
    """Counts the passes of a model's decoder, without a hook."""
    decoder, kind = model.get_decoder(), type(model.get_decoder())
    own, calls = kind.forward, []

    def forward(self, *args, **kwargs):
        if self is decoder:
            calls.append(self)
        return own(self, *args, **kwargs)

    kind.forward = forward
    try:
        yield calls
    finally:
        kind.forward = own


def passes(calls, work) -> int:
    before = len(calls)
    work()
    return len(calls) - before


@pytest.mark.parametrize("method", ["gradient", "ace", "relp"])
def test_a_second_call_runs_its_own_work_only(method):
    model, prompts = tiny("llama"), random_prompts(3)
    more = {"steps": 16} if method == "ace" else {}  # else as many passes as a prompt's integrals take
    with counted(model) as calls:
        one = [
            passes(calls, lambda p=p: attribute(model, None, [p], method, positions="answer", progress=False, **more))
            for p in prompts
        ]
    assert one == [CAUSAL + COUNTING + WORK + 3, WORK, WORK]


def test_a_16_bit_model_is_tried_in_float32_too():
    model, prompts = tiny("llama", torch.bfloat16), random_prompts(2)
    with counted(model) as calls:
        one = [
            passes(calls, lambda p=p: attribute(model, None, [p], "gradient", positions="answer", progress=False))
            for p in prompts
        ]
    assert one == [CAUSAL + COUNTING + WORK + 5, WORK]


def test_a_refused_model_is_not_tried_again():
    model, prompts = tiny("openai-gpt"), random_prompts(2)
    with counted(model) as calls:
        first, second = (passes(calls, lambda p=p: attribute(model, None, [p], "ace", progress=False)) for p in prompts)
        judged = passes(calls, lambda: attribute(model, None, prompts[1:], "ace", backend="reference", progress=False))
    assert second == judged < first


def test_scores_do_not_depend_on_what_is_remembered():
    """The first call takes the prefix of the self-check, the others compute it."""
    model, prompts = tiny("llama", torch.float32), random_prompts(2)
    for method in ("gradient", "ace", "exact"):
        first, second = (
            attribute(model, None, prompts[:1], method, positions="answer", progress=False).values for _ in range(2)
        )
        fresh = attribute(tiny("llama", torch.float32), None, prompts[:1], method, positions="answer", progress=False)
        assert torch.equal(first, second) and torch.equal(first, fresh.values)


class Other(torch.nn.Linear):
    pass


def replaced(model, monkeypatch):
    model.lm_head = Other(16, 60, bias=False).to(torch.float64)


CHANGES = {
    "attention": lambda model, monkeypatch: model.set_attn_implementation("eager"),
    "experts": lambda model, monkeypatch: model.set_experts_implementation("batched_mm"),
    "type": lambda model, monkeypatch: model.to(torch.float32),
    "a weight's type": lambda model, monkeypatch: model.lm_head.to(torch.float32),
    "configuration": lambda model, monkeypatch: setattr(model.config, "rms_norm_eps", 0.1),
    "a module": replaced,
    "a forward": lambda model, monkeypatch: setattr(model.lm_head, "forward", lambda x: x),
    "a class's forward": lambda model, monkeypatch: monkeypatch.setattr(type(model), "forward", lambda *_, **__: None),
    "a class": lambda model, monkeypatch: setattr(model.lm_head, "__class__", Other),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_model_begins_without_verdicts(what, monkeypatch):
    model = tiny("mixtral")
    verdicts(model)["found"] = True
    assert verdicts(model) == {"found": True}
    CHANGES[what](model, monkeypatch)
    assert verdicts(model) == {}


def test_a_model_that_is_changed_back_is_known_again():
    model = tiny("llama")
    verdicts(model)["found"] = "sdpa"
    model.set_attn_implementation("eager")
    verdicts(model)["found"] = "eager"
    model.set_attn_implementation("sdpa")
    assert verdicts(model)["found"] == "sdpa"


def test_other_weights_are_the_same_model():
    model = tiny("llama")
    verdicts(model)["found"] = True
    with torch.no_grad():
        model.lm_head.weight *= 2
    assert verdicts(model) == {"found": True}


def test_autocast_is_another_model():
    model = tiny("llama", torch.float32)
    verdicts(model)["found"] = True
    with torch.autocast("cpu", torch.bfloat16):
        assert verdicts(model) == {}


def test_nothing_is_remembered_of_a_model_with_hooks():
    """What a hook does may change from call to call."""
    model, prompts = tiny("llama"), random_prompts(1)
    with FastEngine(model) as fast:
        assert fast.unusable(prompts) is None
    bent = False

    def hook(module, args, output):
        return output + 0.1 * torch.arange(output.shape[1])[None, :, None] if bent else output

    handle = model.model.layers[1].register_forward_hook(hook)
    for bent in (False, True, False):
        with FastEngine(model) as fast:
            assert (fast.unusable(prompts) is None) == (not bent)
    handle.remove()


def test_a_forward_that_cannot_be_told_from_another_is_not_remembered():
    class Slotted:
        __slots__ = ()

        def __call__(self, x):
            return x

    model = tiny("llama")
    model.model.layers[0].mlp.forward = Slotted()
    verdicts(model)["found"] = True
    assert verdicts(model) == {}


def test_a_model_is_freed_with_its_verdicts():
    model = tiny("llama")
    model.lm_head.forward = model.lm_head.forward
    attribute(model, None, random_prompts(1), "ace", progress=False)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_longer_prompts_are_another_question():
    model = tiny("mistral")  # with a window of 8
    short, near, beyond, longer = (reach(model, random_prompts(1, length=n)[0]) for n in (6, 7, 9, 17))
    assert short == near and len({near, beyond, longer}) == 3
    with counted(model) as calls, FastEngine(model) as fast:
        for length, tried in ((6, True), (7, False), (9, True), (10, False)):
            assert bool(passes(calls, lambda n=length: fast.unusable(random_prompts(1, length=n)))) == tried


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", DENSE + EXPERTS)
def test_post_norms_are_those_that_the_judge_finds(name, dtype):
    """In the pass of the self-check, and without one, unless that has to find out how to run the model."""
    model, prompts = tiny(name, dtype), random_prompts(2)
    with ReferenceEngine(tiny(name), dtype=torch.float64) as judge:
        assert judge.post_normed(prompts[0]) == (name in POST_NORMED)
    if name not in HYBRIDS + OWN_ATTENTION:
        with FastEngine(model) as fast:
            assert fast.post_normed(prompts[0]) == (name in POST_NORMED)
    with FastEngine(model) as fast:
        assert fast.unusable(prompts) is None
        assert fast.post_normed(prompts[0]) == (name in POST_NORMED)


def test_blocks_run_again_before_a_single_prompt_is_given_up():
    plan = Plan(prompts=1, answer_tokens=8, window=1, can_recompute=True)

    def score(batch):
        if not plan.recompute:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.ones(len(batch), 1)

    assert run_batches(random_prompts(1), score, plan).tolist() == [[1.0]]
    assert plan.answer_tokens == 8 and "run again" in plan.backoffs[0]


def test_a_second_question_is_asked_through_the_tree_at_once():
    """The first asker compares the tree with plain passes, of each kind of edit once; the next one remembers."""
    model = tiny("llama")
    start = list(range(3, 43))
    prompts = [Prompt(start + [n, 5, 6], [[3], [4]], 0) for n in range(7, 15)]
    change = Edit(torch.tensor([3, 25]), torch.tensor([0.0, 3.0]), "all")
    with counted(model) as calls:
        counts = []
        for _ in range(2):
            ask = Asker(model, prompts)
            counts.append([passes(calls, lambda c=c, a=ask: a(c)) for c in (None, None, change, change)])
    own = 2  # what all start with, and the rest of each
    tried = own + 3  # beside plain passes and the same through the tree
    assert counts == [[CAUSAL + COUNTING + tried, own, tried, own], [own] * 4]


def test_what_is_right_is_the_same_to_all_who_ask():
    """The model's own answers, whatever type the scores are judged in."""
    model, prompts = tiny("llama", torch.float32), plain.questions(3, 2, 3, 2)
    right = Asker(model, prompts)().right
    with torch.no_grad():
        logits = [model(torch.tensor([p.input_ids])).logits[0, -1] for p in prompts]
    by_hand = [plain.option_scores(row, p).argmax() == p.answer for row, p in zip(logits, prompts, strict=True)]
    assert right.tolist() == [bool(is_right) for is_right in by_hand] and 0 < right.sum() < len(prompts)
    assert evaluate(model, None, prompts, progress=False).accuracy == Asker(model, prompts)().accuracy
    for dtype in (None, torch.float64):
        scores = attribute(model, None, prompts, "contrast", keep="all", dtype=dtype, progress=False)
        sides = [scores.per_prompt[torch.from_numpy(side)].mean(0) for side in (right, ~right)]
        assert torch.allclose(scores.values, sides[0] - sides[1], atol=1e-6)
