# make install | test | sanitize | demo | docs | lint | clean.  Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install test sanitize demo docs lint clean

install: $(STAMP)

KERNELS := setup.py $(wildcard src/channelwise/runtime/cpu/source/*)

# torch goes first and alone: it is most of the download, and a failure there is told before anything else.
$(STAMP): pyproject.toml constraints.txt $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# A process for each core, of one thread each: most models here are too small for more.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxschedchunk 2

# The kernels' tests on a copy of the package whose kernels watch every memory access and undefined operation.
SANITIZED := build/sanitized
sanitize: $(STAMP)
	rm -rf $(SANITIZED)/channelwise && mkdir -p $(SANITIZED) && cp -r src/channelwise $(SANITIZED)/
	CHANNELWISE_SANITIZE=1 $(BIN)/python setup.py --quiet build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	PYTHONPATH=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest --numprocesses auto --maxschedchunk 8 tests/runtime/cpu

demo: $(STAMP)
	$(BIN)/channelwise demo

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis
	rm -rf src/*.egg-info src/channelwise/runtime/cpu/_kernels.so build/temp.* build/lib.*
	find src tests training -name __pycache__ -type d -prune -exec rm -rf {} +
