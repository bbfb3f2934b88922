# make demo: set up and run the main job.  make test: set up and run every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test lint types docs bench tuners evidence clean

setup: $(READY)

# Every command below uses the versions in constraints.txt; pyproject.toml keeps ranges.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zoft needs Python 3.11 or newer; set PYTHON=python3.11 (or newer)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,peft,research]'
	@touch $@

# The rate is what the recipe finds by some twenty runs, which would take longer than all the rest.
demo: $(READY)
	$(BIN)/zoft meta-train --recipe default --recommended-lr 1.41 --output-dir runs/demo/tuner --threads 1 --resume
	$(BIN)/zoft compare --config finetune/configs/demo.yaml
	@echo "tuner: runs/demo/tuner"
	@echo "plots: runs/demo/compare/plots"
	@echo "TensorBoard logs: runs/demo (tensorboard --logdir runs/demo)"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest -n auto --maxprocesses 4

bench: $(READY)
	$(BIN)/python benchmarks/step.py

# The tuner that comes with the package; RESULTS=compare.json puts a comparison into its card.
tuners: $(READY)
	$(BIN)/zoft meta-train --recipe default --output-dir runs/tuners/zoft-base-default --threads 1 --resume
	$(BIN)/python -m zoft.assets.list_tuner zoft-base-default runs/tuners/zoft-base-default $(if $(RESULTS),--results $(RESULTS))

# Once, with the frozen default: finetune/configs/evidence.yaml says what it needs. Writes docs/evidence.json and .md.
evidence: $(READY)
	$(BIN)/python -m finetune.evidence --config finetune/configs/evidence.yaml $(if $(SUPERSEDE),--supersede "$(SUPERSEDE)")

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
