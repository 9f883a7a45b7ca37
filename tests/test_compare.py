"""`nl.compare`: every number is what the single verbs give, however often the run was stopped."""

from __future__ import annotations

import csv
import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import neuronllm as nl
from neuronllm.common.tables import show
from neuronllm.comparing import run as running
from neuronllm.comparing.budget import BUDGETS
from neuronllm.comparing.scoring import neuron_map
from neuronllm.comparing.tasks import Task
from tests.asked_tasks import questions
from tests.checks import refused, untouched
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

SMALL = replace(BUDGETS["quick"], judged=2, effects=10**6, controls=3, curve_controls=2, elsewhere=3, test=None)
METHODS, EDITS = ["gradient", "ace"], ["enhance", "degrade", "suppress"]
ASKED = {"k": 3, "template": "plain", "seeds": (0, 1), "options": {"ace": {"steps": 2}}, "progress": False}


TASKS = {
    "colour": questions("colour", 14, 3),
    "sky": tuple(questions("sky", 12, 2)[side] for side in (slice(0, 5), slice(5, 8), slice(8, 12))),
}


@pytest.fixture(scope="module")
def model():
    return tiny("llama", torch.float32, vocab_size=len(byte_level()), max_position_embeddings=256)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def made(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "comparison"
    with untouched(model):
        return nl.compare(model, tokenizer, TASKS, METHODS, edits=EDITS, budget=SMALL, output=folder, **ASKED)


def of(rows, **names):
    (found,) = [row for row in rows if all(row[key] == value for key, value in names.items())]
    return found


def close(found, expected):
    """What is written has six digits."""
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_folder_and_form(made) -> None:
    assert {path.name for path in made.folder.iterdir()} == {
        "comparison.json",
        "compare.json",
        "timings.json",
        "report.html",
        "sets",
    }
    data = made.data
    assert [task["name"] for task in data["tasks"]] == ["colour", "sky"]
    colour, sky = data["tasks"]
    assert colour["split"] == "by id" and sum(colour["questions"].values()) == 14
    assert sky["split"] == "given" and sky["questions"] == {"search": 5, "validation": 3, "test": 4}
    assert (colour["chance"], sky["chance"]) == (0.333333, 0.5)
    assert len(data["methods"]) == 4 and len(data["edits"]) == 12 and len(data["curves"]) == 8
    assert data["model"]["neurons"] == 56 and data["model"]["layers"] == 2
    assert data["made"]["settings"]["k"] == 3
    assert set(made.timings["methods"]["ace"]["sky"]) == {"seconds", "inference", "ratio"}
    assert "NaN" not in (made.folder / "comparison.json").read_text()
    again = nl.Comparison.load(made.folder)
    assert again.data == data and again.timings == made.timings


FACTORS = [("enhance", (2.0, 0.0)), ("degrade", (0.0, 2.0)), ("suppress", (0.0, None))]


@pytest.mark.parametrize(("edit", "factors"), FACTORS)
def test_an_edit_is_judged_as_evaluate_does(model, tokenizer, made, edit, factors) -> None:
    """The neurons of the scores, the whole report, and the PCR against the other task."""
    there = TASKS["sky"]
    scores = nl.attribute(model, tokenizer, there[0], "gradient", template="plain", progress=False)
    neurons, saved = scores.find(3, 3), made.neurons("sky", "gradient", edit)
    mine = neurons.top(None, 0) if factors[1] is None else neurons
    assert saved.ids.tolist() == mine.ids.tolist() and saved.role.tolist() == mine.role.tolist()

    row = of(made.data["edits"], task="sky", method="gradient", edit=edit)
    report = nl.evaluate(
        model,
        tokenizer,
        there[2],
        mine,
        good=factors[0],
        bad=factors[1],
        controls=3,
        template="plain",
        progress=False,
    )
    close(row["accuracy"], report.accuracy)
    close(row["p_right"], report.p_right)
    close((row["rac"], row["rcc"], row["p"]), (report.rac, report.rcc, report.mcnemar))
    close(row["gain"], report.accuracy - report.base["accuracy"])
    close(row["interval"], list(report.ci["edited"]["accuracy"]))
    assert row["leaning"].keys() == report.letters.keys() and row["collapsed"] == report.collapsed
    flips = report.flips
    assert (row["flips"]["to_right"], row["flips"]["to_wrong"]) == (flips["wrong_to_right"], flips["right_to_wrong"])
    among = report.controls["accuracy"]
    place = among["percentile_of_edit"] / 100
    close(row["controls"]["band"], [among["p2.5"], among["p97.5"]])
    close(row["controls"]["place"], place if edit == "enhance" else 1 - place)
    assert row["controls"]["count"] == 3 and row["neurons"] == len(mine)


@pytest.mark.slow
def test_pcr_is_against_the_questions_of_the_other_tasks(model, tokenizer, made) -> None:
    whole = nl.compare(
        model,
        tokenizer,
        TASKS,
        ["gradient"],
        edits=["degrade"],
        budget=replace(SMALL, elsewhere=None),
        **ASKED | {"options": {}},
    )
    elsewhere = running.read_tasks(TASKS, running.CompareRequest(budget=SMALL).checked())["colour"].splits.test
    report = nl.evaluate(
        model,
        tokenizer,
        TASKS["sky"][2],
        made.neurons("sky", "gradient", "degrade"),
        mode="degrade",
        controls=0,
        template="plain",
        unrelated=elsewhere,
        progress=False,
    )
    row = of(whole.data["edits"], task="sky")
    close(row["pcr"], report.pcr)
    close(row["elsewhere"]["colour"], {"before": report.unrelated["base"], "after": report.unrelated["edited"]})
    assert whole.timings["total_seconds"] > 0 and whole.folder is None


def test_every_p_is_corrected_for_how_many_edits_there_are(made) -> None:
    tested = sorted((edit for edit in made.data["edits"] if edit["neurons"]), key=lambda edit: edit["p"])
    least = 0.0
    for rank, edit in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * edit["p"]))
        close(edit["p_holm"], least)
    assert all(edit["p_holm"] == 1 for edit in made.data["edits"] if not edit["neurons"])


def ranks(values) -> list[float]:
    return [sum((other < value) + (other == value) / 2 for other in values) for value in values]


def correlation(first, second) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


@pytest.mark.parametrize("method", ["gradient", "ace"])
def test_agreement_is_that_of_single_prompts(model, tokenizer, made, method) -> None:
    """Every neuron is silenced, prompt by prompt, where the method scores."""
    found = of(made.data["methods"], task="sky", method=method)
    positions = {"gradient": "all", "ace": "answer"}[method]
    assert found["positions"] == positions
    numbers = sorted(random.Random(0).sample(range(5), 2))
    prompts = nl.render(tokenizer, [TASKS["sky"][0][n] for n in numbers], "none", "plain")
    more = {"steps": 2} if method == "ace" else {}
    mine = nl.attribute(model, None, prompts, method, positions=positions, keep="all", progress=False, **more)
    real = nl.attribute(model, None, prompts, "exact", positions=positions, keep="all", progress=False)
    pairs = list(zip(mine.per_prompt[:].tolist(), real.per_prompt[:].tolist(), strict=True))
    close(found["agreement"]["spearman"], np.mean([correlation(*pair) for pair in pairs]))
    best = [max(range(56), key=row.__getitem__) == max(range(56), key=other.__getitem__) for row, other in pairs]
    close(found["agreement"]["top"], np.mean(best))  # 1 % of 56 neurons is one
    assert found["agreement"]["neurons"] == 56 and not found["agreement"]["sampled"]
    assert found["agreement"]["interval"] is None


@pytest.mark.parametrize("method", ["gradient", "ace"])
def test_stability_is_that_of_two_attributions(model, tokenizer, made, method) -> None:
    search, found = TASKS["sky"][0], []
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(5).tolist()
        halves = [[search[n] for n in sorted(half)] for half in (order[:2], order[2:])]
        more = {"steps": 2} if method == "ace" else {}
        values = [
            nl.attribute(model, tokenizer, half, method, template="plain", progress=False, **more).values.tolist()
            for half in halves
        ]
        found.append(correlation(*values))
    assert of(made.data["methods"], task="sky", method=method)["stability"]["spearman"] == pytest.approx(
        np.mean(found), abs=5e-3
    )


@pytest.mark.slow
def test_a_sample_of_neurons_has_an_interval(model, tokenizer) -> None:
    small = replace(SMALL, effects=2 * 20)  # at the answer 20 neurons of each of two prompts, at all positions one
    found = nl.compare(model, tokenizer, TASKS, ["ace"], edits=["enhance"], budget=small, **ASKED)
    agreement = found.data["methods"][0]["agreement"]
    assert agreement["sampled"] and agreement["neurons"] == 20
    assert all(said["exact"] is not None for card in found.data["cards"] for said in card["methods"])
    low, high = agreement["interval"]
    assert low <= agreement["spearman"] <= high and low < high


def test_curves_begin_unedited_and_pass_through_the_table(made) -> None:
    curve = of(made.data["curves"], task="colour", method="ace", edit="degrade")
    assert [point["k"] for point in curve["points"]] == [0, 1, 3, 12]
    base = made.data["tasks"][0]["base"]
    own = of(made.data["edits"], task="colour", method="ace", edit="degrade")
    assert curve["points"][0]["accuracy"] == base["accuracy"] and curve["points"][2]["accuracy"] == own["accuracy"]
    assert curve["points"][2]["controls"] == own["controls"]


def test_maps_hold_the_largest_score_of_every_bin(made, model) -> None:
    scores = nl.Scores(torch.linspace(-3, 2, 56), torch.zeros(56), torch.zeros(56), nl.Anatomy.of(model))
    found = neuron_map(scores)
    assert found["bin"] == 1 and [row["first"] for row in found["rows"]] == [0, 28]
    assert found["rows"][1]["values"] == [float(f"{value:.3g}") for value in scores.values[28:].tolist()]
    assert [row["label"] for row in made.data["maps"][0]["rows"]] == ["layer 0", "layer 1"]


def sets_of(made, task, method="gradient") -> dict[str, set[int]]:
    """The neurons of each role that a method found for a task."""
    found = made.neurons(task, method, "enhance")
    return {role: set(found.ids[torch.from_numpy(found.role == role)].tolist()) for role in ("good", "bad")}


@pytest.mark.parametrize("method", METHODS)
def test_what_tasks_share_by_hand(made, method) -> None:
    table, names = of(made.data["across_tasks"], method=method), ["colour", "sky"]
    sets = {task: sets_of(made, task, method) for task in names}
    for name, (first, second) in {"good": ("good", "good"), "bad": ("bad", "bad"), "good_bad": ("good", "bad")}.items():
        for i, one in enumerate(names):
            for j, other in enumerate(names):
                a, b = sets[one][first], sets[other][second]
                close(table[name][i][j]["jaccard"], len(a & b) / len(a | b))
    both = {n: [task for task in names if n in sets[task]["good"]] for task in names for n in sets[task]["bad"]}
    assert {each["id"]: each["good"] for each in table["two_faced"]} == {n: found for n, found in both.items() if found}
    assert [one["edit"] for one in table["transfer"]] == EDITS
    for one in table["transfer"]:
        edit = of(made.data["edits"], task="colour", method=method, edit=one["edit"])
        after = edit["elsewhere"]["sky"]
        close(one["change"][0], [edit["gain"], after["after"] - after["before"]])


def test_what_methods_share_by_hand(made) -> None:
    table = of(made.data["across_methods"], task="sky")
    first, second = (sets_of(made, "sky", method) for method in METHODS)
    assert table["names"] == METHODS
    for role in ("good", "bad"):
        close(table[role][0][1]["jaccard"], len(first[role] & second[role]) / len(first[role] | second[role]))


def test_cards_say_what_was_measured(made, model, tokenizer) -> None:
    """One a neuron, with what each method says of it where the method scores."""
    cards = {card["id"]: card for card in made.data["cards"] if card["task"] == "sky"}
    search = TASKS["sky"][0]
    drawn = [search[n] for n in sorted(random.Random(0).sample(range(5), 2))]
    prompts = nl.render(tokenizer, drawn, "none", "plain")
    seen = set()
    for method, positions in (("gradient", "all"), ("ace", "answer")):
        neurons = made.neurons("sky", method, "enhance")
        mine = [cards[n] for n in neurons.ids.tolist()]
        said = [of(card["methods"], method=method) for card in mine]
        assert [one["role"] for one in said] == neurons.role.tolist()
        close([one["score"] for one in said], neurons.score.tolist())
        assert all(one["interval"][0] < one["score"] < one["interval"][1] for one in said)
        assert [one["factor"] for one in said] == [{"good": 2.0, "bad": 0.0}[role] for role in neurons.role]
        exact = nl.attribute(model, None, prompts, "exact", positions=positions, progress=False).values
        assert [one["exact"] for one in said] == pytest.approx(exact[neurons.ids].tolist(), abs=1e-6)  # of float32
        plainly = nl.describe(model, tokenizer, neurons, search, template="plain", progress=False).cards
        for name in ("promoted", "suppressed"):
            assert [[p["token"] for p in c[name]] for c in mine] == [[p["token"] for p in c[name]] for c in plainly]
        assert [[span["question"] for span in c["spans"]] for c in mine] == [
            [span["question"] for span in c["spans"]] for c in plainly
        ]
        seen |= set(neurons.ids.tolist())
    assert set(cards) == seen and {card["judged"] for card in cards.values()} == {2}
    other = {method: sets_of(made, "colour", method) for method in METHODS}
    for card in cards.values():
        also = {role: [m for m in METHODS if card["id"] in other[m][role]] for role in ("good", "bad")}
        assert {each["role"]: each["methods"] for each in card["also"]} == {
            r: found for r, found in also.items() if found
        }
        assert {each["task"] for each in card["also"]} <= {"colour"}


def test_pictures(made, tmp_path) -> None:
    assert "gradient" in made.show().html and made._repr_html_() == made.show().html
    figure = made.plot()
    assert [axes.get_title() for axes in figure.axes[:2]] == ["colour", "sky"]
    colour = figure.axes[0]
    curve = of(made.data["curves"], task="colour", method="gradient", edit="enhance")
    drawn = {line.get_label(): line.get_ydata() for line in colour.lines}
    assert list(drawn["gradient, enhance"]) == [point["accuracy"] for point in curve["points"] if point["k"]]
    assert "random sets" in [band.get_label() for band in colour.collections]
    for name, begin in (("curves.pdf", b"%PDF"), ("curves.png", b"\x89PNG")):
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_tables(made, tmp_path) -> None:
    rows = list(csv.DictReader(io.StringIO(made.to_csv(tmp_path / "table.csv"))))
    assert len(rows) == 12 and rows[0]["accuracy"] == str(made.data["edits"][0]["accuracy"])
    first = made.data["edits"][0]
    flips = [first["flips"][way] for way in ("to_right", "to_wrong", "other")]
    told = {name: rows[0][name] for name in ("low", "high", "to right", "to wrong", "other", "agreement neurons")}
    assert list(told.values()) == [str(n) for n in (*first["interval"], *flips, 56)]
    assert rows[0]["agreement low"] == "" and rows[0]["agreement questions"] == "2"
    latex = made.to_latex(tmp_path / "table.tex")
    assert latex.count(r"\\") == 13 and latex.count(r"\midrule") == 2 and "%" not in latex.replace(r"\%", "")
    assert (tmp_path / "table.tex").read_text() == latex
    shown = f"{first['accuracy']:.3f} & {first['interval'][0]:.2f} to {first['interval'][1]:.2f} & +"
    assert f"colour & gradient & enhance & {first['neurons']} & {shown}" in latex
    assert made.to_markdown().count("| gradient |") == 2 + 6 + len(EDITS)  # scores, edits, and heads of the PCR
    with refused("table='pcrs': known values are edits, pcr"):
        made.to_latex(table="pcrs")
    made.save(tmp_path / "copy")
    assert nl.Comparison.load(tmp_path / "copy").data == made.data
    with refused("something stands there"):
        made.to_csv(tmp_path / "table.csv")
    with refused("no sky/gradient/louder in this comparison", "its edits enhance, degrade, suppress"):
        made.neurons("sky", "gradient", "louder")
    with refused("task 'sky': the keys of its dictionary are ['search']: give 'search' and 'test', or 'search'"):
        nl.compare(None, None, {"sky": {"search": []}}, methods=["gradient"], edits=["enhance"])


def test_splits_may_have_their_names() -> None:
    asked = [nl.Question(f"What is {n}?", ("odd", "even"), n % 2) for n in range(9)]
    three = {"test": asked[6:], "search": asked[:3], "validation": asked[3:6]}
    assert Task.of("sky", three) == Task.of("sky", [asked[:3], asked[3:6], asked[6:]])
    assert Task.of("sky", {"test": asked[6:], "search": asked[:6]}) == Task.of("sky", [asked[:6], asked[6:]])


def test_pcr_is_a_table_of_tasks_by_methods(made, capsys) -> None:
    made.print()
    printed, latex, markdown = capsys.readouterr().out, made.to_latex(table="pcr"), made.to_markdown()
    assert latex.count(r"\\") == 2 + len(EDITS) * 2 and latex.count(r"\midrule") == len(EDITS)
    assert r"\multicolumn{3}{c}{gradient} & \multicolumn{3}{c}{ace}" in latex
    for edit in EDITS:
        assert f"PCR of {edit} (" in printed and f"PCR of {edit} (" in markdown
        for task in ("colour", "sky"):
            found = [of(made.data["edits"], task=task, method=method, edit=edit) for method in METHODS]
            numbers = [f"{n['p_change']:+.3f} & {n['p_change_elsewhere']:+.3f} & {show(n['pcr'])}" for n in found]
            assert f"{edit} & {task} & {' & '.join(numbers)} \\\\" in latex
            cells = [f"{show(n['pcr'])} ({n['p_change']:+.3f}, {n['p_change_elsewhere']:+.3f})" for n in found]
            assert f"| {task} | {' | '.join(cells)} |" in markdown


@pytest.mark.slow
def test_stopped_and_taken_up_again(model, tokenizer, made, tmp_path, monkeypatch) -> None:
    """Ctrl-C in front of one piece of work after the other, and the same bytes at the end."""
    plain_do, output = running._do, tmp_path / "comparison"
    whole = (made.folder / "comparison.json").read_bytes()
    asked = {"edits": EDITS, "budget": SMALL, "output": output, **ASKED}
    for stop_at in (1, 8, 20):
        left = [stop_at]

        def do(setting, stage, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            plain_do(setting, stage)

        monkeypatch.setattr(running, "_do", do)
        with pytest.raises(KeyboardInterrupt, match="pieces of work are done; go on with resume=True"):
            nl.compare(model, tokenizer, TASKS, METHODS, resume=stop_at > 1, **asked)
        assert not output.exists()
    monkeypatch.setattr(running, "_do", plain_do)
    with refused("is a run under way"):
        nl.compare(model, tokenizer, TASKS, METHODS, **asked)
    with refused("was begun with k 3, not 4"):
        nl.compare(model, tokenizer, TASKS, METHODS, resume=True, **asked | {"k": 4})
    nl.compare(model, tokenizer, TASKS, METHODS, resume=True, **asked)
    assert (output / "comparison.json").read_bytes() == whole
    assert not output.with_name("comparison.partial").exists()
    with refused("an earlier result stands there"):
        nl.compare(model, tokenizer, TASKS, METHODS, **asked)
    assert nl.compare(model, tokenizer, TASKS, METHODS, resume=True, **asked).data == made.data  # nothing is left to do
