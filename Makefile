# `make repro` goes from a fresh clone to the report; `make test` runs all tests. Every target
# installs what it needs into .venv first.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help repro check test lab report bench audit export outputs docs clean
help:            ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

repro: $(BIN)/.installed  ## run the active study (params.yaml), from the benchmark to the report
	@zeromodel study run

# One thread for each process: two processes then use two cores.
check test: export OMP_NUM_THREADS = 1
PYTEST = pytest --quiet --numprocesses 2

check: $(BIN)/.installed  ## style, export and the quick tests, in less than two minutes
	@echo "== style" && ruff check . && ruff format --check .
	@echo "== quick tests" && $(PYTEST) -m "not slow" $(QUICK)

QUICK := tests/test_gates.py tests/test_reward.py tests/test_statistics.py \
  tests/test_param_counter.py tests/test_model_exact.py::test_everything_is_exact
LONGEST := tests/test_study.py tests/test_extension.py  # begin first, so that nothing waits for them

test: $(BIN)/.installed   ## everything that CI runs
	@echo "== style" && ruff check . && ruff format --check .
	@echo "== notebooks" && python tests/notebooks.py
	@echo "== tests" && $(PYTEST) --durations 20 --dist loadfile --no-loadscope-reorder \
	  $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard tests/test_*.py)))

lab: $(BIN)/.installed    ## open JupyterLab at the first notebook of the course
	@jupyter lab nbs --LabApp.default_url=/lab/tree/00_tour.ipynb

report: $(BIN)/.installed ## make figures and report again from the committed runs; train nothing
	@zeromodel study analyse

bench: $(BIN)/.installed .venv-peers/.installed ## measure speed beside other generators, to reports/bench
	@PYTHONPATH=benchmarks python benchmarks/generator.py .venv-peers/bin/python
	@python benchmarks/experiments.py

audit: $(BIN)/.installed  ## try every shortcut on every suite, to reports/audit (an hour)
	@mkdir -p runs
	@for suite in $$(python -c 'from zeromodel.tasks.causal_loop.datasets import FROZEN_SIZES; print(*FROZEN_SIZES)'); do \
	  echo "== $$suite"; zeromodel audit --suite $$suite > /dev/null || [ $$? = 1 ] || exit 1; \
	  papermill --kernel python3 --no-progress-bar -p study audit/$$suite -p root . nbs/analysis/benchmark/audit.ipynb runs/audit.ipynb || exit 1; \
	done

export: $(BIN)/.installed ## make the package and the README from the notebooks; keep their outputs
	@python tests/notebooks.py --clean && nbdev_export
	@jupyter nbconvert --log-level ERROR --to markdown --output-dir . --output README nbs/index.ipynb

outputs: $(BIN)/.installed ## execute the notebooks of the course and save what they print and draw
	@python tests/notebooks.py --save

docs: $(BIN)/.docs        ## make the site from the notebooks, to _docs/html
	@sphinx-build --quiet --fail-on-warning --keep-going -c docs . _docs/html
	@echo "open _docs/html/docs/index.html"

clean:           ## remove what can be made again (not .venv, not the cache of trained weights)
	rm -rf runs data _docs docs/api

NEW_ENOUGH = import sys; assert sys.version_info >= (3, 11)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
STOPPED = { echo "== the install stopped, see above; make again goes on from here (INSTALL.md, Troubleshooting)"; exit 1; }

$(BIN)/.installed: pyproject.toml constraints.txt
	$(if $(shell $(PYTHON) -c '$(NEW_ENOUGH)' 2> /dev/null && echo yes),,$(error Python 3.11 or newer is needed, and '$(PYTHON)' is not there or older: install Python 3.11, or name another one with 'make PYTHON=/path/to/python3'))
	@echo "== installing into .venv (about 3 GB; minutes the first time)"
	@$(BIN)/python -c '$(NEW_ENOUGH); import pip' 2> /dev/null || $(PYTHON) -m venv --clear .venv || $(STOPPED)
	@$(INSTALL) torch || $(STOPPED)
	@$(INSTALL) --editable '.[dev]' || $(STOPPED)
	@touch $@

$(BIN)/.docs: $(BIN)/.installed
	@$(INSTALL) --editable '.[docs]' || $(STOPPED)
	@touch $@

.venv-peers/.installed:   # what is only measured against pins other versions
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
	@touch $@
