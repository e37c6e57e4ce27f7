# make serve   install into .venv, then serve (which obtains the model first)
# make test    install with the development tools, run all tests
# make soak    the tests of faults for hours (below), once
# make check   linters, types, the import contract, the rules on the code
# make bench   measure speed beside other engines
# make clients test with the official clients, in an environment of their own
# make clean   remove what the others have made in this folder
#
# PYTHON          the Python to use (3.11 or newer)
# ARGS            further arguments for serve, test or bench: make serve ARGS="--port 9000"
# MODEL           what to serve: a folder, a GGUF file or a hub id; the demonstration model if empty
# TORCH_PIP_ARGS  further arguments for pip when it installs torch. Kvasir needs no GPU, but pip on
#                 Linux takes the large CUDA build unless an index of CPU builds is named here:
#                 make serve TORCH_PIP_ARGS="--index-url <index of CPU wheels>"
#
# How long each part of soak takes is set by a variable, also in the environment:
# make soak KVASIR_TEST_SERVER_KILLS=50 ARGS=tests/faults/test_server_kill.py
#
# KVASIR_TEST_STATES            states in which a simulated disk loses power        (test:  2,000)
# KVASIR_TEST_BITS              flipped bits of stored planes                       (test: 10,000)
# KVASIR_TEST_KILLS             kill -9 of a process that uses the record store     (test:    200)
# KVASIR_TEST_INJECTIONS        system calls of the store that fail; there are some (test:    100)
#                               hundreds, and no more are tried
# KVASIR_TEST_SERVER_KILLS      kill -9 of a whole server without weights           (test:     20)
# KVASIR_TEST_KEEPING_KILLS     kill -9 while texts are held and imported           (test:      8)
# KVASIR_TEST_PARCEL_FLIPS      flipped bits of exported KV                         (test:  1,000)
# KVASIR_TEST_CONTEXT_KILLS     kill -9 of servers at work on files and contexts    (test:    200)
# KVASIR_TEST_REAL_KILLS        kill -9 of a server on the demonstration model      (test:      3)
# KVASIR_TEST_MACHINE_EXAMPLES  courses that Hypothesis tries of each state machine (test: 80, 150)
# KVASIR_TEST_SEED              of the killed servers' conversations                (test:      0)

PYTHON ?= python3
TORCH_PIP_ARGS ?=
MODEL ?=
ARGS ?=

TORCH := torch>=2.11,<2.14
VENV := .venv
CLIENTS := .venv-clients
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet

.PHONY: serve test soak check bench clients clean
.DELETE_ON_ERROR:

serve: $(VENV)/.installed
	$(VENV)/bin/kvasir serve $(MODEL) $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest --ignore=tests/clients $(ARGS)

soak: ARGS := $(or $(ARGS),tests/faults tests/unit/kv tests/unit/sched)
soak: $(VENV)/.installed-dev
	KVASIR_TEST_STATES=$${KVASIR_TEST_STATES:-1000000} \
	KVASIR_TEST_BITS=$${KVASIR_TEST_BITS:-100000} \
	KVASIR_TEST_KILLS=$${KVASIR_TEST_KILLS:-10000} \
	KVASIR_TEST_INJECTIONS=$${KVASIR_TEST_INJECTIONS:-100000} \
	KVASIR_TEST_SERVER_KILLS=$${KVASIR_TEST_SERVER_KILLS:-300} \
	KVASIR_TEST_KEEPING_KILLS=$${KVASIR_TEST_KEEPING_KILLS:-300} \
	KVASIR_TEST_PARCEL_FLIPS=$${KVASIR_TEST_PARCEL_FLIPS:-100000} \
	KVASIR_TEST_CONTEXT_KILLS=$${KVASIR_TEST_CONTEXT_KILLS:-5000} \
	KVASIR_TEST_REAL_KILLS=$${KVASIR_TEST_REAL_KILLS:-30} \
	KVASIR_TEST_MACHINE_EXAMPLES=$${KVASIR_TEST_MACHINE_EXAMPLES:-5000} \
	  $(VENV)/bin/python -m pytest -v --durations=10 --timeout=86400 $(ARGS)

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check kvasir tests
	$(VENV)/bin/ruff format --check kvasir tests
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m pytest tests/architecture

bench: $(VENV)/.installed
	$(VENV)/bin/kvasir bench $(ARGS)

clients: $(VENV)/.installed $(CLIENTS)/.installed
	$(CLIENTS)/bin/python -m pytest --confcutdir=tests/clients tests/clients $(ARGS)

clean:
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info kvasir/kernels/_native*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find kvasir tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: each says that the environment holds what the files it depends on ask for.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Kvasir needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone, so that pip's settings or TORCH_PIP_ARGS choose its build; what follows
# finds it installed and leaves it.
$(VENV)/.torch: $(VENV)/.made
	@echo "installing torch (large; once)"
	$(VENV)/bin/python $(PIP_INSTALL) $(TORCH_PIP_ARGS) "$(TORCH)"
	@touch $@

NATIVE := $(wildcard native/*)

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(VENV)/bin/python $(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(VENV)/bin/python $(PIP_INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(CLIENTS)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python $(PIP_INSTALL) -r tests/clients/requirements.txt
	@touch $@
