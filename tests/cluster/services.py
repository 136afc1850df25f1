"""PostgreSQL and MLflow's server, on a machine of the tests."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from tests.cluster.machines import BASE, BIN, Machine
from tests.conftest import ROOT
from tests.waiting import answers, wait_for

PORT = {
    "postgres": 5439,
    "mlflow": 5009,
}  # beside a server that may run on this machine: loopback has one set of ports


@dataclass
class Database:
    """PostgreSQL of the distribution, with a password, in a folder of its own; no service of the system."""

    machine: Machine
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    folder: Path = BASE / "postgres"

    def start(self) -> None:
        """Make the databases `mlflow` and `study`, and serve them.

        PostgreSQL refuses to run as root: there it runs as its package's user.
        """
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        self.folder.mkdir()
        secret = BASE / "postgres.password"
        secret.write_text(self.password)
        if user:
            shutil.chown(self.folder, "postgres")
            shutil.chown(secret, "postgres")
        made = ["--username=masm", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8"]
        subprocess.run(
            [*user, str(_programs() / "initdb"), "--pgdata", str(self.folder), *made],
            cwd=self.folder, capture_output=True, check=True,
        )  # fmt: skip
        with (self.folder / "pg_hba.conf").open("a") as rules:
            rules.write("host all masm samenet scram-sha-256\n")
        served = ["-h", self.machine.address, "-p", str(PORT["postgres"]), "-k", "", "-c", "fsync=off"]
        command = [*user, str(_programs() / "postgres"), "-D", str(self.folder), *served]
        self.machine.start(*command, environment=os.environ, folder=self.folder)
        wait_for("PostgreSQL", lambda: self._answers("postgres"))
        for name in ("mlflow", "study"):
            self.query("postgres", f"CREATE DATABASE {name}")

    def url(self, name: str, password: bool = True) -> str:
        """Of a database, for SQLAlchemy."""
        secret = f":{self.password}" if password else ""
        return f"postgresql+psycopg://masm{secret}@{self.machine.address}:{PORT['postgres']}/{name}"

    def query(self, name: str, statement: str) -> list[tuple[object, ...]]:
        """The rows of a statement in plain SQL, which is committed."""
        with psycopg.connect(self.url(name).replace("+psycopg", ""), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _answers(self, name: str) -> bool:
        try:
            return bool(self.query(name, "SELECT 1"))
        except psycopg.OperationalError:
            return False


@dataclass
class Tracking:
    """MLflow's server as infra/mlflow/serve.sh starts it."""

    machine: Machine
    database: Database
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    artifacts: Path = BASE / "artifacts"
    key: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.machine.address}:{PORT['mlflow']}"

    @property
    def client(self) -> Mapping[str, str]:
        """The environment of those who use it."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    def start(self) -> None:
        """Serve; again after a kill, on the same database."""
        environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "MLFLOW_BACKEND_STORE_URI": self.database.url("mlflow", password=False),
            "PGPASSWORD": self.database.password,
            "MLFLOW_ARTIFACTS_DESTINATION": str(self.artifacts),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.key,
            "MLFLOW_HOST": self.machine.address,
            "MLFLOW_PORT": str(PORT["mlflow"]),
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"{self.machine.address}:{PORT['mlflow']}",
            "MLFLOW_WORKERS": "1",
        }
        self._server = self.machine.start(str(ROOT / "infra/mlflow/serve.sh"), environment=environment)

        def ready() -> bool:
            assert self._server.poll() is None, self.machine.log.read_text()[-3000:]
            return answers(f"{self.url}/health")

        wait_for("MLflow's server", ready)

    def kill(self) -> None:
        """SIGKILL for it and all of its workers."""
        for process in (*self._server.children(recursive=True), self._server):
            process.kill()
        psutil.wait_procs([self._server])


def _programs() -> Path:
    """Where the distribution keeps PostgreSQL's programs, of the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parents[1].name))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    assert initdb, "PostgreSQL is not here: make test-cluster installs it"
    return Path(initdb).resolve().parent
