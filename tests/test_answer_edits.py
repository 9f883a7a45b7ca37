"""Live edits of the answer: the last prompt token and what follows, however the model is called, and no other token."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.engine.asking import Asker, Edit
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.edit import edit
from tests.checks import Fuse, blow_after, quiz, refused, untouched
from tests.tiny import DENSE, EXPERTS, VOCABULARY, tiny

ROWS, PROMPT, NEW = 2, 7, 4
SHORT = 4  # tokens of the second, padded row
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}


def padded_prompts(side: str) -> dict[str, torch.Tensor]:
    """Two prompts, of which the second is shorter."""
    ids = torch.randint(3, VOCABULARY, (ROWS, PROMPT), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, slice(PROMPT - SHORT) if side == "left" else slice(SHORT, None)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def first_of(side: str) -> list[int]:
    """The columns of the last prompt tokens."""
    return [PROMPT - 1, PROMPT - 1 if side == "left" else SHORT - 1]


def first_layer(model: Any) -> torch.Tensor:
    """All neurons of the first block, so that an edit shows at every token that it reaches, whoever its experts are."""
    anatomy = Anatomy.of(model)
    return torch.arange(anatomy.n_neurons)[anatomy.locate(torch.arange(anatomy.n_neurons))[0] == 0]


def halved_answer(model: Any, start: Any = None) -> Any:
    return edit(model, first_layer(model), 0.5, positions="answer", answer_start=start)


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[torch.Tensor, int, torch.Tensor]]]:
    """For every forward pass its tokens, the place of the first, and which are edited: those for which the first down
    projection, or the first experts, give other numbers than they gave before, by hooks of theirs or other weights."""
    module = model.get_submodule(Anatomy.of(model).sites[0].down)
    clean, given, passes, begun = copy.deepcopy(module), [], [], []

    def begin(module: Any, args: Any, kwargs: Any) -> None:
        cache = kwargs.get("past_key_values")
        begun.append((kwargs["input_ids"], int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0))

    def look(module: Any, args: Any, output: Any) -> None:
        tokens, place = begun[-1]
        passes.append((tokens, place, (output - clean(*given[-1])).abs().amax(-1).reshape(tokens.shape) > 1e-12))

    handles = [
        module.register_forward_pre_hook(lambda module, args: given.append(args)),  # before any edit
        module.register_forward_hook(look),
        model.register_forward_pre_hook(begin, with_kwargs=True),
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


class edited_columns:
    """The (row, column) of every edited token, pass by pass."""

    def __init__(self, model: Any) -> None:
        self._watched = watched(model)

    def __enter__(self) -> edited_columns:
        self._passes = self._watched.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watched.__exit__(*error)

    def __iter__(self) -> Iterator[set[tuple[int, int]]]:
        for _, place, differs in self._passes:
            yield {(row, place + column) for row, column in differs.nonzero().tolist()}

    def clear(self) -> None:
        self._passes.clear()


def whole(first: list[int], mask: torch.Tensor, total: int) -> set[tuple[int, int]]:
    """Every token from the first one on, without padding."""
    return {
        (row, column)
        for row, begin in enumerate(first)
        for column in range(begin, total)
        if column >= mask.shape[1] or mask[row, column]
    }


def without_padding(columns: set[tuple[int, int]], mask: torch.Tensor) -> set[tuple[int, int]]:
    return {(row, column) for row, column in columns if column >= mask.shape[1] or mask[row, column]}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "opt", "mixtral", "qwen2_moe"])
def test_the_same_tokens_with_and_without_padding_and_cache(name, side, cache):
    model, inputs = tiny(name), padded_prompts(side)
    with edited_columns(model) as passes, untouched(model), halved_answer(model):
        model.generate(**inputs, **GREEDY, use_cache=cache)
    assert len(list(passes)) == NEW
    for step, columns in enumerate(passes):
        expected = whole(first_of(side), inputs["attention_mask"], PROMPT + step)
        if cache and step:
            expected = {(row, column) for row, column in expected if column == PROMPT + step - 1}
        assert without_padding(columns, inputs["attention_mask"]) == expected
    # Padding in front is left alone; what stands between a right-padded prompt and its first new token is edited,
    # because `generate` reads the first new token off the last of it.
    assert all(column >= first_of(side)[row] for columns in passes for row, column in columns)


def by_hand(model: Any, ids: torch.Tensor, neurons: torch.Tensor, factors: torch.Tensor) -> tuple[Any, Any]:
    """Greedy tokens of one prompt and their logits, by whole passes edited from the last prompt token on."""
    begin, logits = ids.shape[1] - 1, []
    for _ in range(NEW):
        with torch.no_grad(), edit(model, neurons, factors, positions=slice(begin, None)):
            logits.append(model(ids, use_cache=False).logits[:, -1])
        scores = logits[-1].clone()
        scores[:, 2] = -torch.inf  # the end, which the settings forbid
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    return ids, torch.stack(logits, 1)


@pytest.mark.parametrize("name", [*DENSE, *EXPERTS])
def test_generation_equals_whole_passes_by_hand(name):
    """In float64: the same tokens, and their logits within rounding, with the cache and without."""
    model, ids = tiny(name), padded_prompts("left")["input_ids"][:1]
    neurons = torch.arange(0, Anatomy.of(model).n_neurons, 3)
    factors = torch.linspace(-1, 2, len(neurons))
    tokens, logits = by_hand(model, ids, neurons, factors)
    # Attention written out attends in float32, whatever the model's type, and rounds by the number of tokens.
    rounding = 1e-9 if model.config._attn_implementation == "sdpa" else 1e-5
    for cache in (True, False):
        with edit(model, neurons, factors, positions="answer"):
            found, read = generated(model, ids, use_cache=cache)
        assert torch.equal(found, tokens) and torch.allclose(read, logits, rtol=0, atol=rounding)
    assert not torch.allclose(generated(model, ids)[1], logits, rtol=0, atol=1e-4)


def generated(model: Any, ids: torch.Tensor, **settings: Any) -> tuple[Any, Any]:
    """Greedy tokens and the logits that they were read off, in the model's own type."""
    logits: list[torch.Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: logits.append(output.logits[:, -1]))
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY, **settings)
    handle.remove()
    return tokens, torch.stack(logits, 1)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_the_first_new_token_is_read_under_the_edit_that_is_judged(name):
    """A left-padded batch of prompts: the options' probabilities are those that `nl.evaluate` asks for."""
    model, prompts = tiny(name), quiz(5, variants=False)
    neurons = torch.arange(0, Anatomy.of(model).n_neurons, 2)
    change = Edit(neurons, torch.tensor([0.0]).expand(len(neurons)), "answer")
    judged = Asker(model, prompts).logprobs(change).exp()
    length = max(len(p.input_ids) for p in prompts)
    ids = torch.tensor([[0] * (length - len(p.input_ids)) + p.input_ids for p in prompts])
    mask = torch.tensor([[0] * (length - len(p.input_ids)) + [1] * len(p.input_ids) for p in prompts])
    with edit(model, neurons, 0.0, positions="answer"):
        more = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 1, "pad_token_id": 0}
        logits = model.generate(ids, attention_mask=mask, do_sample=False, **more).logits[0]
    for prompt, row, expected in zip(prompts, logits, judged, strict=True):
        options = torch.stack([row[tokens].logsumexp(0) for tokens in prompt.first_tokens]).softmax(-1)
        assert torch.allclose(options.float(), expected[: len(options)], atol=1e-6)


SETTINGS = {
    "beams": {"num_beams": 2, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "static cache": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 3},
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", SETTINGS)
def test_other_ways_to_generate(how, side):
    model, inputs = tiny("llama"), padded_prompts(side)
    copies = SETTINGS[how].get("num_return_sequences", 1)
    with edited_columns(model) as passes, untouched_but_for_chance(model), halved_answer(model):
        model.generate(**inputs, **{**GREEDY, **SETTINGS[how]})
    mask = inputs["attention_mask"].repeat_interleave(copies, 0)
    first = [begin for begin in first_of(side) for _ in range(copies)]
    edited = without_padding(set().union(*passes), mask)
    assert edited == whole(first, mask, PROMPT + NEW - 1)


@contextmanager
def untouched_but_for_chance(model: Any) -> Iterator[None]:
    state = torch.get_rng_state()
    with untouched(model):
        yield
        torch.set_rng_state(state)


def test_a_conversation_goes_on_from_its_cache():
    """The second call edits its own answer; the first answer was edited when it was written, and is in the cache."""
    from transformers import DynamicCache

    model, ids = tiny("llama"), padded_prompts("left")["input_ids"][:1]
    cache, more = DynamicCache(config=model.config), torch.tensor([[8, 9, 10]])
    with edited_columns(model) as passes, halved_answer(model):
        said = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **GREEDY)
        passes.clear()
        asked = torch.cat([said, more], 1)
        model.generate(asked, attention_mask=torch.ones_like(asked), past_key_values=cache, **GREEDY)
    begin = asked.shape[1] - 1
    assert set().union(*passes) == {(0, column) for column in range(begin, begin + NEW)}


def test_padding_that_generate_finds_by_itself():
    model, ids = tiny("llama"), padded_prompts("right")["input_ids"]
    with edited_columns(model) as passes, halved_answer(model):
        model.generate(ids, **GREEDY)
    assert without_padding(next(iter(passes)), (ids != 0).long()) == {(0, PROMPT - 1), (1, SHORT - 1)}


# ---- plain forward passes ----


def test_a_plain_pass_needs_the_place():
    model, ids = tiny("mixtral"), padded_prompts("left")["input_ids"]
    with untouched(model), edit(model, [3], 0.0, positions="answer"):
        for call in (lambda: model(ids), lambda: model(inputs_embeds=model.get_input_embeddings()(ids))):
            with refused("answer_start=", "model.generate"), torch.no_grad():
                call()
        assert model.generate(ids, **GREEDY).shape == (ROWS, PROMPT + NEW)  # what was refused leaves nothing behind


def test_questions_asked_under_such_an_edit_are_refused():
    """The engine runs plain passes: an edit of the answer is handed to `nl.evaluate`, not put around it."""
    model, prompts = tiny("llama"), quiz(3)
    for ask in (
        lambda: nl.evaluate(model, None, prompts, progress=False),
        lambda: nl.attribute(model, None, prompts, "gradient", progress=False),
        lambda: nl.attribute(model, None, prompts, "exact", backend="reference", progress=False),
    ):
        with untouched(model), edit(model, [3], 0.0, positions="answer"), refused("answer_start="):
            ask()


@pytest.mark.parametrize("name", ["llama", "opt", "gpt_oss"])
@pytest.mark.parametrize(
    ("start", "first"),
    [(4, [4, 4]), ([4], [4, 4]), ([2, 5], [2, 5]), (torch.tensor([2, 5]), [2, 5]), (0, [0, 0]), (PROMPT - 1, [6, 6])],
)
def test_a_plain_pass_is_edited_from_the_place_on(name, start, first):
    model, ids = tiny(name), padded_prompts("left")["input_ids"]
    neurons = first_layer(model)
    with untouched(model), torch.no_grad():
        with edit(model, neurons, 0.5, positions="answer", answer_start=start):
            found = model(input_ids=ids).logits
            assert torch.equal(model(ids).logits, found)  # the tokens by their place among the arguments
        for row in range(ROWS):
            with edit(model, neurons, 0.5, positions=slice(first[row], None)):
                assert torch.equal(model(ids).logits[row], found[row])
    with torch.no_grad(), edited_columns(model) as passes, halved_answer(model, start):
        model(input_ids=ids)
    assert list(passes) == [{(row, column) for row in range(ROWS) for column in range(first[row], PROMPT)}]


def test_a_loop_of_ones_own_with_a_cache():
    """Places count what the cache holds, so one number serves every pass; it wins inside generate too."""
    model, ids = tiny("llama"), padded_prompts("left")["input_ids"]
    with torch.no_grad(), edited_columns(model) as passes, halved_answer(model, 5):
        out = model(input_ids=ids)
        model(input_ids=ids[:, :1], past_key_values=out.past_key_values)
        assert list(passes) == [{(0, 5), (0, 6), (1, 5), (1, 6)}, {(0, 7), (1, 7)}]
        passes.clear()
        model.generate(ids, **GREEDY, num_return_sequences=2, num_beams=2)
    assert set().union(*passes) == {(row, column) for row in range(4) for column in range(5, PROMPT + NEW - 1)}


@pytest.mark.noext
@pytest.mark.parametrize(
    ("keywords", "parts"),
    [
        ({"answer_start": 3}, ["answer_start", 'positions="answer"']),
        ({"answer_start": 3, "positions": -1}, ["answer_start", 'positions="answer"']),
        ({"answer_start": -1, "positions": "answer"}, ["answer_start=-1", "0 or more"]),
        ({"answer_start": 1.5, "positions": "answer"}, ["answer_start=1.5"]),
        ({"answer_start": True, "positions": "answer"}, ["answer_start=True"]),
        ({"answer_start": "end", "positions": "answer"}, ["answer_start='end'"]),
        ({"answer_start": [], "positions": "answer"}, ["answer_start=[]"]),
        ({"answer_start": [[1, 2]], "positions": "answer"}, ["answer_start"]),
    ],
)
def test_bad_places_are_refused_before_anything_happens(keywords, parts):
    model = tiny("llama")
    with untouched(model), refused(*parts), edit(model, [3], 2.0, **keywords):
        pytest.fail("the body ran")


@pytest.mark.parametrize("start", [PROMPT, [1, 2, 3], [0, PROMPT]])
def test_places_outside_the_pass_are_refused(start):
    model = tiny("llama")
    with untouched(model), edit(model, [3], 2.0, positions="answer", answer_start=start), refused("answer_start"):
        model(padded_prompts("left")["input_ids"])


def test_a_second_prompt_beside_the_first_is_refused():
    model, inputs = tiny("llama"), padded_prompts("left")
    with untouched(model), edit(model, [3], 0.0, positions="answer"), refused("guidance_scale", 'positions="all"'):
        model.generate(**inputs, **GREEDY, guidance_scale=1.5)


# ---- the model is left as it was found ----


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_exceptions_leave_the_model_as_found(name):
    model, inputs = tiny(name), padded_prompts("left")
    blow_after(model, 2)
    with untouched(model), pytest.raises(Fuse), edit(model, [3], 0.0, positions="answer"):
        model.generate(**inputs, **GREEDY)
    with untouched(model), pytest.raises(ZeroDivisionError), edit(model, [3], 0.0, positions="answer"):
        raise ZeroDivisionError


def test_an_interrupted_generate_does_not_speak_for_the_next_pass():
    model, inputs = tiny("llama"), padded_prompts("left")
    blow_after(model, 1)
    with edit(model, [3], 0.0, positions="answer"):
        with pytest.raises(Fuse):
            model.generate(**inputs, **GREEDY)
        with refused("answer_start="):
            model(inputs["input_ids"])


def test_contexts_may_end_in_any_order_and_edits_nest():
    model, inputs = tiny("llama"), padded_prompts("left")
    plain = model.generate(**inputs, **GREEDY)
    with untouched(model):
        first, second = ExitStack(), ExitStack()
        first.enter_context(edit(model, [3, 30], 2.0, positions="answer"))
        second.enter_context(edit(model, [40], 0.0, positions="answer"))
        both = model.generate(**inputs, **GREEDY)
        first.close()
        one = model.generate(**inputs, **GREEDY)
        second.close()
        with edit(model, [3, 30, 40], [2.0, 2.0, 0.0], positions="answer"):
            assert torch.equal(model.generate(**inputs, **GREEDY), both)
        with edit(model, [40], 0.0, positions="answer"):
            assert torch.equal(model.generate(**inputs, **GREEDY), one)
    assert torch.equal(model.generate(**inputs, **GREEDY), plain)


def test_a_copy_of_the_model_is_edited_by_itself():
    model, inputs = tiny("mixtral"), padded_prompts("left")
    with edit(model, first_layer(model), 0.0, positions="answer"):
        expected, copied = model.generate(**inputs, **GREEDY), copy.deepcopy(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert torch.equal(copied.generate(**inputs, **GREEDY), expected)


def test_somebody_elses_generate_is_called_and_given_back():
    model, inputs = tiny("llama"), padded_prompts("left")
    calls = []

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return type(self).generate(self, *args, **kwargs)

    model.generate = MethodType(theirs, model)
    with edited_columns(model) as passes, untouched(model), halved_answer(model):
        model.generate(**inputs, **GREEDY)
    assert calls == [1] and all(passes)
