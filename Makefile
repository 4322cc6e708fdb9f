# `make demo` and `make test` are all a newcomer needs: both create the environment first.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types layers unit bench weights clean

demo: $(READY)  ## Meta-train a self-stopping optimizer, evaluate it and write a report.
	rm -rf runs/demo
	$(BIN)/haltwise train regression-2d --out runs/demo --meta-steps 600 \
	  --set head_steps=800 --set num_recorded=8192 --threads 1
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

bench: $(READY)  ## Speed, memory, break-even and what halting saves; tables, JSON, plot in runs/bench.
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/break_even.py
	$(BIN)/python benchmarks/halting_saves.py

# An environment that exists is brought up to date; what already satisfies the constraints, such
# as a PyTorch build for your GPU, is kept.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard src/haltwise/_kernels/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,tensorboard]"
	touch $@

# The shipped optimizers, each from one command or a few: some three hours on 2 cores. With a GPU
# (make weights DEVICE=cuda) the long heads take minutes, and networks are best left to one.
SHIPPED := src/haltwise/pretrained/weights
DEVICE ?= cpu
TRAIN := $(BIN)/haltwise train --threads 1
LONG := --meta-steps 0 --posterior stick-breaking --set head_memory=64 --set head_width=128 --set head_steps=7000 \
  --set head_batch_size=1024 --set num_recorded=98304 --device $(DEVICE)
weights: $(READY)
	$(TRAIN) regression-2d --meta-steps 2000 --out runs/regression-2d
	$(TRAIN) regression-2d --preset lstm --meta-steps 2000 --out runs/regression-2d-lstm
	$(TRAIN) regression-2d --preset thesis --meta-steps 2000 --out runs/regression-2d-thesis
	$(TRAIN) regression-10d --meta-steps 800 --out runs/regression-10d
	$(TRAIN) regression-10d --preset lstm --batch-size 128 --meta-steps 1000 \
	  --set 'rule_settings={"initial_descent":true}' --out runs/regression-10d-lstm
	$(TRAIN) regression-10d-plain --meta-steps 800 \
	  --set 'rule_settings={"initial_descent":true}' --out runs/plain-rule
	$(TRAIN) regression-10d-plain --rule-from runs/plain-rule $(LONG) \
	  --out runs/regression-10d-plain
	$(TRAIN) student-t-10d --meta-steps 600 --out runs/t-rule
	$(TRAIN) student-t-10d --rule-from runs/t-rule $(LONG) --out runs/student-t-10d
	$(TRAIN) quadratic-10d --preset lstm --meta-steps 1000 \
	  --set 'rule_settings={"initial_descent":true}' --out runs/quadratic-10d-lstm
	$(TRAIN) quadratic-10d --rule-from runs/quadratic-10d-lstm --meta-steps 0 \
	  --set head_steps=2000 --out runs/quadratic-10d
	$(TRAIN) regression-2d --rule-from runs/regression-2d --meta-steps 0 --posterior softmax \
	  --set head_memory=0 --set head_steps=1500 --out runs/regression-2d-mode
	$(TRAIN) mnist-mlp --preset lstm --device $(DEVICE) --out runs/mnist-mlp-lstm
	$(TRAIN) mnist-mlp --rule-from runs/mnist-mlp-lstm --meta-steps 0 --set head_steps=2500 \
	  --set validate_every=250 --set num_validation=64 \
	  --out runs/mnist-mlp
	for run in runs/regression-* runs/quadratic-* runs/student-* runs/mnist-*; do \
	  cp $$run/best.safetensors $(SHIPPED)/$$(basename $$run).safetensors; done

clean:
	rm -rf $(VENV) build src/*.egg-info runs
