# Every target works on a machine that has only python3 (3.11 or newer), git and make.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.8
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
# The whole run of the embedded data, or of photographs: make demo FACES=folder [BACKBONE=file] [DETECTOR=file]
DEMO_OPTIONS := $(if $(FACES),--faces "$(FACES)") $(if $(BACKBONE),--backbone "$(BACKBONE)") $(if $(DETECTOR),--face-detector "$(DETECTOR)")

.PHONY: setup demo test test-browser test-cluster quick check ui lock

setup: .venv/.installed

# Compiled at once: where PYTHONDONTWRITEBYTECODE is set, every process would do it anew, and imports take three times as long.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv==$(UV_VERSION)
	$(BIN)/uv pip sync -q --compile-bytecode --require-hashes requirements.lock
	$(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/masm demo $(DEMO_OPTIONS)

test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not browser and not cluster" --cov --cov-report=term --cov-fail-under=85

# In the distribution's Chromium; its packages bring the driver of the same version.
test-browser: setup
	@command -v chromedriver >/dev/null || { command -v apt-get >/dev/null && $(SUDO) apt-get update -q && \
		$(SUDO) apt-get install -q -y --no-install-recommends chromium chromium-driver; } || \
		{ echo "make test-browser needs Chromium and chromedriver, and cannot install them here: install both." >&2; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

# A head and two nodes of Ray, PostgreSQL and MLflow's server, on machines of network namespaces. These need root: without
# it, and without sudo, the machines are loopback addresses. No file of the checkout is written.
test-cluster: setup
	@{ command -v ip && { ls /usr/lib/postgresql/*/bin/initdb || command -v initdb; }; } >/dev/null 2>&1 || { command -v apt-get >/dev/null && \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y --no-install-recommends postgresql iproute2; } || \
		{ echo "make test-cluster needs PostgreSQL and iproute2, and cannot install them here: install both." >&2; exit 2; }
	$(if $(SUDO),$(shell command -v sudo)) env PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -m cluster -p no:cacheprovider --durations=0 tests/cluster

quick: setup
	$(BIN)/python -m pytest -m "not slow and not ray and not browser and not cluster"

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: setup
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --port 5000

lock: setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" -q -o requirements.lock
