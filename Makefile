PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
HYBRID := models/pocket-hybrid
PYTEST := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install demo check test-unit test test-servers test-clients test-lowest docs format pocket pocket-hybrid retrain notebooks bench bench-gpu bench-peers bench-routers chaos chaos-long soak wheel clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("vlroute needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# anthropic and pydoclint depend on two packages with the same files; pydoclint needs those of this one
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps docstring_parser_fork
	touch $@

install: $(VENV)/installed  ## Make .venv and install vlroute with all that tests need

demo: install  ## Ask the pocket pair about drawn pictures in both modes and compare routed answers
	$(BIN)/vlroute demo

check: install  ## Lint, format, types, import rules, docstrings, security
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/pydoclint --quiet src
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src

test-unit: install  ## Fast tests: no model, no server
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST) tests/unit

test: check  ## The checks and all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST)  # one thread per process: tiny models do not gain from more

test-servers: install  ## Tests of endpoints with llama.cpp and vLLM (10 minutes, 3 GB of disk)
	VLROUTE_TEST_SERVERS=llama.cpp,vLLM $(BIN)/pytest tests/e2e/test_servers.py tests/e2e/test_servers_hybrid.py tests/e2e/test_vllm.py

test-clients: install  ## Test public client libraries with a server, each in its own environment (half an hour, 10 GB of disk)
	$(BIN)/python -m training.clients

test-lowest: install  ## Unit and integration tests with the lowest declared versions of the dependencies
	$(BIN)/uv venv --quiet --clear --python 3.11 $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --compile-bytecode --editable '.[test]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/pytest $(PYTEST) tests/unit tests/integration

docs: install  ## Build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

format: install  ## Apply the fixes of ruff and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pocket: install  ## Train the pocket pair and its router, measure both, write their pages, run the notebooks (five hours on two cores)
	$(BIN)/python -m training.pocket.train
	$(BIN)/python -m training.pocket.evaluate
	$(BIN)/python -m training.pocket.label --jobs 2 --out training/pocket/records.jsonl.gz
	$(BIN)/python -m training.pocket.label --jobs 2 --count 1260 --seed measured --out training/pocket/measured.jsonl.gz
	$(MAKE) retrain
	$(MAKE) notebooks

pocket-hybrid: install  ## Train the pocket hybrid and its router, measure both and write their pages (four hours on two cores)
	$(BIN)/python -m training.pocket.hybrid
	$(BIN)/python -m training.pocket.evaluate --model $(HYBRID) --share 0.25
	$(BIN)/python -m training.pocket.label --model $(HYBRID) --jobs 2 --out training/pocket/hybrid_records.jsonl.gz
	$(BIN)/python training/retrain.py training/pocket/hybrid_records.jsonl.gz --together record --model $(HYBRID) --out $(HYBRID)/router
	$(BIN)/python -m training.pocket.probe --model $(HYBRID) --records training/pocket/hybrid_records.jsonl.gz --out $(HYBRID)/router/probe
	$(BIN)/python -m training.pocket.proof --model $(HYBRID) --jobs 2 --count 1512 --thinking-share 0.6
	$(BIN)/python -m training.pocket.card --model $(HYBRID)

retrain: install  ## Train the router of the pocket pair from its committed records, prove it and write the card (10 minutes)
	$(BIN)/python training/retrain.py training/pocket/records.jsonl.gz --together record --model models/pocket --out models/pocket/router
	$(BIN)/python -m training.pocket.probe
	$(BIN)/python -m training.pocket.proof --jobs 2 --count 720 --seed validation --out training/pocket/validation
	$(BIN)/python -m training.pocket.proof --jobs 2
	$(BIN)/python -m training.pocket.card

notebooks: install  ## Run the notebooks and save their outputs
	$(BIN)/python examples/run_notebooks.py

bench: install  ## Measure memory and speed of a pair of the 2B shape with random weights (over an hour)
	$(BIN)/python -m training.bench.real_size
	$(BIN)/python -m training.bench.conversations
	$(BIN)/python -m training.bench.decision
	$(BIN)/python -m training.bench.retraining
	$(BIN)/python -m training.bench.server

bench-peers: install  ## Compare the server with vLLM, llama.cpp and transformers serve (an hour, 10 GB of disk)
	$(BIN)/python -m training.bench.peers

bench-routers: install  ## Compare routers on the public sets in DATA=FOLDER, each in its own environment (an hour, 15 GB of disk)
	@test -n "$(DATA)" || { echo "name the folder with the public sets (gsm8k.jsonl.gz, …): make bench-routers DATA=FOLDER"; exit 2; }
	$(BIN)/python -m training.bench.routers "$(DATA)"
	$(BIN)/python -m training.bench.choosing "$(DATA)" --cache runs/peers/choosing

chaos: install  ## Attack servers, kill processes, cut the power, damage inputs and let disks and memory fail (15 minutes; needs FUSE)
	$(BIN)/python -m training.chaos --only attacks under_load
	@mkdir -p runs; $(BIN)/python -m training.chaos --only kills power_cuts server_faults programs > runs/chaos-kills.log 2>&1 & kills=$$!; \
	$(BIN)/python -m training.chaos --only requests disk_faults mutants; result=$$?; \
	wait $$kills || { tail runs/chaos-kills.log; exit 1; }; exit $$result

chaos-long: install  ## The same with ten times as many of each; an interrupted run continues
	$(BIN)/python -m training.chaos --long

bench-gpu: install  ## Measure parity, speed, memory and faults on a CUDA device (6 minutes, 9 GB of disk)
	$(BIN)/python -m training.bench.gpu

soak: install  ## Long randomized tests: conversations, requests to each endpoint, settings; compiled steps (40 minutes)
	VLROUTE_CONVERSATIONS=520 $(BIN)/python -m pytest tests/integration/test_chat_exact.py -k fresh --hypothesis-show-statistics
	VLROUTE_REQUESTS=240 $(BIN)/python -m pytest tests/integration/test_batching.py -k every_way
	VLROUTE_TEST_COMPILE=inductor $(BIN)/python -m pytest tests/integration/test_compile.py
	VLROUTE_SCHEMA_CASES=1000 $(BIN)/python -m pytest tests/integration/test_server_safety.py -k schema
	VLROUTE_FUZZED_FILES=5000 $(BIN)/python -m pytest tests/integration/test_server_fuzz.py
	VLROUTE_SETTINGS_CASES=1000 $(BIN)/python -m pytest tests/integration/test_edges_settings.py -k random

wheel: install  ## Build the wheel with the embedded models
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## Remove environments, caches and build outputs
	rm -rf $(VENV) $(LOWEST) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
