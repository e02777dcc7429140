# make train     trains on the procedural demo set and says what to do next
# make test      style, types and tests
# make setup     creates .venv with everything that all need (their first half)
# make bundle    writes dist/polyp_sam_sp_segmentation_v<version>.zip, what a user needs and nothing else
# make pretrain  trains the embedded SAM anew from procedural scenes, see docs/pretraining.md; after a stop it goes on

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup train test bundle pretrain clean

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

bundle: setup
	$(BIN)/python -m scripts.make_bundle

pretrain: setup
	$(BIN)/python -m scripts.pretrain

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
