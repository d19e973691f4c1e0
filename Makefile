# Everything runs in $(VENV), which the first target to need it makes from requirements.lock.
VENV = .venv
PEERS = .venv-peers
DOCS = .venv-docs
DIST = .venv-dist
PLAN = .venv-plan
RUN = runs/digits
JOBS = 2
ARGS =

BIN = $(VENV)/bin
READY = $(VENV)/.installed
PEERS_READY = $(PEERS)/.installed
DOCS_READY = $(DOCS)/.installed
DIST_READY = $(DIST)/.installed
PLAN_READY = $(PLAN)/.installed
GUIDEDFLOW = $(BIN)/guidedflow
PIP = -m pip --disable-pip-version-check --quiet

# $(call environment,folder): make a virtual environment there, or mend one that was cut short.
environment = \
	found=; \
	for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    found=$$python; break; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "guidedflow needs Python 3.11 or newer on the PATH" >&2; exit 2; \
	fi; \
	if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	  echo "making $(1) with $$($$found --version); packages follow, some minutes the first time"; \
	  "$$found" -m venv --clear $(1); \
	fi

.PHONY: help demo test contracts without-kernels lint test-peers torture experiments bench docs dist clean

help:
	@echo "make demo         train on digits, sample, judge: under 5 minutes on 2 cores"
	@echo "make test         the tests; ARGS='-k guidance' chooses, JOBS=4 takes more processes"
	@echo "make contracts    every sampler with every guidance; make test takes the edges and a ninth of the pairs"
	@echo "make without-kernels  the tests on a copy without the CPU kernels"
	@echo "make lint         the linter and the type checker"
	@echo "make test-peers   the tests, with what they compare against installed"
	@echo "make plan-check   what DiT-XL/2 moves between TPUs, by their compiler; needs no TPU"
	@echo "make torture      kill a run at 20 random moments and compare it with an unbroken one"
	@echo "make faults       every way in which a rank may end its job; make test takes one"
	@echo "make experiments  every script of experiments/, with its picture and figures"
	@echo "make bench        guided sampler steps a second on this machine"
	@echo "make docs         the docs site in site/, its links checked"
	@echo "make dist         wheel and sdist in dist/, installed into empty environments and tried"

$(READY): requirements.lock pyproject.toml
	@$(call environment,$(VENV))
	@$(BIN)/python $(PIP) install -r requirements.lock
	@$(BIN)/python $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	@$(GUIDEDFLOW) train --config=configs/digits.py --workdir=$(RUN) --resume
	@for w in 1 2 4; do \
	  $(GUIDEDFLOW) sample --workdir=$(RUN) --scale=$$w --out=$(RUN)/samples-w$$w.png || exit; \
	done
	@$(GUIDEDFLOW) evaluate --workdir=$(RUN) --scales=1,1.5,2,3,4
	@echo "pictures: $(RUN)/samples-w1.png samples-w2.png samples-w4.png loss.png"

test: $(READY)
	@$(BIN)/python -m pytest -n $(JOBS) --dist=loadfile --no-loadscope-reorder $(ARGS)

contracts: $(READY)
	@ALL_PAIRS=1 $(BIN)/python -m pytest -n $(JOBS) tests/test_contracts.py $(ARGS)

without-kernels: $(READY)
	@rm -rf build/without-kernels && mkdir -p build/without-kernels
	@$(BIN)/python tests/test_without_kernels.py build/without-kernels
	@cd build/without-kernels && PYTHONPATH=$$PWD $(CURDIR)/$(BIN)/python -m pytest -n $(JOBS) \
	  --dist=loadfile --no-loadscope-reorder --ignore=tests/test_without_kernels.py $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

$(PEERS_READY): requirements.lock pyproject.toml
	@$(call environment,$(PEERS))
	@$(PEERS)/bin/python $(PIP) install -r requirements.lock
	@$(PEERS)/bin/python $(PIP) install --no-build-isolation -e '.[peers]'
	@touch $@

test-peers: $(PEERS_READY)
	@$(PEERS)/bin/python -m pytest -n $(JOBS) --dist=loadfile --no-loadscope-reorder $(ARGS)

$(PLAN_READY): requirements.lock pyproject.toml
	@$(call environment,$(PLAN))
	@$(PLAN)/bin/python $(PIP) install -c requirements.lock -e '.[train,tpu]'
	@touch $@

.PHONY: plan-check
plan-check: $(PLAN_READY)
	@$(PLAN)/bin/python tests/plan_check.py

torture: $(READY)
	@$(BIN)/python tests/torture.py $(ARGS)

.PHONY: faults
faults: $(READY)
	@ALL_FAULTS=1 $(BIN)/python -m pytest tests/training/test_processes.py -k ends_a_rank $(ARGS)

experiments: $(READY)
	@for script in $$(grep -l __main__ experiments/*.py); do \
	  name=$$(basename "$$script" .py); \
	  echo "experiment $$name"; $(BIN)/python -m "experiments.$$name" || exit; \
	done

bench: $(READY)
	@$(GUIDEDFLOW) bench --preset=DiT-S/2 $(ARGS)

$(DOCS_READY): requirements.lock pyproject.toml
	@$(call environment,$(DOCS))
	@$(DOCS)/bin/python $(PIP) install -c requirements.lock -e '.[docs]'
	@touch $@

docs: $(DOCS_READY)
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	@$(DOCS)/bin/python docs/check_site.py site

$(DIST_READY):
	@$(call environment,$(DIST))
	@$(DIST)/bin/python $(PIP) install 'build>=1.3'
	@touch $@

dist: $(DIST_READY)
	@rm -rf build dist
	@$(DIST)/bin/python -m build --outdir dist . >/dev/null
	@$(DIST)/bin/python tests/try_dist.py dist

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
