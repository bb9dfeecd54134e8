# `make demo` and `make test` set up .venv first, once. `make format` before a commit, `.ci/run` before a push.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CODE := src tests examples docs benchmarks

.PHONY: demo test test-all test-core check format hooks docs bench clean

# the package alone, which is all that `make demo` needs
$(VENV)/.package: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

# with every engine, Ray, Optuna and the tools of development
$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev,all]'
	touch $(VENV)/.package $@

$(VENV)/.docs: pyproject.toml $(VENV)/.dev
	$(PIP) --editable '.[docs]'
	touch $@

demo: $(VENV)/.package
	$(BIN)/cobertes demo --out demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

# the layers without torch, on Python 3.13 with the newest GDAL, in .venv-core
test-core:
	.ci/test-core

check: $(VENV)/.dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# check each commit: see .pre-commit-config.yaml
hooks: $(VENV)/.dev
	$(BIN)/pre-commit install

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# benchmarks on generated data at sizes of minutes; docs/benchmarks.md has the figures and the commands of full sizes
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/labels.py --out bench/labels --size 12000 --case strips blocks
	$(BIN)/python benchmarks/index.py --out bench/index --side 6000
	$(BIN)/python benchmarks/training.py --batch 2 --steps 2
	$(BIN)/python benchmarks/prediction.py --out bench/prediction --only speed --encoders resnet18 --rows 512

clean:
	rm -rf $(VENV) .venv-core bench demo runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis
