# One command to the finished report, one to all tests. Both make .venv themselves.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help repro test lab report bench audit export docs clean
help:            ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

repro: $(BIN)/.installed  ## a fresh clone to the finished report of the active study (params.yaml)
	@zeromodel study run

LONGEST := tests/test_study.py tests/test_extension.py       # they begin, so that nobody waits for them in the end
test: export OMP_NUM_THREADS = 1                             # two processes on two cores, not four threads
test: $(BIN)/.installed   ## everything that CI runs
	@echo "== style" && ruff check . && ruff format --check .
	@echo "== notebooks (nbdev_test)" && nbdev_test --n_workers 2
	@echo "== tests (pytest)" && pytest -q -n 2 --durations 20 --dist loadfile --no-loadscope-reorder $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard tests/test_*.py)))

lab: $(BIN)/.installed    ## JupyterLab on the notebooks, at the beginning of the course
	@jupyter lab nbs --LabApp.default_url=/lab/tree/00_tour.ipynb

report: $(BIN)/.installed ## figures and page again from the runs in reports/; nothing is trained
	@zeromodel study analyse

bench: $(BIN)/.installed .venv-peers/.installed ## speed beside peers, in one run; the tables go to reports/bench
	@PYTHONPATH=benchmarks python benchmarks/generator.py .venv-peers/bin/python
	@python benchmarks/experiments.py

audit: $(BIN)/.installed  ## every shortcut tried on every suite (an hour); tables and figures go to reports/audit
	@mkdir -p runs
	@for suite in $$(python -c 'from zeromodel.tasks.causal_loop.datasets import FROZEN_SIZES; print(*FROZEN_SIZES)'); do \
	  echo "== $$suite"; zeromodel audit --suite $$suite > /dev/null || [ $$? = 1 ] || exit 1; \
	  papermill --kernel python3 --no-progress-bar -p study audit/$$suite -p root . nbs/analysis/benchmark/audit.ipynb runs/audit.ipynb || exit 1; \
	done

export: $(BIN)/.installed ## the package and the README from the notebooks, which come out clean
	@nbdev_clean && nbdev_export && nbdev_clean
	@jupyter nbconvert --log-level ERROR --to markdown --output-dir . --output README nbs/index.ipynb

docs: $(BIN)/.docs        ## the site of the documentation, from the notebooks, to _docs/html
	@sphinx-build --quiet --fail-on-warning --keep-going -c docs . _docs/html
	@echo "open _docs/html/docs/index.html"

clean:           ## remove what can be made again (not .venv, not the cache of trained weights)
	rm -rf runs data _docs docs/api

NEW_ENOUGH = import sys; assert sys.version_info >= (3, 11)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
GOES_ON = { echo "== the install stopped, see above; make again goes on from here (INSTALL.md, Troubleshooting)"; exit 1; }

$(BIN)/.installed: pyproject.toml constraints.txt
	$(if $(shell $(PYTHON) -c '$(NEW_ENOUGH)' 2> /dev/null && echo yes),,$(error Python 3.11 or newer is needed, and '$(PYTHON)' is not there or older: install Python 3.11, or name another one with 'make PYTHON=/path/to/python3'))
	@echo "== installing into .venv (about 3 GB; minutes the first time)"
	@$(BIN)/python -c '$(NEW_ENOUGH); import pip' 2> /dev/null || $(PYTHON) -m venv --clear .venv || $(GOES_ON)
	@$(INSTALL) torch || $(GOES_ON)
	@$(INSTALL) --editable '.[dev]' || $(GOES_ON)
	@touch $@

$(BIN)/.docs: $(BIN)/.installed
	@$(INSTALL) --editable '.[docs]' || $(GOES_ON)
	@touch $@

.venv-peers/.installed:   # what is only measured against; its own environment, since it pins other versions
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
	@touch $@
