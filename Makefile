# One command each. `make help` lists them; .ci/run runs the same ones.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup demo test check accuracy bench lab docs clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

setup: $(STAMP) ## make .venv with everything in it; does nothing when it is up to date

# The stamp comes last, so an install that failed half-way is tried again.
$(STAMP): pyproject.toml CMakeLists.txt constraints.txt $(wildcard csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup ## see it work
	$(BIN)/python -m homeostat.demo

test: setup ## run every test
	$(BIN)/python -m pytest -n $(WORKERS)

check: setup ## lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

accuracy: setup ## print the largest errors against float64, torch.nn beside homeostat
	$(BIN)/python bench/accuracy.py

bench: setup ## measure speed, torch.nn beside homeostat
	$(BIN)/python bench/speed.py

lab: ## reproduce experiments
	@echo "There is no lab yet."

docs: ## build the documentation
	@echo "There is no documentation build yet."

clean: ## remove what the commands above made
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/homeostat/_native.*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
