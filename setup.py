"""Builds csrc/ into neuronllm._select with ninja and maps kernels/<op>/ to neuronllm.kernels.<op>.

NEURONLLM_BUILD_EXT: unset = try, warn and go on without; 1 = must build; 0 = skip. neuronllm/_build.json records what
was built, and why not, for `neuronllm env`. torch is never imported: the extension takes plain buffers.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TARGET = "_select" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
FLAGS = ["-O3", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden"]
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
# Each folder is mapped by itself: a top-level package `kernels` would hide the one that transformers looks for.
OPS = {f"neuronllm.kernels.{op.parent.name}": f"kernels/{op.parent.name}" for op in ROOT.glob("kernels/*/__init__.py")}


def compile_extension(folder: Path) -> str:
    """Writes folder/build.ninja, runs ninja, returns the compiler's name and version."""
    import pybind11
    from ninja import BIN_DIR, ninja_syntax

    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout
    # Warnings are errors in our files, not in other people's headers: hence -isystem.
    includes = [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "build.ninja", "w", encoding="utf-8") as file:
        writer = ninja_syntax.Writer(file, width=1000)
        compile_unit = shlex.join([*compiler, *FLAGS, *includes])
        writer.rule("cxx", f"{compile_unit} -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        writer.rule("link", f"{shlex.join([*compiler, *SHARED])} $in -o $out")
        objects = [writer.build(f"{unit.stem}.o", "cxx", str(unit))[0] for unit in sorted(ROOT.glob("csrc/*.cpp"))]
        writer.default(writer.build(TARGET, "link", objects))
    ninja = subprocess.run([Path(BIN_DIR, "ninja"), "--quiet", "-C", folder], capture_output=True, text=True)
    if ninja.returncode:
        raise RuntimeError(f"csrc/ did not compile:\n{ninja.stdout}")
    return version.splitlines()[0]


class BuildWithNinja(build_ext):
    def run(self) -> None:
        package = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib)) / "neuronllm"
        folder = ROOT / "build" / f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        asked = os.environ.get("NEURONLLM_BUILD_EXT", "")
        if asked not in ("", "0", "1"):
            raise SystemExit(f"NEURONLLM_BUILD_EXT={asked!r}: leave it unset (try), or set 1 (must build) or 0 (skip)")
        record = {"built": False, "reason": "NEURONLLM_BUILD_EXT=0 was set at installation"}
        if asked != "0":
            try:
                record = {"built": True, "compiler": compile_extension(folder), "flags": FLAGS}
            except (ImportError, OSError, subprocess.SubprocessError, RuntimeError) as error:
                if asked == "1":
                    raise SystemExit(f"NEURONLLM_BUILD_EXT=1, but neuronllm._select was not built: {error}") from error
                self.warn(f"neuronllm._select was NOT built; torch will do its work. Reason: {error}")
                record["reason"] = str(error)
        (package / TARGET).unlink(missing_ok=True)  # a running process keeps its old file; a skipped build leaves none
        if record["built"]:
            shutil.copy2(folder / TARGET, package / TARGET)
        else:
            self.extensions = []  # nothing for an editable installation to look for
        (package / "_build.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


setup(
    packages=find_packages(include=["neuronllm", "neuronllm.*"]) + sorted(OPS),
    package_dir={"neuronllm": "neuronllm", **OPS},
    ext_modules=[Extension("neuronllm._select", sources=[])],
    cmdclass={"build_ext": BuildWithNinja},
)
