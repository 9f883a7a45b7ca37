"""The rows of the case study: what each does with the search questions of a task and fold. One recipe learns them all.

The order of `ROWS` is the order of the work: first what the others are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import reference
import torch
from asking import folds, number_of
from setting import PUBLISHED, Setting, Way, parted
from torch import Tensor

import neuronllm as nl
from neuronllm.engine.asking import Edit
from neuronllm.model.random_sets import matched_like, random_like
from neuronllm.steering.recipe import Recipe

# Of every learned row. margin=None keeps an edit whatever it gains on validation questions: random sets are learned
# likewise, and none of them may win by "no edit".
RECIPE: dict[str, Any] = {"steps": 16, "batch": 16, "lr": None, "retain_weight": 1.0, "seeds": 3, "margin": None}
ONE = {"seeds": 1}  # of random sets, which are many, and of the row that is compared with them
BAD = 16  # neurons that are silenced
VERIFIED = 48  # search questions that effects are measured on
K = 256  # neurons of a set, where a row says nothing else
SETS = 20  # random ones of each kind


@dataclass(frozen=True)
class Row:
    make: Callable[[Setting], Way]
    what: str  # it is, in the words of the page
    aim: str = "enhance"  # or "degrade"; "" of what others are compared with
    side_effects: bool = True
    keep: bool = False  # ids and factors in the file


# ---- as published ----


def edited(setting: Setting, neurons: nl.NeuronSet, mode: str, **settings: Any) -> Way:
    """Good neurons doubled and bad ones silenced, or the other way around; or as tuned."""
    edit = Edit(*neurons.edits(setting.model, neurons.steering(mode)), "all") if len(neurons) else None
    return Way({"mode": mode, "edited at": "all", **settings}, edit)


def published(method: str, mode: str, setting: Setting) -> Way:
    neurons = setting.published(method).find(100, 100)
    scored = len(setting.search[:PUBLISHED])
    return edited(setting, neurons, mode, method=method, scored=scored, **{"scored at": "answer", "find": [100, 100]})


def gradient(mode: str, setting: Setting) -> Way:
    neurons = setting.scores("gradient").find(16, 16)
    return edited(setting, neurons, mode, method="gradient", scored=len(setting.search), find=[16, 16])


def tuned(setting: Setting) -> Way:
    """Factors of the roles and the number of neurons, chosen on questions that the scores did not see."""
    validation, rest = folds(setting.search, 3)[0].test, folds(setting.search, 3)[0].search
    ks = [4, 16, 64]
    found = nl.tune(
        setting.model,
        setting.tokenizer,
        setting.scored("gradient", rest).find(ks[-1], ks[-1]),
        validation,
        ks=ks,
        positions="all",
        margin=0.0,
        answers="texts",
        template=setting.template,
        progress=False,
    )
    chosen = {name: (found.tuned or {})[name] for name in ("k_good", "k_bad", "good", "bad")}
    return edited(setting, found, "tuned", ks=ks, margin=0.0, validation=len(validation), **chosen)


def silenced(setting: Setting, ids: Tensor, **settings: Any) -> Way:
    edit = Edit(ids, torch.zeros(len(ids)), "all") if len(ids) else None
    return Way({"edited at": "all", "factor": 0.0, **settings}, edit)


def worst(setting: Setting) -> Way:
    return silenced(setting, setting.scores("gradient").find(0, BAD).ids, method="gradient", find=[0, BAD])


def verified(setting: Setting) -> Way:
    """Neurons that hurt when they are really run, and go on doing so together."""
    scores, some = setting.scores("gradient"), setting.search[:VERIFIED]
    how = {"answers": "texts", "template": setting.template, "progress": False, "positions": "all"}
    found = nl.verify(setting.model, setting.tokenizer, scores, some, good=0, bad=BAD, joint=True, margin=0.0, **how)
    told = found.provenance["verified"]["bad"]
    return silenced(setting, found.ids, find=[0, BAD], measured=len(some), margin=0.0, joint=True, verified=told)


# ---- learned ----


def learn(
    setting: Setting, neurons: nl.NeuronSet, questions: Sequence[nl.Question] | None = None, **more: Any
) -> nl.NeuronSet:
    rest, held = parted(setting.search if questions is None else questions)
    return nl.learn(
        setting.model,
        setting.tokenizer,
        rest,
        held,
        neurons=neurons,
        positions="all",
        answers="texts",
        length=setting.length,
        template=setting.template,
        progress=False,
        **(RECIPE | more),
    )


def learned(setting: Setting, neurons: nl.NeuronSet, *, settings: dict[str, Any] | None = None, **more: Any) -> Way:
    found = learn(setting, neurons, **more)
    assert found.factor is not None
    recipe = RECIPE | {name: value for name, value in more.items() if name != "questions"}
    return Way(recipe | (settings or {}), Edit(found.ids, found.factor, "all"), learned=found)


def by_score(k: int, setting: Setting, **more: Any) -> Way:
    return learned(setting, setting.strongest(k), settings={"by": "gradient"}, **more)


def by_score_and_contrast(setting: Setting) -> Way:
    first = setting.strongest(K // 2)
    second = setting.strongest(K - K // 2, setting.scores("contrast"), but=first.ids)
    return learned(setting, first | second, settings={"by": ["gradient", "contrast"]})


def everywhere(setting: Setting) -> Way:
    return learned(setting, setting.of(torch.arange(setting.anatomy.n_neurons)))


def shuffled(setting: Setting) -> Way:
    """Learned on answers that were drawn: whatever this gains has nothing to do with the task."""
    drawn = [
        replace(question, answer=number_of(f"drawn answer of {question.id}") % len(question.choices), answers=())
        for question in setting.search
    ]
    neurons = setting.strongest(K, setting.scored("gradient", drawn))
    return learned(setting, neurons, questions=drawn, settings={"by": "gradient", "answers": "drawn"})


def peft(train: Callable[[Setting, Recipe], Way], setting: Setting) -> Way:
    return train(setting, Recipe(steps=RECIPE["steps"], batch=RECIPE["batch"]))


# ---- random sets ----


def random_ids(number: int, setting: Setting) -> Tensor:
    return random_like(setting.strongest(K).ids, setting.anatomy, setting.generator(f"random {number}"))


def random(number: int, setting: Setting) -> Way:
    return learned(setting, setting.of(random_ids(number, setting)), settings={"by": "chance", "set": number}, **ONE)


def matched(number: int, setting: Setting) -> Way:
    given, generator = setting.strongest(K).ids, setting.generator(f"matched {number}")
    ids = matched_like(given, setting.strength, setting.anatomy, generator)
    return learned(setting, setting.of(ids), settings={"by": "strength", "set": number}, **ONE)


def edited_alike(number: int, setting: Setting) -> Way:
    """The factors of the learned row on random neurons."""
    edit = setting.learned_in(f"learned-{K}")
    return Way({"factors of": f"learned-{K}", "set": number}, edit._replace(ids=random_ids(number, setting)))


def silenced_alike(number: int, setting: Setting) -> Way:
    """As many random neurons as are silenced in the verified row, in the same layers."""
    generator = setting.generator(f"silenced {number}")
    ids = random_like(setting.learned_in("verified").ids, setting.anatomy, generator)
    return silenced(setting, ids, by="chance", set=number)


def forgetting(number: int, setting: Setting) -> Way:
    neurons = setting.of(random_ids(number, setting))
    return learned(setting, neurons, settings={"by": "chance", "set": number}, goal="degrade", **ONE)


# ---- the table ----


def sets(kind: str, make: Callable[[int, Setting], Way], what: str) -> dict[str, Row]:
    return {f"{kind}-{n:02d}": Row(partial(make, n), what, aim="", side_effects=False) for n in range(SETS)}


def modes(name: str, make: Callable[..., Way], what: str) -> dict[str, Row]:
    rows = {}
    for mode, which in (("enhance", "good doubled, bad silenced"), ("degrade", "good silenced, bad doubled")):
        rows[f"{name}-{mode}"] = Row(partial(make, mode), f"{what}: {which}", aim=mode)
    return rows


AS_PUBLISHED = "100 + 100 neurons or as many as there are"
ROWS: dict[str, Row] = {
    "base": Row(lambda setting: Way(), "the model as it is", aim="", side_effects=False),
    "learned-256": Row(partial(by_score, K), "factors learned for the 256 strongest by score", keep=True),
    "learned-256-one": Row(partial(by_score, K, **ONE), "the same with one seed, as random sets are", "enhance", False),
    "bias": Row(reference.bias, "one learned number for each place or label, and nothing else", "", False),
    **sets("random", random, "256 random neurons of the same layers, learned the same way"),
    "learned-256-free": Row(partial(by_score, K, retain_weight=0.0), "plain texts do not count", keep=True),
    "learned-32": Row(partial(by_score, 32), "learned for 32", keep=True),
    "learned-1024": Row(partial(by_score, 1024), "learned for 1,024", keep=True),
    "learned-all": Row(everywhere, "learned for all neurons"),
    "degraded-256": Row(partial(by_score, K, goal="degrade"), "learned to forget", aim="degrade", keep=True),
    "degraded-256-one": Row(partial(by_score, K, goal="degrade", **ONE), "the same with one seed", "degrade", False),
    **modes("gradient", gradient, "16 + 16 neurons by gradient"),
    "few-shot": Row(reference.few_shot, "no edit: 4 demonstrations in front of the question", side_effects=False),
    "shuffled-256": Row(shuffled, "learned on drawn answers", aim="", keep=True),
    "ia3": Row(partial(peft, reference.ia3), "PEFT's IA3 on the same questions"),
    "lora": Row(partial(peft, reference.lora), "PEFT's LoRA on the same questions"),
    "learned-256-both": Row(by_score_and_contrast, "half of the neurons by contrast of activity", keep=True),
    "learned-256-signed": Row(partial(by_score, K, signed=True), "factors below 0 allowed", keep=True),
    "tuned": Row(tuned, "one factor for good and one for bad neurons, chosen on validation questions"),
    "verified": Row(verified, f"{BAD} bad neurons of measured effect, together too: silenced", keep=True),
    "worst": Row(worst, f"the {BAD} neurons with the lowest scores: silenced"),
    **sets("silenced", silenced_alike, "as many random neurons of the layers of `verified`: silenced"),
    **modes("ace", partial(published, "ace"), AS_PUBLISHED),
    **modes("qrnca", partial(published, "qrnca"), AS_PUBLISHED),
    **modes("knowledge", partial(published, "knowledge"), AS_PUBLISHED),
    **sets("matched", matched, "256 random neurons of the same layers and about as strong, learned the same way"),
    **sets("edited", edited_alike, "256 random neurons under the factors of learned-256"),
    **sets("forgetting", forgetting, "256 random neurons of the same layers, learned to forget"),
}
