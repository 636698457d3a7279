# What a person does with this project. `make help` lists it.

SHELL := /bin/sh
VENV ?= .venv
# Tests wait more than they compute; each of these processes has servers of its own.
TEST_PROCESSES ?= 3
BIN := $(VENV)/bin
STAMPS := $(VENV)/.made

.DEFAULT_GOAL := help
.PHONY: help demo test test-ecosystem check lint types layers pages docs bench servers clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@python=$$(sh scripts/find-python.sh) && echo "Making $(VENV) with $$python" && "$$python" -m venv $(VENV)
	@mkdir -p $(STAMPS)

# Editable, so the environment is made again only when what it must contain has changed.
$(STAMPS)/package: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/package

demo: $(STAMPS)/package ## Walk through the guide against a real worker on the embedded broker
	$(BIN)/python scripts/demo.py

servers:
	@sh scripts/install-servers.sh

test-ecosystem: $(STAMPS)/dev servers ## Flower, django-celery-beat and others from PyPI, unmodified, against our worker
	TEST_ECOSYSTEM=1 $(BIN)/python -m pytest tests/ecosystem $(PYTEST_OPTIONS)

test: $(STAMPS)/dev servers check ## Lint, types, layers and all tests; installs what they need
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) $(PYTEST_OPTIONS)

check: lint types layers pages ## Lint, types, layers, and whether the pages that come from the code are up to date

lint: $(STAMPS)/dev
	$(BIN)/ruff check --cache-dir .cache/ruff .

types: $(STAMPS)/dev
	$(BIN)/mypy

layers: $(STAMPS)/dev
	$(BIN)/python scripts/check_layers.py

pages: $(STAMPS)/dev
	$(BIN)/python scripts/make_docs.py --check

docs: $(STAMPS)/dev ## Write the pages that come from the code
	$(BIN)/python scripts/make_docs.py

bench: $(STAMPS)/dev servers ## Compare with real Celery 5.7.0: BENCH_ROUNDS=3 BENCH_TASKS=4000 BENCH_ONLY=drain
	$(BIN)/python -m benchmarks

clean: ## Remove environments, caches and results
	rm -rf $(VENV) .tox .cache benchmarks/results
