# Everything that a newcomer needs: `make demo`, `make check`, `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo check test test-slow lint types fast unit notebooks docs gallery pages bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing saliency_lab into $(VENV) (torch is a large download the first time)"
	$(PIP) --editable .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/core  ## train four recipes on the embedded digits, explain, score, attack; figures in runs/demo
	$(BIN)/saliency-lab demo

check: lint types fast  ## linter, types and fast tests: under three minutes, for while you work

test: lint types unit  ## install what is needed, then linter, types and all tests but the slow ones

test-slow: $(VENV)/dev  ## the slow tests: networks by methods, broken defences, wrong input, killed processes
	$(PYTEST) -m slow

lint: $(VENV)/dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev  ## mypy
	$(BIN)/mypy

fast: $(VENV)/dev  ## the fast tests alone
	$(PYTEST) -m "not long and not slow"

unit: $(VENV)/dev  ## all tests but the slow ones
	$(PYTEST) -m "not slow"

notebooks: $(VENV)/dev  ## run the notebooks again, keep their output, and print how long each takes
	SALIENCY_LAB_PROGRESS=0 $(BIN)/python notebooks/run.py

docs: $(VENV)/dev  ## build the documentation; open docs/_build/html/index.html
	$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build/html

gallery: $(VENV)/dev  ## draw docs/figures/gallery.jpg, photographs and their maps by many methods
	$(BIN)/python docs/gallery.py

pages: $(VENV)/dev  ## write the pages of methods and metrics from the code (docs/catalogue_pictures.py draws their pictures)
	$(BIN)/python docs/catalogue_pages.py

bench: $(VENV)/dev  ## the benchmarks in their short form (docs/benchmarks.md has the long one's figures)
	$(BIN)/python benchmarks/all.py --quick --json runs/benchmarks-quick.json
	for name in allocator audits metrics_believed networks simulations; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

clean:  ## remove the virtual environment and the caches (never runs/)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist docs/_build docs/tutorials
