"""A comparison as text: what the terminal shows of numbers that were made up."""

from __future__ import annotations

import pytest

import neuronllm as nl
from neuronllm.common.tables import show
from neuronllm.comparing.agreement import no_agreement

from .checks import refused
from .comparisons import comparison


@pytest.fixture
def made() -> nl.Comparison:
    return nl.Comparison(comparison())


def signed(value: float) -> str:
    return f"{value:+.3f}"


def test_on_the_terminal(made: nl.Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores and edits with what the page has of them; a narrow terminal has room for the longest words and numbers."""
    for one in made.data["methods"] + made.data["edits"]:
        one["method"] = {"relp": "activation"}.get(one["method"], one["method"])
    for edit in made.data["edits"]:
        edit["edit"] = {"tuned": "suppress"}.get(edit["edit"], edit["edit"])
    made.data["edits"][-1] |= {"pcr": 66688.7, "p_holm": 1.2e-05, "neurons": 12345}
    made.data["edits"][-1]["flips"] |= {"to_right": 123, "to_wrong": 10}
    made.print()
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert max(map(len, lines)) <= 80 and "…" not in out
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    for method in made.data["methods"]:
        found, stability = method["agreement"], show(method["stability"]["spearman"])
        interval = f"{found['interval'][0]:.2f} to {found['interval'][1]:.2f}" if found["interval"] else "n/a"
        sampled = "2000 sampled" if found["sampled"] else "2000 all"
        assert [method["method"], show(found["spearman"]), interval, sampled, "8", stability] in cells
    for edit in made.data["edits"]:
        name, (low, high), flips = [edit["method"], edit["edit"]], edit["interval"], edit["flips"]
        flipped, beats = f"+{flips['to_right']} -{flips['to_wrong']}", f"{edit['controls']['place']:.0%}"
        assert [
            *name,
            show(edit["accuracy"]),
            f"{low:.2f} to {high:.2f}",
            flipped,
            beats,
            show(edit["p_holm"]),
        ] in cells
        changes = [signed(edit[change]) for change in ("rac", "rcc")]
        pcr = show(edit["pcr"]) if edit["pcr"] < 1000 else "6.7e+04"
        assert [*name, str(edit["neurons"]), show(edit["p_right"]), *changes, pcr] in cells
    assert made.data["tasks"][0]["shared"][0]["said"] in out.splitlines()


def test_pictures_of_scores(made: nl.Comparison) -> None:
    pytest.importorskip("matplotlib")
    axes = made.plot("map", task="facts", method="ace").axes[0]
    rows = next(one["rows"] for one in made.data["maps"] if (one["task"], one["method"]) == ("facts", "ace"))
    assert axes.images[0].get_array().data.tolist() == [pytest.approx(row["values"]) for row in rows]
    assert axes.get_title() == "facts, ace" and axes.get_yticklabels()[1].get_text() == "layer 1"
    axes = made.plot("layers", task="sentiment", method="relp", title="mine").axes[0]
    layers = next(
        one["layers"] for one in made.data["methods"] if (one["task"], one["method"]) == ("sentiment", "relp")
    )
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert widths == layers and axes.get_title() == "mine"
    only = made.plot("k", task="facts", method="ace")
    assert [axes.get_title() for axes in only.axes] == ["facts"]
    assert {line.get_label() for line in only.axes[0].lines} == {"enhance", "degrade", "no edit"}


def test_what_cannot_be_plotted(made: nl.Comparison) -> None:
    with refused("kind='My title': what can be plotted is k, map, layers; a title is given as title="):
        made.plot("My title")
    with refused('kind="map": it is of one task, give task= one of facts, sentiment'):
        made.plot("map")
    with refused('kind="layers": it is of one method, give method= one of gradient, ace, relp'):
        made.plot("layers", task="facts")
    with refused("task='verbs': known values are facts, sentiment"):
        made.plot(task="verbs")
    made.data["curves"].clear()
    with refused('kind="k": this comparison has no curves'):
        made.plot()


def test_why_a_method_has_no_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    nl.Comparison(comparison("7b")).print()
    assert capsys.readouterr().out.count("random has no agreement: it is random here\n") == 4  # once a task
    assert no_agreement("contrast", None) is not None and no_agreement("ace", {"spearman": 0.5}) is None
    assert str(no_agreement("ace", {"spearman": float("nan")})).endswith("so they have no ranks")


def test_a_comparison_of_earlier_days_is_shown(made: nl.Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    """Before it said which questions stand twice, and why there is no agreement."""
    for task in made.data["tasks"]:
        del task["shared"]
    for method in made.data["methods"]:
        del method["no_agreement"]
    made.print()
    assert "ace" in capsys.readouterr().out and "ace" in made.show().html
