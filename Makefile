# Every verb works from a clean clone: the environment is built when it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_FLAGS ?=

.PHONY: up down test lint types contracts bench proto fmt clean

up: $(READY) ## a running one-node swarm with a running service
	@$(BIN)/python -m tests.demo up

down: $(READY) ## end it: no process, socket or cgroup is left
	@$(BIN)/swarmvisor down

test: $(READY) lint types contracts ## everything that must hold
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

bench: $(READY) ## the figures that the issues ask for
	@$(BIN)/python -m tests.bench

proto: $(READY) ## regenerate swarm/api from its .proto files
	$(BIN)/python -m tests.tools.proto

fmt: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "swarmvisor needs Python 3.11 or newer (make PYTHON=/path/to/python3.11)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
