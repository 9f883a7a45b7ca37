"""Option tokens: the ids by which a letter is answered are those found in context, after the prompt's own text."""

from __future__ import annotations

import pytest

from neuronllm.common.errors import InputError
from neuronllm.data.questions import Question
from neuronllm.data.rendering import option_orders, render
from tests import tiny_tokenizers
from tests.checks import bad

SKY = Question("Which colour has the sky?", ("red", "blue", "seven", "door"), 1, "nature", "sky")
SIX = Question("Pick five.", ("one", "two", "three", "four", "five", "six"), 4, None, "six")
TOKENIZERS = {
    "byte_level": tiny_tokenizers.byte_level,
    "metaspace": tiny_tokenizers.metaspace,
    "word_level": lambda: tiny_tokenizers.word_level("ABCDEF"),
    "chat": tiny_tokenizers.chat,
    "glued": tiny_tokenizers.glued,
}


def one_by_one(tokenizer: object, count: int, text: str) -> list[list[int]]:
    """The definition, spelled out: every form of every letter behind the whole text, nothing remembered."""

    def encode(what: str) -> list[int]:
        return list(tokenizer(what, add_special_tokens=False)["input_ids"])  # type: ignore[operator]

    before, found = encode(text), []
    for letter in "ABCDEF"[:count]:
        forms = []
        for form in (letter, f" {letter}"):
            ids = encode(text + form)
            if ids[:-1] == before and ids[-1] not in forms and ids[-1] != tokenizer.unk_token_id:  # type: ignore[attr-defined]
                forms.append(ids[-1])
        found.append(forms)
    return found


TAILS = [
    "{question}\n{options}\nAnswer:",
    "{question}\n{options}\nAnswer: it is",
    "{question}\n{options}\n",
    "{options}\n{question}",
    "{question}\n{options}:",
    "{options} {question} ({letters})",
]


ENDINGS = [
    SIX,
    Question("Which?", ("red", "pot", "d", ":"), 0, id="short"),
    Question("pot", ("x y", "AB", "1", "F"), 3, id="pot"),
    Question("a red red red", ("Answer:", "Answer", "no.", "dd"), 3, id="red"),
]


def in_words(template: str, question: Question, order: tuple[int, ...]) -> str:
    letters = "ABCDEF"[: len(order)]
    options = "\n".join(f"{letter}. {question.choices[choice]}" for letter, choice in zip(letters, order, strict=True))
    listed = f"{', '.join(letters[:-1])} or {letters[-1]}"
    return template.format(question=question.stem, options=options, letters=listed)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", TAILS)
def test_option_tokens_are_those_found_one_by_one(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]()
    answerable = []
    for question in ENDINGS:
        orders = option_orders(len(question.choices), question.answer, "rotate")
        wanted = [one_by_one(tokenizer, len(order), in_words(template, question, order)) for order in orders]
        if all(forms for options in wanted for forms in options):
            answerable.append((question, wanted))
        else:
            assert name == "glued"
            assert "is not a single token" in bad(
                lambda question=question: render(tokenizer, [question], None, template)
            )
    prompts = render(tokenizer, [question for question, _ in answerable], "rotate", template) if answerable else []
    assert [prompt.first_tokens for prompt in prompts] == [options for _, wanted in answerable for options in wanted]
    assert answerable or template.endswith(":")


def test_a_merge_across_the_end_of_a_question_is_seen_for_that_question_only() -> None:
    tokenizer, template = tiny_tokenizers.glued(), "{options}\n{question}"
    message = bad(lambda: render(tokenizer, ENDINGS, "none", template))
    assert "letter 'C'" in message and "'pot'" in message  # "pot" and "C" melt into "po", "tC"
    assert len(render(tokenizer, ENDINGS[:2], "none", template)) == 2


def test_both_forms_are_kept_and_equal_ones_once() -> None:
    byte_level, word_level = tiny_tokenizers.byte_level(), tiny_tokenizers.word_level()
    (prompt,) = render(byte_level, [SKY], "none", "plain")
    assert prompt.first_tokens == [byte_level.convert_tokens_to_ids([f"{x}", f"Ġ{x}"]) for x in "ABCD"]
    (prompt,) = render(word_level, [SKY], "none", "plain")
    assert prompt.first_tokens == [[word_level.convert_tokens_to_ids(x)] for x in "ABCD"]


def test_context_decides_where_the_bare_letter_misleads() -> None:
    tokenizer = tiny_tokenizers.glued()
    bare = tokenizer("A", add_special_tokens=False)["input_ids"]
    assert len(bare) == 1  # naively a good token, but after "Answer:" the letter melts into ":A"
    with pytest.raises(InputError, match="letter 'A'"):
        render(tokenizer, [SKY], "none", "plain")
    (prompt,) = render(tokenizer, [SKY], "none", "{question}\n{options}\nAnswer =")
    assert prompt.first_tokens[0] == bare
    # " B" is one token, "B" another: both are forms; " A" is two tokens, so "A" has one form only
    assert [len(ids) for ids in prompt.first_tokens] == [1, 2, 1, 1]


def test_sentencepiece_letters_carry_their_space() -> None:
    tokenizer = tiny_tokenizers.metaspace()
    (prompt,) = render(tokenizer, [SKY], "none", "plain")
    assert prompt.input_ids[0] == tokenizer.bos_token_id
    for letter, ids in zip("ABCD", prompt.first_tokens, strict=True):
        assert tokenizer.convert_tokens_to_ids(f"▁{letter}") in ids


def test_a_letter_without_a_single_token_is_named() -> None:
    tokenizer = tiny_tokenizers.split_letter("F")
    tokenizer.name_or_path = "tiny/split"
    message = bad(lambda: render(tokenizer, [SKY, SIX], "rotate", "brief"))
    assert "letter 'F'" in message and "'brief'" in message and "tiny/split" in message and "'six'" in message
    assert len(render(tokenizer, [SKY], "rotate", "brief")) == 4  # four choices never need an F


def test_an_unknown_letter_is_no_single_token() -> None:
    assert "letter 'E'" in bad(lambda: render(tiny_tokenizers.word_level("ABCD"), [SIX], "none", "plain"))
