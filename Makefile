# minipnp. `make` lists the targets. Each sets up what it needs: .venv, with the versions of constraints.txt.

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: help translate sample compare evaluate weights verify test test-full bench bench-smoke train-bundled evaluate-bundled lint format clean
.NOTPARALLEL:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "IMG= picture or folder   PROMPT= text   OUT= folder   MODEL= bundled, sd15, a path or a hub id"
	@echo "NEG= negative prompt   SOURCE= source prompt   SEED= and STEPS= numbers   ARGS= more options of the program"
	@echo "In single quotes a text may hold anything. A variable of such a name in your environment counts as given."

translate: .venv/.base ## IMG's layout with PROMPT's appearance; without IMG, a bundled example
	@$(PY) -m tools.from_make translate

sample: .venv/.base ## a picture from PROMPT alone
	@$(PY) -m tools.from_make sample

compare: .venv/.base ## all editing methods on IMG, which shows SOURCE, with PROMPT; without IMG, a bundled example
	@$(PY) -m tools.from_make compare

evaluate: .venv/.evaluate ## run and measure all methods, in hours; ARGS= another benchmark than the bundled one, and options
	@$(PY) -m tools.from_make evaluate

weights: .venv/.base ## fetch Stable Diffusion 1.5 (2.1 GB; its licence is shown first) into weights/sd15
	@$(PY) -m tools.from_make weights

verify: .venv/.test ## compare MODEL's networks layer by layer with the reference implementation
	@$(PY) -m tools.from_make verify

test: .venv/.test ## the quick tests (minutes)
	@$(PY) -m pytest

test-full: .venv/.test ## all tests
	@$(PY) -m pytest -m ""

bench: .venv/.test ## time an edit, the authors' way and ours, side by side (three quarters of an hour without a GPU)
	@$(PY) -m tools.bench

bench-smoke: .venv/.test ## the same code on a small network
	@$(PY) -m tools.bench --smoke

train-bundled: .venv/.train ## make the bundled model from its data; each step goes on where it was broken off
	@$(PY) -m tools.bundled.train

evaluate-bundled: .venv/.train ## measure the bundled model
	@$(PY) -m tools.bundled.evaluate

lint: .venv/.test ## check style and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: .venv/.test ## mend style and format
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean: ## remove caches and build leftovers; .venv, weights and out stay
	@rm -rf build *.egg-info .pytest_cache .ruff_cache
	@find . -name .venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The texts that the user gives may hold anything, `$(shell …)` and quotes too. So make takes them raw (`value`), once
# (`:=`), and hands them on in the environment; no recipe mentions them, no shell reads them. tools/from_make.py does.
GIVEN := $(foreach v,IMG PROMPT OUT MODEL NEG SOURCE SEED STEPS ARGS,$(if $(filter undefined,$(origin $v)),,$v))
$(foreach v,$(GIVEN),$(eval override $v := $$(value $v))$(eval export $v))

# Set-up. A stamp is made only after an install that ended well, and is out of date when a file named here changes.
PINS := setup.cfg pyproject.toml constraints.txt

define venv
@$(PY) -m pip --version >/dev/null 2>&1 || { \
    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
        { echo "minipnp needs Python 3.10 or newer, '$(PYTHON)' is not: try make PYTHON=python3.12 …" >&2; exit 1; }; \
    echo "Setting up .venv; PyTorch alone may be a download of gigabytes."; \
    $(PYTHON) -m venv .venv; }
endef

.venv/.base: $(PINS)
	$(venv)
	@$(PY) -m pip install -c constraints.txt -e .
	@touch $@

.venv/.test: $(PINS)
	$(venv)
	@$(PY) -m pip install -c constraints.txt -e '.[test]'
	@touch .venv/.base $@

.venv/.evaluate: $(PINS)
	$(venv)
	@$(PY) -m pip install -c constraints.txt -e '.[evaluate]'
	@touch .venv/.base $@

.venv/.train: $(PINS)
	$(venv)
	@$(PY) -m pip install -c constraints.txt -e '.[train]'
	@touch .venv/.base $@
