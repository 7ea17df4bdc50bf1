PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup check test demo bench clean

help: ## Show the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

setup: $(STAMP) ## Make the environment in .venv

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

build/typing/winnow: ## Links that let mypy see winnow.* (the namespace has no folder of its own)
	mkdir -p $@
	for room in contracts filters models pipeline recipes stages; do ln -sfn ../../../$$room $@/$$room; done

check: $(STAMP) build/typing/winnow ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/typing $(BIN)/mypy -p winnow

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest
