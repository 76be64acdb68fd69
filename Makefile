# make demo       trains on handwritten digits, draws, captions, scores: about six minutes on two cores
# make page       uses the page of `transfusion serve` on that run, in Debian's Chromium; takes docs/page.png
# make test       the tests, without PyTorch
# make test-slow  the slow tests, and parity with Hugging Face, diffusers and PyTorch: needs packages of Debian
# make test-all   both
# make drill      real training processes through every fault; puts their table into docs/reliability.md
# make slurm      jobs in a real Slurm of one node: needs root, and Debian's slurm-wlm and munge
# make lint       ruff, mypy, shellcheck, hadolint
# make lock       resolves the locks again

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/digits
STEPS := # training steps of the demo; empty: those of its config
DIGITS := zero one two three four five six seven eight nine
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PARALLEL := --numprocesses auto --dist loadfile
SOURCES := pyproject.toml setup.py

# XLA on CPU frees its memory at every step and allocates it again: large pages spare it the faults.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

# Packages of Debian that slow tests need: pip has none of them. libatomic1 is for Playwright's node.
PACKAGES := chromium default-jre-headless fonts-noto-color-emoji libatomic1
FOUND = $(wildcard /usr/bin/chromium /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf) $(shell command -v java 2>&1) \
    $(firstword $(wildcard /usr/lib/*/libatomic.so.1))

.PHONY: demo page test test-slow test-all wanted packages drill slurm lint lock
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/cpu
	$(BIN)/transfusion prepare digits --output data/digits --image-size 8 --channels 1 --held-out 0.15
	$(BIN)/transfusion prepare prose --output data/prose --held-out 0.05
	$(BIN)/transfusion train --config configs/digits.py --workdir $(RUN) $(if $(STEPS),--config.steps=$(STEPS))
	$(BIN)/transfusion sample --workdir $(RUN) -n 8 --output $(RUN)/digits.png $(foreach d,$(DIGITS),--prompt "a handwritten $(d)")
	$(BIN)/transfusion sample --workdir $(RUN) --held-out 10
	$(BIN)/transfusion evaluate --workdir $(RUN)

page: $(VENV)/test
	TRANSFUSION_RUN=$(RUN) SCREENSHOT=docs/page.png $(BIN)/pytest -m demo tests/serving/test_digits.py

test: $(VENV)/test
	$(BIN)/pytest $(PARALLEL)

test-slow: wanted $(VENV)/parity
	$(BIN)/pytest $(PARALLEL) -m "(slow or parity) and not drill and not slurm and not demo"

test-all: wanted test test-slow

wanted:
	@test $(words $(FOUND)) = $(words $(PACKAGES)) || { echo "the slow tests need Debian's packages $(PACKAGES): apt-get install $(PACKAGES)"; exit 1; }

packages:
	@echo $(PACKAGES)

drill: $(VENV)/test
	$(BIN)/pytest --numprocesses auto --dist worksteal -m drill tests/drills --drill-table docs/reliability.md

slurm: $(VENV)/test
	$(BIN)/pytest -m slurm tests/launching/test_slurm.py

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run requirements/lock.sh launch/slurm/one-node.sh
	$(BIN)/hadolint launch/Dockerfile

lock: $(VENV)/cpu
	$(PIP) uv
	PATH="$(abspath $(BIN)):$$PATH" requirements/lock.sh

# $(VENV)/NAME stands for requirements/NAME.txt being installed in the virtual environment.
$(VENV)/%: requirements/%.txt $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0])'
	@echo "installing requirements/$*.txt in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --requirement requirements/$*.txt
	@$(PIP) --no-deps --editable .
	@touch $@
