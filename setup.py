"""Builds csrc/ into neuronllm._select and the CUDA library, and maps kernels/<op>/ to neuronllm.kernels.<op>.

NEURONLLM_BUILD_EXT and NEURONLLM_BUILD_CUDA: unset = try, warn and go on without; 1 = must build; 0 = skip.
neuronllm/_build.json records what was built, and why not, for `neuronllm env`. torch is never imported: the extension
takes plain buffers. How the compilers are called stands in csrc/native_build.py.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
import native_build  # noqa: E402

# Each folder is mapped by itself: a top-level package `kernels` would hide the one that transformers looks for.
OPS = {f"neuronllm.kernels.{op.parent.name}": f"kernels/{op.parent.name}" for op in ROOT.glob("kernels/*/__init__.py")}
Record = dict[str, object]


class BuildWithNinja(build_ext):
    def run(self) -> None:
        self.home = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib)) / "neuronllm"
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        record = self.build_one(
            "EXT", native_build.compile_module, ROOT / "build" / f"ninja-{tag}", native_build.MODULE
        )
        if record["built"]:
            record["flags"] = native_build.FLAGS
        else:
            self.extensions = []  # nothing for an editable installation to look for
        cuda = ROOT / "build" / f"cuda-{sysconfig.get_platform()}"
        record["cuda"] = self.build_one("CUDA", native_build.compile_cuda, cuda, native_build.CUDA_LIBRARY)
        (self.home / "_build.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def build_one(self, what: str, compile_it: Callable[[Path], str], folder: Path, target: str) -> Record:
        switch = f"NEURONLLM_BUILD_{what}"
        asked = os.environ.get(switch, "")
        if asked not in ("", "0", "1"):
            raise SystemExit(f"{switch}={asked!r}: leave it unset (try), or set 1 (must build) or 0 (skip)")
        (self.home / target).unlink(
            missing_ok=True
        )  # a running process keeps its old file; a skipped build leaves none
        if asked == "0":
            return {"built": False, "reason": f"{switch}=0 was set at installation"}
        try:
            version = compile_it(folder)
        except (ImportError, OSError, subprocess.SubprocessError, RuntimeError) as error:
            if asked == "1":
                raise SystemExit(f"{switch}=1, but neuronllm/{target} was not built: {error}") from error
            if what == "EXT" or native_build.find_nvcc():  # most machines have no nvcc, and miss nothing
                self.warn(f"neuronllm/{target} was NOT built; torch will do its work. Reason: {error}")
            return {"built": False, "reason": str(error)}
        shutil.copy2(folder / target, self.home / target)
        return {"built": True, "compiler": version}


setup(
    packages=find_packages(include=["neuronllm", "neuronllm.*"]) + sorted(OPS),
    package_dir={"neuronllm": "neuronllm", **OPS},
    ext_modules=[Extension("neuronllm._select", sources=[])],
    cmdclass={"build_ext": BuildWithNinja},
)
