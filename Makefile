# `make` lists the targets. Variables: PYTHON=/path/to/python, ARGS="further pytest arguments",
# SERVICES=private (own servers on other ports), ASYNCTASQ_DRIVER=sqlite|postgres|mysql|redis (for the demo).
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/sh
PY := .venv/bin/python
SERVICES_PY = $$( [ -x $(PY) ] && echo $(PY) || scripts/env which ) scripts/services.py
# Hands the addresses that `services` wrote to the command that follows.
WITH_SERVICES := set -a; . ./.services/env; set +a;
MEMBERS := asynctasq asynctasq_django tests example_project benchmarks scripts
SOURCES = $(wildcard $(MEMBERS))

.PHONY: help env env-dev demo serve test coverage matrix lint format types bench faults services services-stop \
	services-status migrations-check wheel-check ci clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | awk -F'\t' '{printf "  %-17s %s\n", $$1, $$2}'

env:  ## make .venv with what the demo and the example project need
	@scripts/env $(if $(filter mysql,$(ASYNCTASQ_DRIVER)),mysql,run)

env-dev:  ## also what tests, lint and type checks need
	@scripts/env dev

# Only a driver with a server needs one started, and only that one.
DEMO_SERVICE = $(filter-out sqlite,$(ASYNCTASQ_DRIVER:mysql=mariadb))
WITH_DEMO_SERVICE = $(if $(DEMO_SERVICE),$(SERVICES_PY) up $(DEMO_SERVICE) && $(WITH_SERVICES))

demo: env  ## run the example project's work once and show what happened (ASYNCTASQ_DRIVER=sqlite|postgres|mysql|redis)
	@$(WITH_DEMO_SERVICE) $(PY) example_project/demo.py

serve: env  ## website, admin and worker of the example project until Ctrl-C
	@$(WITH_DEMO_SERVICE) $(PY) example_project/serve.py

test: env-dev services  ## all tests on real services, two at a time (ARGS="-k something -n 0")
	@$(WITH_SERVICES) $(PY) -m pytest -n 2 --dist loadfile $(ARGS)

coverage: env-dev services  ## the tests with coverage
	@$(WITH_SERVICES) $(PY) -m coverage erase && $(PY) -m coverage run -m pytest $(ARGS) && \
		$(PY) -m coverage combine --quiet && $(PY) -m coverage report

matrix: env-dev services  ## the tests on every Python and Django that is here (tox)
	@$(WITH_SERVICES) PATH="$$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.*/bin 2>/dev/null | tr '\n' ':')$$PATH" \
		$(PY) -m tox run $(ARGS)

lint: env-dev  ## ruff: rules and format
	@$(PY) -m ruff check --quiet $(SOURCES)
	@$(PY) -m ruff format --quiet --check $(SOURCES)
	@echo "lint: clean"

format: env-dev  ## let ruff format and fix what it safely can
	@$(PY) -m ruff check --quiet --fix $(SOURCES) || true
	@$(PY) -m ruff format $(SOURCES)

types: env-dev  ## mypy, strict
	@$(PY) -m mypy

reference: env  ## write the reference in docs/configuration.md anew from the options
	@$(PY) scripts/configuration_reference.py

migrations-check: env-dev  ## models and migrations agree
	@$(PY) example_project/manage.py makemigrations --check --dry-run

bench: env-dev services  ## enqueue and drain rates of the drivers beside the raw ceiling of each client
	@$(WITH_SERVICES) $(PY) -m benchmarks $(ARGS)

faults: env-dev services  ## a long campaign of kills and crash points on every driver (ARGS="--driver redis --kills 20 --seed 7")
	@$(WITH_SERVICES) $(PY) -m tests.faults.campaign $(ARGS)

services:  ## find or start Redis, PostgreSQL and MariaDB for the tests
	@$(SERVICES_PY) up

services-stop:  ## end exactly the servers that were started here
	@$(SERVICES_PY) down

services-status:  ## say which servers were started here
	@$(SERVICES_PY) status

wheel-check: env-dev  ## build the wheel, install it elsewhere, run a task of the example project from there
	@$(PY) scripts/wheel_check.py

ci:  ## everything that continuous integration runs
	@.ci/run

clean:  ## stop the servers and remove the environment, their data and all caches
	@[ ! -d .services ] || $(SERVICES_PY) down --remove
	rm -rf .venv .venv.lock .services .tox build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
