"""The house holds: the package and its extension build as promised, and the rooms import downwards only.

Builds run in a copy of the sources, with the tools that are already installed.
"""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import neuronllm
from neuronllm import select
from neuronllm.common import env
from neuronllm.common.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "neuronllm"

# The rooms, from the ground up. A room imports from the floors below its own, and from no neighbour on its floor.
FLOORS = (
    ("common", "_select"),
    ("data", "model", "kernels", "select", "page", "demo"),
    ("ops", "results"),
    ("engine", "runs"),
    ("methods", "objectives", "judging"),
    ("attribution", "steering"),
    ("applications", "bridges", "comparing"),
    ("cli",),
    ("__main__", "bench"),
)
MOST_ROOMS, MOST_FLOORS = 22, 9
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# where a distribution is imported under another name
IMPORT_NAMES = {"lm-eval": "lm_eval", "inspect-ai": "inspect_ai", "scikit-learn": "sklearn"}

needs_extension = pytest.mark.skipif(env.extension()[0] is None, reason=env.extension()[1])


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )


def python(code: str, cwd: Path, **environment: str) -> str:
    done = run(sys.executable, "-c", code, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- imports ---


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def kernel_name(path: Path) -> str:
    """kernels/<op>/ is installed as neuronllm.kernels.<op>."""
    return ".".join(("neuronllm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES |= {kernel_name(path): path for path in sorted((ROOT / "kernels").rglob("*.py"))}
BENCH = {module_name(path): path for path in sorted((ROOT / "bench").rglob("*.py"))}


def imported(name: str, path: Path) -> Iterator[str]:
    """The absolute names of the modules that a module imports: anywhere in it, and also for its types alone."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        if not isinstance(statement, ast.ImportFrom):
            continue
        base = importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)
        for alias in statement.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in MODULES | BENCH or submodule == "neuronllm._select" else base


IMPORTS = {name: sorted(set(imported(name, path))) for name, path in MODULES.items()}
BENCH_IMPORTS = {name: sorted(set(imported(name, path))) for name, path in BENCH.items()}


def room_of(module: str) -> str:
    """The package's own folder and modules are its rooms; kernels/ is installed as one of them."""
    top, *below = module.split(".")
    return below[0] if top == "neuronllm" and below else top


def floor_of(room: str) -> int:
    if room == "neuronllm":
        return len(FLOORS)  # it names everything, so a room that imports it imports upwards
    assert room in FLOOR_OF, f"{room} stands on no floor: give it one in FLOORS"
    return FLOOR_OF[room]


def test_rooms_import_downwards() -> None:
    """From lower floors only, so rooms form no circles."""
    arrows = {
        (room_of(module), room_of(target)): f"{module} imports {target}"
        for module, targets in (IMPORTS | BENCH_IMPORTS).items()
        for target in targets
        if target.split(".")[0] == "neuronllm" and not (room_of(module) == "bench" and target == "neuronllm")
    }
    upward = [how for (room, other), how in arrows.items() if room != other and floor_of(other) >= floor_of(room)]
    assert not upward
    assert len(arrows) > 50  # the walk saw the imports


def test_the_house_stays_small() -> None:
    rooms = {room_of(module) for module in MODULES} - {"neuronllm"} | {"bench"}
    assert rooms == set(FLOOR_OF) - {"_select"}
    assert len(rooms) <= MOST_ROOMS and len(FLOORS) <= MOST_FLOORS


def test_the_document_gives_every_room_its_floor() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", table, re.MULTILINE)
    floors = {room: int(floor) - 1 for floor, cell in rows for room in re.findall(r"`(\w+)(?:/|\.py)`", cell)}
    assert floors == {room: floor for room, floor in FLOOR_OF.items() if room != "_select"}


def test_imports_have_no_circles() -> None:
    imports = IMPORTS | BENCH_IMPORTS
    graph = {module: {target for target in targets if target in imports} for module, targets in imports.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert set(order) == set(imports)


def test_only_declared_packages_are_imported() -> None:
    requirements = importlib.metadata.requires("neuronllm") or []
    declared = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requirements if "style" not in line}
    allowed = {IMPORT_NAMES.get(name, name) for name in declared} | set(sys.stdlib_module_names) | {"neuronllm"}
    foreign = {target.split(".")[0] for targets in IMPORTS.values() for target in targets} - allowed
    assert not foreign


def test_files_stay_small() -> None:
    files = (MODULES | BENCH).values()
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert {name: n for name, n in lengths.items() if n > 400} == {}
    assert len((ROOT / "setup.py").read_text("utf-8").splitlines()) < 80


@pytest.mark.noext
def test_continuous_integration_runs_every_lane_of_tests() -> None:
    """Of the targets that run tests, all but what is in another one, and what needs a GPU."""
    lanes = set(re.findall(r"^(test[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = re.findall(r"^make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(called) == sorted({"style", *lanes} - {"test-all", "test-gpu"})


def test_importing_is_light(tmp_path: Path) -> None:
    code = "import sys, neuronllm; print(sorted({'triton', 'transformers'} & set(sys.modules)))"
    assert python(code, Path.cwd()) == "[]"
    assert python("import sys, neuronllm.common.env; print('torch' in sys.modules)", Path.cwd()) == "False"


# --- the name `kernels` ---


# Just enough for transformers: classes that take anything, and functions that return decorators which change nothing.
FAKE_KERNELS = """
class Anything:
    def __init__(self, *args, **kwargs): pass

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Anything,), {}) if name[0].isupper() else lambda *args, **kwargs: lambda thing: thing
"""


@pytest.mark.slow
def test_transformers_finds_the_other_package_called_kernels(tmp_path: Path) -> None:
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    fake, about = tmp_path / "kernels", tmp_path / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    fake.mkdir()
    about.mkdir()
    (fake / "__init__.py").write_text(FAKE_KERNELS)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    code = (
        "from transformers.utils.import_utils import is_kernels_available; assert is_kernels_available()\n"
        "from transformers import LlamaConfig\n"
        "import kernels, neuronllm.kernels; print(kernels.__file__)"
    )
    assert python(code, ROOT, PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="") == str(fake / "__init__.py")
    assert not (ROOT / "kernels" / "__init__.py").exists()


# --- builds ---


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what a build needs, with one kernel folder more and nothing built."""
    copy = tmp_path / "sources"
    built = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for folder in ("neuronllm", "csrc", "kernels"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=built)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy / file)
    (copy / "kernels" / "toy_op").mkdir()
    (copy / "kernels" / "toy_op" / "__init__.py").write_text("ANSWER = 42\n")
    return copy


def build_in_place(sources: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"NEURONLLM_BUILD_CUDA": "0"} | environment
    return run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", cwd=sources, **environment)


@pytest.mark.slow
def test_wheel(sources: Path, tmp_path: Path) -> None:
    pip_wheel = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path)
    done = run(*pip_wheel, sources, cwd=tmp_path, NEURONLLM_BUILD_EXT="0", NEURONLLM_BUILD_CUDA="0")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = json.loads(archive.read("neuronllm/_build.json"))
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in names} == {
        "neuronllm",
        f"neuronllm-{env.package_version('neuronllm')}.dist-info",
    }
    data = {path for path in (PACKAGE / "demo").rglob("*") if path.suffix in (".json", ".jsonl", ".safetensors")}
    data |= set((PACKAGE / "data").glob("*.txt"))
    data |= {path for path in (PACKAGE / "page").rglob("*") if path.suffix in (".j2", ".css", ".js")}
    kernels = {path for path in (ROOT / "kernels").rglob("*") if path.suffix in (".py", ".json")}
    installed = {str(path.relative_to(ROOT)) for path in data | set(MODULES.values()) - kernels}
    assert installed | {f"neuronllm/{path.relative_to(ROOT)}" for path in kernels} <= names
    assert {"neuronllm/py.typed", "neuronllm/_select.pyi"} <= names
    skipped = {"built": False, "reason": "NEURONLLM_BUILD_EXT=0 was set at installation"}
    assert record == skipped | {"cuda": {"built": False, "reason": "NEURONLLM_BUILD_CUDA=0 was set at installation"}}
    assert not [name for name in names if name.endswith(".so")]
    code = "import neuronllm.kernels.toy_op as op; print(op.ANSWER, op.__file__)"
    where = tmp_path / "site" / "neuronllm" / "kernels" / "toy_op" / "__init__.py"
    assert python(code, tmp_path, PYTHONPATH=str(tmp_path / "site")) == f"42 {where}"


@pytest.mark.slow
def test_build_switch_without_a_compiler(sources: Path) -> None:
    package = sources / "neuronllm"
    stale = package / ("_select" + sysconfig.get_config_var("EXT_SUFFIX"))
    stale.write_bytes(b"")
    tried = build_in_place(sources, NEURONLLM_BUILD_EXT="", CXX="no-such-compiler")
    assert tried.returncode == 0 and "NOT built" in tried.stderr + tried.stdout
    record = json.loads((package / "_build.json").read_text())
    assert record["built"] is False and "no-such-compiler" in record["reason"]
    assert not stale.exists()

    must = build_in_place(sources, NEURONLLM_BUILD_EXT="1", CXX="no-such-compiler")
    assert must.returncode != 0 and "no-such-compiler" in must.stderr

    nonsense = build_in_place(sources, NEURONLLM_BUILD_EXT="yes")
    assert nonsense.returncode != 0 and "'yes'" in nonsense.stderr


@pytest.mark.slow
@needs_extension
def test_build_is_incremental_and_skipping_removes_it(sources: Path) -> None:
    def object_times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in sources.glob("build/*/*.o")}

    built = build_in_place(sources, NEURONLLM_BUILD_EXT="1")
    assert built.returncode == 0, built.stderr
    first = object_times()
    assert set(first) == {f"{unit.stem}.o" for unit in (sources / "csrc").glob("*.cpp")}
    assert len(list((sources / "neuronllm").glob("_select*.so"))) == 1

    os.utime(sources / "csrc" / "select_scalar.cpp")
    assert build_in_place(sources, NEURONLLM_BUILD_EXT="1").returncode == 0
    second = object_times()
    assert {name for name in first if first[name] != second[name]} == {"select_scalar.o"}

    assert build_in_place(sources, NEURONLLM_BUILD_EXT="0").returncode == 0
    assert not list((sources / "neuronllm").glob("_select*.so"))


@pytest.mark.slow
def test_setup_never_imports_torch(sources: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['setup.py', '--quiet', 'build_ext', '--inplace']\n"
        "runpy.run_path('setup.py', run_name='__main__'); print('torch' in sys.modules)"
    )
    assert python(code, sources, NEURONLLM_BUILD_EXT="0", NEURONLLM_BUILD_CUDA="0").splitlines()[-1] == "False"


# --- the extension ---


@pytest.mark.noext
def test_extension_is_as_asked() -> None:
    """make test sets 1 and make test-noext 0; without the variable the record must tell the truth."""
    asked = os.environ.get("NEURONLLM_BUILD_EXT", "")
    module, reason = env.extension()
    if asked == "1":
        assert module is not None, reason
    elif asked == "0":
        assert importlib.util.find_spec("neuronllm._select") is None and module is None
        assert "NEURONLLM_BUILD_EXT=0" in reason
        assert Path(str(neuronllm.__file__)).parent != PACKAGE  # the installed copy, not the sources
    else:
        assert (module is not None) == env.build_record().get("built", False), reason


@pytest.mark.noext
def test_select_falls_back_with_a_reason() -> None:
    x = np.array([3, np.nan, 1, 3], dtype=np.float32)
    found = select.extremes(x, largest=2, smallest=1)
    assert found.largest.indices.tolist() == [0, 3] and found.smallest.indices.tolist() == [2]
    module, reason = env.extension()
    report = env.report()["select"]
    assert (report["backend"], report["reason"]) == ("torch" if module is None else "ext", reason)
    if module is None:
        with pytest.raises(InputError, match="not built"):
            select.extremes(x, largest=2, backend="ext")
    else:
        assert select.extremes(x, largest=2, backend="ext").largest.indices.tolist() == [0, 3]


@pytest.mark.noext
def test_env_says_what_is_there() -> None:
    text = env.describe()
    assert re.search(rf"^torch +{re.escape(importlib.metadata.version('torch'))}$", text, re.MULTILINE)
    assert env.extension()[1] in text and "reference" in text
    assert json.loads(json.dumps(env.report())) == env.report()


@pytest.mark.gpu
def test_env_names_the_gpus() -> None:
    assert env.report()["cuda"] == [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
