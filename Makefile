# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` work on a fresh machine with python >= 3.10, pip and git; `make` lists all targets.
PYTHON ?= python3
IMAGES ?=
MODEL ?= checkpoints/ice-deit-scenes
PORT ?=
WORKERS ?= auto
MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
UPSTREAM := .cache/upstream

# Nothing here needs the Hub; without this a machine that cannot reach it waits for time-outs.
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo app docs style quality test coverage test-slow fuzz test-upstream test-lowest test-newest \
	checkpoint-code cards clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One stamp for all targets. torch first and by itself: the second call then finds it and leaves it as it is. Python
# compiles what it imports; compiling all of torch and transformers beforehand takes as long as unpacking them.
$(STAMP): pyproject.toml constraints.txt scripts/install_torch.sh
	@echo "Installing into $(VENV); the first time takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@bash scripts/install_torch.sh $(BIN)/python constraints.txt
	@$(BIN)/python -m pip --disable-pip-version-check -qq install --no-compile -c constraints.txt -e ".[train,eval,viz,app,export,docs,dev]"
	@touch $@
	@echo "Installed. Next: source $(BIN)/activate"

install: $(STAMP) ## create .venv and install everything into it

demo: $(STAMP) ## fine-tune ICE on drawn scenes, measure it, explain images (IMAGES="a.jpg folder" adds your own)
	@$(BIN)/python scripts/run_demo.py $(if $(IMAGES),--images $(IMAGES))

app: $(STAMP) ## show a checkpoint in the browser (MODEL=folder-or-Hub-id, PORT=7860)
	@$(BIN)/python scripts/run_app.py --model $(MODEL) $(if $(PORT),--port $(PORT))

docs: $(STAMP) ## build the documentation into site/, strictly
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q

style: $(STAMP) ## format the code and mend what ruff can mend
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

quality: $(STAMP) ## ruff and mypy, without changing anything
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

test: $(STAMP) ## the fast tests
	@$(BIN)/python $(PYTEST)

coverage: $(STAMP) ## the fast tests with the line coverage of src, at least 90 %; a third slower
	@$(BIN)/python $(PYTEST) --cov --cov-report=term

test-slow: $(STAMP) ## the tests marked slow, and those marked gpu where there is one
	@$(BIN)/python -m pytest -q -m "slow or gpu"

fuzz: $(STAMP) ## tests/fuzz for MINUTES=10, with new examples in every run; prints how many
	@FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest -q -p no:cacheprovider --maxfail=99 tests/fuzz

test-upstream: $(STAMP) ## the model tests of transformers itself on our classes (fetches its sdist from PyPI once)
	@$(BIN)/python tests/upstream/fetch.py $(UPSTREAM)
	@ICE_UPSTREAM_TESTS=$(UPSTREAM) $(BIN)/python -m pytest -q -rf -n $(WORKERS) --maxprocesses 8 \
		-o addopts= -W ignore::UserWarning tests/upstream

# Environments of their own. The lowest versions that pyproject.toml allows, by uv; the newest, by pip. torch and Python are
# variables, for a machine that has others: make test-lowest LOWEST_PYTHON=3.11 LOWEST_TORCH=2.13.0 UV_FIND_LINKS=folder
EXTRAS := train,eval,viz,app,export,dev
LOWEST_PYTHON ?= 3.10
LOWEST_TORCH ?= 2.6.0
NEWEST_PYTHON ?= $(PYTHON)
PYTEST := -m pytest -q -n $(WORKERS) --maxprocesses 8 --dist worksteal
VERSIONS := -c "import platform, importlib.metadata as m; print('Python', platform.python_version(), *(f'{n} {m.version(n)}' \
	for n in ('torch', 'transformers', 'accelerate', 'datasets', 'numpy', 'Pillow', 'gradio')), sep=', ')"

test-lowest: ## the fast tests with the lowest versions that pyproject.toml allows (needs uv)
	@uv venv -q --allow-existing --python $(LOWEST_PYTHON) .venv-lowest
	@echo "torch==$(LOWEST_TORCH)" > .venv-lowest/torch.txt
	@UV_TORCH_BACKEND=$(if $(UV_FIND_LINKS),,cpu) uv pip install -q --python .venv-lowest --resolution lowest-direct \
		--override .venv-lowest/torch.txt -e ".[$(EXTRAS)]"
	@.venv-lowest/bin/python $(VERSIONS)
	@.venv-lowest/bin/python $(PYTEST)

test-newest: ## the fast tests with the newest version of everything
	@test -x .venv-newest/bin/python || $(NEWEST_PYTHON) -m venv .venv-newest
	@.venv-newest/bin/python -m pip --disable-pip-version-check -qq install --upgrade --upgrade-strategy eager -e ".[$(EXTRAS)]"
	@.venv-newest/bin/python $(VERSIONS)
	@.venv-newest/bin/python $(PYTEST)

checkpoint-code: $(STAMP) ## copy the code that travels into the sample checkpoints, after a change to it
	@$(BIN)/python -c "import sys, pathlib; from transformers_ice.ice_deit.remote_code import copy_remote_code; \
		[copy_remote_code(pathlib.Path(folder), None) for folder in sys.argv[1:]]" $(wildcard checkpoints/ice-*)

cards: $(STAMP) ## write the model cards from model_cards/results.json
	@$(BIN)/python scripts/write_model_card.py --all

clean: ## remove the environment, the caches and what the tools leave behind
	@rm -rf $(VENV) .venv-lowest .venv-newest .cache .pytest_cache .ruff_cache .mypy_cache .coverage htmlcov build dist site src/*.egg-info
