# `make demo` and `make test` work from a fresh clone with nothing but Python: each first makes .venv, once.
# Another interpreter: make PYTHON=python3.12 test. More arguments for pytest: make test ARGS="-k capture -x".

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two workers, one thread each: on two cores, more threads than that only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

define CHECK_VERSION
'import sys; sys.version_info >= (3, 11) or sys.exit("bnn needs Python 3.11 or newer, and %s is Python %d.%d. Name another one, as in: make PYTHON=python3.12 (a .venv that an older Python made has to be removed first)." % ((sys.executable,) + tuple(sys.version_info[:2])))'
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-slow lint format docs bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# The stamp is written last, so that an install that failed is tried again, and one that succeeded needs no network.
# A folder without a working pip is what an interrupted `python -m venv` leaves: making it again repairs it.
$(STAMP): pyproject.toml constraints.txt tests/second-opinion.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' here; name a Python 3.11 or newer: make PYTHON=..." >&2; exit 1; }; \
	  $(PYTHON) -c $(CHECK_VERSION) && $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c $(CHECK_VERSION)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --no-deps -r tests/second-opinion.txt
	@touch $@

venv: $(STAMP)  ## make .venv and install the tested versions into it

demo: $(STAMP)  ## fit two real data sets, print a table, write figures to runs/demo
	$(BIN)/python -m bnn demo

test: $(STAMP)  ## all tests but the slow ones and those for an accelerator
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-slow: $(STAMP)  ## the slow tests
	$(PYTEST) -m "slow and not gpu" $(ARGS)

lint: $(STAMP)  ## ruff's rules, ruff's format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## put the code in ruff's format and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Its own stamp: Sphinx is needed for nothing else.
$(VENV)/.docs: $(STAMP) pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## build the site into docs/_build/html; warnings and dead links fail
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q -b html -c docs . docs/_build/html

bench: $(STAMP)  ## time pieces of work side by side: make bench ARGS="--work step.tiny"
	$(BIN)/python -W ignore -m benchmarks $(ARGS)

clean:  ## remove builds and caches; .venv and runs/ stay
	rm -rf build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
