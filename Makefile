# `make` prints what there is. Every target sets up what it needs first; what is set up already costs nothing.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:

PYTHON ?= /usr/bin/python3
BUF_VERSION := 1.75.0

RUN := .venv/bin/python -m
BUF := .cache/node/node_modules/.bin/buf
SOURCES := agent common coordinator deploy tests
PROTO_FILES := $(wildcard protos/ferry/*/*/*.proto)

# Each is touched last by the step that it stands for.
PACKAGES := .cache/packages.ready
VENV := .venv/.ready
PROTOS := protos/.generated
KERNEL := .cache/kernel/.ready
QEMUS := .cache/qemu-10.0/.ready .cache/qemu-11.1/.ready
BUF_READY := .cache/node/.ready-$(BUF_VERSION)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export BUF_CACHE_DIR := $(CURDIR)/.cache/buf
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## Print this.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(PACKAGES) $(VENV) $(PROTOS) $(KERNEL) $(QEMUS) $(BUF_READY) ## Install all that the other targets need.

.PHONY: protos
protos: $(PROTOS) ## Generate the Python modules of protos/.

.PHONY: fmt
fmt: $(PROTOS) $(BUF_READY) ## Format the code and the .proto files, and fix what can be fixed.
	.venv/bin/ruff check --quiet --fix-only $(SOURCES)
	.venv/bin/ruff format $(SOURCES)
	@if [ -x $(BUF) ]; then $(BUF) format --write; fi

.PHONY: lint
lint: $(PROTOS) $(BUF_READY) ## Check style, imports and the .proto files.
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/lint-imports --cache-dir .cache/import-linter
	@if [ -x $(BUF) ]; then \
	    echo "$(BUF) lint"; \
	    $(BUF) lint && $(BUF) format --diff --exit-code; \
	else \
	    echo "lint: buf is missing, so the .proto files are not checked: it comes from npm" >&2; \
	    [ "$(CI)" != true ]; \
	fi

.PHONY: type
type: $(PROTOS) ## Check the types.
	.venv/bin/mypy

.PHONY: test
test: setup lint type ## Check everything: lint, types, then all tests.
	.venv/bin/pytest --numprocesses 2 -m "not matrix" --ignore tests/e2e tests
	.venv/bin/pytest --numprocesses 2 -m "not matrix" tests/e2e

.PHONY: matrix
matrix: setup ## Run every end-to-end test, with the cases of large tables that `make test` leaves out.
	.venv/bin/pytest --numprocesses 2 tests/e2e tests/qemu

.PHONY: demo
demo: $(PACKAGES) $(PROTOS) $(KERNEL) ## Move a Linux guest there and back on this machine; KEEP=1 leaves it up.
	@KEEP=$(KEEP) $(RUN) deploy.demo

.PHONY: demo-stop
demo-stop: $(PROTOS) ## End what `make demo KEEP=1` left up.
	@$(RUN) deploy.demo stop

.PHONY: bench
bench: setup ## Measure Ferry against QEMU alone, and write docs/benchmarks.md.
	$(RUN) tests.bench

.PHONY: chaos
chaos: setup ## Do faults to moves at random and judge what is left: ROUNDS=500 SEED=; needs root.
	$(RUN) tests.chaos --rounds $(or $(ROUNDS),500) $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS))

.PHONY: docs
docs: $(PROTOS) ## Write docs/states.md and docs/domain-xml.md from the code.
	$(RUN) tests.tools.states
	$(RUN) tests.tools.domain_table

.PHONY: lock
lock: $(VENV) ## Choose the newest packages that fit, and write requirements.lock.
	.venv/bin/uv lock --quiet --upgrade
	.venv/bin/uv export --quiet --locked --all-extras --no-emit-project --no-header \
	    --format requirements-txt --output-file requirements.lock >/dev/null
	rm -f uv.lock

.PHONY: clean
clean: ## Remove all that make has made, downloads included.
	rm -rf .venv .cache dist .hypothesis .pytest_cache .mypy_cache .ruff_cache
	rm -f $(PROTOS)
	find protos -name '*_pb2*.py*' -delete
	find $(SOURCES) protos -type d -name __pycache__ -prune -exec rm -rf {} +

$(PACKAGES): deploy/setup/packages.txt deploy/setup/packages.sh
	@deploy/setup/packages.sh
	@mkdir -p $(@D) && touch $@

$(VENV): requirements.lock pyproject.toml | $(PACKAGES)
	@[ -x .venv/bin/pip ] || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	.venv/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(PROTOS): $(PROTO_FILES) deploy/setup/protos.py $(VENV)
	$(RUN) deploy.setup.protos
	@touch $@

$(KERNEL): deploy/setup/kernel.py | $(PACKAGES)
	@$(PYTHON) -m deploy.setup.kernel

# Where a QEMU cannot be had this leaves no file and is no error: the tests say what they miss.
$(QEMUS): .cache/qemu-%/.ready: deploy/setup/qemus.py | $(VENV)
	@$(PYTHON) -m deploy.setup.qemus $*

$(BUF_READY):
	@if command -v npm >/dev/null; then \
	    npm install --prefix .cache/node --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --silent \
	        @bufbuild/buf@$(BUF_VERSION) && touch $@ || echo "setup: npm could not install buf" >&2; \
	fi
