# Everything runs from the project's own folder with relative paths, so the folder may lie anywhere.
PYTHON ?= python3
VENV := .venv
FUZZ_EXAMPLES ?= 2000
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run test lint types tests chaos histories fuzz zoo compose-test bench-training bench-storage bench-plans lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## make .venv with .venv/bin/studyhall, from requirements.lock

run: $(INSTALLED) ## a first study: MNIST, 20 trials, two workers
	$(BIN)/studyhall run mnist-mlp --data auto --trials 20 --workers 2

test: lint types tests ## lint, types and tests

lint: $(INSTALLED) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

tests: $(INSTALLED) ## pytest, in four processes with a PostgreSQL each
	$(BIN)/python -m pytest --numprocesses 4 --dist worksteal

chaos: $(INSTALLED) ## a study of real training while everything under it is killed; slow
	STUDYHALL_TEST_CHAOS=1 $(BIN)/python -m pytest tests/chaos tests/acceptance/test_kill_points.py \
	  -s --trials 40 --workers 4 $(CHAOS)

histories: $(INSTALLED) ## workers killed, suspended and cut off under a checker; planted bugs; slow
	$(BIN)/python -m pytest tests/histories -s --histories 6 --history-seconds 60 $(HISTORIES)

fuzz: $(INSTALLED) ## stock Optuna and ours, random operations and studies; slow; FUZZ_EXAMPLES=2000
	STUDYHALL_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/differential -s

zoo: $(INSTALLED) ## every model of the zoo by every path beside plain fit, and all near-twins; slow
	STUDYHALL_TEST_ZOO=1 $(BIN)/python -m pytest tests/unit/test_model_zoo.py tests/unit/test_objectives_twins.py tests/unit/test_objectives_dtypes.py tests/unit/test_objectives_exact.py tests/unit/test_objectives_continued.py -s

compose-test: $(INSTALLED) ## docker-compose.yml on this machine's Docker engine; slow
	STUDYHALL_TEST_COMPOSE=1 $(BIN)/python -m pytest tests/compose

lock: ## resolve pyproject.toml's requirements anew into requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade --only-binary :all: setuptools
	build/lock/bin/python -m pip install --quiet --only-binary :all: '.[dev,dashboard]'
	{ sed '/^[^#]/,$$d' requirements.lock; \
	  build/lock/bin/python -m pip freeze --all --exclude pip --exclude studyhall; } > build/lock.txt
	mv build/lock.txt requirements.lock && rm -rf build/lock

clean: ## remove what the other targets made; studies are kept
	rm -rf $(VENV) build dist studyhall.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "studyhall needs Python 3.11 or newer, and $(PYTHON) is not:" \
	       "make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make $(VENV): on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	$(PIP) install --quiet --only-binary :all: --requirement requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

bench-training: $(INSTALLED) ## plain fit and our trainer, side by side; ARGS="--data-dir DIR"
	$(BIN)/python benchmarks/training.py $(ARGS)

bench-storage: $(INSTALLED) ## StudyStorage beside Optuna's RDBStorage; ARGS="--short"
	$(BIN)/python benchmarks/storage.py $(ARGS)

bench-plans: $(INSTALLED) ## what the connection's planner settings are good for; ARGS="--sizes 1000"
	$(BIN)/python benchmarks/plans.py $(ARGS)
