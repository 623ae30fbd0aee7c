# make run | make test | make help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
JOBS ?= 2
ARGS ?=
unexport PYTHONDONTWRITEBYTECODE  # the tests start many interpreters: let the first compile for all

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "steepest needs Python 3.11 or newer: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (3 to 5 minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

.PHONY: run test test-fast setup study bench docs lint types imports lock release report clean help
run: .venv/installed ## all studies at quick scale, two at a time, then the report
	@code=0; $(BIN)/steepest run --jobs $(JOBS) $(ARGS) || code=$$?; \
	$(BIN)/steepest report; test $$code -le 1

test: .venv/installed lint types imports ## the whole suite, lint, types, import rules
	$(ONE) $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-fast: .venv/installed ## the tests that take under 5 s each
	$(ONE) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

setup: .venv/installed ## the environment alone

study: .venv/installed ## one study: make study KEY=sophia ARGS="--scale full"
	@code=0; $(BIN)/steepest run $(KEY) $(ARGS) || code=$$?; test $$code -le 1

bench: .venv/installed ## timings beside the peers: make bench KEY="mfac sophia"
	$(BIN)/steepest bench $(KEY)

docs: .venv/installed ## the packages for the documentation, then its pages
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(ONE) $(BIN)/sphinx-build -W -b html docs docs/_build/html

lint: .venv/installed ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed ## mypy, strict, on src
	$(BIN)/mypy

imports: .venv/installed ## who may import whom
	$(BIN)/lint-imports

lock: .venv/installed ## write requirements.lock: every installed distribution, pinned
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

release: ## build wheel and sdist, and use each in an empty environment
	.ci/release $(ARGS)

report: .venv/installed ## the site from what is in the store
	$(BIN)/steepest report --open

clean: ## remove caches and the environment; results stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis docs/_build docs/generated docs/gallery
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
