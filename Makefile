# Every target stands alone: it makes the environment it needs, once. `make VENV=/some/path test` uses another one.
VENV ?= .venv
PYTHON ?= python3
# Processes that run the tests side by side; 0 runs them one after the other in one process.
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.lightning-explain
# The environment with the lowest supported versions, without the tools of the documentation, which need a newer rich.
VENV_LOWEST ?= .venv-lowest
STAMP_LOWEST := $(VENV_LOWEST)/.lightning-explain

.DEFAULT_GOAL := help
.PHONY: help demo test lowest lint bench faults docs linkcheck pictures dist

# An environment can serve several checkouts; the one installed last is the one that is imported.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
ifneq ($(shell cat $(STAMP_LOWEST) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP_LOWEST)
endif

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

demo: $(STAMP) ## Train a network that cheats, watch it being caught, and train an honest one beside it
	$(BIN)/lightning-explain demo

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Old versions of other packages warn of what is new to them, so warnings are no errors here.
lowest: $(STAMP_LOWEST) ## Test equality with Captum, non-interference, the callback, files and pictures with the lowest supported versions
	$(VENV_LOWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal -o filterwarnings=default \
		-m "not slow and not ddp" \
		$(addprefix tests/,core model modalities targets store render probes methods metrics monitor)

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
	$(BIN)/python tests/faults/sigusr1.py --moments 20
	$(BIN)/python tests/faults/beside.py

docs: $(STAMP) ## Write the reference and configs/ from the classes, and build the documentation in docs/_build
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/generate_configs.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	$(BIN)/python docs/check_links.py docs/_build
	@echo "docs/_build/index.html"

linkcheck: $(STAMP) ## Ask the network whether the documentation's links to other sites still lead somewhere
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck
	@echo "docs/_build/linkcheck/output.txt"

pictures: $(STAMP) ## Draw the pictures of README and the documentation again (ten minutes)
	$(BIN)/python docs/gallery.py
	$(BIN)/python docs/pictures.py

dist: $(STAMP) ## Build wheel and sdist, install the wheel in an empty environment, and run its commands there
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/installed.py dist $(PYTHON)

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	@echo "$(CURDIR)" > $@

$(STAMP_LOWEST): pyproject.toml | $(VENV_LOWEST)/bin/python
	sed -n -e '/^dependencies = \[/,/^\]/s/^  "\([a-z]*\)>=\([0-9.]*\).*/\1==\2/p' \
		-e 's/^  "\(pytorch-lightning\|transformers\)>=\([0-9.]*\).*/\1==\2/p' pyproject.toml > $(VENV_LOWEST)/lowest.txt
	$(VENV_LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV_LOWEST)/lowest.txt \
		--editable '.[hydra,demo,superpixels,surrogates,tutorial,dev]'
	@echo "$(CURDIR)" > $@

$(BIN)/python $(VENV_LOWEST)/bin/python: %/bin/python:
	@$(PYTHON) -m venv $* || { echo "No environment could be made in $*: install the venv module of $(PYTHON) (Debian: apt-get install python3-venv)." >&2; exit 1; }
