# `make demo` and `make test` do all the set-up on a machine with Python 3.11+ and make.

VENV := .venv
PY := $(VENV)/bin/python
SETUP := $(VENV)/.ready
# Where Dagster keeps its event log, and by default the store. Absolute, as Dagster wants it.
export DAGSTER_HOME ?= $(CURDIR)/dagster_home
export PYTHONDONTWRITEBYTECODE =
# Tests train models of some hundred thousand weights: a second thread costs more than it brings.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q
RESULTS := .make
KILLS ?= 250
CONFIG ?= examples/configs/supervised.yaml

.DEFAULT_GOAL := help
.PHONY: help demo ui test test-all clean-results lint types suites formulas unit contract workflows faults full extras peers backends browser chromium docs gpu bench soak clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(SETUP): pyproject.toml setup.cfg constraints.txt
	@for p in python3.11 python3.12 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 13)))' && python=$$p && break; done; \
	  test -n "$$python" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }; \
	  test -x $(PY) || $$python -m venv $(VENV)
	@# torch first and by its exact pin: asked for by another package, pip would fetch a build of several gigabytes.
	@# Not compiled ahead: Python compiles what is imported, and all that is installed takes 50 s longer.
	$(PY) -m pip install --quiet --no-compile -c constraints.txt torch==2.13.0
	$(PY) -m pip install --quiet --no-compile -c constraints.txt -e ".[dev,environments]"
	@touch $(SETUP)

demo: $(SETUP) ## train the embedded default through Dagster, and see it learn (under 4 minutes)
	$(VENV)/bin/dagster job execute -m kitchen_assets.definitions -j supervised -c $(CONFIG)
	@$(PY) -m examples.demo

ui: $(SETUP) ## the Dagster UI on http://127.0.0.1:3000
	$(VENV)/bin/dagster dev -w workspace.yaml -h 127.0.0.1

test: $(SETUP) clean-results lint types suites ## lint, types, formulas, contracts, workflows, a fault sample
	@$(PY) tests/summary.py "make test" $(RESULTS)

test-all: $(SETUP) clean-results lint types suites full extras peers ## make test, and the long tests, the extras, the browser, the executed docs, the peers
	@$(PY) tests/summary.py "make test-all" $(RESULTS)

clean-results:
	@rm -rf $(RESULTS) && mkdir -p $(RESULTS)

lint: $(SETUP) ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(SETUP) ## mypy, strict
	@# Two workers halve the time, but must start within 3 s, which a busy machine misses: then one process.
	$(VENV)/bin/mypy -n 2 || $(VENV)/bin/mypy

# In one go, because every start of a worker imports torch and trl anew: 13 s with two at once. The longest first, so
# that no worker is left with them when the other has nothing more to do.
suites: $(SETUP) ## formulas, unit, contract, workflows and faults in one go
	$(PYTEST) --junitxml=$(RESULTS)/suites.xml -n 2 --maxschedchunk 2 -m "not full" \
	  tests/workflows tests/faults tests/contract tests/unit examples/cookbook/tests

formulas: $(SETUP) ## the pure functions, by exact numbers
	$(PYTEST) --junitxml=$(RESULTS)/formulas.xml -n 2 tests/unit -k formulas

unit: $(SETUP) ## the parts, each alone
	$(PYTEST) --junitxml=$(RESULTS)/unit.xml -n 2 tests/unit -k "not formulas"

contract: $(SETUP) ## one suite a port, over every adapter
	$(PYTEST) --junitxml=$(RESULTS)/contract.xml -n 2 tests/contract

workflows: $(SETUP) ## whole runs through Dagster on the embedded model, values asserted
	$(PYTEST) --junitxml=$(RESULTS)/workflows.xml -n 2 -m "not full" tests/workflows

faults: $(SETUP) ## real SIGKILLs of real processes
	$(PYTEST) --junitxml=$(RESULTS)/faults.xml -m "not full" tests/faults

# Three at a time: much of them is waiting for processes. Tests that share what took long to make stay together.
# In one go, so that what waits for one thing leaves its time to another.
full: chromium $(VENV)/.docs ## the long tests that make test leaves to make test-all, the browser and the executed docs
	$(PYTEST) --junitxml=$(RESULTS)/full.xml -n 3 --dist loadscope --no-loadscope-reorder -m full \
	  tests/docs tests/ui tests/workflows tests/faults tests/unit tests/contract
	$(PY) docs/generate.py --check

# In an environment of its own, as its pins are not ours; and as docs/decisions/0019-remote-services.md says.
SKYRL := $(VENV)/peers/skyrl
MLFLOW := $(VENV)/peers/mlflow
HATCHERY := $(VENV)/peers/hatchery
peers: $(VENV)/.peers $(SKYRL)/.ready $(HATCHERY)/.ready $(MLFLOW)/.ready ## backends against real servers of theirs, on loopback
	$(PYTEST) --junitxml=$(RESULTS)/peers.xml -n 3 --dist loadfile tests/peers

backends: $(VENV)/.peers $(SKYRL)/.ready $(HATCHERY)/.ready ## one recipe on every backend, losses side by side
	OMP_NUM_THREADS=1 $(PY) -m tests.peers.side_by_side

$(VENV)/.peers: $(SETUP)
	$(PY) -m pip install --quiet --no-compile -c constraints.txt -e ".[dev,environments,tinker,ray,modal,fireworks,harness]"
	@touch $@

$(SKYRL)/.ready: $(SETUP) tests/peers/skyrl-requirements.txt
	$(PY) -m venv $(SKYRL)
	$(SKYRL)/bin/pip install --quiet --no-compile -c constraints.txt uv torch==2.13.0
	$(SKYRL)/bin/pip install --quiet --no-compile --no-deps --ignore-requires-python skyrl==0.4.0
	$(SKYRL)/bin/pip install --quiet --no-compile -r tests/peers/skyrl-requirements.txt
	@echo "import typing, typing_extensions; typing.TypedDict = typing_extensions.TypedDict" \
	  > $$($(SKYRL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/typed_dict.pth
	@touch $@

# Beside the environment, whose torch and transformers it uses; as docs/decisions/0031-fireworks.md says.
$(HATCHERY)/.ready: $(SETUP)
	$(PY) -m pip install --quiet --no-compile --no-deps --ignore-requires-python --upgrade --target $(HATCHERY) \
	  hatchery-core==0.3.0 hatchery-client==0.2.0 fastapi==0.165.0 msgpack==1.2.4 aiosqlite==0.22.1 structlog==26.1.0 \
	  python-multipart==0.0.34 annotated-doc==0.0.7
	@touch $@

$(MLFLOW)/.ready: $(SETUP)
	$(PY) -m venv $(MLFLOW)
	$(MLFLOW)/bin/pip install --quiet --no-compile mlflow==3.17.2
	@touch $@

extras: $(SETUP) $(VENV)/.extras ## what needs an extra package, with the real one
	PYTHONPATH=$(VENV)/extras $(PYTEST) --junitxml=$(RESULTS)/extras.xml tests/extras

$(VENV)/.extras: $(SETUP)
	@# Beside the environment and not in it: its import would slow every run of those who don't use it.
	$(PY) -m pip install --quiet --no-deps --upgrade --target $(VENV)/extras bitsandbytes==0.50.2
	@touch $@

$(VENV)/.browser: $(SETUP)
	$(PY) -m pip install --quiet --no-compile -c constraints.txt -e ".[dev,environments,browser]"
	@touch $@

browser: chromium ## the UI in headless Chromium
	$(PYTEST) --junitxml=$(RESULTS)/browser.xml -n 2 --dist loadfile tests/ui

chromium: $(VENV)/.browser
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  { echo "chromium is needed: apt-get install chromium"; exit 1; }

$(VENV)/.docs: $(SETUP)
	$(PY) -m pip install --quiet --no-compile -c constraints.txt -e ".[dev,environments,docs]"
	@touch $@

docs: $(VENV)/.docs ## the site of docs/ in build/site; every command of the README and of the pages, run
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict
	$(PYTEST) --junitxml=$(RESULTS)/docs.xml tests/docs
	$(PY) docs/generate.py --check

gpu: $(SETUP) ## training on a CUDA GPU: bits, losses, memory; needs one, and a build of torch for it
	$(PYTEST) --junitxml=$(RESULTS)/gpu.xml -n 4 tests/gpu

bench: $(SETUP) ## cost over the bare library, against benchmarks/bounds.toml
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.run

soak: $(SETUP) ## random SIGKILLs on real training, on a disk and a bucket: KILLS of them (default 250)
	OMP_NUM_THREADS=1 $(PY) -m tests.faults.soak --kills $(KILLS)

clean: ## remove what was built and what was run; the store too
	rm -rf $(VENV) .make build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .tmp_dagster_home_* kitchen_store
	find dagster_home -mindepth 1 ! -name 'dagster*.yaml*' -delete
