# Every target works on a machine that has only python3 (3.11 or newer), git and make.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.8
# The whole run of the embedded data, or of photographs: make demo FACES=folder [BACKBONE=file] [DETECTOR=file]
DEMO_OPTIONS := $(if $(FACES),--faces "$(FACES)") $(if $(BACKBONE),--backbone "$(BACKBONE)") $(if $(DETECTOR),--face-detector "$(DETECTOR)")

.PHONY: setup demo test quick check ui lock

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-report=term --cov-fail-under=85

quick: setup
	$(BIN)/python -m pytest -m "not slow and not ray"

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: setup
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --port 5000

lock: setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" -q -o requirements.lock
