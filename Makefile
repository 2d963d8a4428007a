# Every target stands alone: it makes the environment it needs, once. `make VENV=/some/path test` uses another one.
VENV ?= .venv
PYTHON ?= python3
# Processes that run the tests side by side; 0 runs them one after the other in one process.
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.lightning-explain

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench faults docs

# An environment can serve several checkouts; the one installed last is the one that is imported.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

demo: $(STAMP) ## Train a network that cheats, watch it being caught, and train an honest one beside it
	$(BIN)/lightning-explain demo
	$(BIN)/lightning-explain demo --clean

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(STAMP) ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP) ## Run the benchmarks, one after the other
	@set -e; for file in benchmarks/[!_]*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

faults: $(STAMP) ## Inject every fault at every place, and kill and resume trainings
	$(BIN)/python tests/faults/table.py
	$(BIN)/python tests/faults/sigkill.py --moments 20
	$(BIN)/python tests/faults/sigkill.py --moments 20 --early

docs: $(STAMP) ## Write docs/methods.md, docs/metrics.md and the presets in configs/ from the classes
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/generate_configs.py

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	@echo "$(CURDIR)" > $@

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) || { echo "No environment could be made in $(VENV): install the venv module of $(PYTHON) (Debian: apt-get install python3-venv)." >&2; exit 1; }
