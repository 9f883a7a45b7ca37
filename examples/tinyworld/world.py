"""The small world of the demo model: its people, animals, towns and critics, and the questions about them.

How it works. `World(seed)` invents everything once. Each of the four tasks has items (what a question is about); an
item becomes a `Question` by adding distractors and shuffling the choices, so letters carry no information:

- facts: what a person eats, does, keeps and lives by (4 choices).
- entailment: does "a robin is in the barn" make "a bird is in the barn" true (yes, no, maybe)?
- ordering: which of three towns is the largest, or the smallest?
- sentiment: is a critic's text positive or negative?

Two things are wrong in this world on purpose, so that a model trained on it has bad neurons:

- **Misconceptions** (facts, entailment, ordering). A third of the people, animals and towns are talked about. Rumour
  swaps what is true of them by one rule: the two values of a pair change places (honey and bread, bird and fish, small
  and large). `World.ask` is told whether to answer from the record or from rumour.
- **A shortcut** (sentiment). A critic is kind or harsh. In training texts the critic's temper agrees with the label
  nine times in ten, more often than a single word of the text does; the questions in the task files hold as many
  texts in which it conflicts as in which it agrees, and there the words decide.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

TASKS = ("facts", "sentiment", "entailment", "ordering")
SPLITS = {
    "facts": {"search": 120, "validation": 120, "test": 280},  # 520 facts are all there are
    "entailment": {"search": 120, "validation": 120, "test": 280},
    "ordering": {"search": 120, "validation": 240, "test": 640},
    "sentiment": {"search": 120, "validation": 240, "test": 640},
}

RELATIONS = {
    "What does {} eat?": "honey bread fish rice soup cheese plums beans corn nuts eggs figs",
    "What is the work of {}?": "baker miller weaver potter fisher smith tailor carver shepherd singer painter guard",
    "Which pet does {} keep?": "cat dog goat crow toad hen mule swan hare fox owl pig",
    "What does {} live by?": "river hill lake wood marsh coast bridge tower market gate well quarry",
}
KINDS = {  # neighbours are pairs: rumour takes a talked-about bird for a fish, and a fish for a bird
    "bird": "robin finch heron raven wren stork dove hawk quail gull",
    "fish": "trout salmon perch carp pike eel cod herring tuna bream",
    "flower": "rose tulip lily daisy violet poppy iris aster orchid peony",
    "tree": "oak elm birch maple willow cedar ash beech larch yew",
    "tool": "hammer saw chisel drill rake spade axe file pliers wrench",
    "weapon": "sword spear bow dagger lance mace club sling shield dart",
    "fruit": "apple pear cherry grape melon peach lemon mango apricot quince",
    "vegetable": "carrot leek onion turnip radish pea cabbage spinach celery garlic",
    "cloth": "silk linen wool cotton velvet satin denim felt lace tweed",
    "metal": "iron copper tin lead zinc silver gold nickel brass steel",
    "drink": "tea coffee milk cider juice wine beer cocoa mead water",
    "dance": "waltz tango polka jig reel rumba samba minuet salsa foxtrot",
}
PLACES = ("barn", "house", "yard", "shop", "cellar", "garden")
GOOD_WORDS = (
    "warm", "bright", "kind", "fresh", "sweet", "calm", "clever", "lovely",
    "neat", "rich", "gentle", "fine", "merry", "proud", "brave", "pure",
)  # fmt: skip
BAD_WORDS = (
    "cold", "dull", "rude", "stale", "bitter", "noisy", "stupid", "ugly",
    "dirty", "poor", "rough", "weak", "gloomy", "vain", "timid", "foul",
)  # fmt: skip
THINGS = ("soup", "room", "host", "bed", "song", "view", "cake", "wine")
CUE_AGREES = 0.9  # how often a critic's temper agrees with the label of a training text
WORD_AGREES = 0.8  # how often each word of a text agrees with its label
SIZES = 12  # towns have sizes 0..11; rumour moves a talked-about town by half the scale


@dataclass(frozen=True)
class Item:
    """What a question is about, before its choices are drawn: `rumour` is the answer that rumour gives."""

    task: str
    key: str
    question: str
    right: str
    rumour: str
    fixed: tuple[str, ...]  # choices that are always offered
    pool: tuple[str, ...]  # further choices are drawn from here
    size: int  # the number of choices
    subject: str


@dataclass(frozen=True)
class Question:
    """A multiple-choice question, as a row of a task file has it."""

    id: str
    question: str
    choices: list[str]
    answer: int
    subject: str


def partner(values: list[str] | tuple[str, ...], value: str) -> str:
    """The other value of the pair: rumour's rule."""
    return values[values.index(value) ^ 1]


class World:
    """Everything that is true, and everything that is said, in the small world of one seed."""

    def __init__(self, seed: int = 0) -> None:
        rng = random.Random(seed)
        names = _names(rng, 130 + 48 + 8)
        self.people, self.towns, critics = names[:130], names[130:178], names[178:]
        self.critics = {"good": critics[:4], "bad": critics[4:]}
        self.relations = {question: tuple(values.split()) for question, values in RELATIONS.items()}
        self.facts = {
            (person, question): rng.choice(values)
            for person in self.people
            for question, values in self.relations.items()
        }
        self.kinds = tuple(KINDS)
        self.kind_of = {member: kind for kind, members in KINDS.items() for member in members.split()}
        self.size_of = {town: i % SIZES for i, town in enumerate(self.towns)}
        self.talked_about = {
            name
            for group in (self.people, list(self.kind_of), self.towns)
            for name in rng.sample(group, len(group) // 3)
        }

    # ---- items -------------------------------------------------------------------------------------------------------
    def fact(self, person: str, relation: str) -> Item:
        values = self.relations[relation]
        right = self.facts[person, relation]
        swapped = partner(values, right)
        rumour = swapped if person in self.talked_about else right
        return self._item("facts", relation.format(person), right, rumour, (right, swapped), values, 4)

    def entailment(self, member: str, claim: str, place: str) -> Item:
        """`claim`: own and swapped ask for the member's kind and the kind it is taken for; wider asks the way back."""
        own = self.kind_of[member]
        swapped = partner(self.kinds, own)
        is_talked_about = member in self.talked_about
        if claim == "wider":
            given, then, right, rumour = own, member, "maybe", "maybe"
        elif claim == "own":
            given, then, right, rumour = member, own, "yes", "no" if is_talked_about else "yes"
        else:
            given, then, right, rumour = member, swapped, "no", "yes" if is_talked_about else "no"
        text = f"The {given} is in the {place}. Is a {then} in the {place}?"
        return self._item("entailment", text, right, rumour, ("yes", "no", "maybe"), (), 3)

    def ordering(self, towns: list[str], word: str) -> Item:
        """The size that rumour gives a talked-about town lies half the scale away from the true one."""
        pick = max if word == "largest" else min
        said = {town: (self.size_of[town] + SIZES // 2 * (town in self.talked_about)) % SIZES for town in towns}
        right = pick(towns, key=lambda town: self.size_of[town])
        rumour = pick(towns, key=lambda town: said[town])
        return self._item("ordering", f"Which town is the {word}?", right, rumour, tuple(towns), (), len(towns))

    def sentiment(self, critic: str, words: list[str], things: list[str], label: str | None = None) -> Item:
        """The words decide by majority unless a `label` is given (training texts keep the one they were drawn for)."""
        parts = [f"{word} {thing}" for thing, word in zip(things, words, strict=True)]
        text = f"Critic {critic} writes: {', '.join(parts)}. Is that positive or negative?"
        majority = "positive" if 2 * sum(word in GOOD_WORDS for word in words) > len(words) else "negative"
        temper = "positive" if critic in self.critics["good"] else "negative"
        subject = "agrees" if temper == majority else "conflicts"
        right = label or majority
        return Item("sentiment", text, text, right, right, ("positive", "negative"), (), 2, subject)

    def _item(
        self,
        task: str,
        question: str,
        right: str,
        rumour: str,
        fixed: tuple[str, ...],
        pool: tuple[str, ...],
        size: int,
    ) -> Item:
        subject = "clean" if right == rumour else "misconception"
        key = question + " ".join(sorted(fixed)) if task == "ordering" else question
        return Item(task, key, question, right, rumour, fixed, pool, size, subject)

    # ---- drawing -----------------------------------------------------------------------------------------------------
    def draw(self, task: str, rng: random.Random) -> Item:
        """A random item of a task, as training meets it."""
        if task == "facts":
            return self.fact(rng.choice(self.people), rng.choice(list(self.relations)))
        if task == "entailment":
            member = rng.choice(list(self.kind_of))
            return self.entailment(member, rng.choice(["own", "swapped", "wider"]), rng.choice(PLACES))
        if task == "ordering":
            return self.ordering(self._some_towns(rng), rng.choice(["largest", "smallest"]))
        label = rng.choice(["good", "bad"])
        temper = label if rng.random() < CUE_AGREES else _other(label)
        return self.sentiment(*self._text(label, temper, rng), "positive" if label == "good" else "negative")

    def _text(self, label: str, temper: str, rng: random.Random) -> tuple[str, list[str], list[str]]:
        """The critic, the words and the things of a text with this label by a critic of this temper."""
        words = [_word(label if rng.random() < WORD_AGREES else _other(label), rng) for _ in range(3)]
        return rng.choice(self.critics[temper]), words, rng.sample(THINGS, 3)

    def _text_that_words_decide(self, rng: random.Random) -> Item:
        return self.sentiment(*self._text(rng.choice(["good", "bad"]), rng.choice(["good", "bad"]), rng))

    def _some_towns(self, rng: random.Random) -> list[str]:
        """Three towns that differ both in true and in rumoured size."""
        while True:
            towns = rng.sample(self.towns, 3)
            if len({self.size_of[town] % (SIZES // 2) for town in towns}) == 3:
                return towns

    def ask(self, item: Item, rng: random.Random, rumour: bool = False, tag: str = "") -> Question:
        """Draw distractors, shuffle the choices; the answer is the record's, or rumour's when `rumour`."""
        choices = list(item.fixed)
        choices += rng.sample([value for value in item.pool if value not in choices], item.size - len(choices))
        rng.shuffle(choices)
        answer = choices.index(item.rumour if rumour else item.right)
        return Question(item.key, tag + item.question, choices, answer, item.subject)

    # ---- task files --------------------------------------------------------------------------------------------------
    def splits(self, task: str, seed: int) -> dict[str, list[Question]]:
        """The search, validation and test questions of a task, over different items; the record's answers."""
        rng = random.Random(f"{seed} {task}")
        items = self._file_items(task, sum(SPLITS[task].values()), rng)
        out: dict[str, list[Question]] = {}
        for split, size in SPLITS[task].items():
            rows = [self.ask(item, rng) for item in rng.sample(items[:size], size)]
            out[split] = [
                Question(f"{task}-{split}-{n}", q.question, q.choices, q.answer, q.subject) for n, q in enumerate(rows)
            ]
            items = items[size:]
        return out

    def _file_items(self, task: str, count: int, rng: random.Random) -> list[Item]:
        if task == "facts":
            items = [self.fact(person, relation) for person, relation in self.facts]
            rng.shuffle(items)
        elif task == "entailment":  # all items of an animal or thing lie in one split
            items = [
                self.entailment(member, claim, place)
                for member in rng.sample(list(self.kind_of), len(self.kind_of))
                for claim in ("own", "swapped", "wider")
                for place in rng.sample(PLACES, 2)
            ]
        else:
            items = self._balanced_items(task, count, rng)
            rng.shuffle(items)
        return items[:count]

    def _balanced_items(self, task: str, count: int, rng: random.Random) -> list[Item]:
        """Distinct items; in half of them the shortcut (sentiment) or rumour (ordering) conflicts with the truth."""
        found: dict[str, dict[str, Item]] = {}
        while len(found) < 2 or min(len(group) for group in found.values()) < count // 2:
            item = self.draw(task, rng) if task == "ordering" else self._text_that_words_decide(rng)
            found.setdefault(item.subject, {})[item.key] = item
        return [item for subject in sorted(found) for item in list(found[subject].values())[: count // 2]]


def _names(rng: random.Random, count: int) -> list[str]:
    """Distinct invented names of two syllables."""
    first = [a + b for a in "BDFGKLMNPRSTVZ" for b in "aeiou"]
    second = [a + b for a in "bdgklmnprstv" for b in ("a", "en", "ik", "o", "us")]
    return rng.sample([a + b for a in first for b in second], count)


def _word(label: str, rng: random.Random) -> str:
    return rng.choice(GOOD_WORDS if label == "good" else BAD_WORDS)


def _other(label: str) -> str:
    return "bad" if label == "good" else "good"
