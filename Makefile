# Everything a fresh machine needs is Python 3.11+, git and make. The environment is made in .venv.
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs/nano

.PHONY: demo test lint docs env clean

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@echo "setting up .venv (once, about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; call make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,docs,serve]'
	@touch $@

# The whole loop on two real environments: imitation, tree search for step values, reward model, guided search, report.
# Every command continues or skips what is there, so a demo that was stopped goes on where it was.
demo: env
	@$(BIN)/python -m agentrm_jax.demo

test: env
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n 2 --dist loadfile

lint: env
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy

# The documentation as pages in build/site, with an API reference from the docstrings.
docs: env
	@$(BIN)/mkdocs build --quiet && echo build/site/index.html

clean:
	rm -rf .venv runs build *.egg-info
