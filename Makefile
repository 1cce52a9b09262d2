# make demo   set up .venv, then run the whole audit in miniature: outputs/demo/report.html
# make test   set up .venv, then all tests
# make campaign   kills, bad inputs, hostile text and servers in large numbers (some 45 minutes)
# make lint   ruff (style) and mypy (types)

PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test campaign lint types clean

demo: .venv/.ready
	$(BIN)/auditkit run params/demo.yaml

test: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

campaign: .venv/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[browser]"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaigns

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.ready
	$(BIN)/mypy

# Done again only when what is to be installed changes.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "auditkit needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,easy]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
