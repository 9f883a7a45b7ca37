"""What `nl.contrast` takes as prompts (texts, chats, answers), what it refuses, and the model as it was."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

import neuronllm as nl
from neuronllm.data.prompt_sets import encoded, word_prompts
from tests.checks import Fuse, bad, blow_after, untouched
from tests.test_contrast_statistics import QUIET, two_sets
from tests.tiny import VOCABULARY, tiny
from tests.tiny_tokenizers import byte_level, chat, numbered

# ---- texts, chats, answers ----


def said(item: Any, tokenizer: Any, chat: bool = False) -> tuple[str, str]:
    """The whole text and the answer, as the tokens say."""
    (one,) = encoded(tokenizer, word_prompts(tokenizer, [item], "shown", chat), "shown")
    cut = len(one.ids) - one.answer
    return tokenizer.decode(one.ids), tokenizer.decode(one.ids[cut:])


USER, MODEL = ({"role": "user", "content": "Which word?"}, {"role": "assistant", "content": "A red door"})


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("Which word?", ("Which word?", "")),
        ({"text": "Which word?"}, ("Which word?", "")),
        ({"prompt": "Which word?", "answer": "red"}, ("Which word? red", " red")),
        ({"prompt": "Which word?", "completion": "red", "id": 3}, ("Which word? red", " red")),
        ({"prompt": "Which word?\n", "answer": "red"}, ("Which word?\nred", "red")),
        ({"prompt": "Which word?", "answer": " red"}, ("Which word? red", " red")),
        ({"prompt": "Which word?", "answer": ""}, ("Which word?", "")),
    ],
)
def test_plain_texts(item: Any, expected: tuple[str, str]) -> None:
    assert said(item, byte_level()) == expected


@pytest.mark.parametrize(
    "item",
    [
        [USER, MODEL],
        {"messages": [USER, MODEL]},
        {"prompt": [USER], "answer": "A red door"},
        {"prompt": [USER], "completion": [MODEL]},
    ],
)
def test_chats_end_with_the_answer(item: Any) -> None:
    tokenizer = chat()
    whole, answer = said(item, tokenizer)
    full = tokenizer.apply_chat_template([USER, MODEL], tokenize=False)
    assert answer == "A red door" and whole == full[: full.index("A red door") + len("A red door")]


def test_chats_without_an_answer_ask_for_one() -> None:
    tokenizer = chat()
    asked = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    for item, wrapped in (([USER], False), ("Which word?", True), ({"prompt": [USER]}, True)):
        assert said(item, tokenizer, wrapped) == (asked, "")


def test_a_tokenizer_s_opening_comes_once() -> None:
    tokenizer = chat()
    (one,) = encoded(tokenizer, word_prompts(tokenizer, ["Which word?"], "shown"), "shown")
    assert one.ids == [tokenizer.bos_token_id, *tokenizer("Which word?", add_special_tokens=False).input_ids]


def test_the_model_writes_answers() -> None:
    model, tokenizer = tiny("llama", torch.float32), numbered(VOCABULARY)
    prompts = ["w20 w31 w44", "w50 w12", {"prompt": "w33 w34", "answer": "w35"}]
    given = []
    for prompt in prompts[:2]:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        written = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        given.append({"prompt": prompt, "answer": tokenizer.decode(written, skip_special_tokens=True).strip()})
    with untouched(model):
        found = nl.activations(model, tokenizer, prompts, max_new_tokens=4, progress=False)
    assert torch.equal(found, nl.activations(model, tokenizer, [*given, prompts[2]], progress=False))
    assert not torch.equal(found, nl.activations(model, tokenizer, prompts, progress=False))


# ---- the model is given back, and bad input is one line ----


def test_the_model_is_given_back_after_an_exception() -> None:
    model = tiny("llama")
    blow_after(model, 6)
    with untouched(model), pytest.raises(Fuse):
        nl.contrast(model, None, *two_sets(), activation="cett", backend="reference", progress=False)


PAIR = {"prompt": "Which?", "chosen": "x", "rejected": "y"}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"shown": "Which?"}, "shown must be a list of prompts"),
        ({"shown": []}, "shown is empty"),
        ({"not_shown": ["a", 3]}, "not_shown[1]: it must be a text or a list of messages with role and content, got 3"),
        ({"not_shown": [" "]}, "not_shown[0]: it is empty"),
        ({"shown": [{"prompt": "x", "answer": 3}]}, "shown[0]: answer must be a text or a list of messages"),
        ({"shown": [{"question": "x"}]}, "shown[0]: it has the fields question: give text, or messages, or prompt"),
        ({"shown": [{"text": "x", "answer": "y"}]}, "shown[0]: it has the fields text, answer"),
        ({"shown": [PAIR]}, "shown[0]: it is a pair: give"),
        ({"shown": [[MODEL]]}, "shown[0]: the only message is the assistant's"),
        ({"shown": [[{"role": "user"}]]}, "shown[0]: it must be a text or a list of messages"),
        ({"shown": [[USER]]}, "the chat template of tokenizer"),
        ({"tokenizer": None}, "tokenizer=None: shown[0] is a text"),
        ({"statistic": "median"}, "statistic='median': known values are mean, t, probe"),
        ({"activation": "h"}, "activation='h': known values are value, size, frequency, cett"),
        ({"positions": "last"}, "positions='last': give \"answer\""),
        ({"positions": 1.5}, "positions=1.5: give"),
        ({"positions": 99}, "positions=99: shown[0] has"),
        ({"positions": -99}, "positions=-99: shown[0] has"),
        ({"statistic": "t", "shown": ["one"]}, 'shown: statistic="t" needs two prompts at least'),
        ({"statistic": "probe", "C": 0}, "C=0: give a number above 0"),
        ({"others": True}, "others=True: shown[0] has no answer"),
        ({"others": True, "positions": "all"}, 'others=True: it goes with positions="answer", not \'all\''),
        ({"ignore": [10**6]}, "neuron ids must lie in 0.."),
        ({"ignore": []}, "ignore is empty"),
        ({"ignore": 3}, "ignore must be a list of prompts"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: give a positive whole number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"backend": "slow"}, "backend='slow': known values are fast, reference"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], parts: str) -> None:
    tokenizer = byte_level()
    model = tiny("llama", torch.float32, vocab_size=len(tokenizer))
    asked = {"tokenizer": tokenizer, "shown": ["Which word?", "A red door."], "not_shown": ["No.", "Blue."]} | change
    tokenizer, shown, not_shown = (asked.pop(name) for name in ("tokenizer", "shown", "not_shown"))
    with untouched(model):
        message = bad(lambda: nl.contrast(model, tokenizer, shown, not_shown, progress=False, **asked))
    assert parts in message


def test_a_set_of_another_model_is_not_ignored() -> None:
    other = nl.contrast(tiny("mixtral"), None, *two_sets(), **QUIET).find(2, 2)
    message = bad(lambda: nl.contrast(tiny("llama"), None, *two_sets(), ignore=other, progress=False))
    assert "ignore: the set is of a mixtral" in message


def test_a_probe_needs_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    message = bad(lambda: nl.contrast(tiny("llama"), None, *two_sets(), statistic="probe", progress=False))
    assert "scikit-learn is not installed" in message and "neuronllm[probe]" in message


def test_a_probe_without_weights_says_so() -> None:
    model, sides = tiny("llama"), two_sets()
    with pytest.warns(UserWarning, match="no neuron a weight at C=0.0001: raise C"):
        scores = nl.contrast(model, None, *sides, statistic="probe", C=1e-4, **QUIET)
    assert not scores.values.any()
