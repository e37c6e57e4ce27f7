# make serve   install into .venv, then serve (which obtains the model first)
# make test    install with the development tools, run all tests
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

PYTHON ?= python3
TORCH_PIP_ARGS ?=
MODEL ?=
ARGS ?=

TORCH := torch>=2.11,<2.14
VENV := .venv
CLIENTS := .venv-clients
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet

.PHONY: serve test check bench clients clean
.DELETE_ON_ERROR:

serve: $(VENV)/.installed
	$(VENV)/bin/kvasir serve $(MODEL) $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest --ignore=tests/clients $(ARGS)

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
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info
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

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(VENV)/bin/python $(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(VENV)/bin/python $(PIP_INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(CLIENTS)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python $(PIP_INSTALL) -r tests/clients/requirements.txt
	@touch $@
