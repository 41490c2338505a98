# Each target sets itself up: a virtual environment, the pinned packages, then its work. A second run re-uses what is there.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python manage.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo serve test bench lint

demo: .venv/installed
	@DATA_DIR="$${DATA_DIR:-var/demo}" PORT="$${PORT:-$$($(BIN)/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}" $(RUN) demo

serve: .venv/installed
	@exec $(RUN) serve

test: .venv/installed-test
	@scratch=$$($(BIN)/python -m tests.scratch) && trap 'rm -rf "$$scratch"' EXIT && \
		OMP_NUM_THREADS=1 TMPDIR="$$scratch" $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

bench: .venv/installed
	@$(BIN)/python -m benchmarks

lint: .venv/installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy platform renderjobs gpuworker
	@PRODUCTION=1 SECRET_KEY=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(50))') ALLOWED_HOSTS=render.example \
		$(RUN) check --deploy --fail-level WARNING
	@$(RUN) makemigrations --check --dry-run
	@$(BIN)/python -m pytest -q tests/meta/test_layout.py tests/meta/test_import_boundaries.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Renderkiln needs Python 3.11 or newer; this is %s." % sys.version.split()[0])'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/installed: requirements.txt | .venv/bin/python
	@echo "Installing what requirements.txt names …"
	@$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

.venv/installed-test: requirements-test.txt .venv/installed
	@echo "Installing what the tests need …"
	@$(BIN)/python -m pip install --quiet -r requirements-test.txt
	@touch $@
