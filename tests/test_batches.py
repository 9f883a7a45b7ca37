"""Batches: a prompt's scores do not depend on its company, and memory is foreseen and survived."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from neuronllm.attribution.driver import attribute
from neuronllm.common.errors import InputError
from neuronllm.data.prompts import Prompt
from neuronllm.engine import batching
from neuronllm.engine.asking import Asker
from neuronllm.engine.batching import Plan, in_batches, run_batches
from neuronllm.engine.borrowed import rope_limit
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.full import padded
from neuronllm.engine.head import option_scores
from neuronllm.engine.memory import available, peak_memory
from neuronllm.engine.prefill import prefill, prefill_root
from neuronllm.engine.quadrature import quadrature
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.engine.tree import common, root_length, siblings
from tests.test_fast import CALLS, REACHED, differences
from tests.tiny import STAND_INS, VOCABULARY, in_time, random_prompts, tiny


def family(roots: int = 14, stem: int = 12, questions: int = 3, variants: int = 2) -> list[Prompt]:
    """Prompts that share a root, and variants that share a stem; lengths differ everywhere."""
    generator = torch.Generator().manual_seed(3)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    root, prompts = tokens(roots), []
    for question in range(questions):
        shared = tokens(stem + question)
        for variant in range(variants + (question == 1)):
            ids = root + shared + tokens(4 + 3 * variant)
            prompts.append(Prompt(ids, [[3], [[4], [5]], [6]], variant % 3, question_id=f"q{question}"))
    return prompts


# ---- the tree ----


def test_what_sequences_share_leaves_each_its_last_token():
    assert common([[1, 2, 3, 4], [1, 2, 5]]) == 2
    assert common([[1, 2, 3], [1, 2]]) == 1
    assert common([[1, 2, 3]]) == 2
    assert common([[7], [7, 8]]) == 0


def test_roots_and_siblings_are_found():
    prompts = family()
    assert root_length(prompts) == 14
    assert siblings(prompts, 14) == [[0, 1], [2, 3, 4], [5, 6]]
    assert root_length(prompts[:1]) == 0


def test_shared_pieces_are_computed_once_and_not_copied():
    model, prompts = tiny("llama"), family()
    root = prefill_root(model, prompts[0].input_ids[:14])
    prefix = prefill(model, prompts, root)
    assert [len(level.lengths) for level in prefix.levels] == [1, 3, 7]
    assert prefix.levels[0].layers[0][0].data_ptr() == root.layers[0][0].data_ptr()
    stems = [common([prompts[n].input_ids for n in group]) - 14 for group in siblings(prompts, 14)]
    assert prefix.levels[1].lengths.tolist() == stems and min(stems) >= 12
    total = sum(level.lengths[level.piece] for level in prefix.levels)
    assert total.tolist() == [len(p.input_ids) - 1 for p in prompts]


def test_a_prompt_without_siblings_leaves_the_tails_short():
    prompts = [*family(roots=0), *random_prompts(1, length=40)]
    stems, tails = prefill(tiny("llama"), prompts).levels
    assert stems.lengths[-1] == stems.lengths.max() and tails.lengths[-1] == 39 - stems.lengths[-1]


@pytest.mark.parametrize("name", in_time(REACHED, STAND_INS))
def test_a_prompt_does_not_depend_on_its_batch(name):
    """Alone, in a ragged batch without sharing, and with root and stems shared."""
    model, prompts = tiny(name, torch.float32), family()
    limits = {"integrate": 1e-5, "gradient": 1e-5, "gradient everywhere": 1e-5, "effects": 1e-4}
    with FastEngine(model) as shared, FastEngine(model, batch_size=1) as alone, FastEngine(model) as ragged:
        assert shared.unusable(prompts) is None
        assert shared.plan.root == 14 and shared.plan.prompts >= 7
        backwards = prompts[::2] + prompts[1::2]  # no two variants of a question beside each other
        order = list(range(0, 7, 2)) + list(range(1, 7, 2))
        for label, limit in limits.items():
            together = CALLS[label](shared, prompts)
            apart = torch.cat([CALLS[label](alone, [prompt]) for prompt in prompts])
            mixed = torch.empty_like(together).index_copy_(0, torch.tensor(order), CALLS[label](ragged, backwards))
            assert differences(together, apart) <= limit, label
            assert differences(mixed, apart) <= limit, label


def test_batches_hold_like_lengths_and_keep_siblings_together():
    prompts = [*random_prompts(2, length=40), *family()]
    batches = in_batches(prompts, Plan(prompts=4, answer_tokens=64, window=32))
    assert sorted(n for batch in batches for n in batch) == list(range(len(prompts)))
    assert batches == [[2, 3, 4, 5], [6, 7, 8], [0, 1]]
    assert in_batches(prompts, Plan(prompts=4, answer_tokens=64, window=32), per_prompt=32)[2:4] == [[6, 7], [8]]


# ---- memory ----


def scarce(most: int, calls: list[int]):
    """Work that runs out of memory with more than so many prompts."""

    def score(batch):
        calls.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor([[float(len(p.input_ids))] for p in batch])

    return score


def test_a_batch_without_room_is_cut_and_nothing_is_done_twice():
    prompts, calls = random_prompts(11), []
    plan = Plan(prompts=8, answer_tokens=64, window=32)
    scores = run_batches(prompts, scarce(2, calls), plan)
    assert scores[:, 0].tolist() == [len(p.input_ids) for p in prompts]
    assert calls == [6, 3, 2, 2, 2, 2, 2, 1]  # an even cut is 6 and 5
    assert plan.prompts == 2 and len(plan.backoffs) == 2
    assert Plan.from_dict(plan.to_dict()) == plan


def test_one_prompt_without_room_gets_shorter_passes_and_in_the_end_a_clear_error():
    plan = Plan(prompts=1, answer_tokens=8, window=1)
    with pytest.raises(InputError, match="out of memory with a single answer token"):
        run_batches(random_prompts(1), scarce(0, []), plan)
    assert plan.answer_tokens == 1 and len(plan.backoffs) == 3


def test_other_errors_are_no_lack_of_memory():
    def broken(batch):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        run_batches(random_prompts(2), broken, Plan(prompts=2, answer_tokens=8, window=2))


@pytest.mark.parametrize("name", in_time(["llama", "gemma2", "gpt2", "qwen3_moe"], ("llama", "qwen3_moe")))
@pytest.mark.parametrize("label", ["integrate", "gradient", "gradient everywhere", "effects", "activations"])
def test_the_estimate_is_near_the_peak(name, label):
    """Wide enough that activations outweigh the bookkeeping; the estimate is made of one prompt and of two."""
    sizes = {"n_embd": 64, "n_inner": 256} if name == "gpt2" else {"hidden_size": 64, "intermediate_size": 256}
    sizes |= {"moe_intermediate_size": 64} if name == "qwen3_moe" else {}
    model = tiny(name, torch.float32, head_dim=16, **sizes) if name != "gpt2" else tiny(name, torch.float32, **sizes)
    prompts = random_prompts(12, length=64)
    with FastEngine(model) as engine:
        work = lambda some: CALLS[label](engine, some)  # noqa: E731
        assert engine.unusable(prompts) is None
        engine.fit(work, prompts, always=True)
        estimate = engine.plan.estimate["peak above the weights"]
        taken = peak_memory(lambda: work(prompts))
    assert 0.75 <= estimate / taken <= 1.25, (estimate, taken)


def test_a_small_machine_gets_small_batches(monkeypatch):
    model, prompts = tiny("llama", torch.float32), random_prompts(12, length=64)
    with FastEngine(model) as engine:
        work = lambda some: CALLS["gradient"](engine, some)  # noqa: E731
        engine.unusable(prompts)
        engine.fit(work, prompts, always=True)
        roomy = dataclasses.replace(engine.plan)
        whole = work(prompts)
    for module in ("batching", "planned"):
        monkeypatch.setattr(f"neuronllm.engine.{module}.available", lambda device: 2**17)
    with FastEngine(model) as engine:
        engine.unusable(prompts)
        engine.fit(work, prompts)
        assert 1 <= engine.plan.prompts < roomy.prompts
        assert engine.plan.estimate["peak above the weights"] <= 2**16
        assert differences(work(prompts), whole) <= 1e-5


def test_blocks_run_again_where_memory_is_short(monkeypatch):
    model, prompts = tiny("llama", num_hidden_layers=8), random_prompts(6, length=40)
    with ReferenceEngine(model) as judge:
        truth = CALLS["gradient everywhere"](judge, prompts)
    with FastEngine(model) as engine:
        work = lambda some: CALLS["gradient everywhere"](engine, some)  # noqa: E731
        engine.unusable(prompts)
        taken = peak_memory(lambda: work(prompts[-1:]))
        for module in ("batching", "planned"):
            monkeypatch.setattr(f"neuronllm.engine.{module}.available", lambda device: 5 * taken)
        engine.fit(work, prompts)
        assert engine.plan.recompute
        assert peak_memory(lambda: work(prompts[-1:])) < taken
        assert differences(work(prompts), truth) <= 1e-9
    assert not any("forward" in vars(module) for module in model.modules())


def test_memory_is_tried_out_only_where_the_work_at_hand_could_fill_it(monkeypatch):
    """What one short prompt takes is small beside memory that batches of 4,096 tokens would fill."""
    model, prompts = tiny("llama", torch.float32), family()
    tried = []
    monkeypatch.setattr("neuronllm.engine.planned.peak_memory", lambda call, device: tried.append(call()) or 2**10)
    monkeypatch.setattr("neuronllm.engine.batching.available", lambda device: 2**24)
    monkeypatch.setattr("neuronllm.engine.planned.available", lambda device: 2**24)

    def trials(label: str, some: list[Prompt]) -> int:
        tried.clear()
        with FastEngine(model) as engine:
            engine.fit(lambda batch: CALLS[label](engine, batch), some)
        return len(tried)

    assert trials("gradient", prompts[:1]) == trials("gradient everywhere", prompts[:1]) == 0
    assert trials("gradient", prompts * 40) == 2  # with one prompt and with two


def test_memory_that_is_there_is_known():
    assert 2**20 < available(torch.device("cpu")) < 2**50
    assert peak_memory(lambda: torch.zeros(2**18) + 1) == pytest.approx(2**21, rel=0.01)


def test_a_plan_is_kept_as_it_was_given():
    plan = Plan(prompts=2, answer_tokens=50, window=4, root=3)
    model, prompts = tiny("llama"), random_prompts(4)
    with FastEngine(model, plan=plan) as engine:
        assert engine.unusable(prompts) is None
        engine.integrate(prompts, "logp_options", *quadrature("midpoint", 2))
    assert engine.plan == Plan(prompts=2, answer_tokens=50, window=4, root=3)
    assert batching.batch_size(plan, 25, 4) == 2 and batching.batch_size(plan, 30, 4) == 1
    assert batching.batch_size(Plan(prompts=5, answer_tokens=50, window=8), 1, 16) == 4  # rather than 5, 5, 5 and 1


# ---- models that answer otherwise beside a longer prompt ----


def long_rope(limit: int = 16):
    factors = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [4.0, 8.0]}
    return tiny(
        "phi3",
        rope_parameters=factors | {"rope_theta": 10000.0, "original_max_position_embeddings": limit},
        original_max_position_embeddings=limit,
    )


def test_angles_that_depend_on_the_longest_prompt_are_left_to_the_judge():
    model = long_rope()
    assert rope_limit(model) == 16 and rope_limit(tiny("llama")) is None
    prompts = [random_prompts(1, length=length)[0] for length in (10, 16, 17, 40)]
    with FastEngine(model) as engine:
        assert "rotary angles depend" in (engine.unusable(prompts) or "")
        assert engine.unusable(prompts[:2]) is None
    together = attribute(model, None, prompts, "gradient", positions="answer", keep="all", progress=False).per_prompt
    apart = [
        attribute(model, None, [p], "gradient", positions="answer", keep="all", progress=False).per_prompt
        for p in prompts
    ]
    assert torch.allclose(together, torch.cat(apart), rtol=1e-5, atol=1e-9)


def test_answers_of_such_a_model_do_not_depend_on_the_batch():
    model = long_rope()
    prompts = [random_prompts(1, length=length)[0] for length in (10, 40, 16, 17)]
    together = Asker(model, prompts).logprobs()
    assert torch.allclose(together, torch.cat([Asker(model, [p]).logprobs() for p in prompts]), atol=1e-6)
    assert not torch.allclose(together[:1], option_logprobs_beside(model, prompts[0], prompts[1]), atol=1e-2)


def option_logprobs_beside(model, prompt, longer):
    """What the model says of a prompt that shares its pass with a longer one."""
    ids, mask, answer = padded([prompt.input_ids, longer.input_ids])
    logits = model(input_ids=ids, attention_mask=mask).logits[0, answer[0]]
    return option_scores(logits, prompt.first_tokens).log_softmax(-1)[None].float()


def test_asking_survives_a_lack_of_memory(monkeypatch, caplog):
    from neuronllm.engine import asking

    model, prompts, own = tiny("llama"), random_prompts(7), asking._plain
    whole = Asker(model, prompts).logprobs()

    def scarce_plain(batch, edited):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(batch, edited)

    monkeypatch.setattr(asking, "_plain", scarce_plain)
    ask = Asker(model, prompts)
    ask.worth_sharing = False
    assert torch.allclose(ask.logprobs(), whole, atol=1e-6)
    assert ask.plan.prompts <= 2 and "out of memory with 7 prompts: now 4 at a time" in caplog.text

    monkeypatch.setattr(asking, "_plain", lambda batch, edited: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(InputError, match="out of memory with one prompt: shorten it"):
        ask.logprobs()
