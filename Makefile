# CONTRIBUTING.md has the plain commands of each target.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test test-slow clean

demo: $(VENV)/installed
	$(PY) -m benchmarks.sample textile --per-class 300
	$(PY) -m pipeline.extract data/textile --base vgg16,efficientnet_lite0,pixels
	$(PY) -m pipeline.classify --heads fast

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) -m pytest -n auto

test-slow: $(VENV)/installed-slow
	$(PY) -m pytest -m slow -n auto --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV)

# Python compiles what is imported: pip would compile everything, which takes 40 s.
$(VENV)/installed: EXTRAS :=
$(VENV)/installed-dev: EXTRAS := [dev]
$(VENV)/installed-slow: EXTRAS := [dev,slow]
$(VENV)/installed $(VENV)/installed-dev $(VENV)/installed-slow: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12 (or another)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-compile --editable '.$(EXTRAS)'
	@touch $@ $(VENV)/installed
