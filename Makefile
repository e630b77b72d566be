# Every verb works from a clean clone: the environment is built when it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SWARMVISOR := $(BIN)/swarmvisor
# Tests of real processes mostly wait: two at a time take little more than half as long.
PYTEST_FLAGS ?= --numprocesses 2 --no-loadscope-reorder

# For `make up`: options of `swarmvisor up`, such as --listen-addr 127.0.0.1:2377
UP_FLAGS ?=

# What the example service runs, twice. ($$ is make's way to write $.)
HELLO := n=0; while sleep 5; do n=$$((n + 1)); echo "hello number $$n from process $$$$"; done

.PHONY: up down test lint types contracts bench bytecode proto fmt clean

up: bytecode ## a running one-node swarm with a running service
	@$(SWARMVISOR) up --init --no-wait $(UP_FLAGS)
	@$(SWARMVISOR) wait ready >/dev/null
	@if $(SWARMVISOR) service ls -o json | grep -q '"name": "hello"'; then \
	    $(SWARMVISOR) service wait hello; \
	else \
	    $(SWARMVISOR) service create hello --replicas 2 -- sh -c '$(HELLO)' >/dev/null && echo "Service hello is created."; \
	fi
	@echo; $(SWARMVISOR) status
	@echo; $(SWARMVISOR) service ps hello
	@printf '\nWhat next:\n'
	@printf '  %s\n' '$(SWARMVISOR) task logs -f hello.1' '$(SWARMVISOR) service scale hello=5' \
	    '$(SWARMVISOR) debug ps' '$(SWARMVISOR) --help' 'make down'

down: $(READY) ## end it: no process, socket or cgroup is left
	@$(SWARMVISOR) down

test: bytecode lint types contracts ## everything that must hold
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

bench: bytecode ## the figures that the issues ask for
	@$(BIN)/python -m tests.bench

proto: $(READY) ## regenerate swarm/api from its .proto files
	$(BIN)/python -m tests.tools.proto

fmt: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "swarmvisor needs Python 3.11 or newer (make PYTHON=/path/to/python3.11)")'
	@echo "Building $(VENV)/ (once; half a minute) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# As an installation does: without it, and with PYTHONDONTWRITEBYTECODE set or no right to write here, every process of
# a node compiles its modules at each start, which doubles the time until it is ready.
bytecode: $(READY)
	@$(BIN)/python -m compileall -q ipc procs swarm
