"""infra/mlflow/serve.sh says what is missing before it touches a database; tests/cluster start it for real."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.infra.manifests import INFRA

COMPLETE = {
    "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg://masm@127.0.0.1:1/mlflow",
    "MLFLOW_ARTIFACTS_DESTINATION": "/nowhere",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "a long enough password",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "key",
}


def serve(folder: Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Run the script with commands `mlflow` and `python` that print what they are called with."""
    for name in ("mlflow", "python"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (folder / name).chmod(0o755)
    given = {name: value for name, value in {**COMPLETE, **changes}.items() if value is not None}
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder), **given}
    script = str(INFRA / "mlflow/serve.sh")
    return subprocess.run([script], env=environment, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("name", COMPLETE)
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    for value in (None, ""):
        done = serve(tmp_path, **{name: value})
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{name} is not set" in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "password"}, "fewer than 12 letters"),
        ({"MLFLOW_BACKEND_STORE_URI": "sqlite:///mlflow.db"}, "no address of PostgreSQL"),
        ({"MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg://masm:word@db/mlflow"}, "holds a password"),
        ({"MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg://db/mlflow?password=word"}, "holds a password"),
        ({"MLFLOW_HOST": "0.0.0.0"}, "MLFLOW_SERVER_ALLOWED_HOSTS"),
    ],
)
def test_what_is_unsafe_is_refused(changes: dict[str, str], said: str, tmp_path: Path) -> None:
    done = serve(tmp_path, **changes)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_tables_are_there_before_the_server(tmp_path: Path) -> None:
    """MLflow's and its users' are brought up to date, then the server starts, on the loopback address."""
    done = serve(tmp_path, MLFLOW_BACKEND_STORE_URI="postgresql+psycopg://masm@db/ml%20flow")
    assert done.returncode == 0, done.stderr
    first, second, server = done.stdout.splitlines()
    address = "postgresql+psycopg://masm@db/ml%20flow"
    assert first == f"mlflow db upgrade {address}"
    assert second == f"python -m mlflow.server.auth db upgrade --url {address}"
    assert server.startswith("mlflow server --app-name basic-auth --host 127.0.0.1 --port 5000")
    assert "--serve-artifacts --artifacts-destination /nowhere" in server
    (settings,) = tmp_path.glob("*/auth.ini")
    assert "database_uri = postgresql+psycopg://masm@db/ml%%20flow\n" in settings.read_text()
    assert settings.stat().st_mode & 0o077 == 0
