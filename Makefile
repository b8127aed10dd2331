# Two commands on a fresh machine: `make demo` and `make test`. Both set up a virtual environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-out

.PHONY: setup demo test lint torture bench clean

setup: $(VENV)/stamp

$(VENV)/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/shardkit tokenize sample --out $(DEMO)/sample
	$(BIN)/shardkit info $(DEMO)/sample
	$(BIN)/shardkit verify $(DEMO)/sample
	$(BIN)/shardkit peek $(DEMO)/sample --document 42
	$(BIN)/shardkit push $(DEMO)/sample $(CURDIR)/$(DEMO)/remote
	$(BIN)/shardkit pull $(CURDIR)/$(DEMO)/remote $(DEMO)/pulled
	$(BIN)/python -m trainer train --data $(DEMO)/pulled --out $(DEMO)/run --model nano --steps 300 --optimizer muon \
	    --sample-every 300 --prompt "The" --resume auto
	$(BIN)/python -m trainer sample $(DEMO)/run --prompt "The" --tokens 60 --temperature 0.7
	$(BIN)/python -m trainer export $(DEMO)/run $(DEMO)/hf
	@echo "look at $(DEMO)/run/loss.png; the model is in $(DEMO)/hf"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 3 --dist worksteal

torture: setup
	SHARDKIT_TORTURE=long $(BIN)/python -m pytest tests/torture tests/test_opening.py tests/tokenization/test_only_shard.py -n 2 --timeout 3600

bench: setup
	$(BIN)/shardkit tokenize sample --out $(DEMO)/sample
	$(BIN)/python -m benchmarks.bench_loader
	$(BIN)/python -m benchmarks.bench_hub
	$(BIN)/python -m benchmarks.bench_train --data $(DEMO)/sample
	@echo "also: python -m benchmarks.bench_tokenize --corpus PARQUET_FOLDER, python -m benchmarks.bench_encoders"

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
