"""Models that count positions themselves: every pass that says where its tokens stand is heeded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompts import Prompt
from neuronllm.engine.asking import Asker, Edit, Edited
from neuronllm.engine.fast import FastEngine
from neuronllm.engine.positions import counting_modules, heeding
from neuronllm.engine.reference import ReferenceEngine
from neuronllm.engine.writing import Writer
from tests.checks import untouched
from tests.test_fast import CALLS, differences, ragged
from tests.test_mixers import SOME, agrees, factors, family
from tests.texts import mixed_prompts, random_tokens, text_prompts
from tests.tiny import COUNTING, in_time, random_prompts, tiny

SLOWLY = in_time(COUNTING, ("bart", "roberta"))
OFFSET = {"bart": 2, "marian": 0, "roberta": 1, "xlm-roberta": 2}  # of a position in the table
PADDING = 0  # of RoBERTa, which then stands at no position


def table_of(model: Any) -> torch.Tensor:
    (name,) = counting_modules(model)
    weight: torch.Tensor = model.get_submodule(name).weight
    return weight


@pytest.mark.parametrize("name", SLOWLY)
def test_equals_the_judge(name):
    agrees(name, ragged())


@pytest.mark.parametrize("name", in_time(COUNTING))
def test_equals_the_judge_where_prompts_share_what_they_begin_with(name):
    fast = agrees(name, family())
    assert fast.plan.root == 34


@pytest.mark.parametrize("name", in_time(COUNTING))
def test_equals_the_judge_for_answers_in_words(name):
    agrees(name, text_prompts((5, 9, 6)))
    agrees(name, mixed_prompts())


@pytest.mark.parametrize("name", SLOWLY)
def test_a_prompt_does_not_depend_on_its_batch(name):
    model, prompts = tiny(name, torch.float32), family()
    limits = {"integrate": 1e-5, "gradient": 1e-5, "gradient everywhere": 1e-5, "effects": 1e-4}
    with FastEngine(model) as shared, FastEngine(model, batch_size=1) as alone:
        assert shared.unusable(prompts) is None and alone.unusable(prompts[:1]) is None
        for label, limit in limits.items():
            apart = torch.cat([CALLS[label](alone, [prompt]) for prompt in prompts])
            assert differences(CALLS[label](shared, prompts), apart) <= limit, label


@pytest.mark.parametrize("name", OFFSET)
def test_a_pass_takes_the_rows_of_its_positions(name):
    model, seen = tiny(name), []
    (found,) = counting_modules(model)
    table = table_of(model).detach()
    positions = torch.tensor([[7, 3, 7], [0, 1, 40]])
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    handle = model.get_submodule(found).register_forward_hook(lambda module, args, output: seen.append(output))
    with heeding(model, (found,)), torch.no_grad():
        model(input_ids=ids, position_ids=positions, use_cache=False)
        told = seen[-1]
        model(input_ids=ids, use_cache=False)
        counted = seen[-1]
    handle.remove()
    assert torch.equal(told, table[positions + OFFSET[name]])
    assert torch.equal(counted.expand(2, 3, -1), table[torch.arange(3) + OFFSET[name]].expand(2, 3, -1))


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "gptj", "mpt", "roformer"])
def test_a_model_that_heeds_positions_is_left_alone(name):
    """And so is RoFormer, which makes angles of its positions that are the same for all rows: mixers count them."""
    model = tiny(name)
    with untouched(model):
        assert counting_modules(model) == ()


def test_a_single_longest_prompt_does_not_hide_it(monkeypatch):
    """BART counts on from the length of the cache, which is right for the longest prompt of a batch."""
    monkeypatch.setattr("neuronllm.engine.checked.counting_modules", lambda model: ())
    prompts = [Prompt(random_tokens(length, length), [[[3]], [[5]]], 0) for length in (5, 9, 14)]
    with FastEngine(tiny("bart"), dtype=torch.float64) as fast:
        assert "differs from the clean answer" in (fast.unusable(prompts) or "")


@pytest.mark.parametrize("name", OFFSET)
def test_answers_are_asked_through_the_tree(name):
    model, prompts = tiny(name), [*family(), *text_prompts((7, 10))]
    for change in (None, Edit(SOME, torch.zeros(len(SOME)), "all"), Edit(SOME, torch.full((len(SOME),), 2.0))):
        ask = Asker(model, prompts)
        assert all(ask._shared(Edited(model, change, ask.anatomy), side).agrees for side in ask.sides)
        alone = [Asker(model, [prompt]).scores(change)[0] for prompt in prompts if prompt.one_token]
        assert (ask.scores(change)[: len(alone), : len(alone[0])] - torch.stack(alone)).abs().max() <= 1e-12


def test_a_prompt_that_holds_padding_is_left_to_the_judge():
    """RoBERTa has it stand nowhere, and counts on behind it."""
    model, prompts = tiny("roberta"), family()
    prompts[4] = Prompt([*prompts[4].input_ids[:20], PADDING, *prompts[4].input_ids[21:]], prompts[4].option_ids, 0)
    with FastEngine(model, dtype=torch.float64) as fast:
        assert "(id 0)" in (fast.unusable(prompts) or "")
        assert fast.unusable(prompts[:4]) is None
    asked = Asker(model, prompts).scores()
    plain = torch.cat([model(input_ids=torch.tensor([prompt.input_ids])).logits[:, -1] for prompt in prompts])
    pairs = [plain[:, [3 + 2 * k, 4 + 2 * k]].logsumexp(-1) for k in range(3)]
    assert (asked - torch.stack(pairs, 1)).abs().max() <= 1e-12


def test_a_prompt_that_holds_padding_is_no_other_to_bart():
    prompts = random_prompts(3)
    prompts[1] = Prompt([*prompts[1].input_ids[:4], PADDING, *prompts[1].input_ids[5:]], prompts[1].option_ids, 0)
    agrees("bart", prompts)


@pytest.mark.parametrize("name", ["bart", "roberta"])
def test_factors_are_learned_against_kept_prefixes(name):
    model, prompts = tiny(name), family()
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        kept = fast.keep_prefixes(prompts, 2**30)
        assert len(kept) == len(prompts)
        for found, right in zip(factors(fast, prompts, "answer"), factors(judge, prompts, "answer"), strict=True):
            assert (found - right).abs().max() <= 1e-12
        change = Edit(SOME, torch.full((len(SOME),), 2.0))
        served = Asker(fast.model, prompts, kept=kept).scores(change)
        assert (served - Asker(fast.model, prompts, batch_size=1).scores(change)).abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_prefixes_are_kept_of_prompts_that_differ_in_their_last_token_alone(name):
    model, start = tiny(name), random_tokens(40, 1)
    prompts = [Prompt([*start, 7 + n], [[[3]], [[5]]], 0) for n in range(4)]
    with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
        assert fast.unusable(prompts) is None
        assert len(fast.keep_prefixes(prompts, 2**30)) == 4
        for found, right in zip(factors(fast, prompts, "answer"), factors(judge, prompts, "answer"), strict=True):
            assert (found - right).abs().max() <= 1e-12


class Numbers:
    """A tokenizer whose words are its token ids."""

    eos_token_id = None

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, tokens))


@torch.no_grad()
def by_hand(model: Any, prompt: Prompt, count: int) -> str:
    """The likeliest tokens, one after the other, each of a plain pass without a cache."""
    ids = list(prompt.input_ids)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return Numbers().decode(ids[-count:])


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize("shared", [0, 34])
def test_what_is_written_does_not_depend_on_padding(name, shared):
    model = tiny(name, torch.float32)
    model.generation_config.eos_token_id = None
    if (bias := model.get_output_embeddings().bias) is not None:
        bias.data[model.config.pad_token_id] = -100.0  # padding that is written would move what comes behind it
    start = random_tokens(shared, 1)
    prompts = [Prompt(start + random_tokens(own, own), [[[3]], [[5]]], 0) for own in (4, 7, 7, 13)]
    write = Writer(model, Numbers(), prompts, max_new_tokens=3, stop=None)  # type: ignore[arg-type]
    assert len(write.root) == shared
    expected = [by_hand(model, prompt, 3) for prompt in prompts]
    assert not any(str(model.config.pad_token_id) in text.split() for text in expected)
    with untouched(model):
        assert write() == expected


@pytest.mark.parametrize("name", ["bart", "roberta"])
def test_the_model_is_left_as_it_was(name):
    model, prompts = tiny(name, torch.float32), family()
    with untouched(model):
        scores = nl.attribute(model, None, prompts, "exact", progress=False).values
        judged = nl.attribute(model, None, prompts, "exact", progress=False, backend="reference").values
    assert differences(scores[None], judged[None]) <= 1e-4
    with untouched(model), pytest.raises(KeyError), heeding(model, counting_modules(model)):
        raise KeyError


def test_prompts_near_the_longest_share_what_they_begin_with():
    """Of pieces that begin at different tokens, the padding of one would stand beyond the last position there is."""
    pairs = [(80, 6), (12, 70)]
    stems = [random_tokens(stem, stem) for stem, _ in pairs]
    ids = [stem + random_tokens(tail, tail + n) for stem, (_, tail) in zip(stems, pairs, strict=True) for n in range(2)]
    prompts = [Prompt(tokens, [[[3]], [[5]]], 0, question_id=f"q{n // 2}") for n, tokens in enumerate(ids)]
    for name in ("gpt2", "bart"):
        model = tiny(name)
        with FastEngine(model, dtype=torch.float64) as fast, ReferenceEngine(model, dtype=torch.float64) as judge:
            assert fast.unusable(prompts) is None
            with fast._driving():
                assert len(fast._prefill(prompts).levels) == 2
            found, right = (engine.gradients(prompts, "logp_options") for engine in (fast, judge))
            assert differences(found, right) <= 1e-9
