# run   the daemon in the foreground, with a socket, without Xen
# test  every test that this machine can run
# test-xen  the daemon on a real Xen under QEMU, with guests: some four minutes, installs what it needs, downloads 100 MB
# torture  fifty clients work while everything is killed, TORTURE_SECONDS long; see python -m tests.torture --help
# test-restarts  conformance, clients and guests while Logic is restarted every 50 ms, and for every request
# test-compiled  conformance, recovery and clients against the daemon with its hot modules compiled
# test-optimized  tests of the running daemon, without any assertion in it (python -O)
# model this daemon, its core, C xenstored and oxenstored against the reference model, for SECONDS
# conformance  every conformance case against this daemon, C xenstored and oxenstored; writes docs/conformance-*
# mutants broken daemons, each of which a test must catch: writes the table into docs/testing.md
# fuzz  coverage-guided fuzzing of what clients, guests, a broken Logic and operators can send, each target for SECONDS
# coverage  branch coverage of the four packages by all tests, every process of the daemon counted
# lint  formatting, lint rules and types
# bench this daemon, C xenstored and oxenstored side by side: a quarter of an hour; bench-quick: two minutes
# bench-micro  parts of this daemon alone, and what a READ and a WRITE are made of
# bench-restart  what a restart costs, beside live updates of C xenstored and oxenstored (BENCH=--quick: about a minute)
# clean everything that these targets made

# Debian's own Python where it will do: it is built for speed, which matters to a daemon.
PYTHON ?= $(shell for p in /usr/bin/python3 python3; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
RUNNABLE := $(VENV)/.stamp
STAMP := $(VENV)/.tools
PLOTS := $(VENV)/.plots
FUZZING := $(VENV)/.fuzz
COMPILED := .venv-compiled
HELPERS := recovery_box/_lanes.c recovery_box/_journal.c recovery_box/_clone.c
COMPILED_STAMP := $(COMPILED)/.stamp
SOURCES := $(wildcard protocol/*.py recovery_box/*.py xenstore_state/*.py xenstore_logic/*.py xenstored/*.py)

.PHONY: run test test-xen torture test-restarts test-compiled conformance lint format bench bench-quick bench-micro bench-restart clean
.DEFAULT_GOAL := test

ifeq ($(PYTHON),)
$(error a Python of at least 3.11 with venv is needed: apt-get install python3 python3-venv)
endif

PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt

# What the daemon itself needs: a newcomer need not wait for the rest.
$(RUNNABLE): pyproject.toml setup.py constraints.txt $(HELPERS)
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) $(PIP_INSTALL) -e .
	touch $@

# (Not -e '.[test,lint]': that would build the project once more.)
$(STAMP): $(RUNNABLE)
	$(PY) -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		print(*extras["test"], *extras["lint"], sep="\n")' > $(VENV)/extras.txt
	$(PY) $(PIP_INSTALL) -r $(VENV)/extras.txt
	touch $@

$(PLOTS): $(STAMP)
	$(PY) $(PIP_INSTALL) -e '.[bench]'
	touch $@

# The daemon as it is fastest: hot modules compiled by mypyc.  Only what is measured and what is installed on a host needs it.
$(COMPILED_STAMP): pyproject.toml setup.py constraints.txt xenstore_state/_acyclic.h $(HELPERS) $(SOURCES)
	test -d $(COMPILED) || $(PYTHON) -m venv $(COMPILED)
	$(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel mypy trio msgpack
	rm -rf build
	XOARSTORE_COMPILED=1 $(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --force-reinstall .
	rm -rf build
	touch $@

run: $(RUNNABLE)
	@$(PY) -m xenstored.demo

test: $(STAMP)
	$(PY) -m pytest

test-xen: $(STAMP)
	$(PY) -m tests.xen.image
	XOARSTORE_XEN=1 $(PY) -m pytest tests/xen

TORTURE_SECONDS ?= 600
TORTURE_SEED ?= 0

torture: $(STAMP)
	$(PY) -m tests.torture --seconds $(TORTURE_SECONDS) --seed $(TORTURE_SEED) $(TORTURE)

test-restarts: $(STAMP)
	XOARSTORE_RESTART=every=0.05 $(PY) -m pytest tests/conformance tests/unit/test_client_daemon.py
	XOARSTORE_RESTART=per-request $(PY) -m pytest tests/conformance tests/unit/test_client_daemon.py

test-compiled: $(STAMP) $(COMPILED_STAMP)
	XOARSTORE_PYTHON=$(CURDIR)/$(COMPILED)/bin/python $(PY) -m pytest tests/conformance tests/recovery tests/unit/test_client_daemon.py

$(FUZZING): $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	touch $@

# What counts instructions or memory counts the measuring, too; and what dies at any instant dies while it measures, nearly always.
UNCOVERED := --ignore=tests/mutants --ignore=tests/unit/test_counting.py --ignore=tests/unit/test_micro.py \
	--ignore=tests/recovery/test_box.py --ignore=tests/recovery/test_lanes.py --ignore=tests/recovery/test_kill_rings.py \
	--deselect tests/recovery/test_restarts.py::test_memory_and_descriptors_do_not_grow_with_restarts \
	--deselect tests/recovery/test_closing.py::test_slots_and_descriptors_are_used_again_while_logic_is_killed_again_and_again
COVERED := protocol recovery_box xenstore_state xenstore_logic

.PHONY: test-optimized model mutants fuzz coverage
test-optimized: $(STAMP)
	XOARSTORE_OPTIMIZE=1 $(PY) -m pytest tests/conformance tests/recovery tests/model

SECONDS ?= 600
model: $(STAMP)
	$(PY) -m tests.model $(SECONDS)

conformance: $(STAMP)
	$(PY) -m tests.conformance --matrix docs

mutants: $(STAMP)
	$(PY) -m tests.mutants

fuzz: $(FUZZING)
	$(PY) -m tests.fuzz $(SECONDS)

coverage: $(FUZZING)
	$(PY) -m coverage erase
	XOARSTORE_EXAMPLES=0.2 $(PY) -m coverage run -m pytest -q tests $(UNCOVERED)
	$(PY) -m coverage combine -q 2> $(VENV)/combined.log
	rm -f .coverage.*  # what was left: the writing of it was killed
	$(PY) -m coverage report
	for package in $(COVERED); do $(PY) -m coverage report --include="$$package/*" --fail-under=95 > $(VENV)/covered.log; status=$$?; \
		echo "$$package" $$(grep TOTAL $(VENV)/covered.log); [ $$status = 0 ] || exit 1; done

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(PLOTS) $(COMPILED_STAMP)
	$(PY) -m bench $(BENCH)

bench-quick: $(PLOTS) $(COMPILED_STAMP)
	$(PY) -m bench --quick $(BENCH)

# In the environment whose build is measured, so that it is the one that bench measures.
bench-micro: $(COMPILED_STAMP)
	$(COMPILED)/bin/python $(PIP_INSTALL) pyperf
	$(COMPILED)/bin/python -P bench/launch.py bench.micro $(BENCH)

bench-restart: $(PLOTS) $(COMPILED_STAMP)
	$(PY) -m bench.restart $(BENCH)

clean:
	rm -rf $(VENV) $(COMPILED) build *.egg-info .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
