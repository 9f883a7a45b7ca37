"""Several processes: shares, the same result as one process, and what happens when one of them fails or dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

import neuronllm as nl
from neuronllm.common.errors import InputError, PeerError, SharedError
from neuronllm.data.prompts import group_by_question
from neuronllm.methods import METHODS, get_method
from neuronllm.results.scores import Scores
from neuronllm.results.streaming import Statistics
from neuronllm.runs.processes import Ranks, share_out
from tests.checks import quiz, refused, with_every_letter
from tests.killing import content, dying_at, run
from tests.tiny import tiny
from tests.tiny_tokenizers import byte_level

pytestmark = pytest.mark.slow  # processes that start, speak and die

ROOT = Path(__file__).resolve().parents[1]
KEEPS = ("mean", "topk", "all")
SHORT = {"ace": {"steps": 2}, "qrnca": {"steps": 2}, "knowledge": {"steps": 2}}


def processes(folder: Path, work: Callable[[int], object], size: int = 2) -> list[int]:
    """Run the work in forked processes of one gloo group; their exit codes: 0, 3 for InputError, 4 for PeerError."""
    folder.mkdir(exist_ok=True)

    def one(rank: int) -> None:
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        try:
            work(rank)
        except InputError as error:
            (folder / f"said-{rank}").write_text(f"{type(error).__name__}: {error}")
            os._exit(3)
        except PeerError:
            os._exit(4)

    children = [multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in range(size)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        child.kill()  # one that hangs
        child.join()
    (folder / "store").unlink()
    return [int(child.exitcode or 0) for child in children]


# ---- shares and merging ----


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_whole_even_and_always_the_same(size):
    costs = [int(n) for n in torch.randint(20, 400, (101,))]
    shares = share_out(costs, size)
    assert sorted(n for share in shares for n in share) == list(range(101))
    assert all(share == sorted(share) for share in shares) and shares == share_out(list(costs), size)
    loads = [sum(costs[n] for n in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs)
    assert share_out([5], 3) == [[0], [], []]


COLLECTORS = [
    *((name, {}) for name in METHODS),
    ("ace", {"mask": "ambiguous", "z": 3}),
    ("qrnca", {"compat": "released-code"}),
]


@pytest.mark.parametrize(("method", "options"), COLLECTORS)
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_collectors_merge_and_save_what_they_gathered(method, options, cut):
    """Questions in two parts, the second one saved and taken up again, are like all of them in a row."""

    def new():
        return get_method(method, options).collector(20)

    def feed(collector, numbers):
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            scores = torch.randn(1 + number % 3, 20, generator=generator)
            collector.add(scores, torch.arange(len(scores)) % 2 == number % 2)

    whole, first, second, copy = new(), new(), new(), new()
    feed(whole, range(9))
    feed(first, range(cut))
    feed(second, range(cut, 6))
    copy.load_state({name: tensor.clone() for name, tensor in second.state().items()})
    feed(copy, range(6, 9))
    first.merge(copy)
    for mine, expected in zip(first.summary(), whole.summary(), strict=True):
        assert torch.allclose(mine, expected, rtol=1e-12, atol=1e-15, equal_nan=True)
    feed(second, range(6, 9))
    assert all(torch.equal(tensor, copy.state()[name]) for name, tensor in second.state().items())


def test_a_collector_that_gathers_no_tensors_is_named():
    class Lister(Statistics):
        def __init__(self, n_neurons: int) -> None:
            super().__init__(n_neurons)
            self.seen: list[float] = []

    with refused("Lister.seen is a list", "tensors or Statistics"):
        Lister(3).state()


def test_alone_it_all_comes_down_to_nothing():
    with Ranks.here() as ranks:
        assert ranks.first and ranks.gather({"a": 1}) == [{"a": 1}]
        ranks.wait()
        stats = Statistics(2)
        assert ranks.merge(stats, lambda: Statistics(2)) is stats
        with pytest.raises(InputError) as error, ranks.together():
            raise InputError("mine")
        assert type(error.value) is InputError


# ---- two processes, one result ----


def attribute(model, prompts, method, **more):
    more = {"positions": "answer", "progress": False, **SHORT.get(method, {}), **more}
    return nl.attribute(model, None, prompts, method, **more)


def close(mine: torch.Tensor, expected: torch.Tensor) -> bool:
    if bool(expected.isnan().all()):
        return bool(mine.isnan().all())
    mine, expected = mine.double(), expected.double()
    return float((mine - expected).norm()) <= 1e-6 * float(expected.norm())


def test_two_processes_give_the_scores_of_one(tmp_path):
    model = tiny("llama")
    prompts = quiz(9) + with_every_letter(model)  # contrast needs both kinds

    def work(rank: int) -> None:
        for method in METHODS:
            attribute(model, prompts, method).save(tmp_path / f"{method}-{rank}")
        for keep in ("topk", "all"):
            attribute(model, prompts, "gradient", keep=keep, k=5).save(tmp_path / f"{keep}-{rank}")
        attribute(model, prompts, "gradient", items="wrong").save(tmp_path / f"wrong-{rank}")
        for keep in KEEPS:  # nothing for the second process
            attribute(model, prompts[:1], "gradient", keep=keep, k=5).save(tmp_path / f"one-{keep}-{rank}")
            wrong = attribute(model, with_every_letter(model)[:2], "gradient", items="wrong", keep=keep, k=5)
            assert wrong.provenance["questions"] == 1
        for keep in ("topk", "all"):
            for name, some in (("disk", prompts), ("one-disk", prompts[:1])):
                scores = attribute(model, some, "gradient", keep=keep, k=5, output=tmp_path / f"{keep}-{name}")
                assert scores.values.isfinite().all()

    assert processes(tmp_path / "group", work) == [0, 0]
    expected = {method: attribute(model, prompts, method) for method in METHODS}
    expected |= {keep: attribute(model, prompts, "gradient", keep=keep, k=5) for keep in ("topk", "all")}
    expected["wrong"] = attribute(model, prompts, "gradient", items="wrong")
    expected |= {f"one-{keep}": attribute(model, prompts[:1], "gradient", keep=keep, k=5) for keep in KEEPS}
    for name, alone in expected.items():
        first, second = Scores.load(tmp_path / f"{name}-0"), Scores.load(tmp_path / f"{name}-1")
        for part in ("values", "stderr", "sign_consistency"):
            mine, theirs = getattr(first, part), getattr(second, part)
            assert torch.equal(mine.nan_to_num(-7), theirs.nan_to_num(-7)), (name, part)
            assert close(mine, getattr(alone, part)), (name, part)
        assert first.provenance == second.provenance == json.loads(json.dumps(alone.provenance))
    for rank in (0, 1):
        assert close(Scores.load(tmp_path / f"one-all-{rank}").per_prompt[:], expected["one-all"].per_prompt)
        top = Scores.load(tmp_path / f"one-topk-{rank}").top
        assert torch.equal(top.smallest.ids, expected["one-topk"].top.smallest.ids)
    assert close(Scores.load(tmp_path / "all-one-disk").per_prompt[:], expected["one-all"].per_prompt)
    for folder in ("all-0", "all-disk"):
        assert close(Scores.load(tmp_path / folder).per_prompt[:], expected["all"].per_prompt)
    for folder in ("topk-0", "topk-disk"):
        assert torch.equal(Scores.load(tmp_path / folder).top.largest.ids, expected["topk"].top.largest.ids)
    assert sorted(path.name.split("-")[1] for path in (tmp_path / "all-disk").glob("part-*")) == ["0", "1"]
    assert json.loads((tmp_path / "all-disk" / "run.json").read_text())["settings"]["processes"] == 2


def test_two_processes_refine_integrals_as_one_does(tmp_path):
    """A prompt's points depend on it alone, so they are the same whoever works on it."""
    model, prompts = tiny("llama"), quiz(7)

    def work(rank: int) -> None:
        nl.attribute(model, None, prompts, "ace", keep="all", progress=False).save(tmp_path / f"ace-{rank}")

    assert processes(tmp_path / "group", work) == [0, 0]
    alone = nl.attribute(model, None, prompts, "ace", keep="all", progress=False)
    first, second = Scores.load(tmp_path / "ace-0"), Scores.load(tmp_path / "ace-1")
    assert torch.equal(first.values, second.values) and first.provenance == second.provenance
    assert close(first.values, alone.values) and close(first.per_prompt[:], alone.per_prompt)
    mine, expected = first.provenance["integral"], alone.provenance["integral"]
    assert mine["points"] == expected["points"] and mine["error"] == pytest.approx(expected["error"], rel=1e-6)


@pytest.mark.parametrize("dead", [0, 1])
@pytest.mark.parametrize("step", [8, 15])
def test_a_process_that_dies_leaves_a_run_that_goes_on(tmp_path, dead, step):
    model = tiny("llama")

    def work(rank: int, **more) -> None:
        run(model, tmp_path / "out" / "scores", **more)

    assert processes(tmp_path / "group", work) == [0, 0]
    whole = content(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")
    codes = processes(tmp_path / "group", lambda rank: dying_at(step if rank == dead else 10**6, lambda: work(rank))())
    assert codes[dead] == -signal.SIGKILL and codes[1 - dead] == 4  # the other one hears of it
    assert (tmp_path / "out" / "scores.partial" / "run.json").is_file()
    manifest = tmp_path / "out" / "scores.partial" / "run.json"
    ours = manifest.read_text()
    manifest.write_text(ours.replace('"engine": "fast"', '"engine": "slow"'))
    assert processes(tmp_path / "group", lambda rank: work(rank, resume=True)) == [3, 3]
    said = [(tmp_path / "group" / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("SharedError: ") and "engine 'slow', not 'fast'" in said[0]
    manifest.write_text(ours)
    alone = refused("processes 2, not 1")
    with alone:
        work(0, resume=True)
    assert processes(tmp_path / "group", lambda rank: work(rank, resume=True)) == [0, 0]
    assert content(tmp_path / "out") == whole


def test_what_one_process_refuses_all_refuse(tmp_path):
    model = tiny("llama")

    def said(folder: Path) -> list[str]:
        return [(folder / f"said-{rank}").read_text() for rank in (0, 1)]

    def refusing(rank: int) -> None:
        attribute(model, quiz(2), "gradient", keep="all" if rank == 0 else "most")

    def differing(rank: int) -> None:
        attribute(model, quiz(2 + rank), "gradient")

    def failing(rank: int) -> None:
        prompts = quiz(4)
        if rank == 1:
            with torch.no_grad():
                model.model.layers[1].mlp.up_proj.weight[0, -1] = float("nan")
        attribute(model, prompts, "gradient")

    assert processes(tmp_path / "a", refusing) == [3, 3]
    assert said(tmp_path / "a") == ["SharedError: keep='most': known values are mean, topk, all"] * 2
    assert processes(tmp_path / "b", differing) == [3, 3]
    assert all("must be given the same: the first one has question_fingerprint" in x for x in said(tmp_path / "b"))
    codes = processes(tmp_path / "c", failing)
    assert set(codes) <= {3, 4} and 3 in codes
    assert issubclass(SharedError, InputError)


def test_a_dry_run_says_how_questions_are_shared_and_what_is_left(tmp_path):
    model, prompts = tiny("llama"), quiz(8)

    def plan(rank: int) -> None:
        more = {"keep": "all", "k": 3, "batch_size": 2, "output": tmp_path / "out" / "scores", "resume": True}
        (tmp_path / f"plan-{rank}").write_text(nl.dry_run(model, None, prompts, "gradient", positions="answer", **more))

    def plans() -> list[str]:
        assert processes(tmp_path / "group", plan) == [0, 0]
        first, second = ((tmp_path / f"plan-{rank}").read_text() for rank in (0, 1))
        assert first == second
        return first.splitlines()

    groups = group_by_question(prompts)
    shares = share_out([sum(len(p.input_ids) for p in group) for group in groups], 2)
    assert plans()[-3:] == [
        "2 processes share the questions by the tokens of their prompts:",
        *(
            f"  process {rank}: {len(share)} questions, {sum(len(groups[n]) for n in share)} prompts, "
            f"{sum(len(p.input_ids) for n in share for p in groups[n])} tokens"
            for rank, share in enumerate(shares)
        ),
    ]
    work = lambda rank: dying_at(8 if rank else 10**6, lambda: run(model, tmp_path / "out" / "scores"))()  # noqa: E731
    assert processes(tmp_path / "group", work) == [4, -signal.SIGKILL]
    before = content(tmp_path / "out")
    said = re.fullmatch(r".*: (\d) of 8 questions are done, (\d) are left with (\d+) prompts", plans()[-1])
    done, left, prompts_left = (int(number) for number in said.groups())
    assert done > 0 and done + left == 8 and left < prompts_left < len(prompts)
    assert content(tmp_path / "out") == before


# ---- under torchrun ----


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    tokenizer = byte_level()
    tiny("llama", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder / "m")
    tokenizer.save_pretrained(folder / "m")
    rows = [
        {"question": f"Which is word {n}?", "choices": ["red", "blue", "seven", "door"][: 2 + n % 3], "answer": n % 2}
        for n in range(12)
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def torchrun(task: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    asked = ("attribute", "--model", task / "m", "--questions", task / "q.jsonl", "--quiet", *flags)
    command = [str(part) for part in (*launcher, "-m", "neuronllm", *asked)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=task, env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_line_under_torchrun(task):
    done = torchrun(task, "--method", "ace", "-o", "steps=2", "--keep", "all", "--output", task / "two")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and "neurons scored" in done.stdout
    scores = Scores.load(task / "two")
    model, tokenizer = nl.load_model(task / "m")
    alone = nl.attribute(
        model, tokenizer, nl.load_questions(task / "q.jsonl"), "ace", steps=2, keep="all", progress=False
    )
    assert close(scores.values, alone.values) and close(scores.per_prompt[:], alone.per_prompt)
    planned = torchrun(task, "--method", "gradient", "--dry-run")
    assert planned.returncode == 0 and planned.stdout.count("  process ") == 2, planned.stderr


def test_bad_input_under_torchrun_is_one_line(task):
    done = torchrun(task, "--method", "magic", "--output", task / "out")
    ours = [line for line in done.stderr.splitlines() if line.startswith("neuronllm attribute: error:")]
    assert len(ours) == 1 and "method='magic'" in ours[0] and done.returncode != 0
    assert done.stderr.count("exitcode  : 2") == 2  # both of them, says the launcher
    assert not (task / "out").exists() and not (task / "out.partial").exists()
