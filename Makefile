# Two commands on a fresh Linux machine with Python 3.11 or 3.12: `make demo` and `make test`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs screenshots test-lowest lowest-versions clean
.DELETE_ON_ERROR:

# Bytecode is written on import, as most modules of these packages are never imported: that saves two minutes.
PIP := $(BIN)/python -m pip install -q --no-compile -c constraints.txt

# torch goes first: basicsr is an sdist that, built in isolation, would fetch a second torch only to read its version.
$(INSTALLED): setup.cfg setup.py pyproject.toml constraints.txt $(wildcard kbnet_plugin/ops/csrc/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) torch torchvision
	$(PIP) --no-build-isolation -e ".[all,test]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python tools/demo.py
	$(BIN)/python benchmarks/run_all.py --quick

# Files in their order: sorted by their numbers of tests, long ones with few tests would start last.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED) lint
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# The site, into build/docs; it loads nothing from other hosts.
docs: $(INSTALLED)
	$(BIN)/sphinx-build -q -E -W --keep-going -n -b html -d build/doctrees docs build/docs
	@echo build/docs/index.html

# The pictures of docs/napari; needs Xvfb where there is no display.
screenshots: $(INSTALLED)
	$(BIN)/python tools/screenshots.py

# The lowest versions that setup.cfg allows: their list, and the suite with them. Apart from .venv, by uv.
LOWEST := build/lowest
UV := $(LOWEST)/bin/uv

$(UV): | $(INSTALLED)
	$(BIN)/python -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q uv

lowest-versions: $(UV)
	$(UV) pip compile -q --resolution lowest-direct --python $(BIN)/python --no-build-isolation --all-extras \
	    --no-header --no-annotate setup.cfg -o constraints-lowest.txt

# torch goes first, as above.
test-lowest: $(UV)
	$(UV) pip install -q -p $(LOWEST) -c constraints-lowest.txt setuptools wheel torch torchvision
	$(UV) pip install -q -p $(LOWEST) --no-build-isolation-package basicsr -r constraints-lowest.txt
	$(UV) pip install -q -p $(LOWEST) --no-deps --no-build-isolation -e .
	$(LOWEST)/bin/python -m pytest $(PARALLEL)

clean:
	rm -rf $(VENV) build *.egg-info kbnet_plugin/ops/_kba_native.*
