# `make demo` and `make test` do all the set-up on a machine with Python 3.11+ and make.

VENV := .venv
PY := $(VENV)/bin/python
SETUP := $(VENV)/.ready
# Where Dagster keeps its event log, and by default the store. Absolute, as Dagster wants it.
export DAGSTER_HOME ?= $(CURDIR)/dagster_home
export PYTHONDONTWRITEBYTECODE =
# Tests train models of some hundred thousand weights: a second thread costs more than it brings.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_DISABLE_TELEMETRY=1
CONFIG ?= examples/configs/supervised.yaml

.DEFAULT_GOAL := help
.PHONY: help demo ui test test-all lint types formulas unit contract workflows faults browser docs bench soak clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(SETUP): pyproject.toml setup.cfg constraints.txt
	@for p in python3.11 python3.12 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 13)))' && python=$$p && break; done; \
	  test -n "$$python" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }; \
	  test -x $(PY) || $$python -m venv $(VENV)
	@# torch first and by its exact pin: asked for by another package, pip would fetch a build of several gigabytes.
	$(PY) -m pip install --quiet -c constraints.txt torch==2.13.0
	$(PY) -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(SETUP)

demo: $(SETUP) ## train the embedded default through Dagster, and see it learn (under 4 minutes)
	$(VENV)/bin/dagster job execute -m kitchen_assets.definitions -j supervised -c $(CONFIG)
	@$(PY) -m examples.demo

ui: $(SETUP) ## the Dagster UI on http://127.0.0.1:3000
	$(VENV)/bin/dagster dev -w workspace.yaml -h 127.0.0.1

test: $(SETUP) lint types formulas unit contract workflows faults ## lint, types, formulas, contracts, workflows, a fault sample
	@echo "make test: all passed"

test-all: $(SETUP) ## make test, and the browser, the full faults and the executed docs
	@scripts= ; $(PY) -m tests.summary -- $(MAKE) --no-print-directory test browser faults-full docs

lint: $(SETUP) ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(SETUP) ## mypy, strict
	$(VENV)/bin/mypy

formulas: $(SETUP) ## the pure functions, by exact numbers
	$(TEST_ENV) $(PY) -m pytest -q tests/unit -k formulas

unit: $(SETUP) ## the parts, each alone
	$(TEST_ENV) $(PY) -m pytest -q -n 2 tests/unit -k "not formulas"

contract: $(SETUP) ## one suite a port, over every adapter
	$(TEST_ENV) $(PY) -m pytest -q -n 2 tests/contract

workflows: $(SETUP) ## whole runs through Dagster on the embedded model, values asserted
	$(TEST_ENV) $(PY) -m pytest -q -n 2 tests/workflows

faults: $(SETUP) ## a sample of the faults: real SIGKILLs of real processes
	$(TEST_ENV) $(PY) -m pytest -q tests/faults

clean: ## remove what was built and what was run; the store too
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .tmp_dagster_home_* kitchen_store
	find dagster_home -mindepth 1 ! -name 'dagster*.yaml*' -delete
