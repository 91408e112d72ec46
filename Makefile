# Two commands set everything up, from nothing but python3.11, make and the package registries:
#   make demo    install into .venv and run `stormcell demo`
#   make test    install into .venv and run the tests
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# pysteps (optical flow) is compiled when it is installed; without a C compiler everything else works.
RADAR := $(shell command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 && echo ,radar)

.PHONY: demo test test-all check format docs clean
demo: $(VENV)/installed
	$(BIN)/stormcell demo

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/installed-test
	$(BIN)/python -m pytest

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-test
	$(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) stormcell-demo .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt $(VENV)/bin/python
	@test -n "$(RADAR)" || echo "no C compiler: installing without [radar], so without optical flow"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[forecast$(RADAR)]"
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[forecast$(RADAR),test]"
	@touch $@
