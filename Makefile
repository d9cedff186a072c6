# Every target sets up .venv from nothing first: no root, no activation, any path, any user.

# The first that is new enough; PYTHON=... takes another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
    $$python -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null \
    && echo $$python && break; done || echo python3)
ARGS ?=

venv := .venv/bin
# Written last, and holding the folder it was made for: a moved clone has dead paths in its .venv.
stamp := .venv/.ready
ready := $(shell test "$$(cat $(stamp) 2>/dev/null)" = "$$(pwd -P)" && $(venv)/python -c "" && echo yes)
ifneq ($(ready),yes)
.PHONY: $(stamp)
endif

# The entries of some packages in requirements.lock, hashes included.
locked = awk '/^[a-z]/ { keep = /^($(1))==/ } keep' requirements.lock

uv_install = $(venv)/uv pip install --quiet --system-certs --python $(venv)/python \
    $$(test -w "$$HOME" || echo --no-cache)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Some containers set it; then each of thousands of processes would compile the same modules.
unexport PYTHONDONTWRITEBYTECODE

pytest = $(venv)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --durations 20

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-system autoscale-demo faults bench lint docs docs-site audit lock secrets servers-stop clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(stamp) ## Migrate a generated school on embedded servers; ARGS="--users 20000"
	@$(venv)/producer demo $(ARGS)

test: $(stamp) ## Run the tests but for the long ones; ARGS="-k name"
	@$(pytest) -m "not long" $(ARGS)

test-all: test ## Run the long ones, too
	@$(pytest) -m long $(ARGS)

test-system: $(stamp) ## Run the tests that need Debian's and npm's packages, unpacked in .system
	@$(venv)/python -m tests.system.packages
	@$(venv)/pytest tests/system $(ARGS)

autoscale-demo: $(stamp) ## Scale workers with a run as KEDA would; ARGS="--users 20000"
	@$(venv)/python -m tests.autoscale $(ARGS)

faults: $(stamp) ## Injure it in sixty ways, 20 times each; ARGS="--repetitions 3 --only Redis"
	@$(venv)/python -m tests.faults $(ARGS)

bench: $(stamp) ## Time it against what one would write by hand; ARGS="--users 10000"
	@$(venv)/python -m bench $(ARGS)

lint: $(stamp) ## Check style, types and imports
	@$(venv)/ruff check
	@$(venv)/ruff format --check
	@$(venv)/mypy
	@$(venv)/lint-imports
	@$(venv)/mkdocs build

docs: $(stamp) ## Write docs/settings.md, docs/commands.md and the diagrams of states
	@$(venv)/python -m tests.reference

docs-site: $(stamp) ## Build the documentation as a site in build/site; a dead link fails
	@$(venv)/mkdocs build
	@echo "The site is in build/site"

audit: $(stamp) ## Look the pinned dependencies up among known vulnerabilities
	@$(venv)/python -m tests.audit

lock: $(stamp) ## Write requirements.lock anew; ARGS=--upgrade for the newest versions
	@$(venv)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	    --extra dev --extra docs --custom-compile-command "make lock" $(ARGS) \
	    --output-file requirements.lock pyproject.toml
	@$(venv)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	    --extra tracing --extra notify --constraint requirements.lock --custom-compile-command "make lock" \
	    --output-file deploy/requirements.lock pyproject.toml

secrets: $(stamp) ## Write random passwords for docker-compose.yml into secrets/
	@$(venv)/python deploy/make_secrets.py

servers-stop: $(stamp) ## Stop the embedded servers; their data stay
	@$(venv)/producer servers stop

clean: ## Stop the embedded servers, remove their data, .venv, .system, all caches
	@if test -x $(venv)/python && test -d .migration; then \
	    $(venv)/python -c "from pathlib import Path; from producer import embedded; embedded.erase(Path('.migration'))"; \
	fi
	case "$$(readlink .system)" in */migration-system-*) rm -rf "$$(readlink .system)";; esac
	rm -rf .migration .venv .tools .system build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# venv needs ensurepip, which some distributions leave out: then uv makes .venv, and pip its copy.
# uv installs the lock in a tenth of pip's time, but reads nothing of pip's configuration: it is
# told of the index there, and where it cannot install for some other setting's sake, pip does.
$(stamp): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3')"
	@echo "Setting up .venv: it downloads some hundred MB, which takes a minute or more"
	@rm -rf .tools && mkdir .tools
	@(while sleep 4 && test -d .tools && kill -0 $$PPID 2>/dev/null; do printf .; done; echo) &
	@$(call locked,pip) >.tools/pip.txt
	@$(call locked,uv) >.tools/uv.txt
	@test "$(ready)" = yes || $(PYTHON) -m venv --clear .venv >.tools/venv.log 2>&1 || { \
	    $(PYTHON) -m pip install --quiet --target .tools --require-hashes -r .tools/uv.txt \
	    && .tools/bin/uv venv --quiet --clear --python $(PYTHON) .venv \
	    && $(PYTHON) -m pip --python .venv install --quiet --require-hashes -r .tools/pip.txt \
	    || { cat .tools/venv.log; exit 1; } }
	@index=$$($(venv)/pip config list | sed -n "s/^.*[.]index-url='\(.*\)'$$/\1/p" | tail -n 1); \
	test -z "$$index" || export UV_DEFAULT_INDEX="$$index"; \
	$(venv)/pip install --quiet --no-deps --require-hashes -r .tools/uv.txt \
	    && $(uv_install) --compile-bytecode --require-hashes -r requirements.lock \
	    || $(venv)/pip install --quiet --require-hashes -r requirements.lock
	@$(uv_install) --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@rm -rf .tools && pwd -P >$@
