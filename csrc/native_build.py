"""Compiles csrc/ with ninja: the Python module from the C++ units, and the CUDA library where nvcc is.

Used by setup.py; `python csrc/native_build.py FOLDER FLAG...` builds the C++ tests, for `make sanitize`. ninja runs in
parallel and compiles what changed. Only the loops know an instruction set: their units get flags of their own, and the
choice between them is made when the program runs (dispatch.cpp).
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULE = "_select" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
CUDA_LIBRARY = "_select_cuda.so"  # plain C, loaded by ctypes: it serves every version of Python
FLAGS = ["-O3", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden", "-pthread"]
AVX2 = ["-mavx2", "-mbmi", "-mbmi2", "-mpopcnt", "-mlzcnt"]
UNIT_FLAGS = {
    "loops_avx2": AVX2,
    "loops_avx512": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-pthread"]
CUDA_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "-cudart=static", "-Werror=all-warnings"]
CUDA_ARCHITECTURES = ["80", "90"]


def run_ninja(folder: Path, target: str) -> None:
    from ninja import BIN_DIR

    ninja = [Path(BIN_DIR, "ninja"), "--quiet", "-C", folder, target]
    done = subprocess.run(ninja, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"csrc/ did not compile:\n{done.stdout}")


def version_of(command: list[str]) -> str:
    done = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[0]


def unit_flags(unit: Path) -> str:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return shlex.join(UNIT_FLAGS.get(unit.stem, []) if is_x86 else [])


def compile_module(folder: Path) -> str:
    """Writes folder/build.ninja, builds MODULE there, returns the compiler's name and version."""
    import pybind11
    from ninja import ninja_syntax

    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    version = version_of(compiler)
    # Warnings are errors in our files, not in other people's headers: hence -isystem.
    includes = [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "build.ninja", "w", encoding="utf-8") as file:
        writer = ninja_syntax.Writer(file, width=1000)
        compile_unit = shlex.join([*compiler, *FLAGS, *includes])
        writer.rule("cxx", f"{compile_unit} $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        writer.rule("link", f"{shlex.join([*compiler, *SHARED])} $in -o $out")
        objects = []
        for unit in sorted(ROOT.glob("csrc/*.cpp")):
            objects += writer.build(f"{unit.stem}.o", "cxx", str(unit), variables={"flags": unit_flags(unit)})
        writer.build(MODULE, "link", objects)
    run_ninja(folder, MODULE)
    return version


def compile_test(folder: Path, *flags: str) -> Path:
    """Builds tests/csrc/select_test.cpp with everything but the bindings, and further flags: a sanitizer's, say."""
    from ninja import ninja_syntax

    compiler = shlex.split(os.environ.get("CXX") or "c++")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "build.ninja", "w", encoding="utf-8") as file:
        writer = ninja_syntax.Writer(file, width=1000)
        common = shlex.join([*compiler, *FLAGS, "-O1", "-g", *flags])
        writer.rule("cxx", f"{common} $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        writer.rule("link", f"{common} $in -o $out")
        objects = []
        for unit in [*sorted(ROOT.glob("csrc/*.cpp")), ROOT / "tests/csrc/select_test.cpp"]:
            if unit.stem != "bindings":
                objects += writer.build(f"{unit.stem}.o", "cxx", str(unit), variables={"flags": unit_flags(unit)})
        writer.build("select_test", "link", objects)
    run_ninja(folder, "select_test")
    return folder / "select_test"


def find_nvcc() -> str | None:
    """NVCC, CUDA_HOME/bin, CUDA_PATH/bin, the path, then where the toolkit installs itself."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    named = [os.environ.get("NVCC"), *(f"{home}/bin/nvcc" for home in homes if home)]
    candidates = [*named, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc"]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def compile_cuda(folder: Path) -> str:
    """Writes folder/build.ninja, builds CUDA_LIBRARY there, returns the compiler's name and version."""
    from ninja import ninja_syntax

    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("no nvcc: set NVCC or CUDA_HOME, or put it on the path")
    architectures = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHITECTURES]
    newest = CUDA_ARCHITECTURES[-1]
    architectures.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")  # PTX, for machines to come
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "build.ninja", "w", encoding="utf-8") as file:
        writer = ninja_syntax.Writer(file, width=1000)
        command = shlex.join([nvcc, *CUDA_FLAGS, *architectures, "-Xptxas=-v", "--threads=0"])
        # ptxas reports registers and spills of every kernel: kept, so that a test can read them.
        writer.rule("nvcc", f"{command} -MD -MF $out.d -c $in -o $out > $out.log 2>&1 || (cat $out.log; exit 1)",
                    depfile="$out.d", deps="gcc")  # fmt: skip
        writer.rule("link", f"{shlex.join([nvcc, '-shared', '-cudart=static', *architectures])} $in -o $out")
        units = sorted(ROOT.glob("csrc/cuda/*.cu"))
        objects = [writer.build(f"{unit.stem}.o", "nvcc", str(unit))[0] for unit in units]
        writer.build(CUDA_LIBRARY, "link", objects)
    run_ninja(folder, CUDA_LIBRARY)
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    return f"nvcc {version.split('release ')[-1].split(',')[0]}"


if __name__ == "__main__":
    print(compile_test(Path(sys.argv[1]), *sys.argv[2:]))
