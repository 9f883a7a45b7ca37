"""`neuronllm find --verify`."""

from __future__ import annotations

import re

from neuronllm.results.neurons import NeuronSet
from tests.cli.tools import asked, refused, run


def test_found_tried_and_kept(model_folder, questions, tmp_path, capsys):
    scores, kept, fewer = (tmp_path / name for name in ("scores", "kept", "fewer"))
    assert run(*asked(model_folder, questions, "--template", "plain", "--output", scores)) == 0
    flags = ("--verify", questions, "--model", model_folder, "--quiet", "--margin", 0)
    capsys.readouterr()
    assert run("find", scores, "--good", 3, "--bad", 2, *flags, "--output", kept) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("12 good neurons tried: 3 kept; ") and said[1].startswith("8 bad neurons tried: 2 kept; ")
    for line in said[:2]:
        tried, *where = map(int, re.findall(r"\d+", line))
        assert tried == sum(where)
    assert said[2] == f"{kept}: 3 good and 2 bad neurons"
    capsys.readouterr()
    none = ("--margin", 1e9, "--output", tmp_path / "none")
    assert run("find", scores, "--good", 3, "--bad", 2, *flags[:-2], *none) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("0 good and 0 bad neurons: none does what its score says")
    told = NeuronSet.from_pretrained(kept).provenance
    assert told["template"] == ["plain"] and told["verified"]["questions"] == 6
    more = ("--limit", 4, "--positions", "answer", "--factor", 2, "--joint", "--objective", "margin")
    assert run("find", scores, "--good", 3, "--bad", 2, *flags, *more, "--output", fewer) == 0
    told = NeuronSet.from_pretrained(fewer).provenance["verified"]
    assert (told["questions"], told["positions"], told["factor"]) == (4, "answer", 2.0)
    assert told["joint"] and told["objective"] == "margin"


def test_bad_input_is_one_line(model_folder, questions, tmp_path, capsys):
    scores, output = tmp_path / "scores", ("--output", tmp_path / "kept")
    assert run(*asked(model_folder, questions, "--template", "plain", "--orders", "none", "--output", scores)) == 0
    assert "--model" in refused(capsys, "find", scores, "--verify", questions, *output)
    assert "--model: it needs --verify" in refused(capsys, "find", scores, "--model", model_folder, *output)
    assert "--joint: it needs --verify" in refused(capsys, "find", scores, "--joint", *output)
    flags = ("--verify", questions, "--model", model_folder, "--quiet")
    for more, part in (
        (("--factor", 1), "factor=1"),
        (("--margin", -1), "margin=-1"),
        (("--limit", 1), "two or more"),
        (("--objective", "loss"), "objective='loss'"),
    ):
        assert part in refused(capsys, "find", scores, *flags, *more, *output)
    assert not (tmp_path / "kept").exists()
