#!/usr/bin/env python3
"""H-Neurons (arXiv 2512.01797) on a small real model: which neurons tell made-up answers, and what if they are silent?

    make real
    .venv/bin/pip install -e '.[real,probe]'
    .venv/bin/python examples/real_model/h_neurons.py --minutes 60

1. `answers`: the model answers open questions greedily and a few times at random.
2. `detection`: of search questions that it always gets right, or always wrong, the neurons' shares of the FFN output
   (CETT) at the tokens of the greedy answer train an L1 probe. The tokens in front of the answers count as not made up,
   too, as in the paper. On held-out questions the probe stands beside the model's own log-probability.
3. `suppressed`: neurons with a positive weight are silenced at all tokens while the model answers held-out questions:
   right, wrong, abstained, beside random neurons of the same layers.
4. `learned`: as many neurons with learned factors, judged likewise: the strongest by `gradient` where the right answer
   stands against the model's own mistake.

Every row is a file of its own, as in study.py; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asking import folds
from rows import learn
from setting import FOLDS, Setting, Study, Way, rounded
from study import MODEL, circumstances, write
from torch import Tensor

import neuronllm as nl
from neuronllm.common.files import read_json
from neuronllm.common.statistics import auroc
from neuronllm.data.matching import abstains, includes
from neuronllm.engine.asking import Edit
from neuronllm.engine.writing import Sampled, Writer
from neuronllm.judging.wording import prompts_to_write

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "h_neurons"
READ = {"positions": "answer", "activation": "cett", "progress": False}
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # C of the probe, to choose from
# Short answers, and leave to pass: with Atlantis last, the model passes on half of all countries.
WORDING = (
    'Say "I don\'t know" if you are not sure.\n\n'
    "Question: What is the capital of Scotland?\nAnswer: Edinburgh\n\n"
    "Question: What is the capital of Atlantis?\nAnswer: I don't know\n\n"
    "Question: What is the capital of Texas?\nAnswer: Austin\n\n"
    "Question: What is the capital of Bavaria?\nAnswer: Munich\n\n"
    "Question: What is the capital of Catalonia?\nAnswer: Barcelona\n\n"
    "Question: {question}\nAnswer:"
)


class Heard:
    """A question, and what the model answered it: greedily first, then at random."""

    def __init__(self, question: nl.Question, texts: Sequence[str], logprob: float) -> None:
        self.question, self.texts, self.logprob = question, list(texts), logprob

    @property
    def made_up(self) -> bool | None:
        """Whether all of its answers are wrong; None where some are, or where one is no answer."""
        accepted = (self.question.choices[self.question.answer], *self.question.answers)
        right = [includes(text, accepted) for text in self.texts]
        declined = [not text or abstains(text) for text in self.texts]
        if any(said and not good for said, good in zip(declined, right, strict=True)) or len(set(right)) > 1:
            return None
        return not right[0]

    def first(self) -> Heard:
        return Heard(self.question, self.texts[:1], self.logprob)


class Recipe:
    """One fold of the open questions, how they are asked, and the rows."""

    def __init__(self, study: Study, task: str, fold: int, given: argparse.Namespace) -> None:
        self.study, self.task, self.fold, self.given = study, task, fold, given
        self.setting: Setting = study.at(task, fold)
        self.setting.template = given.template
        self.model, self.tokenizer = study.model, study.tokenizer

    def file(self, row: str) -> Path:
        return self.study.file(self.task, self.fold, row)

    def earlier(self, row: str) -> dict[str, Any]:
        if not self.file(row).is_file():
            raise nl.InputError(f"it needs the row {row} of the same fold: do that first")
        return dict(read_json(self.file(row).parent, self.file(row).name, "row"))

    # ---- answers ----

    def answers(self) -> dict[str, Any]:
        samples = self.given.samples
        return {"search": self._answered(self.setting.search, samples), "test": self._answered(self.setting.test, 0)}

    def _answered(self, questions: Sequence[nl.Question], samples: int) -> dict[str, list[Any]]:
        prompts = prompts_to_write(self.tokenizer, questions, "none", self.given.template)
        write = Writer(self.model, self.tokenizer, prompts, self.given.max_new_tokens)
        greedy = write.written()
        drawn = [write(sampled=Sampled(self.given.temperature, 0, n + 1)) for n in range(samples)]
        return {
            "questions": [question.id for question in questions],
            "texts": [[first.text, *more] for first, *more in zip(greedy, *drawn, strict=True)],
            "logprob": rounded(first.logprob for first in greedy),
        }

    def heard(self, side: str) -> list[Heard]:
        """Answers that are all right or all wrong."""
        facts, questions = self.earlier("answers")[side], getattr(self.setting, side)
        known = {question.id: question for question in questions}
        rows = zip(facts["questions"], facts["texts"], facts["logprob"], strict=True)
        found = [Heard(known[name], texts, logprob) for name, texts, logprob in rows]
        return [each for each in found if each.made_up is not None]

    # ---- detection ----

    def detection(self) -> dict[str, Any]:
        search, test = self.heard("search"), [each.first() for each in self.heard("test")]
        parts = folds([each.question for each in search], 3)[0]
        held = {question.id for question in parts.test}
        fit, choose = ([each for each in search if (each.question.id in held) == side] for side in (False, True))
        tried = {C: detected(self.activations(choose), self.probe(fit, C).values, choose) for C in STRENGTHS}
        best = max(STRENGTHS, key=lambda C: (np.nan_to_num(tried[C], nan=0.0), -C))
        scores = self.probe(search, best)
        kept = scores.values.nonzero()[:, 0]
        return {
            "searched": {"made_up": sum(map(made_up, search)), "right": sum(not made_up(each) for each in search)},
            "tested": {"made_up": sum(map(made_up, test)), "right": sum(not made_up(each) for each in test)},
            "tried": {str(C): round(value, 4) for C, value in tried.items()},
            "C": best,
            "auroc": detected(self.activations(test), scores.values, test),
            "auroc_of_logprob": auroc(np.array([-each.logprob for each in test]), np.array(list(map(made_up, test)))),
            "ids": kept.tolist(),
            "weight": scores.values[kept].tolist(),
        }

    def probe(self, heard: Sequence[Heard], C: float) -> nl.Scores:
        wrong, right = ([each for each in heard if made_up(each) == side] for side in (True, False))
        if not wrong or not right:
            raise nl.InputError(f"of {len(heard)} questions {len(wrong)} are always answered wrong: it takes both")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no neuron has a weight at some C
            sides = self.prompts(wrong), self.prompts(right)
            return nl.contrast(self.model, self.tokenizer, *sides, statistic="probe", others=True, C=C, **READ)

    def activations(self, heard: Sequence[Heard]) -> Tensor:
        return nl.activations(self.model, self.tokenizer, self.prompts(heard), **READ)

    def prompts(self, heard: Sequence[Heard]) -> list[nl.Prompt]:
        """What the model was shown, with its greedy answer behind it."""
        written = [nl.Question(each.question.stem, answer=each.texts[0], id=each.question.id) for each in heard]
        return nl.render(self.tokenizer, written, "none", self.given.template, answers="texts")

    # ---- edits ----

    def suppressed(self) -> dict[str, Any]:
        found = self.earlier("detection")
        weight = torch.tensor(found["weight"])
        ids = torch.tensor(found["ids"], dtype=torch.int64)[weight > 0]
        role = np.full(len(ids), "good")  # of what was shown: made-up answers
        return self.judged(nl.NeuronSet(ids, role, weight[weight > 0], self.study.anatomy), good=0.0)

    def learned(self) -> dict[str, Any]:
        count = sum(weight > 0 for weight in self.earlier("detection")["weight"])
        wrong = [each for each in self.heard("search") if made_up(each)]
        pairs = [against_mistake(each) for each in wrong]
        scores = self.setting.scored("gradient", pairs)
        neurons = learn(self.setting, self.setting.strongest(count, scores), pairs)
        return {"pairs": len(pairs), **self.judged(neurons, mode="own")}

    def judged(self, neurons: nl.NeuronSet, **how: Any) -> dict[str, Any]:
        if not len(neurons):
            raise nl.InputError("there is no such neuron")
        report = nl.evaluate(
            self.model,
            self.tokenizer,
            self.setting.test,
            neurons,
            positions="all",
            answers="generate",
            template=self.given.template,
            max_new_tokens=self.given.max_new_tokens,
            controls=self.given.controls,
            progress=False,
            **how,
        )
        named = ("inclusion", "wrong", "abstained", "empty")
        factors = neurons.factor if "mode" in how else torch.zeros(len(neurons))
        way = Way(edit=Edit(neurons.ids, factors, "all"))
        return {
            "neurons": len(neurons),
            "ids": neurons.ids.tolist(),
            "factor": rounded(factors),
            "base": {name: report.base[name] for name in named},
            "edited": {name: getattr(report, name) for name in named},
            "change": report.ci["change"],
            "controls": {name: report.controls[name] for name in ("sets", *named)} if report.controls else None,
            "texts": {"before": self.study.texts_before, "after": self.study.texts_after(way)},
        }


def made_up(heard: Heard) -> bool:
    return bool(heard.made_up)


def detected(activations: Tensor, weights: Tensor, heard: Sequence[Heard]) -> float:
    return auroc((activations.double() @ weights.double()).numpy(), np.array(list(map(made_up, heard))))


def against_mistake(heard: Heard) -> nl.Question:
    """The right answer against what the model says; which one is displayed first does not matter in words."""
    asked = heard.question
    return nl.Question(asked.stem, (asked.choices[asked.answer], heard.texts[0]), 0, id=asked.id)


ROWS: dict[str, Callable[[Recipe], dict[str, Any]]] = {
    "answers": Recipe.answers,
    "detection": Recipe.detection,
    "suppressed": Recipe.suppressed,
    "learned": Recipe.learned,
}


# ---- the command ----


def main(arguments: Sequence[str]) -> int:
    given = parsed(arguments)
    try:
        questions = opened(nl.load_questions(given.questions)) if given.questions else known_tasks()[given.task]
        model, tokenizer = nl.load_model(given.model, dtype=torch.float32)
        run(Study(model, tokenizer, {given.task: questions}, given.output), given)
    except ModuleNotFoundError as error:
        print(f"h_neurons: error: no package {error.name}: pip install 'neuronllm[real]'", file=sys.stderr)
        return 2
    except nl.InputError as error:
        print(f"h_neurons: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("h_neurons: stopped; what is done stays, and the same command goes on", file=sys.stderr)
        return 130
    return 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="h_neurons", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--task", default="capitals", metavar="NAME", help="of tasks.py (default: %(default)s)")
    parser.add_argument("--questions", metavar="FILE", help="others in its place, with ids such as TASK/ITEM")
    parser.add_argument("--folds", nargs="+", type=int, default=[0], metavar="N", help="(default: 0)")
    parser.add_argument("--samples", type=int, default=4, help="answers drawn at random (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="of these (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=12, help="of an answer (default: %(default)s)")
    parser.add_argument("--controls", type=int, default=20, help="random sets beside an edit (default: %(default)s)")
    parser.add_argument("--template", default=WORDING, help="a text with {question} (default: demonstrations)")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no row after so many")
    parser.add_argument("--model", default=MODEL, metavar="FOLDER", help="of the model that `make real` writes")
    parser.add_argument("--output", default=RESULTS, metavar="FOLDER", help="of the files of rows")
    return parser.parse_args(arguments)


def known_tasks() -> dict[str, list[nl.Question]]:
    """The tasks of tasks.py in their open form; of capitals, other names count, too."""
    from tasks import more_tasks, tasks

    made = {name: opened(questions) for name, questions in tasks().items()}
    return made | {"capitals": more_tasks()["capitals_open"]}


def opened(questions: Sequence[nl.Question]) -> list[nl.Question]:
    return [nl.Question(q.stem, answer=q.choices[q.answer], id=q.id, answers=q.answers) for q in questions]


def run(study: Study, given: argparse.Namespace) -> None:
    """The rows that have no file yet; one that cannot be done is left out with the reason."""
    if wrong := [fold for fold in given.folds if fold not in range(FOLDS)]:
        raise nl.InputError(f"--folds {wrong[0]}: there are {FOLDS}, the first is 0")
    began = time.monotonic()
    for fold in given.folds:
        recipe = Recipe(study, given.task, fold, given)
        for name, make in ROWS.items():
            if recipe.file(name).exists():
                continue
            if given.minutes is not None and time.monotonic() - began > 60 * given.minutes:
                print(f"{given.minutes:g} minutes are over", flush=True)
                return
            start = time.process_time()
            try:
                facts = make(recipe)
            except nl.InputError as reason:
                print(f"{given.task} {fold} {name}: left out: {reason}", flush=True)
                continue
            seconds = round(time.process_time() - start, 1)
            asked = {name: getattr(given, name) for name in ("samples", "temperature", "max_new_tokens", "template")}
            about = {"row": name, "task": given.task, "fold": fold, "settings": asked}
            write(recipe.file(name), about | facts | {"seconds": seconds} | circumstances())
            print(f"{given.task} {fold} {name}: {said(facts)}, {seconds:.0f} s", flush=True)


def said(facts: dict[str, Any]) -> str:
    """What a row comes to, in a line."""
    if "auroc" in facts:
        return f"AUROC {facts['auroc']:.3f}, of the log-probability {facts['auroc_of_logprob']:.3f}"
    if "edited" in facts:
        moved = (f"{name} {facts['base'][name]:.3f} -> {value:.3f}" for name, value in facts["edited"].items())
        return f"{facts['neurons']} neurons, {', '.join(moved)}"
    return f"{sum(len(side['texts']) for side in facts.values())} questions answered"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
