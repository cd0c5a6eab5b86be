# Two commands do everything on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
# Each makes its own .venv with the tested versions (constraints.txt); torch goes first so that a CPU build is used
# where one is at hand.

PYTHON ?= python3
PIP = .venv/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
DEMO ?= runs/demo

.PHONY: demo test test-all test-isa lint docs clean

demo: .venv/run.stamp
	.venv/bin/blockyard compare lm --config examples/demo.yaml --out $(DEMO)

test: .venv/dev.stamp lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 -m "not slow"
	.venv/bin/python tests/isa.py --short

# The numeric tests as on other processors: no vectors, AVX2, one and two threads. About twenty minutes.
test-isa: .venv/dev.stamp
	.venv/bin/python tests/isa.py

# The slow proofs too: kills of everything registered, random-token floor, long trainings.
test-all: .venv/dev.stamp lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2

lint: .venv/dev.stamp
	.venv/bin/ruff check src tests benchmarks examples site
	.venv/bin/ruff format --check src tests benchmarks examples site
	.venv/bin/mypy

# The site of the documentation, in build/site: a warning is an error, and nothing in it asks the network.
docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --clean -f site/mkdocs.yml

.venv/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[train,report]'
	touch $@

.venv/dev.stamp: .venv/run.stamp
	$(PIP) -e '.[train,report,dev]'
	touch $@

.venv/docs.stamp: .venv/run.stamp
	$(PIP) -e '.[train,report,docs]'
	touch $@

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache
