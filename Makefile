# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Other implementations of libp2p, whose dependencies are not ours.
INTEROP ?= .venv-interop
# Other proxies for OpenAI's API, of which that is true as well.
PROXIES ?= .venv-proxies
# NVIDIA's way to move tensors, which `make bench-fabric` is held against.
NIXL ?= .venv-nixl

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz test-compiled test-conformance test-interop test-guest test-gpu test-soak check bench bench-others bench-fabric bench-interop bench-sim testnet sim soak schemas model format clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# One environment, filled as far as the target needs; two installations at once would get in each other's way.
.NOTPARALLEL:
$(READY)-%: pyproject.toml scripts/setup.sh scripts/deps.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" scripts/setup.sh $*

setup: $(READY)-test $(READY)-check ## Create .venv with everything the project needs

demo: $(READY)-run ## Five nodes at different distances, real inference, and a picture of who answered
	@$(BIN)/isochrone demo

# A worker for each core; who is done takes over what another has left, so that no long file is waited for at the end.
test: $(READY)-test ## Run the fast test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# Seconds for each harness, and which; all of them where nothing is said.
TIME ?= 60
ONLY ?=

fuzz: $(READY)-test $(READY)-fuzz ## Look for bytes that hurt: TIME=60 seconds for each harness, ONLY=name,name
	@$(BIN)/python tests/fuzz/fuzz_run.py --time $(TIME) --only "$(ONLY)"

test-compiled: $(READY)-test $(READY)-check ## Compile the core to machine code and show that it behaves the same
	$(BIN)/python -m pytest -m compiled tests/sim/test_compiled.py

$(INTEROP)/.ready: scripts/interop.sh tests/interop/python/requirements.txt tests/interop/js/package-lock.json
	@PYTHON="$(PYTHON)" INTEROP_VENV="$(INTEROP)" scripts/interop.sh

test-interop: $(READY)-test $(INTEROP)/.ready ## Install py-, js- and go-libp2p beside the project and meet them
	INTEROP_VENV="$(INTEROP)" $(BIN)/python -m pytest -m interop tests/interop

# Where the kernel of the virtual machines is; one run at a time boots them.
GUEST = $(or $(ISOCHRONE_GUEST_DIR),build/guest)

test-guest: $(READY)-test ## Boot virtual machines with Debian's kernel for RDMA, CXL memory and shaped links (some minutes)
	@scripts/deps.sh guest
	@$(BIN)/python scripts/guest.py $(GUEST)
	ISOCHRONE_GUEST=required ISOCHRONE_GUEST_DIR="$(abspath $(GUEST))" flock $(GUEST) $(BIN)/python -m pytest -m guest tests/guest

test-conformance: $(READY)-test ## Try a node on every sentence of the specification, and see that broken ones are caught
	@$(BIN)/python -m scripts.conformance

check: $(READY)-check ## Format, lint, types, import contracts, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/codespell

# What is not installed of the others is left out of the tables, which say so.
bench: $(READY)-run ## Measure, beside what a user would pick instead (10 to 20 min); writes build/bench
	@$(BIN)/pip install --quiet -e '.[bench]'
	@INTEROP_VENV="$(INTEROP)" BENCH_PROXIES="$(PROXIES)" $(BIN)/python -m benchmarks

$(PROXIES)/.ready: scripts/bench_proxies.sh
	@PYTHON="$(PYTHON)" BENCH_PROXIES="$(PROXIES)" scripts/bench_proxies.sh

bench-others: $(INTEROP)/.ready $(PROXIES)/.ready ## Install py-libp2p, LiteLLM's proxy and vllm-router, which `make bench` then meets

$(NIXL)/.ready: $(READY)-run scripts/bench_nixl.sh
	@VENV="$(VENV)" BENCH_NIXL="$(NIXL)" scripts/bench_nixl.sh

bench-fabric: $(READY)-run $(NIXL)/.ready ## Shared memory beside sockets, grpcio, QUIC and NIXL, which it installs; writes build/bench/fabric.json
	@$(BIN)/pip install --quiet -e '.[bench]'
	@BENCH_NIXL="$(NIXL)" $(BIN)/python -m benchmarks fabric crossover

bench-interop: $(READY)-run $(INTEROP)/.ready ## Connect time and ping with py-libp2p and js-libp2p; writes build/bench/interop.json
	@INTEROP_VENV="$(INTEROP)" $(BIN)/python -m benchmarks interop

bench-sim: $(READY)-run $(READY)-check ## The mesh at scale on virtual time (hours); writes build/bench/simulation.json and docs/measurements.md
	@$(BIN)/python scripts/compiled.py -m benchmarks.simulation

testnet: $(READY)-run ## A live five-node mesh to play with
	@$(BIN)/isochrone testnet

sim: $(READY)-run ## Twenty nodes on virtual time for a minute; a table and a picture
	@$(BIN)/python -m sim --nodes 20 --for 60 --seed 42

soak: $(READY)-run $(READY)-check ## A hundred seeds with faults; fails if one failed
	@$(BIN)/python scripts/compiled.py -m sim --nodes 12 --for 30 --seed 1 --seeds 100 --faults all --requests 6 --json

test-gpu: $(READY)-test ## The tests that need an NVIDIA GPU, on the one that is here
	$(BIN)/python -m pytest -m gpu tests/mesh

test-soak: $(READY)-test ## The tests that run for long (some minutes)
	$(BIN)/python -m pytest -m soak

schemas: $(READY)-run ## Regenerate the FlatBuffers code from protocol/schemas
	@scripts/schemas.sh

model: ## Train the small text model again (needs torch; about half an hour)
	@scripts/train_text_model.sh

format: $(READY)-check ## Let ruff format and mend what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Remove everything that was built
	rm -rf $(VENV) $(INTEROP) $(PROXIES) $(NIXL) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
