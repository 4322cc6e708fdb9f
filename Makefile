# `make demo` and `make test` are all a newcomer needs: both create the environment first.
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v))) python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Without bytecode, each of the many processes of the tests would compile the library again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test static lint types layers fast unit sdist docs site figures completion bench faults weights clean

demo: $(READY)  ## Meta-train a self-stopping optimizer, evaluate it and write a report.
	rm -rf runs/demo
	$(BIN)/haltwise train regression-2d --out runs/demo --joint.num-steps 600 \
	  --halting.num-steps 800 --halting.num-recorded 8192 --threads 1
	$(BIN)/haltwise evaluate runs/demo --num-problems 2048
	$(BIN)/haltwise report runs/demo

check: static fast  ## For every change: lint, types, layers, contracts and oracles.

test: static unit  ## Everything that continuous integration checks.

static:
	$(MAKE) --no-print-directory --jobs 2 --output-sync lint types layers

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(READY)
	$(BIN)/mypy --num-workers 2
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python tests/typed

layers: $(READY)
	$(BIN)/lint-imports

fast: $(READY)
	$(BIN)/pytest -n auto tests/contracts tests/oracles

unit: $(READY)
	$(BIN)/pytest -n auto --dist worksteal

sdist: $(READY)  ## The source distribution, tested from itself.
	rm -rf build/sdist
	$(BIN)/python setup.py --quiet sdist --dist-dir build/sdist
	tar -C build/sdist -xf build/sdist/haltwise-*.tar.gz
	cd build/sdist/haltwise-*/ && $(abspath $(BIN))/python setup.py --quiet build_ext --inplace \
	  && PYTHONPATH=$$PWD/src $(abspath $(BIN))/pytest -p no:cacheprovider \
	  tests/contracts/test_core_dependencies.py tests/contracts/test_one_file_each.py

docs: site  ## The same, and all examples of the pages are run.
	$(BIN)/pytest docs README.md

site: $(READY)  ## The documentation in build/docs, notebooks executed; spelling, links, names, contrast.
	rm -rf build/docs
	$(BIN)/pytest docs/checks/prose.py
	$(BIN)/sphinx-build --quiet --jobs 3 --fail-on-warning --keep-going docs build/docs
	$(BIN)/pytest docs/checks/built_site.py

figures: $(READY)  ## The figures that pages and README show; the first is measured, in a minute.
	$(BIN)/python examples/frontier.py docs/_static/frontier.svg
	for name in architecture results uses; do $(BIN)/python docs/drawing/$$name.py; done

completion: $(READY)  ## The table of options that shells complete.
	$(BIN)/python -c "from haltwise import cli; cli.completion.write_option_table(cli.command_names())"

bench: $(READY)  ## Speed, memory, break-even and what halting saves; tables, JSON, plot in runs/bench.
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/break_even.py
	$(BIN)/python benchmarks/halting_saves.py

faults: $(READY)  ## Kills, full disks, damaged and fuzzed files: counted, and nothing lost.
	PYTHONPATH=tests $(BIN)/python -m faults

# An environment that exists is brought up to date; what already satisfies the constraints, such
# as a PyTorch build for your GPU, is kept. What is imported is compiled then, not all that comes.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard src/haltwise/_kernels/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev,docs,tensorboard]"
	touch $@

# The shipped optimizers, each from one file of settings in experiments/weights: some four hours
# on 2 cores. With a GPU (make weights DEVICE=cuda) the long halters take minutes, and networks are
# best left to one.
DEVICE ?= cpu
weights: $(READY)
	$(BIN)/python experiments/train_weights.py --device $(DEVICE) --install

clean:
	rm -rf $(VENV) build src/*.egg-info runs
