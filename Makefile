# make train     trains on the procedural demo set and says what to do next
# make test      style, types and tests, in .venv alone; some minutes on two cores
# make test-slow  the proofs of minutes that make test leaves out
# make setup     creates .venv with everything that all need (their first half)
# make setup-label  creates .venv-label with a MONAI Label server, see docs/guides/monai_label.md
# make test-label   drives real servers as clients do, with Orthanc and OHIF where apt-get can fetch them
# make bundle    writes dist/polyp_sam_sp_segmentation_v<version>.zip, what a user needs and nothing else
# make pretrain  trains the embedded SAM anew from procedural scenes, see docs/results/pretraining.md; after a stop it goes on
# make audit     prints the known weaknesses of the pinned packages; a report, which fails on nothing
# make docs      builds the documentation into site/; open site/index.html

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs
AUDIT := .venv-audit
LABEL := .venv-label
LABEL_BIN := $(LABEL)/bin
LABEL_INSTALLED := $(LABEL)/.installed
LABEL_CONSTRAINTS := constraints-label.txt

.PHONY: setup setup-label train test test-slow test-label bundle pretrain audit docs clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ".[test]"
	touch $@

setup-label: $(LABEL_INSTALLED)

$(LABEL_INSTALLED): requirements-label.txt requirements-label-nodeps.txt $(LABEL_CONSTRAINTS)
	$(PYTHON) -m venv $(LABEL)
	$(LABEL_BIN)/python -m pip install --quiet --constraint $(LABEL_CONSTRAINTS) -r requirements-label.txt
	$(LABEL_BIN)/python -m pip install --quiet --constraint $(LABEL_CONSTRAINTS) --no-deps -r requirements-label-nodeps.txt
	touch $@

train: setup
	$(BIN)/python -m monai.bundle run training --config_file configs/train.json

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --ignore tests/label --numprocesses 2 --dist worksteal --durations 10

test-slow: setup
	$(BIN)/python -m pytest --ignore tests/label -m slow --durations 10

test-label: setup setup-label
	$(BIN)/python -m tests.label.debian
	$(BIN)/python -m pip install --quiet --constraint constraints.txt playwright
	$(BIN)/python -m pytest tests/label --durations 10

bundle: setup
	$(BIN)/python -m scripts.make_bundle

pretrain: setup
	$(BIN)/python -m scripts.pretrain

audit:
	-$(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet pip-audit
	-$(AUDIT)/bin/pip-audit --progress-spinner off --disable-pip --no-deps -r constraints.txt
	-$(AUDIT)/bin/pip-audit --progress-spinner off --disable-pip --no-deps -r constraints-label.txt

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ".[docs]"
	touch $@

docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
