# `make demo` and `make test` set up everything they need from nothing; both are quick once it is there.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done
PEERS  := $(VENV)/peers

# Ray would otherwise report usage over the network and repaint the terminal.
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: setup demo test test-unit lint bench clean

setup: $(STAMP)

# The Waymo package pins a whole TensorFlow stack that we do not use: only its protocol buffers are imported.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"Python 3.11 or 3.12 is needed, $(PYTHON) is {v[0]}.{v[1]}: run make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps waymo-open-dataset-tf-2-12-0==1.6.7
	$(BIN)/python -c 'import torch, torchvision, ray, datalake.sources.waymo_v1.protos'
	touch $@

demo: $(STAMP)
	$(BIN)/python pipelines/demo.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes, each on one thread: threads that wait for each other keep the other process from its core.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

# Without what `make bench` runs.
test: lint
	$(TEST)

# What starts no process and trains at most one step.
test-unit: $(STAMP)
	$(TEST) -m unit

# Beside the environment, not in it: mosaicml-streaming asks for an older numpy and the clients of four clouds.
$(PEERS)/.done: benchmarks/peers.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(PEERS) -r benchmarks/peers.txt
	touch $@

# Slow tests, then studies. Each prints a table, writes JSON to out/bench, and ends with 1 where a promise is not kept;
# all are run.
bench: $(STAMP) $(PEERS)/.done
	@failed=0; $(BIN)/python -m pytest -m slow || failed=1; \
	for name in build_speed waymo_versions loader_speed object_store remote_demo kills mutations sparse_convolution step_time anchor_recall busy_cores trunks real_segment classroom scale linear cluster planted_faults module_walk; do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name || failed=1; done; exit $$failed

clean:
	rm -rf $(VENV) out
