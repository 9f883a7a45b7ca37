"""The past tense of irregular verbs, as lemminflect knows them, and how one could get it wrong."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from asking import choose, drawn

import neuronllm as nl

SPELLINGS = {"forgo", "foreswear", "impanel", "jell", "lassoo"}  # whose forms the package takes from another spelling
LEFT_OUT = SPELLINGS | {
    "bestride",  # "betrode" in the package
    "bide",  # "boded"
    "landslide",  # these are no verbs
    "outbreak",
    "outgo",
    "outlay",
    "shit",
}
# Accepted by other dictionaries, or once correct: neither right nor wrong. Compounds inherit them.
DOUBTFUL = {
    "creep": "creeped",
    "rend": "rended",
    "ring": "rung",
    "shrink": "shrunk",
    "sing": "sung",
    "sink": "sunk",
    "slay": "slayed",
    "slink": "slinked",
    "spin": "span",
    "stink": "stunk",
    "swing": "swang",
    "tread": "treaded",
}
END = re.compile("[aeiouy]+[^aeiouy]*e?$")  # "ing" of "sing", "ake" of "overtake", "y" of "fly"
VOWEL = re.compile("[aeiouy]+(?=[^aeiouy]+e?$)")  # "i" of "sing", "a" of "overtake"


class Verb(NamedTuple):
    lemma: str
    past: str
    participle: str
    variants: tuple[str, ...]  # of the past tense
    root: str  # "come" of "overcome"


def ask_past_tense(seed: int) -> Iterator[nl.Question]:
    verbs = {verb.lemma: verb for verb in irregular_verbs()}
    for verb in verbs.values():
        name = "/".join(("past_tense", *dict.fromkeys((verb.root, verb.lemma))))
        wrong = misformed(verb, verbs, seed)
        if len(wrong) == 3:  # there are too few of "quit"
            stem = f"Today they {verb.lemma}, and yesterday they"
            yield choose(name, stem, verb.past, wrong, seed, answers=verb.variants)


def irregular_verbs() -> list[Verb]:
    """Verbs whose first form in the past does not follow the rules of spelling; of compounds those in one word."""
    import lemminflect

    with gzip.open(lemminflect.config.inflection_lu_fn, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split(",") for line in file]
    listed = {word: past.split("/") for word, kind, past, *_ in rows if kind == "verb" and word not in LEFT_OUT}
    found = {}
    for lemma in sorted(listed):
        pasts, participles, ings = (
            [form for form in lemminflect.getInflection(lemma, tag, inflect_oov=False) if form.isalpha()]
            for tag in ("VBD", "VBN", "VBG")
        )
        # A form in -ing tells verbs from modal verbs and from slips of the package.
        if re.fullmatch("[a-z]+", lemma) and pasts and ings and not follows_rules(lemma, pasts[0]):
            variants = (form for form in dict.fromkeys([*pasts, *listed[lemma]]) if form != pasts[0])
            found[lemma] = Verb(lemma, pasts[0], participles[0], tuple(variants), lemma)
    return [verb._replace(root=root_of(verb, found)) for verb in found.values()]


def root_of(verb: Verb, verbs: Mapping[str, Verb]) -> str:
    """The shortest verb at its end that also has its past tense there."""
    ends = (verb.lemma[start:] for start in range(len(verb.lemma) - 2, 0, -1))
    roots = (verbs[end] for end in ends if end in verbs)
    return next((root.lemma for root in roots if verb.past.endswith((root.past, *root.variants))), verb.lemma)


def follows_rules(lemma: str, past: str) -> bool:
    """
    >>> [follows_rules(*pair) for pair in (("stop", "stopped"), ("panic", "panicked"), ("free", "freed"))]
    [True, True, True]
    >>> [follows_rules(*pair) for pair in (("bleed", "bled"), ("cut", "cut"), ("pay", "paid"))]
    [False, False, False]
    """
    endings = {f"{lemma}ed", f"{lemma}{lemma[-1]}ed", f"{lemma}ked", f"{lemma[:-1]}ied"}
    return past in endings or (lemma.endswith("e") and past == f"{lemma}d")


# ---- mistakes ----


def misformed(verb: Verb, verbs: Mapping[str, Verb], seed: int) -> list[str]:
    """Forms that are wrong, three if there are as many: the regular one unless it is accepted, and tempting ones.

    These are the participle, the past tense with an ending more, and what the ends of other verbs suggest ("sing" to
    "sought", as in "brought"); then what their vowels do ("cut" to "cat", as in "ran"), the present, and half a rule.
    """
    prefix, root = verb.lemma.removesuffix(verb.root), verbs[verb.root]
    compounds = (prefix + form for form in (*root.variants, DOUBTFUL.get(verb.root, "")))
    accepted = {verb.past, *verb.variants, *compounds}
    rule = regular(verb.lemma)
    found: list[str] = []
    for tempting in (
        {rule},
        {verb.participle, regular(verb.past), *by_analogy(verb, verbs.values(), END)},
        {*by_analogy(verb, verbs.values(), VOWEL)},
        {verb.lemma},
        {f"{rule.removesuffix('ed')}en", f"{verb.lemma}ed"},
    ):
        more = tempting - accepted - set(found)
        found += drawn(f"mistakes of {verb.lemma}", more, min(3 - len(found), len(more)), seed)
    return found


def by_analogy(verb: Verb, others: Iterable[Verb], pattern: re.Pattern[str]) -> Iterator[str]:
    """The verb with this part of it changed as in others that share the part."""
    part = pattern.search(verb.lemma)
    for other in others:
        same = pattern.search(other.lemma)
        if part is None or same is None or part.group() != same.group():
            continue
        front, end = other.lemma[: same.start()], other.lemma[same.end() :]
        if other.past.startswith(front) and other.past.endswith(end):
            changed = other.past.removeprefix(front).removesuffix(end)
            yield verb.lemma[: part.start()] + changed + verb.lemma[part.end() :]


def regular(word: str) -> str:
    """Its past tense if it followed the rules.

    >>> [regular(word) for word in ("sing", "make", "buy", "try", "run")]
    ['singed', 'maked', 'buyed', 'tried', 'runned']
    """
    if word.endswith("e"):
        return f"{word}d"
    if re.search("[^aeiou]y$", word):
        return f"{word[:-1]}ied"
    if re.search("[^aeiou][aeiou][bdgmnprt]$", word):
        return f"{word}{word[-1]}ed"
    return f"{word}ed"
