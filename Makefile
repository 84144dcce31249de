# Everything a newcomer needs; each target makes the virtual environment first when it is missing
# or older than pyproject.toml.  Needs Python 3.11 or newer with pip and venv, and nothing else.

PYTHON ?= python3
# For sim-deep: how many seeds, and the first of them.
SEEDS ?= 10000
START ?= 1000000

PY := .venv/bin/python
INSTALLED := .venv/installed
RUNNABLE := .venv/runnable
# One that stands in the text of a call would end the argument.
COMMA := ,

# The targets share one virtual environment and `clean` removes it: one at a time, whatever -j says.
.NOTPARALLEL:
.PHONY: help demo test mutants exactly-once sim-deep check-deep crash-deep lint format bench clean

define CHECK_PYTHON
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	found=$$("$(PYTHON)" --version 2>&1) || found="cannot be run"; \
	echo "replog needs Python 3.11 or newer, and '$(PYTHON)' will not do ($$found):" \
		"name another one, as in: make PYTHON=python3.12 test" >&2; \
	exit 1; \
}
endef

help: ## show the targets (this text)
	@echo "make TARGET [PYTHON=python3.12], where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | \
		while IFS='|' read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

demo: $(RUNNABLE) ## run the demonstration: a cluster of three on this machine
	.venv/bin/replog demo

test: ## run every test part by part, with the minutes of each
	$(CHECK_PYTHON)
	@"$(PYTHON)" tests/run_parts.py

sim-deep: $(RUNNABLE) ## simulate SEEDS seeds of every engine, from START on
	.venv/bin/replog sim --seeds $(SEEDS) --start $(START)

# Each space for every engine; together about a quarter of an hour and 2 GB of memory.
check-deep: $(RUNNABLE) ## walk the larger spaces of the model checker
	.venv/bin/replog check --in-flight 3 --crashes 0
	.venv/bin/replog check --crashes 2
	.venv/bin/replog check --commands 2 --crashes 0
	.venv/bin/replog check --in-flight 3

# Some minutes for each engine.
crash-deep: $(RUNNABLE) ## strike every operation on a node's files in every way
	$(PY) -m replog.testing.every_write --deep

# More than an hour; one that is interrupted is gone on with by the next.
mutants: $(RUNNABLE) ## plant every fault of tests/mutants, and say what finds it
	$(PY) tests/mutants/run.py --journal .mutants.jsonl

# Nearly two minutes; the last runs are to fail, for their nodes forget what they answered.
exactly-once: $(RUNNABLE) ## count in sessions while leaders are struck
	set -e; for engine in raft multipaxos; do \
		for library in trio asyncio blocking; do \
			$(PY) tests/net/exactly_once.py --engine $$engine --library $$library; \
		done; \
		$(PY) tests/net/exactly_once.py --engine $$engine --freeze --kills 2; \
		if $(PY) tests/net/exactly_once.py --engine $$engine --kills 12 --forgetful; \
		then exit 1; fi; \
	done

lint: $(INSTALLED) ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(INSTALLED) ## rewrite the code in the house's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(RUNNABLE) ## measure throughput and latency against the bare pipeline
	$(PY) -m replog_bench throughput --engines raft,multipaxos --clients 1,64,1024

clean: ## remove the virtual environment and everything that was generated
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Made from nothing each time, so that what an older pyproject.toml asked for does not linger.  The
# mark is written last: an installation that was interrupted is begun again.
define MAKE_VENV
$(CHECK_PYTHON)
@echo "making .venv; this takes about half a minute"
@"$(PYTHON)" -m venv --clear .venv
@$(PY) -m pip install --quiet --disable-pip-version-check -e '$(1)'
@touch $(2)
endef

# What runs needs no tools; where they are installed already, it runs there.
$(RUNNABLE): pyproject.toml
	$(call MAKE_VENV,.,$(RUNNABLE))

$(INSTALLED): pyproject.toml
	$(call MAKE_VENV,.[test$(COMMA)lint],$(RUNNABLE) $(INSTALLED))
