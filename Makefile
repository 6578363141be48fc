PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install demo test check docs format pocket retrain notebooks bench soak wheel clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("vlroute needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(VENV)/installed  ## Make .venv and install vlroute with all that tests need

demo: install  ## Fresh pictures, both modes, and what routing makes of them
	$(BIN)/vlroute demo

check: install  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check  ## The one gate: lint, types, the whole suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile  # a thread a process: tiny models gain nothing from more

docs: install  ## Build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

format: install  ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pocket: install  ## Train the pocket pair anew, label pictures with it, write its card (an hour and a half on two cores)
	$(BIN)/python -m training.pocket.train
	$(BIN)/python -m training.pocket.label --count 1260 --seed card --out training/pocket/measured.jsonl.gz
	$(BIN)/python -m training.pocket.card training/pocket/measured.jsonl.gz
	$(BIN)/python -m training.pocket.label --count 1440 --seed labels --out training/pocket/records.jsonl.gz
	$(MAKE) retrain
	$(BIN)/python -m training.pocket.probe
	$(BIN)/python -m training.pocket.proof

retrain: install  ## Train the pocket pair's router from its committed records
	$(BIN)/python training/retrain.py training/pocket/records.jsonl.gz --together record --model models/pocket --out models/pocket/router

notebooks: install  ## Run the notebooks and write their outputs
	$(BIN)/python examples/run_notebooks.py

bench: install  ## The pair at the 2B shape with random weights: memory, speed, turns of a conversation (over an hour)
	$(BIN)/python -m training.bench.real_size
	$(BIN)/python -m training.bench.conversations
	$(BIN)/python -m training.bench.decision
	$(BIN)/python -m training.bench.retraining
	$(BIN)/python -m training.bench.server

soak: install  ## Random conversations against plain transformers, 520 of them; 1000 requests an endpoint; 3000 over all settings (half an hour)
	VLROUTE_CONVERSATIONS=520 $(BIN)/python -m pytest tests/integration/test_chat_exact.py -k fresh --hypothesis-show-statistics
	VLROUTE_SCHEMA_CASES=1000 $(BIN)/python -m pytest tests/integration/test_server_safety.py -k schema
	VLROUTE_SETTINGS_CASES=1000 $(BIN)/python -m pytest tests/integration/test_edges_settings.py -k random

wheel: install  ## Build the wheel, embedded models included
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## Remove what can be made again
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
