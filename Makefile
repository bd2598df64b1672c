# make demo: train on handwritten digits and look at what came out. make test: run the tests of every change;
# make soak: those that take long (several processes, kills, notebooks, whole runs); make check: both at once, the linter
# and the type checker. All make their own virtual environment, .venv, with the versions of CONSTRAINTS
# (constraints-py312.txt: a newer jax).

PYTHON ?= python3
BIN := .venv/bin
# Three workers for two cores: some tests wait for processes.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
CONSTRAINTS ?= constraints.txt

.PHONY: demo test soak check clean

demo: .venv/train
	$(BIN)/python -m sintrovae_jax.main --config configs/digits.py
	@echo "samples, reconstructions and interpolations: runs/digits/figures; metrics: runs/digits/results.json"

test: .venv/test
	$(PYTEST) -m "not soak"

soak: .venv/test
	$(PYTEST) -m soak

check: .venv/test  # in one session, in which what both kinds of tests share is made once
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

# One marker per set of extras, so that nothing is installed twice. Modules are compiled when they are first imported:
# most never are, and compiling all takes half of the time of an installation.
.venv/%: pyproject.toml $(CONSTRAINTS)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $(CONSTRAINTS) --editable '.[$(if $(filter test,$*),train$(comma)convert$(comma)test,$*)]'
	touch $@

comma := ,

clean:
	rm -rf .venv build *.egg-info
