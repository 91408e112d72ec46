# Two commands set everything up, from nothing but python3.11, make and the package registries:
#   make demo    install into .venv and run `stormcell demo`
#   make test    install into .venv and run the tests
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
# pysteps (optical flow) is compiled when it is installed; without a C compiler everything else works.
# So is the Winograd engine. Tests run what is installed, which is built anew when a source has changed.
SOURCES := $(shell find src -type f ! -name '*.pyc') CMakeLists.txt README.md
RADAR := $(shell command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 && echo ,radar)

SIDE_BY_SIDE := --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all check format docs bench clean
demo: $(VENV)/installed
	$(BIN)/stormcell demo

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)

test-all: $(VENV)/installed-test
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-test
	$(BIN)/python docs/build.py

# Every library that computes a ConvLSTM, so in an environment of its own; make bench ARGS=--quick, ARGS=--help
bench: $(BENCH)/installed
	$(BENCH)/bin/python benchmarks/run.py $(ARGS)
	$(BENCH)/bin/python benchmarks/run.py --table

clean:
	rm -rf $(VENV) $(BENCH) build stormcell-demo .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt $(SOURCES) $(VENV)/bin/python
	@test -n "$(RADAR)" || echo "no C compiler: installing without [radar], so without optical flow and the Winograd engine"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ".[forecast$(RADAR)]"
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ".[forecast$(RADAR),test]"
	@touch $@

$(BENCH)/installed: pyproject.toml benchmarks/constraints.txt
	$(PYTHON) -m venv $(BENCH)
	@echo '*' > $(BENCH)/.gitignore
	$(BENCH)/bin/python -m pip install --quiet --constraint benchmarks/constraints.txt --editable ".[bench]"
	@touch $@
