"""What is done on a GPU, in order of worth, and how long each is thought to take."""

from __future__ import annotations

from dataclasses import dataclass

from bench.shapes import SHAPES

from .estimates import START, Estimate, engine, fixed, moved

DEVICE, INTERPRETER, HOST = "device", "interpreter", "host"  # what stands in for a GPU where it is only pretended


@dataclass(frozen=True)
class Stage:
    """`module` has the function cases(setting). `pretend` is how it is tried out without a GPU, and `pretended` the
    seconds that takes on two cores. A case that takes longer than `patience` seconds is taken to hang. With `rerun`,
    cases that failed run once more, loudly."""

    name: str
    title: str
    module: str
    estimate: Estimate
    pretend: str
    pretended: float
    patience: float = 60.0
    rerun: bool = False
    needs_device: bool = True

    def seconds(self, pretend: bool) -> float:
        return self.pretended if pretend else self.estimate.seconds

    def limit(self, pretend: bool) -> float:
        """What it may take at most: an estimate may be wrong by a factor of two, and a slow start is no failure.

        Where a GPU is only pretended, the machine may be slow, or busy with other tests.
        """
        return max(2 * self.seconds(pretend), self.patience) * (4 if pretend else 1)


def _kernels(cases: int, each: float, what: str) -> Estimate:
    return Estimate(START + cases * each, f"{cases} {what}, about {each:.1f} s each, start {START:.0f} s")


LLAMA, QWEN = SHAPES["llama-2-7b"].config, SHAPES["qwen3-30b-a3b"].config
STAGES = (
    Stage("machine", "the machine, its versions, and how fast it copies and multiplies", "bench.gpu.machine",
          fixed(START + 5, "start; copies of 8 GB and products of 8192 squares for about 5 s"), DEVICE, 8,
          patience=150),
    Stage("build", "the extension and the CUDA selection compile", "bench.gpu.build",
          fixed(60, "six C++ and one CUDA file for two architectures, side by side (60 s on two cores)"), HOST, 20,
          patience=240, needs_device=False),
    Stage("smoke", "the bundled model on the GPU gives the CPU's numbers", "bench.gpu.smoke",
          fixed(START + 25, "start; six calls on a model of 1 MB, bound by launches, and the same on the CPU"),
          DEVICE, 20, patience=120, rerun=True),
    Stage("kernels", "every kernel against its reference, small", "bench.gpu.kernels",
          _kernels(30, 1.5, "cases, nearly all of it compiling"), INTERPRETER, 15, rerun=True),
    Stage("selection", "the CUDA selection against sorting; above 2^31 elements", "bench.gpu.selection",
          moved("2^31 bfloat16 numbers; 200 arrays, sorted by NumPy", 4.3e9, 10, START + 30), HOST, 12, patience=120,
          rerun=True),
    Stage("engine", "the engine at Llama-2-7B shape", "bench.gpu.engine", engine(LLAMA, 3, exact=True), DEVICE, 15,
          patience=120),
    Stage("kernel-speed", "kernels at 7B shapes beside a copy, eager PyTorch and torch.compile", "bench.gpu.speed",
          _kernels(12, 6, "cases: checks in float64, 90 calls of each side, six compilations by torch"),
          INTERPRETER, 15, patience=150, rerun=True),
    Stage("selection-speed", "selection from 1e9 scores beside a read and torch.topk", "bench.gpu.selection_speed",
          moved("1e9 numbers in two types, five rounds of three sides", 4e9, 60, START + 10), HOST, 8),
    Stage("tuning", "block sizes of the kernels", "bench.gpu.block_sizes",
          fixed(START + 4 * 25 + 6 * 8, "start; 25 s an op, as many candidates as fit (about 1 s each); six "
                "compilations by torch to compare with, 8 s each"), INTERPRETER, 18, patience=150),
    Stage("experts", "the engine at Qwen3-30B-A3B shape", "bench.gpu.experts",
          engine(QWEN, 2, exact=False, share=0.2), DEVICE, 10, patience=120),
    Stage("tests", "pytest -m gpu", "bench.gpu.suite",
          fixed(180, "about 400 tests of kernels, each variant compiled; eight processes"), HOST, 12, patience=600),
)  # fmt: skip


def known(name: str) -> Stage:
    """The stage of a name.

    >>> known("smoke").pretend
    'device'
    """
    return next(stage for stage in STAGES if stage.name == name)
