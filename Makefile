# Needs Python 3.10 or newer with venv, make and a C++17 compiler; the rest comes as pinned packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-out
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip --disable-pip-version-check

# What the installed package is made of: when one of these changes, it is installed anew.
SOURCES := $(shell find fp4dit_onnx passes calibration custom_ops -type f \
	-not -path '*/__pycache__/*' -not -name '*.pyc')

.PHONY: help demo test lint install clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: install  ## export the embedded pipeline to W4A6 and draw with it: demo-out/demo.png
	$(BIN)/fp4dit-onnx export --bits w4a6 --preset fast --weight-format auto --overwrite \
	  --output $(DEMO)/bundle
	$(BIN)/fp4dit-onnx evaluate $(DEMO)/bundle --count 8 --grid $(DEMO)/demo.png

test: install  ## format, lint, types, generated files, all tests
	$(BIN)/python tools/check

lint: install  ## the same without the tests
	$(BIN)/python tools/check --fast

install: $(VENV)/.installed  ## make .venv with the package and everything it needs

# Not editable: what the tests and the type checker see is what a wheel holds. pip leaves alone what is
# installed as pinned, so a change of sources costs the build and no download.
$(VENV)/.installed: Makefile constraints.txt pyproject.toml README.md $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $$($(PYTHON) --version 2>&1): expected Python 3.10 or newer; run  make PYTHON=python3.11" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { \
	  echo "error: no C++ compiler: install one for C++17 (g++ or clang++), or name it in CXX" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "error: $(PYTHON) cannot make a virtual environment: install its venv module (python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV) (the first time takes a few minutes)"
	@$(PIP) install --quiet --quiet scikit-build-core cmake ninja
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --quiet --quiet --no-build-isolation '.[cpu,export,evaluate,view,report,docs,dev]'
	@touch $@

clean:  ## remove what make made
	rm -rf $(VENV) build dist $(DEMO) .mypy_cache .pytest_cache .ruff_cache .hypothesis
