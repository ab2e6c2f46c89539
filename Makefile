# `make` lists what there is. Nothing is installed outside of this folder.

VENV  := .venv
FLOOR := .venv-floor
BIN   := $(VENV)/bin
EXTRAS := demo,dask,s3,azure,entra
GROUPS := test,browser,notebook,lineage,lint,bench
# Much of the suite waits for servers and processes, so more workers than processors pay. A module
# stays in one worker, with the servers that it started.
PARALLEL := -n 3 --dist loadfile
# `make test COVERAGE=` runs without it, and takes less time.
COVERAGE := --cov --cov-report=term
# Those that call the tasks directly: the harness for whole Dags asks things of Airflow that 3.0 cannot
# say, and its log shows in clear what it sends to itself.
FLOOR_TESTS := tests/test_packaging.py $(filter-out %/test_task_group.py %/test_secrets.py, \
	$(wildcard tests/provider/test_*.py))
# What may depend on the Python that runs it.
PYTHONS := 3.10 3.12 3.13
ROOMS := $(addprefix tests/,wire protocol transport faults datasets server provider)

# What `make fuzz` and `make soak` are asked for; a seed of none is the clock's.
SECONDS ?= 60
SEED ?=
RUNS ?= 200

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo ui docs test test-system test-system-quick soak test-floor test-pythons fuzz check format bench constraints venv clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## score the mtcars table through a real Dag on a real server
	@$(BIN)/mlbatch demo

ui: $(VENV)/.demo ## open Airflow with the example Dags and a scoring server behind them
	@$(BIN)/mlbatch ui

test: $(VENV)/.dev ## run the tests that need no Airflow processes, and report branch coverage
	@$(BIN)/python -m pytest $(PARALLEL) $(COVERAGE) $(ARGS)

test-system: $(VENV)/.system ## run the tests with real schedulers, triggerers and workers
	@$(BIN)/python -m pytest -m system $(ARGS)

test-system-quick: $(VENV)/.dev ## run the part of them that is quick enough for each change
	@$(BIN)/python -m pytest -m "system and quick" $(ARGS)

soak: $(VENV)/.system ## score many tables while everything is killed at random: SEED=… RUNS=…
	@$(BIN)/python -m tests.soak $(if $(SEED),--seed $(SEED)) --runs $(RUNS) $(ARGS)

test-floor: $(FLOOR)/.ready ## run the tests with the oldest Airflow that is supported
	@$(FLOOR)/bin/python -m pytest $(PARALLEL) $(FLOOR_TESTS) $(ARGS)

test-pythons: ## run the tests with the other Pythons that this machine has
	@scripts/test-pythons demo test constraints.txt "$(PYTHONS)" -- -m pytest $(PARALLEL) $(ROOMS) $(ARGS)

fuzz: $(VENV)/.dev ## read damaged tables of every format (SEED=1 SECONDS=600)
	@$(BIN)/python -m tests.datasets.fuzzing --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

check: $(VENV)/.dev ## formatting, lint, types, which room imports which, changelog
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/check_changelog.py

format: $(VENV)/.dev ## format the code and mend what lint can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(VENV)/.docs ## build the documentation as a site, in build/docs, and check its links
	@rm -rf build/docs
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --jobs auto \
		--conf-dir docs --doctree-dir build/doctrees . build/docs
	@$(BIN)/python scripts/check_site.py build/docs

bench: $(VENV)/.dev ## measure, and write the table in benchmarks/README.md
	@$(BIN)/python -m benchmarks $(ARGS)

constraints: $(VENV)/.dev ## resolve all dependencies anew and write constraints*.txt
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	@PATH="$$PATH:$(CURDIR)/$(BIN)" scripts/constraints

venv: $(VENV)/.dev ## install everything that developing needs into .venv

# A stamp is touched once its extras and groups are in; `make demo` installs no more than the demo needs.
$(VENV)/.demo: pyproject.toml constraints.txt
	@scripts/venv $(VENV) demo "" constraints.txt
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@scripts/venv $(VENV) $(EXTRAS) $(GROUPS) constraints.txt
	@touch $(VENV)/.demo $@

$(VENV)/.system: $(VENV)/.dev
	@scripts/venv $(VENV) $(EXTRAS) $(GROUPS),system constraints.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	@scripts/venv $(VENV) $(EXTRAS) $(GROUPS),docs constraints.txt
	@touch $@

$(FLOOR)/.ready: pyproject.toml constraints-floor.txt
	@scripts/venv $(FLOOR) demo test constraints-floor.txt 12
	@touch $@

clean: ## remove the virtual environments and what the tools left behind
	@rm -rf $(VENV) $(VENV)-* build dist .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
