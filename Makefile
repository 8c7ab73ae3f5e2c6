# One command builds, one tests. `make help` lists them.
#
# PYTHON  the interpreter that .venv is made from (3.10 or newer)
# TORCH   the one place where torch is pinned; any requirement that pip takes, options included, e.g.
#         make demo TORCH="torch==2.6.0 --index-url https://download.pytorch.org/whl/cpu"
# CUDA    whether `make demo`, `test`, `bench` and `dev` build the CUDA kernels: ON, OFF, or AUTO (where nvcc works)
# DOUBLESPARSE_DATA   folder with real data sets: tests and demo use what they find there
TORCH  ?= torch==2.13.0
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV   ?= .venv
CUDA   ?= OFF

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
	$(shell find cmake csrc python -type f -not -name '*.so' -not -name '*.pyc' 2>/dev/null)

.PHONY: help demo test bench dev cuda-compile cuda-memcheck cuda-check lint format clean distclean
help:
	@echo "make demo    train on pen strokes, print a table, plot     make test   the whole test suite"
	@echo "make bench   the speed table against its bars, and JSON    make lint   ruff, mypy, clang-format"
	@echo "make dev     incremental build into python/doublesparse    make clean  builds and caches"
	@echo "make cuda-compile  the CUDA kernels, without a GPU: warnings, spills and a link fail"
	@echo "make cuda-memcheck tests/cuda on emulated kernels under AddressSanitizer"
	@echo "make cuda-check    on a GPU, offline: builds, tests, compute-sanitizer, benchmarks; 9 minutes"

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

# The wheel, built in isolation (no torch there), installed over the previous one: as users get it, or
# for tests with the emulated kernels, which run tests/cuda on any machine.
define install_wheel
rm -rf $(WHEELS)
$(PIP) wheel --quiet --no-deps --wheel-dir $(WHEELS) --config-settings=cmake.define.DOUBLESPARSE_CUDA=$(CUDA) \
	--config-settings=cmake.define.DOUBLESPARSE_EMULATED=$(1) .
$(PIP) install --quiet --force-reinstall --no-deps $(WHEELS)/*.whl
$(PIP) install --quiet --constraint $(PINS) "$$(echo $(WHEELS)/*.whl)"
endef
$(STAMPS)/package: $(STAMPS)/torch $(SOURCES)
	$(call install_wheel,OFF)
	@rm -f $(STAMPS)/emulated
	@touch $@
$(STAMPS)/emulated: $(STAMPS)/torch $(SOURCES)
	$(call install_wheel,ON)
	@touch $(STAMPS)/package $@

$(STAMPS)/demo: $(STAMPS)/package
	$(PIP) install --quiet --constraint $(PINS) "$$(echo $(WHEELS)/*.whl)[demo]"
	@touch $@

$(STAMPS)/test: $(STAMPS)/emulated
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

# cmake, ninja and pybind11 of that environment; then: $(call configure,folder,options)
BUILD_TOOLS = $(DEV_PYTHON) -c 'import cmake, ninja, pybind11' 2>/dev/null || \
	$(DEV_PYTHON) -m pip install --quiet "cmake>=3.20" ninja "pybind11>=3"
configure = PATH="$(abspath $(dir $(DEV_PYTHON))):$$PATH" cmake -S . -B $(1) -G Ninja --log-level=WARNING \
	-DCMAKE_BUILD_TYPE=Release -DCMAKE_EXPORT_COMPILE_COMMANDS=ON \
	-DPython_EXECUTABLE=$(abspath $(DEV_PYTHON)) -DSKBUILD_PROJECT_VERSION=dev \
	-Dpybind11_DIR="$$($(DEV_PYTHON) -m pybind11 --cmakedir)" $(2)
build = PATH="$(abspath $(dir $(DEV_PYTHON))):$$PATH" cmake --build $(1)

# Emulated kernels read and write torch's own allocations: with AddressSanitizer, every access of every
# thread is checked. The libraries are loaded first so that torch's allocations are seen, and exceptions work.
cuda-memcheck: $(DEV_PYTHON)
	@$(BUILD_TOOLS)
	$(call configure,build/memcheck,-DDOUBLESPARSE_CUDA=OFF -DDOUBLESPARSE_EMULATED=ON \
		-DCMAKE_CXX_FLAGS="-fsanitize=address --param asan-stack=0 -g1" \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/build/memcheck/module")
	$(call build,build/memcheck) --target _emulated
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:verify_asan_link_order=0 PYTHONMALLOC=malloc \
	DOUBLESPARSE_EMULATED_PATH="$$(echo $(CURDIR)/build/memcheck/module/_emulated*)" \
		$(abspath $(DEV_PYTHON)) -m pytest -q tests/cuda -p no:cacheprovider $(PYTEST_ARGS)

dev: $(DEV_PYTHON)
	@$(BUILD_TOOLS)
	$(call configure,$(DEV_BUILD),-DDOUBLESPARSE_CUDA=$(CUDA) -DDOUBLESPARSE_EMULATED=ON \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/python/doublesparse")
	$(call build,$(DEV_BUILD))

# build/cuda is kept, and so is what ptxas said of each object. The extension then has to load where no driver is.
cuda-compile: $(DEV_PYTHON)
	@$(BUILD_TOOLS)
	$(call configure,build/cuda,-DDOUBLESPARSE_CUDA=ON -DDOUBLESPARSE_EMULATED=OFF \
		-DCMAKE_CUDA_COMPILER_LAUNCHER="$(abspath $(DEV_PYTHON));$(CURDIR)/bench/ptxas_report.py;--run" \
		-DCMAKE_CUDA_FLAGS="-Werror=all-warnings -Xptxas=-v" \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/build/cuda/module")
	$(call build,build/cuda)
	@cd build/cuda/module && $(abspath $(DEV_PYTHON)) -c 'import _C; assert _C.has_cuda; print(_C.gpu)'
	$(DEV_PYTHON) bench/ptxas_report.py build/cuda

# For the packages of a plain CUDA and PyTorch image, offline: the interpreter that has torch.
CHECK_PYTHON ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV)/bin/python,python3)
cuda-check:
	$(CHECK_PYTHON) bench/cuda_check.py $(CHECK_ARGS)

lint:
	$(DEV_PYTHON) -m ruff check python tests bench
	$(DEV_PYTHON) -m mypy
	@if command -v clang-format >/dev/null; then \
		find csrc \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \) -print0 | xargs -0 clang-format --dry-run -Werror; \
	else echo "clang-format is not installed: C++ layout not checked"; fi

format:
	$(DEV_PYTHON) -m ruff check --fix --select I python tests bench
	find csrc \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \) -print0 | xargs -0 clang-format -i

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

distclean: clean
	rm -rf $(VENV) python/doublesparse/_C*.so python/doublesparse/_emulated*.so
