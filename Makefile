# One command builds, one tests. `make help` lists them.
#
# PYTHON  the interpreter that .venv is made from (3.10 or newer)
# TORCH   the one place where torch is pinned; any requirement that pip takes, options included, e.g.
#         make demo TORCH="torch==2.6.0 --index-url https://download.pytorch.org/whl/cpu"
# DOUBLESPARSE_DATA   folder with real data sets: tests and demo use what they find there
TORCH  ?= torch==2.13.0
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV   ?= .venv

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# `make dev` builds for the active virtual environment, or for .venv where none is active.
DEV_PYTHON ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV)/bin/python,$(VENV)/bin/python)
DEV_BUILD  ?= build/dev

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
PINS    := $(VENV)/constraints.txt
WHEELS  := build/wheels
STAMPS  := $(VENV)/stamps
SOURCES := CMakeLists.txt pyproject.toml README.md LICENSE \
	$(shell find csrc python -type f -not -name '*.so' -not -name '*.pyc' 2>/dev/null)

.PHONY: help demo test bench dev lint format clean distclean
help:
	@echo "make demo    train on pen strokes, print a table, plot     make test   the whole test suite"
	@echo "make bench   the speed table against its bars, and JSON    make lint   ruff, mypy, clang-format"
	@echo "make dev     incremental build into python/doublesparse    make clean  builds and caches"

demo: $(STAMPS)/demo
	$(BIN)/python -m doublesparse demo $(DEMO_ARGS)

test: $(STAMPS)/test
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

# glibc gives freed memory back to the kernel and asks for it again: at these sizes the page faults cost
# 10 % of every result, ours and the peers', and more noise than that. Kept, as a training loop keeps it.
bench: export MALLOC_TRIM_THRESHOLD_ = 4294967296
bench: export MALLOC_MMAP_THRESHOLD_ = 4294967296
bench: $(STAMPS)/bench
	$(BIN)/python -m pytest bench -q $(BENCH_ARGS)

# The environment, once per torch pin: torch first, then everything else under a constraint that
# keeps it, so that no later step can pull another torch (gigabytes) in its place.
$(STAMPS)/torch: Makefile
	@test -n "$(PYTHON)" || { echo "doublesparse needs Python >= 3.10; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@if [ "$$(cat $(STAMPS)/pin 2>/dev/null)" != '$(TORCH)' ]; then \
		echo "$(PIP) install $(TORCH)"; $(PIP) install --quiet $(TORCH); \
		$(PIP) list --format=freeze 2>/dev/null | grep '^torch==' > $(PINS); \
		echo '$(TORCH)' > $(STAMPS)/pin; \
	fi
	@touch $@
# A changed pin makes the stamp stale.
ifneq ($(TORCH),$(shell cat $(STAMPS)/pin 2>/dev/null))
.PHONY: $(STAMPS)/torch
endif

# The wheel, built in isolation (no torch there), installed over the previous one.
$(STAMPS)/package: $(STAMPS)/torch $(SOURCES)
	rm -rf $(WHEELS)
	$(PIP) wheel --quiet --no-deps --wheel-dir $(WHEELS) .
	$(PIP) install --quiet --force-reinstall --no-deps $(WHEELS)/*.whl
	$(PIP) install --quiet --constraint $(PINS) "$$(echo $(WHEELS)/*.whl)"
	@touch $@

$(STAMPS)/demo: $(STAMPS)/package
	$(PIP) install --quiet --constraint $(PINS) "$$(echo $(WHEELS)/*.whl)[demo]"
	@touch $@

$(STAMPS)/test: $(STAMPS)/package
	$(PIP) install --quiet --constraint $(PINS) "$$(echo $(WHEELS)/*.whl)[demo,test]"
	@touch $@

# `make bench PEERS=1` also installs libraries for pruned weights: 300 MB, DeepSparse with its own licence, for
# Python before 3.12 and numpy 1.
PRUNED_PEERS := "numpy<2" scipy deepsparse==1.8.0 mkl==2026.2.0 sparse_dot_mkl==0.9.10
# A peer that cannot be installed here is skipped by the benchmarks, with its reason in the table.
$(STAMPS)/bench: $(STAMPS)/package
	$(PIP) install --quiet --constraint $(PINS) "$$(echo $(WHEELS)/*.whl)[bench]"
	$(PIP) install --quiet --constraint $(PINS) spconv==2.3.8 || echo "spconv 2.3.8 is not installable here" >&2
	$(if $(PEERS),$(PIP) install --quiet --constraint $(PINS) $(PRUNED_PEERS) || echo "not installable here: $(PRUNED_PEERS)" >&2)
	@touch $@

$(VENV)/bin/python:
	$(MAKE) $(STAMPS)/torch

dev: $(DEV_PYTHON)
	@$(DEV_PYTHON) -c 'import cmake, ninja, pybind11' 2>/dev/null || \
		$(DEV_PYTHON) -m pip install --quiet "cmake>=3.20" ninja "pybind11>=3"
	PATH="$(dir $(DEV_PYTHON)):$$PATH" cmake -S . -B $(DEV_BUILD) -G Ninja --log-level=WARNING \
		-DCMAKE_BUILD_TYPE=Release -DCMAKE_EXPORT_COMPILE_COMMANDS=ON \
		-DPython_EXECUTABLE=$(abspath $(DEV_PYTHON)) -DSKBUILD_PROJECT_VERSION=dev \
		-Dpybind11_DIR="$$($(DEV_PYTHON) -m pybind11 --cmakedir)" \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/python/doublesparse"
	PATH="$(dir $(DEV_PYTHON)):$$PATH" cmake --build $(DEV_BUILD)

lint:
	$(DEV_PYTHON) -m ruff check python tests bench
	$(DEV_PYTHON) -m mypy
	@if command -v clang-format >/dev/null; then \
		find csrc \( -name '*.h' -o -name '*.cpp' \) -print0 | xargs -0 clang-format --dry-run -Werror; \
	else echo "clang-format is not installed: C++ layout not checked"; fi

format:
	$(DEV_PYTHON) -m ruff check --fix --select I python tests bench
	find csrc \( -name '*.h' -o -name '*.cpp' \) -print0 | xargs -0 clang-format -i

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

distclean: clean
	rm -rf $(VENV) python/doublesparse/_C*.so
