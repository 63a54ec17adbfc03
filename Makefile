# Two commands set everything up: `make demo` runs the main job, `make test` passes the tests. Each makes .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint types layers docs dist check gpu-check clean

demo: $(STAMP)
	$(BIN)/spade demo --out demo

# Many tests watch processes, ports and clocks, which a busy machine can delay. A test that fails is run once more, and the
# summary names it (RERUN): a race to be mended. What is wrong fails both times.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --reruns 1 --reruns-delay 3 -r aR

# The tests that `make test` leaves out, since CI has 40 minutes on two cores.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy benchmarks scripts examples

layers: $(STAMP)
	$(BIN)/lint-imports

# The documentation site, in site/. A warning is an error.
docs: $(STAMP)
	$(BIN)/python -m mkdocs build --strict --quiet

# The wheel, in dist/.
dist: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

check: lint types layers docs test

# For a machine with a GPU; ends with code 3 where there is none. make gpu-check GPU_CHECK="--quick --step tensorrt"
# GPU_PYTHON=python3 takes the packages that this Python has, where nothing can be installed, and this checkout.
gpu-check: $(if $(GPU_PYTHON),,$(STAMP))
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu_check.py $(GPU_CHECK)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "spade-deploy needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) demo runs build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
