# Two commands: `make demo` and `make test`. Both build into an environment of their own, .venv, and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find CMakeLists.txt pyproject.toml cmake plugin intfa_onnx -type f -not -name '*.pyc')
# Both run on the CPU. The tests also look at the CUDA code in the libraries; a release has it for all architectures.
CUDA_ARCHITECTURES ?= 80;90a
INSTALL = $(BIN)/python -m pip install --quiet --config-settings=cmake.define
# Where the machine has no nvcc, the build and the tests take it from the package index.
NVCC_MISSING = $(if $(shell command -v nvcc),,yes)
comma := ,
DEMO_ARGS ?=
PYTEST_ARGS ?= -n auto --dist loadfile

.PHONY: demo test clean

demo: $(VENV)/installed
	$(BIN)/python models/demo.py $(DEMO_ARGS)

# ruff, mypy and clang-format are tests too: tests/test_style.py. What is tested is the installed package: the safe path
# keeps the sources in this folder from standing before it.
test: $(VENV)/installed-dev
	PYTHONSAFEPATH=1 $(BIN)/pytest $(PYTEST_ARGS)

# Some systems ship Python without ensurepip; their own pip can fill the environment as well.
$(VENV)/created:
	$(PYTHON) -m venv $(VENV) || \
	  { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@touch $@

# torch comes first and alone: exactly this version, so that no other package decides which build is taken.
$(VENV)/torch: $(VENV)/created
	$(BIN)/python -m pip install --quiet torch==2.13.0
	@touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(INSTALL).INTFA_CUDA=OFF ".[ort,models,polygraphy]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/torch $(SOURCES)
	$(if $(NVCC_MISSING),INTFA_NVCC=pip) $(INSTALL).INTFA_CUDA=ON \
	  "--config-settings=cmake.define.INTFA_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)" \
	  ".[ort,models,polygraphy,bench,dev$(if $(NVCC_MISSING),$(comma)nvcc)]"
	@touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build models/cache
