# Every target makes the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("shiftnorm needs Python 3.10 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,timm,dev]'
	touch $@

demo: $(READY) ## compare norms on the bundled digits: a table, a report, a record per run (under 5 minutes on 2 cores)
	$(BIN)/shiftnorm compare

test: $(READY) ## everything but the slow tests, in two processes; ARGS='-k golden' passes arguments on
	$(BIN)/python -m pytest -q -m 'not slow' -n 2 --dist worksteal $(ARGS)

lint: $(READY) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project pyproject.toml

bench: $(READY) ## time and memory of every norm; writes a record and prints the table
	$(BIN)/python benchmarks/run.py

docs: $(READY) ## regenerate the tables in README and docs from the records
	$(BIN)/python docs/generate.py

clean: ## remove the environment and caches; results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
