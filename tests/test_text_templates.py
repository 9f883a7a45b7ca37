"""In which form and in which wording questions are asked: letters or texts, cloze templates, orders that are seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neuronllm.data.prompts import Prompt
from neuronllm.data.questions import Question
from neuronllm.data.rendering import as_prompts, render
from neuronllm.data.templates import CLOZES, TEMPLATES, read_templates, register, template_hash
from tests import tiny_tokenizers
from tests.checks import bad
from tests.test_answer_texts import MANY, PARIS, SKY, WARM

# ---------------------------------------------------------------------------------------------------- letters or texts


def test_open_questions_are_answered_in_words_and_others_by_letter() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    assert [prompt.form for prompt in render(tokenizer, [SKY, PARIS])] == ["texts", "texts"]
    assert {prompt.form for prompt in render(tokenizer, [SKY, WARM])} == {"letters"}
    assert {prompt.form for prompt in render(tokenizer, [SKY, WARM], answers="texts")} == {"texts"}
    assert render(tokenizer, [SKY]) == render(tokenizer, [SKY], "rotate", "default", answers="letters")
    assert render(tokenizer, [SKY, PARIS]) == render(tokenizer, [SKY, PARIS], "none", "cloze", answers="texts")


@pytest.mark.parametrize(("question", "why"), [(PARIS, "question 'paris' is open"), (MANY, "'many' has 40 choices")])
def test_letters_cannot_answer_everything(question: Question, why: str) -> None:
    tokenizer = tiny_tokenizers.byte_level()
    message = bad(lambda: render(tokenizer, [SKY, question], answers="letters"))
    assert why in message and "answers='texts' (--answers texts)" in message
    nameless = replace(question, id="")
    assert question.stem in bad(lambda: as_prompts(tokenizer, [nameless], "none", None, "letters"))
    if not question.open:
        assert bad(lambda: render(tokenizer, [SKY, question])) == message


def test_as_prompts_hands_everything_on_and_leaves_prompts_alone() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    asked = as_prompts(tokenizer, [SKY], "rotate", ("cloze", "cloze_options"), "texts", "tokens")
    assert asked == render(tokenizer, [SKY], "rotate", ["cloze", "cloze_options"], answers="texts", length="tokens")
    given = Prompt([1, 2], [[3], [4]], 0)
    assert as_prompts(None, [given], "rotate", None, "texts", "tokens") == [given]


# ---------------------------------------------------------------------------------------------------- orders, templates


def test_an_order_that_nobody_sees_is_not_repeated() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    once = render(tokenizer, [SKY, WARM], "none", "cloze", answers="texts")
    for orders in (None, "rotate", "shuffle3"):
        assert render(tokenizer, [SKY, WARM], orders, "cloze", answers="texts") == once
    assert "rotate, shuffle3, none" in bad(lambda: render(tokenizer, [SKY], "spin", "cloze", answers="texts"))


@pytest.mark.parametrize("template", ["cloze_options", "plain"])
def test_options_that_are_shown_are_rotated(template: str) -> None:
    tokenizer = tiny_tokenizers.byte_level()
    prompts = render(tokenizer, [SKY, WARM], template=template, answers="texts")
    assert [prompt.question_id for prompt in prompts] == ["sky"] * 4 + ["warm"] * 2
    for prompt in prompts[:4]:
        shown = [SKY.choices[choice] for choice in prompt.order]
        lines = tokenizer.decode(prompt.input_ids).splitlines()
        assert [line.split(" ", 1)[1] for line in lines[-5:-1]] == shown == list(prompt.texts)
        assert [tokenizer.decode(ids) for (ids,) in prompt.option_ids] == [f" {text}" for text in shown]
        assert shown[prompt.answer] == "pale blue"
    assert len({prompt.order for prompt in prompts[:4]}) == 4
    mixed = render(tokenizer, [WARM], template=["cloze", template], answers="texts")
    assert [(prompt.template, prompt.order) for prompt in mixed] == [
        ("cloze", (0, 1)), (template, (0, 1)), (template, (1, 0))
    ]  # fmt: skip


def test_the_wordings() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    texts = {}
    for name in CLOZES:
        prompt = render(tokenizer, [WARM], "none", name, answers="texts")[0]
        texts[name] = tokenizer.decode(prompt.input_ids)
    assert texts.pop("cloze_short").endswith("have?\nAnswer: 8\n\nQuestion: Is fire warm?\nAnswer:")
    assert texts == {
        "cloze": "Question: Is fire warm?\nAnswer:",
        "cloze_plain": "Is fire warm?\nAnswer:",
        "cloze_brief": "Q: Is fire warm?\nA:",
        "cloze_options": "Question: Is fire warm?\nOptions:\n- yes\n- no\nAnswer:",
        "continue": "Is fire warm?",
    }
    assert not set(CLOZES) & set(TEMPLATES)


@pytest.mark.parametrize("template", ["cloze_options", "plain", "{question} {letters}"])
def test_an_open_question_has_nothing_to_show(template: str) -> None:
    """Its only option would be the answer."""
    message = bad(lambda: render(tiny_tokenizers.byte_level(), [PARIS], template=template))
    assert "question 'paris' is open" in message and "'cloze'" in message


def test_more_choices_than_letters_are_listed_in_words() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    (prompt,) = render(tokenizer, [MANY], "none", "cloze_options", answers="texts")
    assert tokenizer.decode(prompt.input_ids).count("\n- number ") == 40
    message = bad(lambda: render(tokenizer, [MANY], "none", "plain", answers="texts"))
    assert "'many' has 40 choices" in message and "{choices}" in message


@pytest.mark.parametrize("template", ["cloze", "cloze_options", "{question}"])
def test_letters_need_a_place_for_the_options(template: str) -> None:
    message = bad(lambda: render(tiny_tokenizers.byte_level(), [SKY], template=template))
    assert "{options} is missing" in message and "answers='texts' (--answers texts)" in message


def test_template_hash_of_texts() -> None:
    assert template_hash(None, answers="texts") == template_hash("cloze") == template_hash([CLOZES["cloze"]])
    assert template_hash("chat", answers="texts") == template_hash("chat:cloze") != template_hash("chat")
    assert template_hash("{question}") != template_hash("cloze")
    assert template_hash() == template_hash(None, None, "letters") == template_hash("default")
    # Written down once: what was found with a wording must be known by it after an update.
    assert template_hash()[:16] == "b0e3cf47ee184190"


def test_a_registered_wording_may_leave_the_options_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuronllm.data.templates.TEMPLATES", dict(TEMPLATES))
    register("riddle", "Riddle: {question}\nSolution:")
    assert read_templates("riddle", "texts")[0].text == "Riddle: {question}\nSolution:"
    assert "another template already" in bad(lambda: register("cloze", "{question}"))
    register("cloze", CLOZES["cloze"])
    assert "{question} is missing" in bad(lambda: register("nothing", "{choices}"))
