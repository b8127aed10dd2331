# Two commands on a fresh machine: `make demo` and `make test`. Both set up a virtual environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-out

.PHONY: setup demo test lint bench clean

setup: $(VENV)/stamp

$(VENV)/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/shardkit tokenize sample --out $(DEMO)/sample
	$(BIN)/shardkit info $(DEMO)/sample
	$(BIN)/shardkit verify $(DEMO)/sample
	$(BIN)/shardkit peek $(DEMO)/sample --document 42

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2

bench: setup
	$(BIN)/python -m benchmarks.bench_tokenize --help

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
