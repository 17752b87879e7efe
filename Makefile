# `make help` lists the targets. Each works in a fresh clone: it creates .venv from constraints.txt first.
#
#   PIP_ARGS  goes to every pip install
#   PYTHON    names the Python to build .venv with, instead of the first that fits
#   ARGS      goes to the command behind the target, as in: make test ARGS='-k wire'

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench fuzz soak clean

PIP_ARGS ?=
PYTHON ?=
ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
EXTRAS := cloud,demo,train,otel,dev
CPU_WHEELS := https://download.pytorch.org/whl/cpu

# Exit code 3: another version; 4: without venv or ensurepip, which Debian packages apart.
PROBE := import sys, importlib.util as u; \
  sys.exit(3 if not (3, 11) <= sys.version_info[:2] <= (3, 12) else 0 if u.find_spec("venv") and u.find_spec("ensurepip") else 4)

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 10

demo: $(READY) ## two nodes and a cloud on this machine, real photographs, one minute
	$(BIN)/rac demo --cameras 2 --seconds 60 $(ARGS)

test: $(READY) ## the tests, without the slow ones (ARGS='-m slow' for those)
	@.ci/debian-packages
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(READY) ## what each stage costs on this machine
	$(BIN)/rac bench $(ARGS)

fuzz: $(READY) ## a million mutated frames and 200,000 messages (ARGS='--frames N --messages N')
	$(BIN)/python -m tests.fuzz $(ARGS)

soak: $(READY) ## ten minutes at full load with flat memory and descriptors (ARGS='--minutes N')
	$(BIN)/python -m tests.soak $(ARGS)

clean: ## remove .venv, builds and caches
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find pipeline nodes tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One recipe line, so that a failure leaves no stamp. The candidates really run: a version manager's shim may exist
# and fail. A .venv whose Python still works is brought up to date, another is made anew.
$(READY): pyproject.toml constraints.txt
	@set -e; \
	if ! $(BIN)/python -c '$(PROBE)' >/dev/null 2>&1 || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    found=; without_venv=; \
	    for candidate in $(if $(PYTHON),$(PYTHON),python3.12 python3.11 python3); do \
	        code=0; "$$candidate" -c '$(PROBE)' </dev/null >/dev/null 2>&1 || code=$$?; \
	        if [ $$code -eq 0 ]; then found=$$candidate; break; fi; \
	        if [ $$code -eq 4 ]; then without_venv=$$candidate; fi; \
	    done; \
	    if [ -z "$$found" ] && [ -n "$$without_venv" ]; then \
	        echo "make: $$without_venv fits but has no venv: apt install python3-venv make" >&2; exit 1; \
	    elif [ -z "$$found" ]; then \
	        echo "make: Python 3.11 or 3.12 with venv is needed: apt install python3-venv make" >&2; exit 1; \
	    fi; \
	    echo "make: creating .venv with $$("$$found" --version)"; \
	    "$$found" -m venv --clear .venv; \
	fi; \
	if [ "$$(uname -sm)" = "Linux x86_64" ] && ! $(BIN)/python -m pip show --quiet torch >/dev/null 2>&1; then \
	    echo "make: torch from the registry brings several GB of CUDA packages on x86 Linux. The light way, without a GPU:"; \
	    echo "make:     make PIP_ARGS='--extra-index-url $(CPU_WHEELS)' $(or $(MAKECMDGOALS),test)"; \
	fi; \
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt torch==2.13.0 numpy; \
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'; \
	$(BIN)/python -m pip check; \
	touch $@
