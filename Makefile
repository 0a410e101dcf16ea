# A fresh machine needs Python 3.11, make and gcc; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := tests/test_docs.py tests/test_prose.py tests/test_results.py
PEERS := $(VENV)/.peers
export UV_COMPILE_BYTECODE := 1
export UV_LINK_MODE := copy
# Cached bytecode halves the start of every Ray process; some environments switch it off.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all check-docs peers lint types bench bench-check docs pins clean

demo: $(READY)
	$(BIN)/spikeprune data ingest mnist-sample --output data/mnist-sample
	rm -rf runs/demo
	$(BIN)/spikeprune run examples/demo.yaml
	$(BIN)/spikeprune score runs/demo --output runs/demo-scores.parquet

# Side by side, those that use Ray in one process; test-all runs one test after another, as many kill processes.
test: $(READY)
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadgroup $(addprefix --ignore=,$(DOCS))

# Pages, their blocks of code, figures and words, and the site.
check-docs: $(READY)
	$(BIN)/pytest $(DOCS)

test-all: $(READY) $(PEERS)
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
	$(BIN)/mkdocs build --site-dir build/site

# The libraries that ours is compared with, whose networks it takes, and that it runs under.
peers: $(PEERS)

# The tested set of versions, with hashes and without any index address; that of the peers is what they add.
# The extra wandb is in none: its 30 packages would slow every installation.
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 \
  --generate-hashes --no-annotate --no-header --upgrade --quiet
pins: $(READY)
	$(COMPILE) $(foreach e,demo search nir events docs dev,--extra $(e)) -o constraints.txt
	$(COMPILE) --extra peers -c constraints.txt -o constraints-peers.txt \
	  $$(sed -n 's/^\([a-zA-Z0-9._-]*\)==.*/--no-emit-package \1/p' constraints.txt)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(READY)

$(PEERS): $(READY) constraints-peers.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r constraints-peers.txt
	touch $(PEERS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
