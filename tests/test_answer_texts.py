"""Answers in words: their tokens are those behind the prompt in the encoding of prompt, delimiter and answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from neuronllm.data.prompts import Prompt
from neuronllm.data.questions import Question
from neuronllm.data.rendering import bare_prompts, render
from tests import tiny_tokenizers
from tests.checks import bad

SKY = Question("Which colour has the sky?", ("red", "pale blue", "seven doors", "door"), 1, "nature", "sky")
WARM = Question("Is fire warm?", ("yes", "no"), 0, "nature", "warm")
PARIS = Question("What is the capital of France?", answer="Paris", id="paris", answers=("paris, France",))  # type: ignore[arg-type]
FOREIGN = Question("Größe?", ("groß", "漢字", "naïve 😀", "no"), 1, None, "foreign")
MANY = Question("Which number?", tuple(f"number {n}" for n in range(40)), 33, None, "many")
ASKED = [SKY, WARM, PARIS, FOREIGN, MANY]

TOKENIZERS: dict[str, tuple[Callable[[], Any], list[str]]] = {  # and what stands in front of every text
    "byte level": (tiny_tokenizers.byte_level, []),
    "byte level with BOS and EOS": (tiny_tokenizers.chat, ["<s>"]),
    "prefix space": (tiny_tokenizers.metaspace, ["<s>"]),
    "byte fallback": (tiny_tokenizers.byte_fallback, ["<s>"]),
}
WORDINGS = [
    "Question: {question}\nAnswer:",
    "{question}",
    "{question}\n",
    "{subject} | {question} =>\t",
    "Q: {question}\nA: ",
    "{{braces}} {question} It is:",
]


def encoded(tokenizer: Any, opening: list[str], text: str) -> list[int]:
    return tokenizer.convert_tokens_to_ids(opening) + tokenizer(text, add_special_tokens=False)["input_ids"]


def shared(sequences: list[list[int]]) -> int:
    length = 0
    while all(len(ids) > length for ids in sequences) and len({ids[length] for ids in sequences}) == 1:
        length += 1
    return length


def by_hand(tokenizer: Any, opening: list[str], text: str, choices: list[str]) -> tuple[list[int], list[list[int]]]:
    """The prompt's ids and those of every answer, from the encodings of whole texts alone."""
    delimiter = "" if text[-1] in " \n\t" else " "
    wholes = [encoded(tokenizer, opening, text + delimiter + choice) for choice in choices]
    boundary = shared([encoded(tokenizer, opening, text), *wholes])
    return wholes[0][:boundary], [ids[boundary:] for ids in wholes]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("wording", WORDINGS)
def test_tokens_are_those_of_whole_texts(kind: str, wording: str) -> None:
    make, opening = TOKENIZERS[kind]
    tokenizer = make()
    asked = [replace(question, subject="some") for question in ASKED]
    prompts = render(tokenizer, asked, template=wording)
    assert [prompt.question_id for prompt in prompts] == [question.id for question in asked]
    for question, prompt in zip(asked, prompts, strict=True):
        text = wording.format(question=question.stem, subject="some")
        before, answers = by_hand(tokenizer, opening, text, list(question.choices))
        assert prompt.input_ids == before
        assert prompt.option_ids == [[ids] for ids in answers]
        assert prompt.texts == question.choices and prompt.answer == question.answer
        assert prompt.order == tuple(range(len(question.choices))) and prompt.template == wording
        assert prompt.form == "texts" and prompt.lengths == [] and prompt.offsets == []


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_answers_read_as_they_are_written(kind: str) -> None:
    """Decoded, prompt and answer are the text that a reader would see, without a second space."""
    tokenizer = TOKENIZERS[kind][0]()
    for question, prompt in zip(ASKED, render(tokenizer, ASKED, answers="texts"), strict=True):
        if kind == "prefix space" and question is FOREIGN:
            continue  # its decoder does not join bytes
        for choice, (ids,) in zip(question.choices, prompt.option_ids, strict=True):
            seen = tokenizer.decode(prompt.input_ids + ids).removeprefix("<s>").removeprefix(" ")
            assert seen == f"Question: {question.stem}\nAnswer: {choice}"


MOVED = "the tokenizer joins the end of the prompt with an answer, so their options begin there"


def test_a_boundary_that_moves_is_the_same_for_all_options(caplog: pytest.LogCaptureFixture) -> None:
    """In `glued` " B" is a token: it eats the space at the end of the prompt, which the others then carry too."""
    tokenizer = tiny_tokenizers.glued()
    questions = [Question("Which?", choices, 0) for choices in (("A", "B", "x"), ("x", "B"))]
    with caplog.at_level(logging.INFO, logger="neuronllm"):
        prompts = render(tokenizer, questions, answers="texts", template="{question}\n: ")
    assert caplog.messages == ["2 of 2 prompts: " + MOVED]
    for prompt, question in zip(prompts, questions, strict=True):
        assert "".join(tokenizer.convert_ids_to_tokens(prompt.input_ids)) == "Which?\n:"
        answers = [tokenizer.convert_ids_to_tokens(ids) for (ids,) in prompt.option_ids]
        assert answers == [[" B"] if choice == "B" else [" ", choice] for choice in question.choices]


def test_prompts_that_did_not_move_are_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizers.glued()
    questions = [Question("Which?", ("B", "A"), 0, id="moved"), Question("Which?", ("x", "A"), 0, id="kept")]
    with caplog.at_level(logging.INFO, logger="neuronllm"):
        moved, kept = render(tokenizer, questions, answers="texts", template="{question}: ")
    assert caplog.messages == ["1 of 2 prompts: " + MOVED]
    text = tokenizer("Which?: ")["input_ids"]
    assert kept.input_ids == text and moved.input_ids == text[:-1]
    with caplog.at_level(logging.INFO, logger="neuronllm"):
        render(tokenizer, questions, answers="texts", template="{question}:")
    assert len(caplog.messages) == 1


def test_one_call_of_the_tokenizer_serves_all_texts() -> None:
    class Counting(type(tiny_tokenizers.byte_level())):  # type: ignore[misc]
        sizes: list[int] = []

        def __call__(self, texts: Any, **keywords: Any) -> Any:
            self.sizes.append(len(texts))
            return super().__call__(texts, **keywords)

    tokenizer = tiny_tokenizers.byte_level()
    tokenizer.__class__ = Counting
    render(tokenizer, ASKED, answers="texts")
    assert Counting.sizes == [1, 1, sum(2 + len(question.choices) for question in ASKED)]


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = tiny_tokenizers.chat()
    tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token = "right", "left", "<eos>"
    tokenizer.backend_tokenizer.enable_padding(pad_id=3, pad_token="<|end|>", length=400)
    tokenizer.backend_tokenizer.enable_truncation(5)
    before = tokenizer.backend_tokenizer.to_str(), dict(vars(tokenizer)), tokenizer.init_kwargs.copy()
    prompts = render(tokenizer, ASKED, None, ["cloze", "chat"], answers="texts")
    assert len({len(prompt.input_ids) for prompt in prompts}) > 1
    bare_prompts(tokenizer, ASKED)
    bad(lambda: render(tokenizer, ASKED, answers="texts", max_length=3))
    assert before == (tokenizer.backend_tokenizer.to_str(), dict(vars(tokenizer)), tokenizer.init_kwargs)


# ---------------------------------------------------------------------------------------------------------------- chat

TOLD_WITH_A_SPACE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "<|model|>{% else %} {{ message['content'] }}<|end|>{% endif %}{% endfor %}"
)
TOLD_AFTER_A_LINE = TOLD_WITH_A_SPACE.replace("{% else %} ", "{% else %}{{ '\\n' }}")
TOLD_AFTER_THOUGHTS = TOLD_WITH_A_SPACE.replace("{% else %} ", "{% else %}<think></think> ")
TOLD_AT_ONCE = TOLD_WITH_A_SPACE.replace("{% else %} ", "{% else %}")
NO_ANSWERS = (
    "<|user|>{{ messages[0]['content'] }}<|model|>"
    "{% if messages|length > 1 %}{{ raise_exception('no answers') }}{% endif %}"
)


@pytest.mark.parametrize(
    ("chat_template", "before", "delimiter"),
    [
        (TOLD_WITH_A_SPACE, "<s><|user|>Is fire warm?\nAnswer:<|model|>", " "),
        (TOLD_AFTER_A_LINE, "<s><|user|>Is fire warm?\nAnswer:<|model|>\n", ""),
        (TOLD_AFTER_THOUGHTS, "<s><|user|>Is fire warm?\nAnswer:<|model|><think></think>", " "),
        (TOLD_AT_ONCE, "<s><|user|>Is fire warm?\nAnswer:<|model|>", ""),
        (NO_ANSWERS, "<|user|>Is fire warm?\nAnswer:<|model|>", " "),  # what it does not say follows the rule
        (
            tiny_tokenizers.CHAT_TEMPLATE,
            "<s><|user|>\nIs fire warm?\nAnswer:<|end|>\n<|model|>\n<think></think>\n",
            "",
        ),
    ],
)
def test_an_answer_stands_where_a_chat_template_puts_it(chat_template: str, before: str, delimiter: str) -> None:
    tokenizer = tiny_tokenizers.chat(chat_template)
    (prompt,) = render(tokenizer, [WARM], None, "chat:cloze_plain", answers="texts")
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(prompt.input_ids) == before and prompt.input_ids == ids
    for choice, (answer,) in zip(WARM.choices, prompt.option_ids, strict=True):
        whole = tokenizer(before + delimiter + choice, add_special_tokens=False)["input_ids"]
        assert answer == whole[len(ids) :]


def test_chat_alone_is_around_the_cloze() -> None:
    tokenizer = tiny_tokenizers.chat()
    (prompt,) = render(tokenizer, [PARIS], None, "chat")
    assert "<|user|>\nQuestion: What is the capital of France?\nAnswer:<|end|>" in tokenizer.decode(prompt.input_ids)
    message = bad(lambda: render(tiny_tokenizers.byte_level(), [PARIS], None, "chat"))
    assert "has no chat template" in message and "'cloze'" in message


# ------------------------------------------------------------------------------------------------------------- lengths


def test_lengths() -> None:
    tokenizer = tiny_tokenizers.byte_level()

    def rendered(length: str, *questions: Question) -> list[Prompt]:
        return render(tokenizer, questions, answers="texts", length=length)

    (tokens,), (characters,) = rendered("tokens", SKY), rendered("characters", SKY)
    assert tokens.lengths == [[float(len(tokenizer(f" {text}")["input_ids"]))] for text in SKY.choices]
    assert characters.lengths == [[3.0], [9.0], [11.0], [4.0]]  # without the space in front
    (written,) = rendered("bytes", Question("Which?", ("café", "北京", "tea"), 0, id="written"))
    assert written.lengths == [[5.0], [6.0], [3.0]]
    assert rendered("sum", SKY) == rendered("unconditional", SKY) == [replace(tokens, lengths=[])]
    one = Question("Which?", ("A", "B"), 0, id="one")
    assert rendered("tokens", one) == rendered("characters", one) == rendered("sum", one)
    assert rendered("tokens", one)[0].one_token and rendered("tokens", one)[0].form == "texts"
    assert "sum, tokens, characters, bytes, unconditional" in bad(lambda: rendered("words", SKY))


def test_bare_prompts_ask_nothing() -> None:
    tokenizer = tiny_tokenizers.metaspace()
    prompts = bare_prompts(tokenizer, ASKED)
    for question, prompt in zip(ASKED, prompts, strict=True):
        before, answers = by_hand(tokenizer, ["<s>"], "Answer:", list(question.choices))
        assert (prompt.input_ids, prompt.option_ids) == (before, [[ids] for ids in answers])
        assert (prompt.question_id, prompt.answer, prompt.texts) == (question.id, question.answer, question.choices)
        assert prompt.order == tuple(range(len(question.choices)))
    assert "empty" in bad(lambda: bare_prompts(tokenizer, []))
    assert "tokenizer must be" in bad(lambda: bare_prompts(None, ASKED))  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- errors


def test_an_answer_that_vanishes() -> None:
    tokenizer = tiny_tokenizers.forgetful()
    tokenizer.name_or_path = "tiny/forgetful"
    question = Question("Which sign?", ("dot", "!!*"), 0, id="sign")
    for template in ("{question} =", "{question}\n"):  # with a space in front, which is a token, and with none
        message = bad(lambda template=template: render(tokenizer, [WARM, question], None, template, answers="texts"))
        assert "'sign'" in message and "'!!*'" in message and "no token" in message and "tiny/forgetful" in message


def test_two_answers_that_are_the_same_tokens() -> None:
    question = Question("Which?", ("Door", "red", "door!"), 0, id="same")
    message = bad(lambda: render(tiny_tokenizers.forgetful(), [question], answers="texts"))
    assert "'same'" in message and "'Door' and 'door!' are the same tokens" in message


def test_an_answer_of_unknown_words() -> None:
    tokenizer = tiny_tokenizers.word_level()
    assert len(render(tokenizer, [Question("which?", ("red", "pale blue"), 0)], answers="texts")) == 1
    message = bad(lambda: render(tokenizer, [Question("which?", ("red", "purple"), 0, id="u")], answers="texts"))
    assert "'u'" in message and "'purple' is nothing that the tokenizer knows" in message


def test_a_prompt_that_its_answers_eat_up() -> None:
    tokenizer = tiny_tokenizers.glued()
    question = Question("d", ("A", "x"), 0, id="eaten")
    chat = "{{ messages[0]['content'] }}{% if messages|length > 1 %}{{ messages[1]['content'] }}{% endif %}"
    tokenizer.chat_template = chat  # which puts no space before an answer: "d" and "A" are one token
    message = bad(lambda: render(tokenizer, [question], None, "chat:{question}", answers="texts"))
    assert "'eaten'" in message and "no token of the prompt" in message and "'cloze'" in message


def test_answers_beyond_the_context() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    (prompt,) = render(tokenizer, [SKY], answers="texts")
    longest = len(prompt.input_ids) + prompt.span
    assert render(tokenizer, [SKY], answers="texts", max_length=longest) == [prompt]
    message = bad(lambda: render(tokenizer, [WARM, SKY], answers="texts", max_length=longest - 1))
    assert "'sky'" in message and f"{longest} tokens" in message and f"context of {longest - 1}" in message
    assert repr(max(SKY.choices, key=lambda text: len(tokenizer(f" {text}")["input_ids"]))) in message
    tokenizer.model_max_length = longest - 1
    assert bad(lambda: render(tokenizer, [WARM, SKY], answers="texts")) == message


def test_unknown_answers() -> None:
    assert "letters, texts" in bad(lambda: render(tiny_tokenizers.byte_level(), [SKY], answers="words"))
    assert "Question objects" in bad(lambda: render(tiny_tokenizers.byte_level(), ["x"], answers="texts"))  # type: ignore[list-item]


# ------------------------------------------------------------------------------------------------------------- lm-eval


@pytest.mark.parametrize("kind", ["byte level", "prefix space", "byte fallback"])
def test_lm_eval_cuts_alike(kind: str) -> None:
    models = pytest.importorskip("lm_eval.api.model", reason='needs lm-eval: pip install "neuronllm[lm-eval]"')
    tokenizer = TOKENIZERS[kind][0]()

    class Model:
        backend = "causal"

        def tok_encode(self, text: str, **keywords: Any) -> list[int]:
            return list(tokenizer(text, **keywords)["input_ids"])

    for wording in ("Question: {question}\nAnswer:", "{question}", "{question} It is"):
        for question, prompt in zip(ASKED, render(tokenizer, ASKED, None, wording, answers="texts"), strict=True):
            context = wording.format(question=question.stem)
            for choice, (ids,) in zip(question.choices, prompt.option_ids, strict=True):
                pair = models.TemplateLM._encode_pair(Model(), context, f" {choice}")
                assert pair == (prompt.input_ids, ids)
