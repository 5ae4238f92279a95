# The commands that matter: `make reproduce` and `make test`. `make` alone lists them all.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install test slow reproduce reproduce-full figures site export clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-15s %s\n", $$1, $$2}'

install: $(BIN)/.installed  ## make .venv and install the library with all that tests and site need
$(BIN)/.installed: setup.py settings.ini pyproject.toml
	@echo "Installing into .venv (2 to 4 minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

test: install  ## run every notebook and the tests of tests/
	STELLAR_NB_SMOKE=1 OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --cell-timing-min 10
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 3 --dist loadfile --no-loadscope-reorder

slow: install  ## read 8,000 hostile files and run the other slow tests; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder --slow -m slow

reproduce: install  ## train, draw every figure anew, build the site into _docs/
	$(BIN)/python scripts/reproduce.py

reproduce-full: install  ## make the stored tables of DESA and its rivals anew, three seeds each; hours, resumable
	$(BIN)/python scripts/reproduce.py --full

figures: install  ## execute the notebooks that hold figures and store their outputs in place
	$(BIN)/python scripts/reproduce.py --store

site: install  ## build the site into _docs/ from the outputs stored in the notebooks
	$(BIN)/python scripts/build_site.py

export: install  ## write stellar_nb/ from the notebooks, and README.md from index.ipynb
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/python scripts/build_site.py --readme

clean:  ## remove what the other commands made, .venv excepted
	rm -rf _docs _proc .cache build dist *.egg-info
