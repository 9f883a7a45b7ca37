"""Prompts: orders, templates, chat, option tokens in context, and every bad input as one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from neuronllm.common.errors import InputError
from neuronllm.data.prompts import Prompt, group_by_question
from neuronllm.data.questions import Question
from neuronllm.data.rendering import option_orders, render
from neuronllm.data.templates import TEMPLATES, template_hash
from tests import tiny_tokenizers
from tests.checks import bad

SKY = Question("Which colour has the sky?", ("red", "blue", "seven", "door"), 1, "nature", "sky")
WARM = Question("Is fire warm?", ("yes", "no"), 0, "nature", "warm")
SIX = Question("Pick five.", ("one", "two", "three", "four", "five", "six"), 4, None, "six")


# -------------------------------------------------------------------------------------------------------------- orders


@pytest.mark.parametrize("n_choices", [2, 3, 4, 5, 10, 26])
@pytest.mark.parametrize("orders", ["rotate", None])
def test_rotate_lets_the_right_choice_visit_every_letter_once(n_choices: int, orders: str | None) -> None:
    for answer in range(n_choices):
        found = option_orders(n_choices, answer, orders)
        assert found[0] == tuple(range(n_choices))
        assert sorted(order.index(answer) for order in found) == list(range(n_choices))
        for order in found:
            assert all((left + 1) % n_choices == right for left, right in zip(order, order[1:], strict=False))


@pytest.mark.parametrize(("n_choices", "count"), [(2, 2), (3, 3), (4, 3), (10, 3)])
def test_shuffle3_is_distinct_for_every_seed(n_choices: int, count: int) -> None:
    seen = set()
    for seed in range(50):
        found = option_orders(n_choices, 0, "shuffle3", seed=seed, question_id="q")
        assert len(found) == len(set(found)) == count
        assert all(sorted(order) == list(range(n_choices)) for order in found)
        seen.update(found)
    assert len(seen) >= (count if n_choices < 4 else 10)  # the seed matters


def test_shuffle3_is_the_same_in_every_process() -> None:
    code = (
        "import json, neuronllm.data.rendering as p;"
        "print(json.dumps([p.option_orders(6, 0, 'shuffle3', seed=3, question_id=f'q{i}') for i in range(20)]))"
    )
    here = [[list(order) for order in option_orders(6, 0, "shuffle3", seed=3, question_id=f"q{i}")] for i in range(20)]
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        assert json.loads(output) == here
    assert len({str(orders) for orders in here}) > 15  # ids have shuffles of their own


def test_shuffles_do_not_depend_on_the_other_questions() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    alone = render(tokenizer, [SIX], "shuffle3", seed=5)
    among = render(tokenizer, [WARM, SKY, SIX], "shuffle3", seed=5)
    assert alone == [prompt for prompt in among if prompt.question_id == "six"]
    nameless = replace(SIX, id="")
    one, two = render(tokenizer, [nameless], "shuffle3"), render(tokenizer, [SKY, nameless], "shuffle3")
    assert one == two[-3:] and one[0].question_id


def test_none_keeps_the_written_order() -> None:
    assert option_orders(3, 2, "none") == [(0, 1, 2)]


def test_bad_orders() -> None:
    assert "rotate, shuffle3, none" in bad(lambda: option_orders(3, 0, "spin"))
    assert "answer 3" in bad(lambda: option_orders(3, 3, "rotate"))


# ----------------------------------------------------------------------------------------------------------- templates


def test_the_bundled_wordings_are_what_models_were_trained_on() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    texts = {}
    for name in TEMPLATES:
        (prompt,) = render(tokenizer, [WARM], "none", name)
        texts[name] = tokenizer.decode(prompt.input_ids)
    assert texts["plain"] == "Is fire warm?\nA. yes\nB. no\nAnswer:"
    assert texts["brief"] == "Question: Is fire warm?\nOptions:\nA. yes\nB. no\nThe letter of the right option is:"
    assert texts["default"] == (
        "You are an expert who answers multiple-choice questions.\n"
        "Rules: read the question and every option, choose the one right option, and reply with its letter only.\n\n"
        "Question: Which of these is a day of the week?\nA. January\nB. Monday\nC. Winter\nD. Noon\nAnswer: B\n\n"
        "Question: Is fire warm?\nA. yes\nB. no\nAnswer:"
    )


def test_variants_stand_together_templates_then_orders() -> None:
    prompts = render(tiny_tokenizers.byte_level(), [SKY, WARM], "rotate", ["plain", "brief"])
    assert [(p.question_id, p.template) for p in prompts] == [
        *[("sky", "plain")] * 4,
        *[("sky", "brief")] * 4,
        *[("warm", "plain")] * 2,
        *[("warm", "brief")] * 2,
    ]
    assert [prompt.order for prompt in prompts[:2]] == [(0, 1, 2, 3), (1, 2, 3, 0)]
    assert [len(group) for group in group_by_question(prompts)] == [8, 4]


def test_the_right_choice_is_displayed_at_the_answer() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    for prompt in render(tokenizer, [SKY], "rotate", "plain") + render(tokenizer, [SKY], "shuffle3", "plain"):
        line = tokenizer.decode(prompt.input_ids).splitlines()[1 + prompt.answer]
        assert line == f"{'ABCD'[prompt.answer]}. blue"
        assert prompt.order[prompt.answer] == SKY.answer
        assert tokenizer.decode(prompt.option_ids[prompt.answer][0]).strip() == "ABCD"[prompt.answer]


def test_own_template_with_all_placeholders_and_braces_in_the_question() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    template = "{{json}} {subject}: {question} [{letters}]\n{options}\nAnswer:"
    hostile = replace(SKY, stem="What is {options} {0} {x!r} }{ here?", choices=("{a}", "{question}", "}", "%s"))
    (prompt,) = render(tokenizer, [hostile], "none", template)
    assert tokenizer.decode(prompt.input_ids) == (
        "{json} nature: What is {options} {0} {x!r} }{ here? [A, B, C or D]\n"
        "A. {a}\nB. {question}\nC. }\nD. %s\nAnswer:"
    )
    (prompt,) = render(tokenizer, [WARM], "none", "{question} {letters}? {options}\n>")
    assert "A or B?" in tokenizer.decode(prompt.input_ids)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{question} {options} {answer}", "{question}, {options}, {subject}, {letters}"),
        ("{question.__class__} {options}", "unknown placeholder"),
        ("{question!r} {options}", "unknown placeholder"),
        ("{question} {0} {options}", "unknown placeholder"),
        ("{question}", "{options} is missing"),
        ("{options}", "{question} is missing"),
        ("{question} {options", "write {{ and }}"),
        ("fancy", "plain, brief, default, chat"),
        ("chat:fancy", "plain, brief, default, chat"),
        ([], "a name, a text or a list"),
        (["plain", 3], "a name or a text"),
        (7, "a name, a text or a list"),
    ],
)
def test_bad_templates(template: object, said: str) -> None:
    assert said in bad(lambda: render(tiny_tokenizers.byte_level(), [SKY], "none", template))  # type: ignore[arg-type]


def test_subject_asked_for_but_missing() -> None:
    message = bad(lambda: render(tiny_tokenizers.byte_level(), [SIX], "none", "{subject} {question} {options}\n>"))
    assert "'six'" in message and "subject" in message


def test_template_hash_is_of_the_wording() -> None:
    assert template_hash(None) == template_hash("default") == template_hash([TEMPLATES["default"]])
    hashes = [template_hash(name) for name in ("plain", "brief", "default", "chat", "chat:plain", ["plain", "brief"])]
    assert len(set(hashes)) == len(hashes) and all(len(digest) == 64 for digest in hashes)
    assert template_hash("chat") == template_hash("chat:default")
    one, other = tiny_tokenizers.chat(), tiny_tokenizers.chat("{{ messages[0]['content'] }}")
    assert template_hash("chat", one) != template_hash("chat", other)
    assert template_hash("plain", one) == template_hash("plain", other)


# ---------------------------------------------------------------------------------------------------------------- chat


def test_chat_wraps_the_wording_and_begins_with_one_bos() -> None:
    tokenizer = tiny_tokenizers.chat()
    (prompt,) = render(tokenizer, [WARM], "none", "chat:plain")
    assert tokenizer.decode(prompt.input_ids) == (
        "<s><|user|>\nIs fire warm?\nA. yes\nB. no\nAnswer:<|end|>\n<|model|>\n<think></think>\n"
    )
    assert prompt.input_ids.count(tokenizer.bos_token_id) == 1
    assert prompt.template == "chat:plain"
    turns = [{"role": "user", "content": "Is fire warm?\nA. yes\nB. no\nAnswer:"}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=False)
    assert prompt.input_ids == expected["input_ids"]


def test_chat_around_the_default_wording_and_around_a_text() -> None:
    tokenizer = tiny_tokenizers.chat()
    (around_default,) = render(tokenizer, [WARM], "none", "chat")
    (plain_default,) = render(tokenizer, [WARM], "none", None)
    assert tokenizer.decode(plain_default.input_ids).removeprefix("<s>") in tokenizer.decode(around_default.input_ids)
    (own,) = render(tokenizer, [WARM], "none", "chat:Hey {question}\n{options}")
    assert "<|user|>\nHey Is fire warm?" in tokenizer.decode(own.input_ids)


def test_a_chat_template_without_bos_gets_none() -> None:
    tokenizer = tiny_tokenizers.chat("<|user|>{{ messages[0]['content'] }}<|model|>")
    (prompt,) = render(tokenizer, [WARM], "none", "chat:plain")
    assert tokenizer.decode(prompt.input_ids) == "<|user|>Is fire warm?\nA. yes\nB. no\nAnswer:<|model|>"


def test_chat_without_a_chat_template_or_with_one_that_refuses() -> None:
    assert "has no chat template" in bad(lambda: render(tiny_tokenizers.byte_level(), [SKY], None, "chat"))
    refusing = tiny_tokenizers.chat("{{ raise_exception('only\\nsystem turns') }}")
    assert "only system turns" in bad(lambda: render(refusing, [SKY], None, "chat"))
    several = tiny_tokenizers.chat()
    several.chat_template = {"tools": "x", "rag": "y"}
    assert "chat template" in bad(lambda: render(several, [SKY], None, "chat"))


# ------------------------------------------------------------------------------------------------------- special tokens


def test_bos_is_put_once_and_eos_never() -> None:
    tokenizer = tiny_tokenizers.chat()
    (prompt,) = render(tokenizer, [WARM], "none", "plain")
    assert prompt.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in prompt.input_ids
    assert tokenizer("x")["input_ids"][-1] == tokenizer.eos_token_id  # it does add one when asked plainly
    (written,) = render(tokenizer, [WARM], "none", "<s>{question}\n{options}\nAnswer:")
    assert written.input_ids == prompt.input_ids


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = tiny_tokenizers.chat()
    tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token = "right", "left", "<eos>"
    tokenizer.backend_tokenizer.enable_padding(pad_id=3, pad_token="<|end|>", length=400)
    tokenizer.backend_tokenizer.enable_truncation(5)
    before = tokenizer.backend_tokenizer.to_str(), dict(vars(tokenizer)), tokenizer.init_kwargs.copy()
    prompts = render(tokenizer, [SKY, WARM], None, ["plain", "chat"])
    assert len({len(prompt.input_ids) for prompt in prompts}) > 1  # neither padded nor cut
    after = tokenizer.backend_tokenizer.to_str(), dict(vars(tokenizer)), tokenizer.init_kwargs.copy()
    assert after == before
    with pytest.raises(InputError):
        render(tokenizer, [SKY], None, "plain", max_length=3)
    assert tokenizer.backend_tokenizer.to_str() == before[0]


# --------------------------------------------------------------------------------------------------------------- limits


def test_prompts_longer_than_the_context() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    (prompt,) = render(tokenizer, [SKY], "none", "plain")
    length = len(prompt.input_ids)
    assert len(render(tokenizer, [SKY], "none", "plain", max_length=length)) == 1
    message = bad(lambda: render(tokenizer, [WARM, SKY], "none", "plain", max_length=length - 1))
    assert "'sky'" in message and str(length) in message and str(length - 1) in message
    tokenizer.model_max_length = length - 1
    assert bad(lambda: render(tokenizer, [SKY], "none", "plain")) == message
    assert len(render(tokenizer, [SKY], "none", "plain", max_length=length)) == 1
    tokenizer.model_max_length = int(1e30)
    assert len(render(tokenizer, [SKY], "none", "plain")) == 1


def test_bad_questions() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    assert "empty" in bad(lambda: render(tokenizer, []))
    assert "Question objects" in bad(lambda: render(tokenizer, [{"stem": "x"}]))  # type: ignore[list-item]
    assert "'sky' appears twice" in bad(lambda: render(tokenizer, [SKY, WARM, SKY]))
    assert "tokenizer must be" in bad(lambda: render("gpt2", [SKY]))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- Prompt


def test_a_prompt_built_by_hand_takes_lists_tensors_and_tuples() -> None:
    prompt = Prompt(input_ids=torch.tensor([1, 2]), option_ids=[torch.tensor([3]), [(4, 5)]], answer=1)  # type: ignore[arg-type, list-item]
    assert prompt == Prompt(input_ids=[1, 2], option_ids=[[[3]], [[4, 5]]], answer=1)
    assert all(type(token) is int for token in prompt.input_ids + prompt.option_ids[1][0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"input_ids": []}, "input_ids is empty"),
        ({"input_ids": [[1, 2]]}, "flat list"),
        ({"input_ids": torch.ones(1, 2, dtype=torch.long)}, "flat list"),
        ({"input_ids": "12"}, "list of token ids"),
        ({"input_ids": [1.5]}, "flat list"),
        ({"input_ids": [-1]}, "flat list"),
        ({"option_ids": [3, 4]}, "option_ids[0] must be a list"),
        ({"option_ids": []}, "at least the right answer"),
        ({"option_ids": 3}, "token sequences of every option"),
        ({"option_ids": [[3], []]}, "option_ids[1] is empty"),
        ({"option_ids": [[3], [[4], [3]]]}, "token id 3 stands twice"),
        ({"option_ids": [[[3], [3]], [4]]}, "token id 3 stands twice"),
        ({"option_ids": [[[3, 5]], [[3, 5]]]}, "the tokens [3, 5] stand twice (options 0 and 1)"),
        ({"option_ids": [[5, 6, 7], [4]]}, "[[5, 6, 7]] for one answer of 3 tokens, or [[5], [6], [7]] for 3 forms"),
        ({"texts": ["red"]}, "one text for each of the 2 options"),
        ({"lengths": [[1.0]]}, "one number for each sequence"),
        ({"lengths": [[1.0], [0.0]]}, "above 0"),
        ({"answer": 2}, "answer must be"),
        ({"answer": -1}, "answer must be"),
        ({"answer": "A"}, "answer must be"),
        ({"answer": True}, "answer must be"),
        ({"order": (0, 0)}, "permute"),
        ({"order": (0, 1, 2)}, "permute"),
    ],
)
def test_bad_prompts(changed: dict[str, object], said: str) -> None:
    good: dict[str, object] = {"input_ids": [1, 2], "option_ids": [[3], [4]], "answer": 0}
    assert Prompt(**good).answer == 0  # type: ignore[arg-type]
    assert said in bad(lambda: Prompt(**(good | changed)))  # type: ignore[arg-type]


def test_grouping() -> None:
    prompts = [Prompt([1], [[2], [3]], 0, question_id=name) for name in ["a", "a", "b", "", "", "a"]]
    assert [[p.question_id for p in group] for group in group_by_question(prompts)] == [
        ["a", "a"], ["b"], [""], [""], ["a"]
    ]  # fmt: skip
    assert group_by_question([]) == []
