# Every target works on a machine that has only python3 (3.11 or newer), git and make.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.8
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
# The whole run of the embedded data, or of photographs: make demo FACES=folder [BACKBONE=file] [DETECTOR=file]
DEMO_OPTIONS := $(if $(FACES),--faces "$(FACES)") $(if $(BACKBONE),--backbone "$(BACKBONE)") $(if $(DETECTOR),--face-detector "$(DETECTOR)")

.PHONY: setup demo test test-browser quick check ui lock

setup: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv==$(UV_VERSION)
	$(BIN)/uv pip sync -q --require-hashes requirements.lock
	$(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/masm demo $(DEMO_OPTIONS)

test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not browser" --cov --cov-report=term --cov-fail-under=85

# In the distribution's Chromium; its packages bring the driver of the same version.
test-browser: setup
	@command -v chromedriver >/dev/null || { command -v apt-get >/dev/null && $(SUDO) apt-get update -q && \
		$(SUDO) apt-get install -q -y --no-install-recommends chromium chromium-driver; } || \
		{ echo "make test-browser needs Chromium and chromedriver, and cannot install them here: install both." >&2; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

quick: setup
	$(BIN)/python -m pytest -m "not slow and not ray and not browser"

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: setup
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --port 5000

lock: setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" -q -o requirements.lock
