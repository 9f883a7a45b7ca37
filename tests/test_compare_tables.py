"""A comparison as text: what the terminal shows of numbers that were made up."""

from __future__ import annotations

import pytest

import neuronllm as nl
from neuronllm.common.tables import show
from neuronllm.comparing.agreement import no_agreement

from .comparisons import comparison


@pytest.fixture
def made() -> nl.Comparison:
    return nl.Comparison(comparison())


def signed(value: float) -> str:
    return f"{value:+.3f}"


def test_on_the_terminal(made: nl.Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores and edits with what the page has of them, in tables that a narrow terminal has room for."""
    made.print()
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert max(map(len, lines)) <= 80
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
        changes = [signed(edit[change]) for change in ("gain", "rac", "rcc")]
        assert [*name, "32", show(edit["p_right"]), *changes, show(edit["pcr"])] in cells
    assert made.data["tasks"][0]["shared"][0]["said"] in out.splitlines()


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
