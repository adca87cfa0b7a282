# Every target makes its own environment first; a second run finds it ready.
# To change a choice: make test PYTHON=python3.12 JOBS=8

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
# The one place that says which torch this project is developed and tested with.
TORCH  ?= 2.13.0

BIN         := $(VENV)/bin
CONSTRAINTS := $(VENV)/constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS)
# The names carry the versions: another torch, or other peers, make another stamp.
READY       := $(VENV)/.ready-torch-$(TORCH)
PEERS_READY := $(VENV)/.peers-torch-$(TORCH)
DOCS_READY  := $(VENV)/.docs-torch-$(TORCH)
TYPED       := $(VENV)/typed

.DEFAULT_GOAL := help
.PHONY: help env kernels cuda wheel sanitize test test-slow lint docs demo bench peers clean
.DELETE_ON_ERROR:

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(READY)  ## make the environment only

# ninja knows what is up to date, so this costs a moment when nothing changed.
kernels: $(READY)  ## build the kernels anew where their sources changed
	MAX_JOBS=$(JOBS) $(BIN)/python csrc/build_kernels.py library
	MAX_JOBS=$(JOBS) $(BIN)/python csrc/build_kernels.py simt

cuda: $(READY)  ## compile the CUDA sources, with warnings as errors; needs nvcc, no GPU
	MAX_JOBS=$(JOBS) $(BIN)/python csrc/build_kernels.py cuda

wheel: $(READY)  ## build dist/revgrad-*.whl with the kernels inside
	REVGRAD_KERNELS=1 MAX_JOBS=$(JOBS) $(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w dist .

# Leaks are not looked for: Python and torch keep memory to the end by design.
sanitize: $(READY)  ## run the kernels' tests under AddressSanitizer and UBSan
	MAX_JOBS=$(JOBS) $(BIN)/python csrc/build_kernels.py library --sanitize
	MAX_JOBS=$(JOBS) $(BIN)/python csrc/build_kernels.py simt --sanitize
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	REVGRAD_LIBRARY=build/kernels-sanitize/_C.so REVGRAD_SIMT=build/simt-sanitize \
	  $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not compiler" tests/ops

test: kernels  ## run the tests, but for the slow ones
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-slow: kernels  ## run the slow tests only
	$(BIN)/python -m pytest -n $(JOBS) -m slow

lint: $(READY)  ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# mypy knows no package_dir, so it gets the folders linked as they are installed.
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/revgrad
	@ln -s $(CURDIR)/revgrad/* $(CURDIR)/models $(CURDIR)/benchmarks $(TYPED)/revgrad
	MYPYPATH=$(TYPED) $(BIN)/mypy $(TYPED)/revgrad tests examples

docs: $(DOCS_READY)  ## build the documentation site into build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs
	cp build/docs/README.html build/docs/index.html

demo: $(READY)  ## train a small iUNet and RevPHiSeg; show what is saved, and samples
	$(BIN)/python -m revgrad demo

bench: $(READY)  ## measure a reversible sequence against its rivals
	$(BIN)/python -m revgrad bench sequence

peers: $(PEERS_READY)  ## install the other reversible libraries and compare their gradients
	$(BIN)/python -m revgrad bench reliability

clean:  ## remove build output and caches, but not the environment
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	  echo "revgrad needs Python 3.11 or newer, which $(PYTHON) is not." \
	    "Name another one, such as: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The tools and torch come first because the package is built in this environment, beside them.
$(READY): pyproject.toml setup.py revgrad/version.py | $(BIN)/python
	rm -f $(VENV)/.ready-* $(VENV)/.peers-* $(VENV)/.docs-*
	echo "torch==$(TORCH)" > $(CONSTRAINTS)
	$(PIP_INSTALL) "setuptools>=77" ninja numpy "torch==$(TORCH)"
	MAX_JOBS=$(JOBS) $(PIP_INSTALL) --no-build-isolation -e ".[dev]"
	$(BIN)/python .ci/check_environment.py $(TORCH)
	touch $@

$(DOCS_READY): $(READY)
	$(PIP_INSTALL) --no-build-isolation -e ".[docs]"
	touch $@

# Without their dependencies, which would bring torchvision.
$(PEERS_READY): revgrad/info.py $(READY)
	$(PIP_INSTALL) --no-deps $$($(BIN)/python -c \
	  'from revgrad.info import peer_requirements; print(*peer_requirements())')
	$(BIN)/python .ci/check_environment.py $(TORCH)
	touch $@
