# `make demo` and `make test` are all a newcomer needs: both create the environment first.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types layers unit weights clean

demo: $(READY)  ## Meta-train a self-stopping optimizer, evaluate it and write a report.
	rm -rf runs/demo
	$(BIN)/haltwise train regression-2d --out runs/demo --meta-steps 1500 --threads 1
	$(BIN)/haltwise evaluate runs/demo --num-problems 2048
	$(BIN)/haltwise report runs/demo

test: lint types layers unit  ## Everything that continuous integration checks.

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

unit: $(READY)
	$(BIN)/pytest -n auto

# An environment that exists is brought up to date; what already satisfies the constraints, such
# as a PyTorch build for your GPU, is kept.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard src/haltwise/_kernels/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,tensorboard]"
	touch $@

# The shipped optimizers, each from one command; hours in all on 2 cores.
WEIGHTS := src/haltwise/pretrained/weights
SHIPPED := regression-2d regression-10d quadratic-10d
weights: $(READY)
	for family in $(SHIPPED); do for preset in act lstm thesis; do \
	  case $$family-$$preset in regression-10d-thesis|quadratic-10d-thesis) continue ;; esac; \
	  name=$$family; test $$preset = act || name=$$family-$$preset; \
	  rm -rf runs/$$name; \
	  $(BIN)/haltwise train $$family --preset $$preset --out runs/$$name --threads 1 || exit 1; \
	  cp runs/$$name/best.safetensors $(WEIGHTS)/$$name.safetensors; \
	done; done

clean:
	rm -rf $(VENV) build src/*.egg-info runs
