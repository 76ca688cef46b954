# make figures | tutorials | test | test-slow | test-browser | lab | bench | paper
# Every target sets up by itself: a virtual environment in .venv, installed from settings.ini and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: figures tutorials test test-slow test-browser lab bench paper
figures: .venv/installed
	$(BIN)/gradcheck reproduce --preset laptop

tutorials: .venv/installed
	mkdir -p results/tutorials
	for f in nbs/tutorials/*.ipynb; do $(BIN)/papermill --cwd nbs/tutorials -k python3 $$f results/tutorials/$$(basename $$f) || exit; done

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

# The paper's scale in one call on a GPU: MINUTES of training (weights in files of at most 15 MB), then samples and Figures 1-3. Call it again if it was cut off: what is finished stays.
# With GPU_PYTHON=python3 nothing is installed: torch, torchmetrics, pandas, scipy, matplotlib, safetensors, typer are enough; the figures' notebooks need papermill and ipykernel too,
# and are made elsewhere from data/paper and the cache where these are missing.
MINUTES ?= 3
GPU_PYTHON ?= $(BIN)/python
GRADCHECK = PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) -c "from gradcheck.cli import main; main()"
share = $$($(GPU_PYTHON) -c "print($(MINUTES) * $(1))")
paper: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/installed)
	for kind in robust nonrobust judge; do $(GRADCHECK) train classifier --kind $$kind --preset paper --minutes $(call share,0.12) --out data/paper/$$kind --resume || exit; done
	$(GRADCHECK) train ddpm --preset paper --minutes $(call share,0.64) --largest 15MB --out data/paper/ddpm --resume
	$(GRADCHECK) evaluate --preset paper --count 64 --out data/paper/evaluation
	$(GRADCHECK) reproduce figure_1 figure_2 figure_3 --preset paper

.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

