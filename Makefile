# make figures | tutorials | thumbnails | pages | lint | lab | known | bench | paper
# make test | test-fast | test-slow | test-browser | durations
# Every target sets up by itself: a virtual environment in .venv, from settings.ini and constraints.txt.
#   PYTHON=python3.12       the Python that makes it
#   PIP_ARGS="..."          arguments for pip, such as --extra-index-url https://download.pytorch.org/whl/cpu
#   WRITE_BACK=1            make figures: the executed notebooks go back into nbs/figures
#   AGAIN=1                 make figures: execute them all, also those of which nothing has changed
#   FAST=1                  make figures: networks in bfloat16, into results/laptop-bfloat16
PYTHON ?= python3
PIP_ARGS ?=
WRITE_BACK ?=
AGAIN ?=
BIN := .venv/bin
# Is a switch on, by its name?
on = $(if $(filter-out 0 no false off,$($(1))),$(if $(filter 1 yes true on,$($(1))),1,$(error $(1)=$($(1)): give 1 or 0)))

.PHONY: figures tutorials thumbnails pages test test-fast durations test-slow test-browser lint lab known bench paper
figures: .venv/installed
	$(BIN)/gradcheck reproduce --preset laptop $(if $(call on,WRITE_BACK),--write-back) \
	  $(if $(call on,AGAIN),--again) $(if $(call on,FAST),--precision bfloat16)

tutorials: .venv/installed
	mkdir -p results/tutorials
	for f in nbs/tutorials/*.ipynb; do \
	  $(BIN)/papermill --cwd nbs/tutorials -k python3 $$f results/tutorials/$$(basename $$f) || exit; \
	done

# The small pictures of the front page, from what make figures made; then what the pages say of notebooks and claims.
thumbnails: .venv/installed
	$(BIN)/python nbs/front.py thumbnails

pages: .venv/installed
	$(BIN)/python nbs/front.py pages

# Narrow lines where JupyterLab shows its list of files beside the cells.
lint: .venv/installed
	$(BIN)/ruff check -q .
	$(BIN)/ruff check -q --line-length 92 nbs/figures nbs/tutorials

test: .venv/installed lint
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadgroup --durations 8 tests

# For who edits: the notebooks that differ from the last commit, and the tests that take less than 0.3 s of CPU each.
CHANGED = $$(git diff --name-only --diff-filter=d HEAD -- 'nbs/*.ipynb'; git ls-files -o --exclude-standard 'nbs/*.ipynb')
test-fast: .venv/installed lint
	for f in $(CHANGED); do case $$f in nbs/figures/*|nbs/tutorials/*) ;; \
	  *) PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path $$f || exit;; esac; done
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadgroup --fast tests

# What each test costs in CPU seconds, measured anew into tests/durations.json, and their sums by file.
durations: .venv/installed
	mkdir -p results && rm -f results/durations.jsonl
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadgroup --cpu results/durations.jsonl tests
	$(BIN)/python tests/durations.py results/durations.jsonl

# Simulations, and 1,600 damaged files, 60 kills, 20,000 writes and every option at its edges; half an hour on two cores.
HARDENING_TABLES ?= $(CURDIR)/results/hardening
test-slow: .venv/installed
	rm -f "$(HARDENING_TABLES)"/*.csv
	HARDENING_TABLES="$(HARDENING_TABLES)" OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m slow tests; \
	  code=$$?; $(BIN)/python tests/hardening/verdicts.py "$(HARDENING_TABLES)"; exit $$code

# Chromium: the system's, or Debian's package.
test-browser: .venv/installed
	command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq chromium > /dev/null)
	$(BIN)/pytest -q -m browser tests

# JupyterLab at the project's folder, with the front page open. It refuses to run as root unless it is told to.
lab: .venv/installed
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/nbs/index.ipynb

# What the bundled classifiers have, beside which a diagnosis shows yours: after weights or measures have changed.
known: .venv/installed
	$(BIN)/python -c "from gradcheck.app.known import remeasure; remeasure()"

bench: .venv/installed
	$(BIN)/gradcheck bench

# The paper's scale in one call on a GPU: MINUTES of training (weights in files of at most 15 MB), then samples and
# Figures 1-3. Call it again if it was cut off: what is finished stays. With GPU_PYTHON=python3 nothing is installed:
# torch, torchmetrics, pandas, scipy, matplotlib, safetensors, jinja2, psutil, typer are enough. The figures' notebooks
# need papermill and ipykernel too, and are made elsewhere from data/paper and the cache where these are missing.
MINUTES ?= 3
GPU_PYTHON ?= $(BIN)/python
GRADCHECK = PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) -c "from gradcheck.cli import main; main()"
share = $$($(GPU_PYTHON) -c "print($(MINUTES) * $(1))")
paper: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/installed)
	for kind in robust nonrobust judge; do \
	  $(GRADCHECK) train classifier --kind $$kind --preset paper --minutes $(call share,0.12) \
	    --out data/paper/$$kind --resume || exit; \
	done
	$(GRADCHECK) train ddpm --preset paper --minutes $(call share,0.64) --largest 15MB --out data/paper/ddpm --resume
	$(GRADCHECK) evaluate --preset paper --count 64 --out data/paper/evaluation
	$(GRADCHECK) reproduce figure_1 figure_2 figure_3 --preset paper

# What is installed is compiled on all cores (pip uses one). A few files are of other Pythons, which is no failure.
.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || \
	  { echo "make: there is no $(PYTHON); install Python 3.10 or newer, or name one by PYTHON=..."; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "make: $(PYTHON) is older than 3.10; name a newer one by PYTHON=..."; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2> /dev/null || \
	  { echo "make: $(PYTHON) has no venv; install it first (Debian, Ubuntu: apt install python3-venv)."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -c constraints.txt $(PIP_ARGS) -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 .venv || true
	touch $@
