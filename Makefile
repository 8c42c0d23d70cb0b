# The README's commands. Everything runs inside .venv, which the first of them makes.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# threads that spin while they wait starve each other as soon as the machine is busy
export OMP_WAIT_POLICY := PASSIVE

.PHONY: reproduce test lab bench pins format clean

reproduce: $(READY)
	$(BIN)/reproduce

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest ci/tests
	$(BIN)/pytest --nbval-lax --nbval-cell-timeout 600 -p no:cacheprovider notebooks

lab: $(READY)
	$(BIN)/jupyter lab notebooks

bench: $(READY)
	@for script in ci/bench/*.py; do $(BIN)/python $$script || exit 1; done

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pins:
	$(PYTHON) -m venv .venv-pins
	.venv-pins/bin/pip install --quiet --upgrade --upgrade-strategy eager '.[test]'
	{ head -n 1 ci/constraints.txt; .venv-pins/bin/pip freeze --exclude reproduce-cv; } > pins.tmp
	mv pins.tmp ci/constraints.txt
	rm -rf .venv-pins

$(READY): pyproject.toml ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off \
		--constraint ci/constraints.txt --editable '.[test]'
	@# open3d needs dash, whose old-style extension would ask every reader to rebuild JupyterLab
	@rm -f .venv/share/jupyter/lab/extensions/dash-jupyterlab.tgz
	@touch $@

clean:
	rm -rf .venv runs
