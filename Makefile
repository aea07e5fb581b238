VENV := .venv
PYTHON ?=
# By pytest-xdist; the tests of a file stay together, because they share what has been trained.
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile
SOAK_ARGS ?=
LIGHTZERO ?=
# What LightZero's main branch is built with, and what it imports and the release does not.
OF_MAIN := wheel 'transformers<5' nltk simple_parsing line_profiler 'cython<4'

.DEFAULT_GOAL := help
.PHONY: help demo test test-main soak lint roms egl clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile
	@echo "PYTHON=python3.10 names the Python of a new .venv, PYTEST_ARGS='-k pool -x' goes to pytest,"
	@echo "SOAK_ARGS='--seed 1' to the soak, LIGHTZERO=DIR names the clone for test-main."

demo: $(VENV)/.installed  ## set up .venv and train UniZero on CartPole with the managed cache, for a minute
	$(VENV)/bin/python -m zoo_examples.classic_control.cartpole_unizero --max-env-step 300

test: $(VENV)/.installed roms $(if $(CI),egl)  ## set up .venv and run the tests
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-main:  ## the same against LIGHTZERO=DIR, a clone of LightZero's main branch, in a .venv-main of its own
	@test -f "$(LIGHTZERO)/lzero/__init__.py" || { \
		echo "make test-main LIGHTZERO=DIR needs a clone of LightZero's main branch, but LIGHTZERO is '$(LIGHTZERO)'." >&2; exit 1; }
	$(MAKE) VENV=.venv-main roms
	$(MAKE) VENV=.venv-main LIGHTZERO="$(LIGHTZERO)" .venv-main/.lightzero-main
	.venv-main/bin/python -m pytest $(PYTEST_ARGS)

soak: $(VENV)/.installed  ## 100,000 search steps with everything that can happen to a cache; see docs/reliability.md
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/soak.py $(SOAK_ARGS)

lint: $(VENV)/.installed  ## check the style with ruff
	$(VENV)/bin/python -m ruff check .

roms: $(VENV)/.roms-imported  ## bring Atari's ROMs into .venv

# Without a display dm-control renders by it. 'make test' skips what needs it; on a CI machine nobody is asked.
egl:  ## install EGL where it is missing, by apt-get and as root, for images of the DeepMind Control Suite
	@if ldconfig -p | grep -q libEGL.so.1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		{ apt-get update -qq && apt-get install -y -qq libegl1; } || \
			echo "apt-get could not install libegl1: tests that render are skipped."; \
	else \
		echo "There is no EGL here, and installing it takes root and apt-get: tests that render are skipped."; \
	fi

clean:  ## remove .venv, builds and caches; the runs in data_*/ stay
	rm -rf $(VENV) .venv-main build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each candidate is run, not only found: pyenv's python3.x answers to its name even where that version is not in use.
$(VENV)/.created:
	@candidates="$(or $(PYTHON),python3.11 python3.10 python3.9 python3)"; \
	for python in $$candidates; do \
		if "$$python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 12))' 2>/dev/null; then \
			echo "Creating $(VENV) with $$python."; \
			"$$python" -m venv --clear $(VENV) && touch $@; exit; \
		fi; \
	done; \
	echo "LightZero 0.2.0 needs Python 3.9, 3.10 or 3.11, which none of these is: $$candidates;" \
		"name one with 'make PYTHON=/path/to/python'." >&2; exit 1

# pip comes first: Debian 11's cannot install an editable package that has no setup.py.
# --prefer-binary: a new release without a wheel for this Python must not call for a C compiler.
$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/.created
	$(VENV)/bin/python -m pip install --upgrade pip
	$(VENV)/bin/python -m pip install --prefer-binary -e '.[test]'
	@touch $@

# Built from a copy, so that the clone stays as it is; in place of the release, whose version it has, too.
$(VENV)/.lightzero-main: $(LIGHTZERO)/lzero/model/unizero_world_models/world_model.py | $(VENV)/.installed
	$(VENV)/bin/python -m pip install --prefer-binary $(OF_MAIN)
	rm -rf $(VENV)/lightzero-main
	cp -R "$(LIGHTZERO)" $(VENV)/lightzero-main
	$(VENV)/bin/python -m pip install --no-deps --no-build-isolation --force-reinstall $(VENV)/lightzero-main
	@touch $@

# LightZero's ale-py 0.8.1 has no ROMs, ale-py 0.10.1 has. Only its data files are used, so that one wheel serves
# every Python and every machine.
$(VENV)/.roms-imported: | $(VENV)/.installed
	$(VENV)/bin/python -m pip download --no-deps --only-binary :all: --dest $(VENV)/roms \
		--python-version 3.11 --implementation cp --abi cp311 --platform manylinux2014_x86_64 ale-py==0.10.1
	@$(VENV)/bin/python -m zipfile -e $(VENV)/roms/ale_py-0.10.1-*.whl $(VENV)/roms
	@$(VENV)/bin/ale-import-roms $(VENV)/roms/ale_py/roms > $(VENV)/roms/imported.txt
	@$(VENV)/bin/python -c 'from ale_py.roms import Pong'
	@touch $@
