# A fresh machine needs Python 3.11, make and gcc; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export UV_COMPILE_BYTECODE := 1
export UV_LINK_MODE := copy
# Cached bytecode halves the start of every Ray process; some environments switch it off.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all lint types bench bench-check docs pins clean

demo: $(READY)
	$(BIN)/spikeprune data ingest mnist-sample --output data/mnist-sample
	rm -rf runs/demo
	$(BIN)/spikeprune run examples/demo.yaml

test: $(READY)
	$(BIN)/pytest

test-all: $(READY)
	$(BIN)/pytest -m ""

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks

# Which key ratios moved since the stored result, by more than their spread.
bench-check: bench
	$(BIN)/python -m benchmarks.compare docs/results/suite.json runs/suite.json

docs: $(READY)
	$(BIN)/mkdocs build --quiet --site-dir build/site

# The tested set of versions, with hashes and without any index address.
pins: $(READY)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --upgrade --quiet -o constraints.txt

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
