# Two commands do everything on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
# Each makes its own .venv with the tested versions (constraints.txt); torch goes first so that a CPU build is used
# where one is at hand.

PYTHON ?= python3
PIP = .venv/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
DEMO ?= runs/demo

# What the linters read; site/ makes pages of docs/, tools/ and hatch_build.py build and release the package.
CODE = src tests benchmarks examples site tools hatch_build.py

.PHONY: demo test test-all test-isa test-avx2 bench-check gpu lint addresses package release-check publish docs clean

demo: .venv/run.stamp
	.venv/bin/blockyard demo --out $(DEMO)

test: .venv/dev.stamp lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 -m "not slow"
	.venv/bin/python tests/isa.py --short

# The numeric tests as on other processors: no vectors, AVX2, one and two threads. About twenty minutes.
test-isa: .venv/dev.stamp
	.venv/bin/python tests/isa.py
	.venv/bin/python tools/release_check.py --passed test-isa

# One of them: what a processor without AVX-512 gives.
test-avx2: .venv/dev.stamp
	.venv/bin/python tests/isa.py --processor "AVX2, 1 thread"

# The slow proofs too: kills of everything registered, random-token floor, long trainings.
test-all: .venv/dev.stamp lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2
	.venv/bin/python tools/release_check.py --passed test-all

# Whether anything became slower than benchmarks/history.jsonl has it, for this processor; `--record` appends.
bench-check: .venv/dev.stamp
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_check.py
	.venv/bin/python tools/release_check.py --passed bench-check

# What needs a card (docs/benchmarks.md, "On a GPU"): the tests marked gpu, and the figures, in runs/gpu.json.
gpu: .venv/dev.stamp
	.venv/bin/python -m pytest -m gpu
	mkdir -p runs
	.venv/bin/python benchmarks/gpu.py --out runs/gpu.json

lint: .venv/dev.stamp
	.venv/bin/ruff check $(CODE)
	.venv/bin/ruff format --check $(CODE)
	.venv/bin/mypy

# Writes the addresses of pyproject.toml's [tool.blockyard.release] to where people look for them.
addresses: .venv/dev.stamp
	.venv/bin/python tools/addresses.py --write

# sdist and wheel into dist/, by the pinned tools, as an index would show them.
package: .venv/package.stamp
	rm -rf dist
	.venv/bin/python -m build --no-isolation
	.venv/bin/twine check --strict dist/*
	.venv/bin/python tools/release_check.py --passed package

# The release checklist (docs/releasing.md): says all that is missing; publishing begins with it.
release-check: .venv/dev.stamp
	.venv/bin/python tools/release_check.py

publish: .venv/package.stamp release-check
	.venv/bin/twine upload dist/*

# The site of the documentation, in build/site: a warning is an error, and nothing in it asks the network.
docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --clean -f site/mkdocs.yml
	.venv/bin/python tools/release_check.py --passed docs

.venv/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[train,report]'
	touch $@

.venv/dev.stamp: .venv/run.stamp
	$(PIP) -e '.[train,report,dev]'
	touch $@

.venv/package.stamp: .venv/dev.stamp
	$(PIP) build twine
	touch $@

.venv/docs.stamp: .venv/run.stamp
	$(PIP) -e '.[train,report,docs]'
	touch $@

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache
