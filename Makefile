# make train   trains on the procedural demo set and says what to do next
# make test    style, types and tests
# make setup   creates .venv with everything that both need (their first half)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup train test clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ".[test]"
	touch $@

train: setup
	$(BIN)/python -m monai.bundle run training --config_file configs/train.json

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
