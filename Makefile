# Needs python3 (3.11 or newer) and make; everything else goes into .venv.
PYTHON ?= python3
EVENTS ?=
# Two servers run for each pytest worker. Further options of pytest: make test ARGS="-k history -x".
WORKERS ?= 3
ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
SYSTEM_PACKAGES := prometheus prometheus-alertmanager chromium openjdk-17-jre-headless pgbouncer \
	docker.io debootstrap slirp4netns iptables

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help demo load test rules soak guards faults monitoring-check containers check format bench constraints system-deps clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(READY) ## show the processor at work, with servers of its own (EVENTS=n: how many events)
	$(if $(EVENTS),EVENTS=$(EVENTS) )$(BIN)/python -m demo

load: $(READY) ## publish load for test companies (ARGS="--companies A,B --rate 200 --duration 60s")
	$(BIN)/python -m demo.load $(ARGS)

test: $(READY) ## run all tests (WORKERS=n, ARGS="options of pytest")
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

rules: $(READY) ## print each rule of the specification with the tests that hold it; fail if one has none
	$(BIN)/python -m tools.rules

soak: $(READY) ## the tests' properties and bodies, fresh ones and very many, then a worker's memory (an hour or two)
	SOAK=1 $(BIN)/python -m pytest -n $(WORKERS) tests/properties $(ARGS)
	$(BIN)/python -m tests.soak

guards: $(READY) ## mutation checks: break one protection after the other, some test must fail each time (ARGS="word of a name")
	$(BIN)/python -m tools.mutation_checks $(ARGS)

faults: $(READY) ## inject faults under load, on single servers and clusters (ARGS="--kind cluster --jobs 2"; resumable)
	$(BIN)/python -m tests.faults $(ARGS)

monitoring-check: $(READY) ## check what watches the worker: Prometheus, alerts, dashboards, containers, page
	$(BIN)/python -m pytest tests/monitoring $(ARGS)

containers: $(READY) ## build the images and run both compose files for real (ARGS="--render docs/images": pictures of dashboards)
	$(BIN)/python -m tests.containers $(ARGS)

check: $(READY) ## style, types, who imports whom, and whether constraints.txt, schemas and tables of docs/ are in step
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.constraints
	$(BIN)/python -m tools.reference
	$(BIN)/python -m tools.schemas

format: $(READY) ## put the code into its form, and write schemas and tables of docs/ from it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m tools.reference --write
	$(BIN)/python -m tools.schemas --write

bench: $(READY) ## measure speed, cost, growth and fairness against a bare pipeline (ARGS="--lines realtime,paced --runs 1")
	$(BIN)/python -m tests.bench $(ARGS)

constraints: $(READY) ## choose the newest versions that pyproject.toml allows, for every platform
	$(BIN)/uv pip compile --quiet --universal --all-extras --upgrade --no-header --no-annotate \
		--output-file constraints.txt pyproject.toml

system-deps: ## install what some tests need from the system (Debian, root): without it they are skipped
	@missing=; for package in $(SYSTEM_PACKAGES); do \
		dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	command -v npm >/dev/null || missing="$$missing npm"; \
	test -z "$$missing" || apt-get update -q; \
	failed=; for package in $$missing; do \
		DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$package \
			|| failed="$$failed $$package"; done; \
	test -z "$$failed" || { echo "not installed:$$failed" >&2; exit 1; }
	@$(PYTHON) -m tests.containers.debian || echo "without Compose v2 and kustomize of Debian 13" >&2

clean: ## remove what was made here, .venv too
	rm -rf .venv .containers .grafana .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Exact versions, and nothing is built: constraints.txt lists everything that pyproject.toml leads to.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --requirement constraints.txt
	@touch $@
