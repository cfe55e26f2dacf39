# Two commands do all the set-up: `make demo` and `make test`. Both make their own virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint coverage docs bench bench-docs clean

# Made anew when the dependencies change. The marker is written last: an installation that broke off is repeated.
# What the operator is built with comes first, so that it is built beside it: isolated, torch would be fetched twice.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet 'setuptools>=77' 'torch>=2.11' 'numpy<2.5'
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[all,dev,docs]'
	touch $@

.venv: .venv/installed

demo: .venv/installed
	CONDCONV=$(BIN)/condconv scripts/demo.sh

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n auto -m "not slow"

test-all: lint
	$(BIN)/pytest -n auto

# Which lines of the package no fast test runs, in processes that tests start too.
coverage: .venv/installed
	$(BIN)/pytest -n auto -m "not slow" --cov

# The site, into site/: a warning or a link that leads nowhere is an error.
docs: .venv/installed
	$(BIN)/mkdocs build

# The planner's table comes first: what the planner chooses in all others depends on it.
BENCHMARKS := planner_table planner_fit single_layers small layers networks variants training random_shapes hotspots

bench: .venv/installed
	set -e; for module in $(BENCHMARKS); do $(BIN)/python -m benchmarks.speed.$$module; done
	$(MAKE) bench-docs

bench-docs: .venv/installed
	$(BIN)/python -m benchmarks.speed.report

clean:
	rm -rf .venv build dist site *.egg-info
