# make figures | test | test-slow | test-browser | lab | bench
# Every target sets up by itself: a virtual environment in .venv, installed from settings.ini and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: figures test test-slow test-browser lab bench
figures: .venv/installed
	$(BIN)/gradcheck reproduce --preset laptop

test: .venv/installed
	$(BIN)/ruff check --select F gradcheck tests
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadgroup --durations 8 tests

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m slow tests

# Chromium: the system's, or Debian's package.
test-browser: .venv/installed
	command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq chromium > /dev/null)
	$(BIN)/pytest -q -m browser tests

lab: .venv/installed
	$(BIN)/jupyter lab nbs

bench: .venv/installed
	$(BIN)/gradcheck bench

.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

