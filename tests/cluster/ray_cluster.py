"""A Ray cluster on the machines of the tests: a head and two nodes, and jobs that are submitted over HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from ray.job_submission import JobInfo, JobSubmissionClient

from tests.cluster.machines import BIN, DISK, Machine, clean_environment
from tests.waiting import wait_for

PORT, DASHBOARD, AGENT = 6389, 8289, 52400  # not Ray's own: on loopback another cluster may be running
NODES = ("head", "first", "second")
OBJECT_STORE_BYTES = 80_000_000
WORKER = "ray::RayTrainWorker"
"""What Ray Train's workers call themselves."""
SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
"""A node that vanished is noticed within seconds; Ray's own values take up to a minute."""


@dataclass(frozen=True)
class Job:
    """One that was submitted."""

    client: JobSubmissionClient
    name: str

    @property
    def info(self) -> JobInfo:
        """Its status, message and exit code."""
        return self.client.get_job_info(self.name)

    @property
    def logs(self) -> str:
        """What it has printed."""
        return self.client.get_job_logs(self.name)

    def wait(self) -> str:
        """Its status at its end."""
        wait_for(f"the end of {self.name}", lambda: self.info.status.is_terminal(), seconds=900, pause=0.5)
        return str(self.info.status.value)


class Cluster:
    """One CPU on each machine; who talks to it needs its token.

    Attributes:
        machines: by name.
        secret: the header of those who may use it.
        environment: of its processes, and so of jobs.
        url: of its jobs.
        services: the environment by which jobs find MLflow and the database.
    """

    def __init__(self, machines: Mapping[str, Machine], services: Mapping[str, str]) -> None:
        self.services = services
        self.machines = {name: machines[name] for name in NODES}
        token = secrets.token_hex(32)
        self.secret = {"Authorization": f"Bearer {token}"}
        authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        # The machines share this computer's memory: what takes too much of it is none of theirs.
        own = {"RAY_memory_monitor_refresh_ms": "0", "RAY_worker_niceness": "0"}
        self.environment = {**clean_environment(), **SOON, **authentication, **own}
        self.url = f"http://{machines['head'].address}:{DASHBOARD}"

    def start(self) -> None:
        """Start the head, then the nodes."""
        own = self.machines["head"].address
        self._start("head", "--head", f"--port={PORT}", f"--dashboard-host={own}", f"--dashboard-port={DASHBOARD}")
        wait_for("the head of Ray", lambda: self.alive() == {own})
        self.complete()

    def complete(self) -> None:
        """Start the nodes that are not there: all in the beginning, and again after a loss."""
        for name, machine in self.machines.items():
            if not machine.processes():
                machine.connect()
                self._start(name, f"--address={self.machines['head'].address}:{PORT}")
        wait_for("the nodes of Ray", lambda: len(self.alive()) == len(NODES))

    def _start(self, name: str, *options: str) -> None:
        machine = self.machines[name]
        common = (
            f"--node-ip-address={machine.address}", "--num-cpus=1", f"--temp-dir={DISK}/ray", "--block",
            f"--object-store-memory={OBJECT_STORE_BYTES}", f"--dashboard-agent-listen-port={AGENT + machine.number}",
            "--disable-usage-stats",
        )  # fmt: skip
        machine.start(str(BIN / "ray"), "start", *common, *options, environment=self.environment)

    def alive(self) -> set[str]:
        """The addresses of the nodes that Ray takes for alive."""
        try:
            listed = requests.get(f"{self.url}/api/v0/nodes", headers=self.secret, timeout=5).json()
            nodes = listed["data"]["result"]["result"]
        except (requests.RequestException, KeyError, TypeError):
            return set()
        return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}

    def submit(self, stage: str, workspace: Path) -> Job:
        """Run a stage on a workspace, which is sent."""
        client = JobSubmissionClient(self.url, headers=self.secret)
        work = {"working_dir": str(workspace), "env_vars": dict(self.services)}
        return Job(client, client.submit_job(entrypoint=f"python -m pipelines.{stage}", runtime_env=work))

    def workers(self) -> list[tuple[Machine, psutil.Process]]:
        """Ray Train's, with their machines."""
        return [(machine, each) for machine in self.machines.values() for each in machine.find(WORKER)]
