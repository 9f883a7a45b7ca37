"""Tiny Hugging Face tokenizers, built in memory, one for each way in which letters are cut differently."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [f"Answer: {letter}\n{letter}. word {letter} {letter}" for letter in string.ascii_uppercase] * 20 + [
    "Question: which of these is a colour of the sky?\nA. red\nB. blue\nC. seven\nD. door\nAnswer: B\n",
    "Options: the letter of the right option is: C",
] * 5

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|model|>\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>\n{% endif %}{% endif %}"
)


def _trained(tokenizer: Tokenizer, special: list[str], alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(special: tuple[str, ...] = ("<eos>",), **keywords: object) -> PreTrainedTokenizerFast:
    """GPT-2's kind: " A" and "A" are different single tokens; nothing is added around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _trained(tokenizer, list(special), pre_tokenizers.ByteLevel.alphabet())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", **keywords)


def chat(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte level with a BOS in front, an EOS behind, and a chat template that writes the BOS itself."""
    special = ("<eos>", "<s>", "<|user|>", "<|end|>", "<|model|>")
    tokenizer = byte_level(special, bos_token="<s>")
    begin, end = tokenizer.convert_tokens_to_ids(["<s>", "<eos>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <eos>", special_tokens=[("<s>", begin), ("<eos>", end)]
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece's kind (Llama 2): a space is part of the word behind it, a space is put in front, BOS first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    _trained(tokenizer, special, [*string.printable[:94]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama 2's own kind: a normaliser puts a space in front and writes spaces as "▁", no word is cut off beforehand,
    and characters outside the vocabulary become bytes. BOS first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    _trained(tokenizer, special, [*string.ascii_letters, *string.digits, *".,:?\n-", "▁"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_level(letters: str = "ABCD") -> PreTrainedTokenizerFast:
    """Words and signs only: "A" and " A" are the same token; a letter not in `letters` is unknown."""
    words = [
        "[UNK]",
        "[EOS]",
        *letters,
        ".",
        ":",
        "?",
        "Answer",
        "Question",
        "Options",
        "which",
        "red",
        "blue",
        "letter",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]")


def split_letter(letter: str = "F") -> PreTrainedTokenizerFast:
    """Byte level, but one letter is always two tokens."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(letter, "^~")
    return tokenizer


def forgetful(signs: str = "[!*]") -> PreTrainedTokenizerFast:
    """Byte level, but some signs and all differences of case vanish before a text is cut."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(signs), ""), normalizers.Lowercase()]
    )
    return tokenizer


def glued() -> PreTrainedTokenizerFast:
    """Characters and a few pairs (":A", " B", "tC", "dA"): what stands before a letter decides what it becomes."""
    characters = sorted(set(string.printable))
    merges = [(":", "A"), (" ", "B"), ("t", "C"), ("d", "A")]
    vocabulary = {token: number for number, token in enumerate([*characters, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="~")


def numbered(size: int = 60, line_breaks: tuple[int, ...] = (7, 8, 9, 10)) -> PreTrainedTokenizerFast:
    """One word a token ("w12") but for a few that hold a line break; 0 pads, 1 begins and 2 ends a text."""
    words = {f"w{n}": n for n in range(size)}
    for n in line_breaks:
        del words[f"w{n}"]
        words["\n" * (1 + line_breaks.index(n))] = n
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3"
    )
