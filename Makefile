# Everything sets itself up: the environment is made once, reused after, and refreshed when its files change.
VENV := .venv
BIN := $(VENV)/bin
# Two test processes share the cores; more threads in each only get in each other's way.
TEST_ENV := OMP_NUM_THREADS=1
PYTHON ?= python3
STAMP := $(VENV)/.ready
DEMO_OUTPUT ?= output/demo
DEMO_ARGS ?=
FAULT_ARGS ?=
LOAD_ARGS ?=

.PHONY: help demo test test-slow package faults load check format tables reference docs docs-serve conformance clean

help:  ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): constraints.txt setup.cfg setup.py pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once, a minute or two)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

demo: $(STAMP)  ## train a baseline and its Hi-CL twin on generated images and compare them
	@$(BIN)/python benchmark/run_matrix.py run --matrix benchmark/matrices/smoke.yaml --output $(DEMO_OUTPUT) $(DEMO_ARGS)

test: $(STAMP)  ## run the tests
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(STAMP)  ## run the slow tests too
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile

package: $(STAMP)  ## build the wheel, install it without the checkout and use it (two minutes)
	@$(TEST_ENV) $(BIN)/python -m pytest tests/package

faults: $(STAMP)  ## break runs and inputs on purpose, print what was seen (hours; FAULT_ARGS=--shorten: minutes)
	@$(BIN)/python -m tests.robustness.fault_report $(FAULT_ARGS)

load: $(STAMP)  ## measure and kill the harness with cells that only wait (a quarter of an hour)
	@$(BIN)/python -m tests.robustness.load_report $(LOAD_ARGS)

check: $(STAMP)  ## lint, format, types, and whether the tables of results and the reference are fresh
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python benchmark/result_tables.py --check
	@$(BIN)/python docs/make_reference.py --check

format: $(STAMP)  ## put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

tables: $(STAMP)  ## write the tables of README, pages and notes from benchmark/results
	@$(BIN)/python benchmark/result_tables.py

reference: $(STAMP)  ## write the reference of config keys and command lines from the code
	@$(BIN)/python docs/make_reference.py

docs: $(STAMP)  ## build the documentation into output/site, warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

docs-serve: $(STAMP)  ## show the documentation on http://127.0.0.1:8000, built again after each change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

conformance:  ## compare with the real Detectron2 in the environment of PYTHON
	@$(PYTHON) -c "import importlib.util as u, sys; sys.exit(u.find_spec('detectron2') is None)" || { \
	  echo "conformance: $(PYTHON) has no Detectron2; install it (https://detectron2.readthedocs.io/en/latest/tutorials/install.html)" \
	    "and run: make conformance PYTHON=/path/to/its/python" >&2; exit 2; }
	@$(PYTHON) -m pytest tests/conformance

clean:  ## remove outputs and caches, keep the environment
	rm -rf output dist .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
