"""Stage: the engine at the shape of Llama-2-7B, random bfloat16 weights made on the device.

Every figure is a ratio to inference of the same prompts in the same process, both timed in turn; peaks are above the
weights. First a few scores are held to a copy of the model in float32.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

import neuronllm as nl
from bench import plain
from bench.fixture import OBJECTIVE, Bench
from bench.harness import Setup, clocked
from neuronllm.common.statistics import spearman
from neuronllm.engine.memory import peak_memory
from neuronllm.engine.quadrature import quadrature

from .estimates import STEPS, flops
from .worker import Case, Setting, Skipped, Wrong

SHAPE, ROUNDS, SAMPLE = "llama-2-7b", 3, 256
RULE = quadrature("midpoint", STEPS)
Prompts = list[nl.Prompt]
Work = Callable[[Any, Prompts], Tensor]
WORKS: dict[str, Work] = {
    "gradient": lambda engine, prompts: engine.gradients(prompts, OBJECTIVE),
    "IG": lambda engine, prompts: engine.integrate(prompts, OBJECTIVE, *RULE),
    "all positions": lambda engine, prompts: engine.gradients(prompts, OBJECTIVE, positions="all"),
}
# What is held to the judge, of how many prompts. The judge runs every point of every layer by itself: two points do.
JUDGED: dict[str, tuple[Work, Callable[..., Tensor], int]] = {
    "gradient": (WORKS["gradient"], lambda model, *asked: plain.gradient(model, *asked, 2), 2),
    "all positions": (WORKS["all positions"], lambda model, *asked: plain.gradient(model, *asked, 2, True), 2),
    "IG": (
        lambda engine, prompts: engine.integrate(prompts, OBJECTIVE, *quadrature("midpoint", 2)),
        lambda model, *asked: plain.integrated_gradients(model, *asked, 2),
        1,
    ),
}


class Models:
    """A model that is made when it is first needed, in a process that was started again too; `room` bytes of memory
    must be free for it. Where it cannot be made, what needs it says so instead of trying again."""

    def __init__(self, setting: Setting, shape: str, rounds: int = ROUNDS, room: int = 0) -> None:
        self.setting, self.shape, self.rounds = setting, "toy" if setting.pretend else shape, rounds
        self.room = 0 if setting.pretend else room
        self.bench: Bench | None = None
        self.tried = False
        self.asking: dict[str, float] = {}

    def make(self) -> dict[str, Any]:
        peak = peak_memory(self.there, self.device)
        return self.there().settings() | {"peak of making it": peak, "held": torch.cuda.memory_allocated()}

    @property
    def device(self) -> torch.device:
        return torch.device(self.setting.device)

    def there(self) -> Bench:
        if self.bench is None:
            if self.tried:
                raise Skipped("there is no model, it could not be made")
            self.tried = True
            free, _ = torch.cuda.mem_get_info()
            if free < self.room:
                raise Skipped(f"the device has {free / 2**30:.0f} GiB free, {self.room / 2**30:.0f} are needed")
            device = "cuda:0" if self.setting.device == "cuda" else self.setting.device
            self.bench = Bench(Setup(device, 1, self.shape))
        return self.bench

    def inference(self) -> dict[str, Any]:
        """Seconds of asking all prompts, at the best of the batch sizes that a user would try."""
        bench = self.there()
        ids, _, _ = bench.tensors(0, bench.count)
        times = {}
        for batch in sorted({min(n, bench.count) for n in bench.shape.batches}):
            plain.inference(bench.plain, ids, batch)
            times[f"batch {batch}"] = clocked(lambda n=batch: plain.inference(bench.plain, ids, n), 1, "cuda")
        best = min(times, key=lambda name: times[name])
        self.asking = {"batch": int(best.split()[1]), "seconds": times[best]}
        rate = flops(bench.shape.config, bench.count, bench.shape.tokens)["inference"] / times[best]
        line = f"inference {times[best]:.3f} s ({rate / 1e12:.0f} TFLOP/s)"
        return {"seconds by batch": times, "FLOP a second": rate, "line": line}

    def scored(self, name: str) -> dict[str, Any]:
        """Ours and inference in turn, on other prompts every time."""
        if not self.asking:
            self.inference()
        bench, work, batch = self.there(), WORKS[name], int(self.asking["batch"])
        work(bench.engine, bench.prompts(1, bench.count))
        ours, asking = [], []
        for turn in range(2, 2 + self.rounds):
            prompts, (ids, _, _) = bench.prompts(turn, bench.count), bench.tensors(turn, bench.count)
            ours.append(clocked(lambda p=prompts: work(bench.engine, p), 1, "cuda"))
            asking.append(clocked(lambda i=ids: plain.inference(bench.plain, i, batch), 1, "cuda"))
        prompts, (ids, _, _) = bench.prompts(9, bench.count), bench.tensors(9, bench.count)
        peak = peak_memory(lambda: work(bench.engine, prompts), self.device)
        floor = peak_memory(lambda: plain.inference(bench.plain, ids, batch, use_cache=True), self.device)
        ratio = statistics.median(ours) / statistics.median(asking)
        figures = {"seconds": ours, "inference": asking, "ratio": ratio, "peak": peak, "inference's peak": floor}
        figures |= {"memory ratio": peak / floor if floor else None, "plan": str(bench.engine.plan)}
        return figures | {"line": f"{name} {ratio:.2f}x inference, {peak / 2**30:.1f} GiB"}

    def right(self, name: str) -> dict[str, Any]:
        """A few scores beside the reference engine: of a float32 copy, from which plain hooks on the same model may be
        off as well; of a mixture in its own type, where a route may turn on a rounding, so that nothing is asked."""
        bench = self.there()
        work, by_hand, count = JUDGED[name]

        def by_engine(prompts: Prompts, engine: Any = None) -> Tensor:
            return work(engine or bench.engine, prompts)

        (check,) = bench.agreement(name, by_engine, lambda *asked: by_hand(bench.plain, *asked), count)
        if not check.fine and not bench.shape.moe:
            raise Wrong(f"{check.what}: {check.value:.2e}, limit {check.limit:.2e}")
        return {check.what: check.value, "limit": check.limit}

    def exact(self) -> dict[str, Any]:
        """Silencing effects of all neurons of one prompt; a sample of them by really silencing, as a user would."""
        bench = self.there()
        (prompt,), n = bench.prompts(3, 1), bench.anatomy.n_neurons
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        sample = order[: min(SAMPLE, n)]
        bench.engine.effects([prompt], OBJECTIVE, ids=sample)
        kept: list[Tensor] = []
        seconds = clocked(lambda: kept.append(bench.engine.effects([prompt], OBJECTIVE)), 1, "cuda")
        again = bench.engine.effects([prompt], OBJECTIVE, ids=sample)
        ranks = spearman(kept[0][0, sample].double().cpu().numpy(), again[0].double().cpu().numpy())
        if not ranks >= 0.999:
            raise Wrong(f"effects of a sample rank otherwise than among all: Spearman {ranks:.4f}")
        line = f"exact effects of {n:,} neurons {seconds:.1f} s a prompt"
        return {"seconds": seconds, "neurons": n, "Spearman with a sample": ranks, "line": line}


def cases(setting: Setting) -> list[Case]:
    models = Models(setting, SHAPE)
    return [*listed(models), Case("exact", models.exact)]


def listed(models: Models, judged: Iterable[str] = tuple(JUDGED)) -> list[Case]:
    return [
        Case("the model is made", models.make),
        Case("inference", models.inference),
        *(Case(name, lambda name=name: models.scored(name)) for name in WORKS),
        *(Case(f"{name}, held to the judge", lambda name=name: models.right(name)) for name in judged),
    ]
