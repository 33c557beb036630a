# Everything runs from .venv, which `setup` makes and keeps current; it is instant when nothing changed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo plan test check bench
.DEFAULT_GOAL := setup

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the host packages into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

setup: $(STAMP)

demo: plan setup
	$(BIN)/python agent/loop.py --dataset demo/reverse --runner local --proposer tpe --timeout 9m

plan:
	@echo 'ftloop demo: teach a tiny model to reverse eight digits, and prove that it learned.'
	@echo '  1. install ftloop into .venv                                       about 1 minute, once'
	@echo '  2. build the locked environments for training and evaluation       about 4 minutes and 4 GB, once'
	@echo '  3. make the model and its data, and score the model: it knows nothing'
	@echo '  4. propose, train, measure, keep what is provably better           at most 9 minutes'
	@echo '  5. open the sealed test for the winner and the base'

# Two at a time: a training and a scoring keep one core busy each. JOBS=0 runs them one after the other.
JOBS ?= 2

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@$(BIN)/python tests/benchmarks.py
