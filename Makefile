# On a fresh machine with Python 3.11, `make demo` and `make test` do everything; set-up runs once, then only when
# pyproject.toml or constraints.txt change.
.PHONY: setup demo test test-core test-long lint notebooks docs bench doctor clean
.DEFAULT_GOAL := demo

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# What lint and the core's tests need, without any framework; and everything.
CORE := $(VENV)/.core
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
FRAMEWORKS := spikingjelly,snntorch,onnxruntime,norse,rockpool,sinabs,spyx,nengo,lava
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

$(CORE): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python is not installed: install Python 3.11, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 12))' || \
	  { echo "$(PYTHON) is not Python 3.11, which all backends together need: run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "Python's venv module is missing: on Debian, apt-get install python3.11-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e ".[test]"
	@touch $(CORE)

$(READY): $(CORE)
	$(PIP) install --quiet -c constraints.txt -e ".[$(FRAMEWORKS),docs,test,test-backends,test-browser,test-notebooks]"
	# These declare what they do not need: lava-nc and lava-dl Python < 3.11 and numpy < 2, Sinabs nir <= 1.0.4.
	$(PIP) install --quiet --no-deps --ignore-requires-python -c constraints.txt lava-nc lava-dl sinabs
	@touch $(READY)

setup: $(READY)

demo: $(READY)
	$(BIN)/qcfs-bridge demo --out out

lint: $(CORE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# Two tests at a time with a thread each are quicker than one with two: most are too small to be shared out. Lava forks,
# which takes long where a process has grown: its tests get processes of their own, in huge pages, of which a fork copies
# fewer entries (a tenth of their time; C libraries that do not know the setting ignore it).
test: $(READY) lint
	$(PYTEST) -m "not lava and not long"
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(PYTEST) -m "lava and not long"

# What can be tested with no framework installed; the rest is skipped, with the reason.
test-core: $(CORE) lint
	$(PYTEST) -m "not lava and not long"

# What `make test` leaves out for its length.
test-long: $(READY)
	$(PYTEST) -m long

# Runs them from top to bottom; their results, as .ipynb and .html, go to out/notebooks.
notebooks: $(READY)
	$(BIN)/jupyter nbconvert --execute --ExecutePreprocessor.record_timing=False --to notebook --output-dir out/notebooks notebooks/*.ipynb
	$(BIN)/jupyter nbconvert --to html --output-dir out/notebooks out/notebooks/*.ipynb

# The documentation as a site, in site/: it needs no network. Warnings are errors.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Everything docs/speed.md and docs/lava_speed.md say, measured here: about an hour, on a machine with nothing else to do.
bench: $(READY)
	$(BIN)/python benchmarks/simulation.py --limit 10 --out docs/results/speed.json --markdown docs/speed_table.md
	$(BIN)/python benchmarks/where_time_goes.py --out docs/results/where_time_goes.json
	$(BIN)/python benchmarks/lava_speed.py --out docs/results/lava_speed.json
	$(BIN)/python benchmarks/importers_table.py

doctor: $(READY)
	$(BIN)/qcfs-bridge doctor

clean:
	rm -rf $(VENV) out build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
