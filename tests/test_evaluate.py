"""Reports against the same numbers worked out by plain forward passes, one prompt at a time."""

from __future__ import annotations

import copy
import json
import math
import warnings

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.common.statistics import bootstrap_interval, mcnemar, percent_of, relative_change, spearman
from neuronllm.data.prompts import Prompt
from neuronllm.model.anatomy import Anatomy
from neuronllm.model.random_sets import random_like
from neuronllm.results.factors import FACTORS
from neuronllm.results.neurons import NeuronSet
from tests.checks import Fuse, blow_after, letter_model, lived_in, quiz, refused, untouched, with_every_letter
from tests.tiny import DENSE, STAND_INS, in_time, tiny
from tests.tiny_tokenizers import byte_level

EDITED = {3: "good", 11: "good", 20: "bad", 30: "bad", 39: "good", 50: "bad"}


def some_neurons(model, **provenance) -> NeuronSet:
    ids, role = torch.tensor(list(EDITED)), np.array(list(EDITED.values()))
    return NeuronSet(ids, role, torch.zeros(len(ids)), Anatomy.of(model), provenance)


def ask(model, prompts, factors: dict[int, float] | None = None, positions: str = "all") -> list[np.ndarray]:
    """Probabilities among each prompt's options, from hooks and forward passes written out here (tiny Llama only)."""

    def hook(layer):
        def scale(module, args):
            h = args[0].clone()
            for neuron, factor in (factors or {}).items():
                if neuron // 28 == layer:
                    h[:, -1 if positions == "answer" else slice(None), neuron % 28] *= factor
            return (h,)

        return scale

    layers = model.model.layers
    handles = [layer.mlp.down_proj.register_forward_pre_hook(hook(n)) for n, layer in enumerate(layers)]
    probabilities = []
    for prompt in prompts:
        with torch.no_grad():
            logits = model(torch.tensor([prompt.input_ids])).logits[0, -1].double().numpy()
        scores = np.array([np.logaddexp.reduce(logits[ids]) for ids in prompt.first_tokens])
        probabilities.append(np.exp(scores - np.logaddexp.reduce(scores)))
    for handle in handles:
        handle.remove()
    return probabilities


def work_out(prompts, probabilities) -> dict:
    """The numbers of a report, in loops."""
    questions: dict[str, list[int]] = {}
    for n, prompt in enumerate(prompts):
        questions.setdefault(prompt.question_id, []).append(n)
    right = [int(p.argmax()) == prompt.answer for p, prompt in zip(probabilities, prompts, strict=True)]
    p_right = [p[prompt.answer] for p, prompt in zip(probabilities, prompts, strict=True)]
    by_letter: dict[int, list[bool]] = {}
    for prompt, good in zip(prompts, right, strict=True):
        by_letter.setdefault(prompt.answer, []).append(good)
    answers = [int(p.argmax()) for p in probabilities]
    votes = []
    for members in questions.values():
        total = np.zeros(len(probabilities[members[0]]))
        for n in members:
            for shown, choice in enumerate(prompts[n].order):
                total[choice] += probabilities[n][shown]
        votes.append(int(total.argmax()) == prompts[members[0]].order[prompts[members[0]].answer])
    letters = max(len(p.option_ids) for p in prompts)
    return {
        "accuracy": np.mean([np.mean([right[n] for n in members]) for members in questions.values()]),
        "balanced_accuracy": np.mean([np.mean(group) for group in by_letter.values()]),
        "p_right": np.mean([np.mean([p_right[n] for n in members]) for members in questions.values()]),
        "letters": {"ABCD"[letter]: answers.count(letter) / len(answers) for letter in range(letters)},
        "votes": votes,
        "prompt_p": p_right,
    }


def evaluate(model, prompts, *arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # random models often lean on a letter
        return nl.evaluate(model, None, prompts, *arguments, progress=False, **keywords)


def same(report, expected: dict) -> None:
    for name in ("accuracy", "balanced_accuracy", "p_right"):
        value = report[name] if isinstance(report, dict) else getattr(report, name)
        assert value == pytest.approx(expected[name], abs=1e-6)
    assert (report["letters"] if isinstance(report, dict) else report.letters) == pytest.approx(expected["letters"])


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.mark.noext
def test_without_neurons_the_model_is_described(model):
    prompts = quiz()
    with untouched(model):
        report = nl.evaluate(model, None, prompts, progress=False)
    same(report, work_out(prompts, ask(model, prompts)))
    assert report.questions == 10 and 0 < report.accuracy < 1
    for name in ("base", "rac", "rcc", "flips", "flipped", "mcnemar", "pcr", "controls"):
        assert getattr(report, name) is None
    assert set(report.ci) == {"base"} and set(report.ci["base"]) == {"accuracy", "p_right"}
    low, high = report.ci["base"]["accuracy"]
    assert low <= report.accuracy <= high
    json.dumps(report.to_dict())
    assert "10 questions" in str(report)


@pytest.mark.parametrize("positions", ["answer", "all"])
@pytest.mark.parametrize("mode", ["enhance", "degrade", None])
def test_every_number_of_an_edit(model, mode, positions):
    prompts, unrelated = quiz(), quiz(6, seed=11)
    good, bad = {"enhance": (2.0, 0.0), "degrade": (0.0, 2.0), None: (6.0, -3.0)}[mode]
    factors = {neuron: good if role == "good" else bad for neuron, role in EDITED.items()}
    by_hand = {} if mode else {"good": good, "bad": bad}
    with untouched(model):
        report = evaluate(
            model, prompts, some_neurons(model), mode, positions=positions, controls=0, unrelated=unrelated, **by_hand
        )
    before, after = (work_out(prompts, ask(model, prompts, f, positions)) for f in (None, factors))
    same(report.base, before)
    same(report, after)
    assert report.rac == pytest.approx((after["accuracy"] - before["accuracy"]) / before["accuracy"], abs=1e-5)
    assert report.rcc == pytest.approx((after["p_right"] - before["p_right"]) / before["p_right"], abs=1e-5)
    pairs = list(zip(before["votes"], after["votes"], strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    assert report.flips == {"right_to_wrong": lost, "wrong_to_right": won}
    for direction, pair in (("right_to_wrong", (True, False)), ("wrong_to_right", (False, True))):
        places = [n for n, seen in enumerate(pairs) if seen == pair]
        expected = [{"number": n, "id": f"q3-{n}", "question": None} for n in places]
        assert report.flipped[direction] == expected
    assert report.mcnemar == pytest.approx(mcnemar(lost, won))
    assert lost + won > 0 or mode, "the strong edit must flip something, or this shows nothing"

    def change(asked) -> float:
        first, then = (work_out(asked, ask(model, asked, f, positions))["prompt_p"] for f in (None, factors))
        return abs(np.mean([(b - a) / a for a, b in zip(first, then, strict=True)]))

    assert report.pcr == pytest.approx(change(prompts) / change(unrelated), rel=1e-3)
    asked = {
        "mode": mode,
        "good": good,
        "bad": bad,
        "positions": positions,
        "positions_from": "as asked for",
        "own": {},
    }
    assert report.edit == {**asked, "neurons": 6}
    json.dumps(report.to_dict())
    assert "RAC" in str(report)


@pytest.mark.parametrize(
    ("provenance", "positions", "source"),
    [
        ({"positions": "answer"}, "answer", "where the set was found or tuned"),
        ({"positions": "all"}, "all", "where the set was found or tuned"),
        ({"positions": "all", "learned": {"positions": "answer"}}, "answer", "where the set was found or tuned"),
        ({"positions": "all", "tuned": {"positions": "answer"}}, "answer", "where the set was found or tuned"),
        ({}, "all", "as the set does not say"),
    ],
)
def test_a_set_is_judged_where_it_was_found(model, provenance, positions, source):
    prompts, neurons = quiz(), some_neurons(model, **provenance)
    default = evaluate(model, prompts, neurons, "degrade", controls=0)
    assert default.edit["positions"] == positions and default.edit["positions_from"] == source
    assert f"positions {positions}, {source}" in str(default)
    other = "all" if positions == "answer" else "answer"
    values = {}
    for where in (positions, other):  # what is asked for wins
        asked = evaluate(model, prompts, neurons, "degrade", positions=where, controls=0)
        values[where] = asked.p_right
        assert asked.edit["positions"] == where and asked.edit["positions_from"] == "as asked for"
        factors = {neuron: FACTORS["degrade"][role == "bad"] for neuron, role in EDITED.items()}
        same(asked, work_out(prompts, ask(model, prompts, factors, where)))
    assert default.p_right == values[positions] != values[other]


@pytest.mark.parametrize("name", in_time(DENSE, STAND_INS))
def test_company_in_a_batch_changes_no_answer(name):
    """Right padding, sliding windows, convolutions, ALiBi: a prompt's numbers are its own."""
    from neuronllm.engine.asking import Asker, Edit

    model, prompts = tiny(name), quiz(5)
    for change in (None, *(Edit(torch.tensor([3, 25]), torch.tensor([0.0, 3.0]), at) for at in ("answer", "all"))):
        alone, together = (Asker(model, prompts, size).logprobs(change) for size in (1, 8))
        assert torch.allclose(alone.exp(), together.exp(), atol=1e-6)
    report = [evaluate(model, prompts, batch_size=size) for size in (1, 8)]
    assert report[0].accuracy == report[1].accuracy and report[0].letters == report[1].letters


def test_a_model_in_use_is_left_as_it_was():
    model = lived_in(tiny("llama"))
    plain = tiny("llama")
    plain.set_attn_implementation("eager")
    with untouched(model):
        report = evaluate(model, quiz(), some_neurons(model), "degrade", controls=2, positions="all")
    assert (
        report.to_dict()
        == evaluate(plain, quiz(), some_neurons(plain), "degrade", controls=2, positions="all").to_dict()
    )
    for calls in (0, 2, 9):
        broken = lived_in(tiny("llama"))
        blow_after(broken, calls)
        with untouched(broken), pytest.raises(Fuse):
            evaluate(broken, quiz(), some_neurons(broken), "degrade", controls=2, batch_size=8)


def test_tuned_sets_bring_their_factors_and_positions(model):
    tuned = some_neurons(model, tuned={"good": 1.5, "bad": 0.25, "positions": "all"})
    expected = evaluate(model, quiz(), tuned, good=1.5, bad=0.25, positions="all", controls=0)
    for mode in (None, "tuned"):
        report = evaluate(model, quiz(), tuned, mode, controls=0)
        assert report.p_right == expected.p_right and report.edit["positions"] == "all"
    answer = evaluate(model, quiz(), tuned, "tuned", positions="answer", controls=0)
    assert answer.edit["positions"] == "answer" and answer.p_right != expected.p_right


# ---- random controls ----


def test_controls_are_random_sets_of_the_same_size_per_layer(model):
    anatomy = Anatomy.of(model)
    ids = torch.tensor([40, 3, 50, 11, 20, 55, 54])  # three in layer 0, four in layer 1, mixed
    generator = torch.Generator().manual_seed(0)
    drawn = [random_like(ids, anatomy, generator) for _ in range(50)]
    for sample in drawn:
        assert torch.equal(anatomy.site_of(sample), anatomy.site_of(ids)) and len(sample.unique()) == len(ids)
    assert len({tuple(sorted(sample.tolist())) for sample in drawn}) > 45
    assert len(torch.cat(drawn).unique()) == 56  # every neuron can be drawn
    assert len(random_like(ids[:0], anatomy, generator)) == 0


def test_percentiles_of_the_controls(model):
    prompts, neurons = quiz(), some_neurons(model)
    report = evaluate(model, prompts, neurons, good=6.0, bad=-3.0, controls=12, positions="all", seed=5)
    generator = torch.Generator().manual_seed(5)
    values = {"accuracy": [], "balanced_accuracy": [], "p_right": []}
    factor = {"good": 6.0, "bad": -3.0}
    for _ in range(12):
        drawn = random_like(neurons.ids, neurons.anatomy, generator).tolist()
        factors = {i: factor[role] for i, role in zip(drawn, neurons.role.tolist(), strict=True)}
        worked = work_out(prompts, ask(model, prompts, factors))
        for name, value in values.items():
            value.append(worked[name])
    assert report.controls["sets"] == 12
    for name, drawn in values.items():
        described = report.controls[name]
        for key, percent in (("p2.5", 2.5), ("p50", 50), ("p97.5", 97.5)):
            assert described[key] == pytest.approx(np.percentile(drawn, percent), abs=1e-6)
        own = getattr(report, name)
        below = np.mean([100 * (d < own - 1e-9) + 50 * (abs(d - own) <= 1e-9) for d in drawn])
        assert described["percentile_of_edit"] == pytest.approx(below)
    assert evaluate(model, prompts, neurons, "enhance", controls=3).controls["accuracy"] is not None
    again = evaluate(model, prompts, neurons, good=6.0, bad=-3.0, controls=12, positions="all", seed=5)
    assert again.to_dict() == report.to_dict()


def test_twenty_controls_by_default(model):
    assert evaluate(model, quiz(3), some_neurons(model), "enhance").controls["sets"] == 20


# ---- letters ----


def test_a_collapse_to_one_letter_is_reported():
    model, towards, _ = letter_model()
    prompts = with_every_letter(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base = nl.evaluate(model, None, prompts, progress=False)
        assert not base.collapsed and base.letters["A"] == 0.25 and base.accuracy == 0.5
        towards_a = NeuronSet(torch.tensor([towards]), np.array(["good"]), torch.ones(1), Anatomy.of(model))
        nothing = nl.evaluate(model, None, prompts, towards_a, good=1.0, progress=False)
        assert not nothing.collapsed and nothing.accuracy == base.accuracy
    with pytest.warns(UserWarning, match="letter collapse: the edited model answers A in 100%") as caught:
        report = nl.evaluate(model, None, prompts, towards_a, "enhance", progress=False)
    assert caught[0].filename == __file__
    assert report.collapsed and report.letters == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0}
    assert report.balanced_accuracy == pytest.approx(1 / 4)
    assert "letter collapse" in str(report) and not report.base["collapsed"]


def collapsed(right: str, predicted: str) -> bool:
    from neuronllm.results.answers import Answers

    prompts = [Prompt([3], [[4], [5], [6], [7]], "ABCD".index(letter)) for letter in right]
    logprobs = torch.full((len(prompts), 4), -9.0)
    for row, letter in zip(logprobs, predicted, strict=True):
        row["ABCD".index(letter)] = 0.0
    return Answers(prompts, logprobs).collapsed


@pytest.mark.parametrize(
    ("right", "predicted", "expected"),
    [
        ("ABCD" * 5, "ABCD" * 5, False),
        ("ABCD" * 5, "BCDA" * 5, False),  # all wrong, no letter preferred
        ("ABCD" * 5, "A" * 20, True),
        ("ABCD" * 5, "A" * 14 + "BCDBCD", True),
        ("ABCD" * 5, "A" * 8 + "BCD" * 4, False),
        ("A" * 20, "A" * 20, False),  # the questions' own doing
        ("A" * 16 + "BCDB", "A" * 20, True),
        ("A" * 16 + "BCDB", "ABCD" * 5, False),  # away from A, but to no letter
        ("A" * 16 + "BCDB", "B" * 20, True),
        ("AABB" * 5, "A" * 10 + "B" * 10, False),
    ],
)
def test_what_counts_as_a_collapse(right, predicted, expected):
    assert collapsed(right, predicted) == expected


def test_questions_are_rendered_in_the_orders_asked_for():
    tokenizer = byte_level()
    model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    questions = [
        nl.Question("Which is a colour?", ("red", "seven", "door"), answer=0, id="a"),
        nl.Question("Which is a number?", ("red", "seven"), answer=1, id="b"),
    ]
    for orders in ("none", "rotate"):
        with untouched(model):
            report = nl.evaluate(model, tokenizer, questions, orders=orders, template="plain", progress=False)
        prompts = nl.render(tokenizer, questions, orders=orders, template="plain")
        assert len(prompts) == {"none": 2, "rotate": 5}[orders]
        same(report, work_out(prompts, ask(model, prompts)))
        assert report.questions == 2


@pytest.mark.parametrize(
    ("keywords", "parts"),
    [
        ({"mode": "enhance"}, ["neurons=None"]),
        ({"good": 2.0}, ["neurons=None"]),
        ({"unrelated": quiz(1)}, ["neurons=None"]),
        ({"positions": "last"}, ["positions='last'", "answer, all"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"neurons": True, "mode": "boost"}, ["mode='boost'"]),
        ({"neurons": True}, ["nl.tune"]),
        ({"neurons": True, "good": math.nan}, ["good", "finite"]),
        ({"neurons": True, "mode": "enhance", "controls": -1}, ["controls=-1"]),
        ({"neurons": True, "mode": "enhance", "controls": 2.5}, ["controls=2.5"]),
        ({"questions": []}, ["list is empty"]),
    ],
)
def test_bad_arguments_are_one_line(model, keywords, parts):
    keywords = {"questions": quiz(2), **keywords}
    questions = keywords.pop("questions")
    if keywords.get("neurons"):
        keywords["neurons"] = some_neurons(model)
    with untouched(model), refused(*parts):
        nl.evaluate(model, None, questions, progress=False, **keywords)


def test_a_set_of_another_model_is_refused(model):
    other = copy.deepcopy(tiny("llama", intermediate_size=20))
    with untouched(other), refused("28", "20"):
        nl.evaluate(other, None, quiz(2), some_neurons(model), "enhance", progress=False)


# ---- statistics, against numbers worked out elsewhere ----


@pytest.mark.noext
def test_statistics():
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0 and mcnemar(1, 0) == 1.0
    assert mcnemar(0, 6) == mcnemar(6, 0) == 2 / 64
    assert mcnemar(3, 10) == pytest.approx(2 * (1 + 13 + 78 + 286) / 2**13)  # sums of the binomials of 13
    assert mcnemar(400, 600) == pytest.approx(2.7e-10, rel=0.1)  # the normal approximation, z = 199 / sqrt(1000)
    assert relative_change(0.5, 0.25) == -0.5 and relative_change(0.0, 0.5) is None
    assert percent_of([1, 2, 2, 3], 2) == 50 and percent_of([1, 2], 5) == 100 and percent_of([1, 2], 0) == 0
    assert spearman([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1)
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9486833)  # ranks 1 2.5 2.5 4 and 1 3 2 4
    assert math.isnan(spearman([1, 1], [1, 2]))


def test_bootstrap_intervals_have_the_width_of_the_standard_error():
    values = np.array([1.0] * 120 + [0.0] * 280)
    low, high = bootstrap_interval(values)
    margin = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - margin, abs=0.006) and high == pytest.approx(0.3 + margin, abs=0.006)
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(np.ones(3)) == (1.0, 1.0)
