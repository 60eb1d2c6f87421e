# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.installed-peers

.PHONY: help setup demo check format test test-slow bench docs clean

help:
	@echo "make setup      create $(VENV) with pinned packages"
	@echo "make demo       train on real news, label a corpus, show the result (2 cores: under 15 minutes)"
	@echo "make check      formatting, lint, types, import rules"
	@echo "make test       make check and the test suite"
	@echo "make test-slow  the long suites: whole jobs on real clusters, kills"
	@echo "make docs       the documentation as a site, into site/; the configuration reference and plots anew"
	@echo "make bench      speed beside what people use, into benchmarks/results/ (2 cores: under 15 minutes)"

setup: $(STAMP)

# torch first: its own dependencies are then satisfied and nothing pulls a larger build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing packages into $(VENV), once: a minute or more, most of it for torch"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[demo,dev,docs]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python demo/demo.py

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

docs: $(STAMP)
	$(BIN)/python docs/generate_configuration.py
	$(BIN)/python benchmarks/plots.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

# What the benchmarks are compared with; nothing else needs it.
$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $(PEERS)

bench: $(PEERS)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) site demo/corpus demo/train demo/four-topics demo/model demo/model-strict demo/labels
