# Everything that a developer or a machine runs. `make` alone says what there is.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.complete
# Apart, so that nobody who tests has to get what only the documentation is built with, or mutants are made with.
DOCS_VENV := .docs-venv
DOCS_STAMP := $(DOCS_VENV)/.complete
MUTANTS_VENV := .mutants-venv
MUTANTS_STAMP := $(MUTANTS_VENV)/.complete
# Four processes run the tests with servers, each with servers of its own, and mostly wait; a fifth runs the others
# meanwhile (tests/scheduling.py).
SIDE_BY_SIDE = -n 5 --dist loadfile --no-loadscope-reorder
SECONDS_OF_CHAOS = $(or $(SECONDS),600)
COMPOSE = docker compose --file deploy/compose.yaml
DAYS_TO_SIMULATE = $(if $(findstring -,$(SEEDS)),$(SEEDS),0-$(or $(SEEDS),10000))

.PHONY: help setup provision demo test test-unit test-faults test-full chaos simulate mutants planted lint format bench docs plots up down logs dist sbom clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create the virtual environment

$(STAMP): requirements/test.txt pyproject.toml scripts/setup
	scripts/setup $(VENV)
	touch $@

$(DOCS_STAMP): requirements/docs.txt scripts/setup
	scripts/setup $(DOCS_VENV) docs
	touch $@

$(MUTANTS_STAMP): requirements/mutants.txt scripts/setup
	scripts/setup $(MUTANTS_VENV) mutants
	touch $@

provision: $(STAMP) ## get the real servers (RabbitMQ, Elasticsearch), a browser and Prometheus for the tests, where they are missing
	$(PYTHON) -m devstack provision

demo: $(STAMP) ## 20,000 messages through real servers, with a checked account; KEEP=1 leaves it running
	$(PYTHON) -m demo

lint: $(STAMP) ## style, types, import rules
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

test: lint provision ## everything short, with real servers
	$(PYTHON) -m pytest -m "not full" $(SIDE_BY_SIDE)

test-unit: $(STAMP) ## what needs no servers, in seconds
	$(PYTHON) -m pytest -m "not server and not full" $(SIDE_BY_SIDE)

test-faults: provision ## the fault suite: both servers killed, frozen, cut off, filled and blocked
	$(PYTHON) -m pytest tests/faults -m "not full"

chaos: provision ## random faults for SECONDS (600), from SEED, with a model that judges what came of it
	$(PYTHON) -m tests.faults.chaos --seconds $(SECONDS_OF_CHAOS) $(if $(SEED),--seed $(SEED))

simulate: $(STAMP) ## SEEDS (10000, or 5000-9000) simulated bad days on all cores, or on JOBS (KIND=forwarding: to another broker); see docs/reliability.md
	$(PYTHON) -m tests.simulation --seeds $(DAYS_TO_SIMULATE) $(if $(JOBS),--jobs $(JOBS)) $(if $(KIND),--kind $(KIND))

test-full: lint provision $(MUTANTS_STAMP) ## what takes long as well, and a sample of the mutants
	$(MUTANTS_VENV)/bin/python -m tests.mutation --sample 200
	TEST_THOROUGHNESS=10 $(PYTHON) -m pytest

mutants: $(MUTANTS_STAMP) ## which changes of the product no test without servers finds; MODULES ('sidecar/amqp/*'), SAMPLE (number), SEED
	$(MUTANTS_VENV)/bin/python -m tests.mutation $(foreach module,$(MODULES),'$(module)') \
	    $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS))

planted: $(MUTANTS_STAMP) ## are the bugs that people planted found without servers?
	$(MUTANTS_VENV)/bin/python -m tests.mutation --planted

format: $(STAMP) ## put the code in shape
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(STAMP) ## what a document costs, against a floor and peers on real servers; MESSAGES (50000), ROUNDS (3), ARGS; docs/performance.md
	$(PYTHON) -m bench.compare --messages $(or $(MESSAGES),50000) --rounds $(or $(ROUNDS),3) $(ARGS)

docs: $(DOCS_STAMP) ## the documentation as a site, into build/docs; a link that leads nowhere fails it
	$(DOCS_VENV)/bin/python scripts/docs.py

plots: $(DOCS_STAMP) ## draw the tables of docs/performance.md, into docs/plots
	$(DOCS_VENV)/bin/python scripts/plots.py

up: deploy/.env ## the stack in containers, by Docker Compose; PROFILES="kibana monitoring" for more
	$(COMPOSE) $(foreach profile,$(PROFILES),--profile $(profile)) up --build --detach

down: deploy/.env ## end it, and forget its data
	$(COMPOSE) --profile '*' down --volumes

logs: deploy/.env ## follow the sidecar's log
	$(COMPOSE) logs --follow sidecar

# Readable by nobody else; what is there already stays.
deploy/.env:
	(umask 077; while IFS= read -r line; do case $$line in *=) \
	    printf '%s%s\n' "$$line" "$$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')";; esac; done \
	    < deploy/.env.example > $@)

dist: $(STAMP) ## wheel and sdist, into dist/
	$(PYTHON) -m hatchling build

sbom: $(STAMP) ## what is installed by requirements/run.txt, as CycloneDX: dist/sbom.json
	mkdir -p dist
	$(PYTHON) -m cyclonedx_py requirements requirements/run.txt --pyproject pyproject.toml --output-reproducible \
	    --of JSON --output-file dist/sbom.json

clean: ## remove what was made here
	rm -rf $(VENV) $(DOCS_VENV) $(MUTANTS_VENV) .bench .cache .servers .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
