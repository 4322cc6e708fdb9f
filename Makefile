# `make demo` and `make test` are all a newcomer needs: both create the environment first.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo check test lint types layers fast unit docs figure bench faults weights clean

demo: $(READY)  ## Meta-train a self-stopping optimizer, evaluate it and write a report.
	rm -rf runs/demo
	$(BIN)/haltwise train regression-2d --out runs/demo --meta-steps 600 \
	  --set head_steps=800 --set num_recorded=8192 --threads 1
	$(BIN)/haltwise evaluate runs/demo --num-problems 2048
	$(BIN)/haltwise report runs/demo

check: lint types layers fast  ## For every change: lint, types, layers, contracts and oracles.

test: lint types layers unit  ## Everything that continuous integration checks.

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

fast: $(READY)
	$(BIN)/pytest -n auto tests/contracts tests/oracles

unit: $(READY)
	$(BIN)/pytest -n auto

docs: $(READY)  ## The documentation site in build/docs; all its examples and notebooks are executed.
	$(BIN)/pytest docs README.md
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs

figure: $(READY)  ## The README's figure.
	$(BIN)/python examples/frontier.py docs/_static/frontier.svg

bench: $(READY)  ## Speed, memory, break-even and what halting saves; tables, JSON, plot in runs/bench.
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/break_even.py
	$(BIN)/python benchmarks/halting_saves.py

faults: $(READY)  ## Kills, full disks, damaged and fuzzed files: counted, and nothing lost.
	PYTHONPATH=tests $(BIN)/python -m faults

# An environment that exists is brought up to date; what already satisfies the constraints, such
# as a PyTorch build for your GPU, is kept.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard src/haltwise/_kernels/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs,tensorboard]"
	touch $@

# The shipped optimizers, each from one command or a few: some four hours on 2 cores. With a GPU
# (make weights DEVICE=cuda) the long heads take minutes, and networks are best left to one.
SHIPPED := src/haltwise/models/weights
DEVICE ?= cpu
TRAIN := $(BIN)/haltwise train --threads 1
EARLY := --set price_exponent=0
LONG := --meta-steps 0 --posterior stick-breaking --set head_memory=64 --set head_width=128 --set head_steps=7000 \
  --set head_batch_size=1024 --set num_recorded=98304 --device $(DEVICE)
WIDE := $(LONG) --set head_memory=128 --set head_width=256
weights: $(READY)
	$(TRAIN) regression-2d --meta-steps 2000 $(EARLY) --out runs/regression-2d
	$(TRAIN) regression-2d --preset lstm --meta-steps 2000 --out runs/regression-2d-lstm
	$(TRAIN) regression-2d --preset thesis --meta-steps 2000 --out runs/regression-2d-thesis
	$(TRAIN) regression-10d --meta-steps 800 $(EARLY) --out runs/regression-10d
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
	  --set head_steps=2000 $(EARLY) --out runs/quadratic-10d
	$(TRAIN) regression-2d --rule-from runs/regression-2d --meta-steps 0 --posterior softmax \
	  --set head_memory=0 --set head_steps=1500 $(EARLY) --out runs/regression-2d-mode
	$(TRAIN) mnist-mlp --preset lstm --device $(DEVICE) --out runs/mnist-mlp-lstm
	$(TRAIN) mnist-mlp --rule-from runs/mnist-mlp-lstm --meta-steps 0 --set head_steps=2500 \
	  --set validate_every=250 --set num_validation=64 \
	  --out runs/mnist-mlp
	$(TRAIN) mnist-mlp --rule-from mnist-mlp-lstm --meta-steps 0 \
	  --set 'mixed_with=["mnist-mlp-relu","mnist-mlp-40","mnist-mlp-2layer"]' \
	  --set head_memory=64 --set head_width=128 --set head_steps=4000 --set num_recorded=2400 \
	  --set num_calibration=320 --set num_validation=96 --set validate_every=250 \
	  --out runs/mnist-mlp-mixture
	$(TRAIN) regression-10d-plain --rule adam --set 'rule_settings={"learning_rate":0.15,"beta2":0.95}' \
	  $(WIDE) --set price_exponent=0.25 --out runs/regression-10d-plain-adam
	$(TRAIN) regression-10d-noisy --rule adam --set 'rule_settings={"learning_rate":0.2,"beta2":0.95}' \
	  $(LONG) --out runs/regression-10d-noisy-adam
	$(TRAIN) regression-10d-smooth --rule sgd --set 'rule_settings={"learning_rate":0.06}' \
	  $(LONG) --set head_steps=4000 --set price_exponent=0 --out runs/regression-10d-smooth-sgd
	$(TRAIN) digits-mlp --preset lstm --rule-from mnist-mlp-lstm --batch-size 8 --meta-steps 400 \
	  --learning-rate 0.001 --set num_validation=16 --out runs/digits-mlp-lstm
	$(TRAIN) digits-mlp --rule-from runs/digits-mlp-lstm --meta-steps 0 --set head_steps=2500 \
	  --set num_recorded=2048 --set num_calibration=512 --set validate_every=250 \
	  --set num_validation=128 --out runs/digits-mlp
	$(TRAIN) cifar10-cnn --preset lstm --device $(DEVICE) --meta-steps 1250 --set num_validation=8 \
	  --out runs/cifar10-cnn-lstm
	$(TRAIN) cifar10-cnn --rule-from runs/cifar10-cnn-lstm --meta-steps 0 --device $(DEVICE) \
	  --set num_recorded=160 --set num_calibration=64 --set num_validation=16 \
	  --set head_steps=1500 --set validate_every=250 --out runs/cifar10-cnn
	for run in runs/regression-* runs/quadratic-* runs/student-* runs/mnist-* runs/digits-* runs/cifar10-*; do \
	  cp $$run/best.safetensors $(SHIPPED)/$$(basename $$run).safetensors; done

clean:
	rm -rf $(VENV) build src/*.egg-info runs
