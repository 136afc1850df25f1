"""Stages as jobs of a real cluster that asks for a token; what `masm submit` refuses before it sends anything."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from ray.runtime_env import RuntimeEnv

from masm import jobs
from masm.errors import UserError
from masm.jobs import submission
from masm.settings import load_settings
from tests.http_server import answering
from tests.jobs.repository import make_repository
from tests.pipeline.workspace import edit, run
from tests.ports import free_port
from tests.waiting import wait_for

BIN = Path(sys.executable).parent
PORT, DASHBOARD = "6393", "8293"
ADDRESS = f"http://127.0.0.1:{DASHBOARD}"
SECRET = "correct horse battery"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("jobs") / "repository")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster's address from outside; the one that a test sets is gone after it."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("trian", "there is no stage 'trian'; did you mean train"),
        ("zzz", "there is no stage 'zzz': search, train can be jobs"),
        (
            "evaluate",
            "evaluate is no job: it writes its result beside params.yaml.* `dvc repro evaluate`, which works on",
        ),
        ("ingest@swap", "ingest@swap is no job: .* `dvc repro ingest@swap`"),
        ("promote", "promote is no job: .* `dvc repro promote`"),
    ],
)
def test_a_stage_that_is_no_job_is_named(workspace: Path, stage: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        jobs.submit(load_settings(workspace / "params.yaml"), stage, ADDRESS, False, print)


def test_no_cluster_is_one_sentence_and_quick(quiet: None) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"no Ray cluster takes jobs at http://127.0.0.1:1 .*Connection refused"):
        jobs.connect("http://127.0.0.1:1")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            {"version": "4", "ray_version": "2.41.0", "ray_commit": "", "session_name": "s"},
            "runs Ray 2.41.0, this is Ray",
        ),
        ({"name": "another service"}, "no Ray cluster takes jobs at"),
    ],
)
def test_another_ray_or_service_is_named(quiet: None, answer: dict[str, str], says: str) -> None:
    with answering(answer) as (address, _), pytest.raises(UserError, match=says):
        jobs.connect(address)


def test_trials_share_gpus_and_workers_do_not() -> None:
    nodes = [{"CPU": 2.0, "GPU": 1.0}]
    assert submission._resources("search", 2, nodes, wait_seconds=0) == []
    (line,) = submission._resources("train", 2, nodes, wait_seconds=0)
    assert "1 GPU(s) for 2 workers: they run on CPUs" in line


def test_a_cluster_that_has_just_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[], [], ["the head"]])
    monkeypatch.setattr(submission, "list_nodes", lambda *address, **options: next(answers))
    assert submission._nodes("http://127.0.0.1:1") == ["the head"]


def test_what_a_job_gets_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("SOMEBODY_ELSES_KEY", SECRET)
    alone = RuntimeEnv(**submission.runtime_environment(str(tmp_path), install=False))
    assert alone.env_vars()["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert "SOMEBODY_ELSES_KEY" not in alone.env_vars()
    assert not alone.has_uv()
    packages = RuntimeEnv(**submission.runtime_environment(str(tmp_path), install=True)).uv_config()
    assert packages["packages"] == ["-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/requirements.lock"]
    assert packages["uv_pip_install_options"] == ["--require-hashes"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of a cluster with a token and two CPUs."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "token").write_text("0123456789abcdef" * 4)
    clean = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    environment = {
        **clean,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }
    ports = ["--port", PORT, "--dashboard-port", DASHBOARD, "--num-cpus", "2", "--object-store-memory", "100000000"]
    ports += ["--dashboard-agent-listen-port", str(free_port())]  # all Rays of a machine would take the same
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", *ports]
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)

    def started() -> bool:
        said = (folder / "log").read_text()
        assert head.poll() is None, said
        return "Ray runtime started" in said

    try:
        wait_for("the head node", started)
        yield {**environment, "MLFLOW_TRACKING_PASSWORD": SECRET, "MLFLOW_TRACKING_URI": "http://tracking:5000"}
    finally:  # `ray stop` would end every Ray of this machine; told to end, these wait 30 s for each other
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def masm(workspace: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(
        str(BIN / "masm"), "submit", *arguments, "--address", ADDRESS, folder=workspace, environment=environment
    )


@contextmanager
def following(
    workspace: Path, environment: dict[str, str], number: str, address: str
) -> Iterator[subprocess.Popen[str]]:
    """A command that follows a job, once it has shown the job's first line."""
    command = [str(BIN / "masm"), "submit", "--follow", number, "--address", address]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=workspace, env=environment, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear_interrupts
    ) as one:
        try:
            assert any("works in runs/own" in line for line in one.stdout)  # ends at the first one
            yield one
        finally:
            one.kill()


def hear_interrupts() -> None:
    """Ctrl-C ends a command in the foreground; tests that a shell runs in the background inherit that it does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Line:
    """A connection to a port of this machine, which can be cut."""

    def __init__(self, port: int) -> None:
        self._port, self._ends = port, []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Line:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        for end in (self._server, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, far = self._server.accept()[0], socket.create_connection(("127.0.0.1", self._port))
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.mark.slow
@pytest.mark.ray
class TestOnACluster:
    def test_a_job_runs_in_its_workspace_and_says_what_comes_next(
        self, workspace: Path, client: dict[str, str]
    ) -> None:
        done = masm(workspace, client, "train")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "works in runs/own for masm-own" in done.stdout
        assert f"secret of {len(SECRET)} letters" in done.stdout
        assert SECRET not in done.stdout + done.stderr
        assert re.search(
            r"job \w+; follow it: masm submit --follow \w+ --address \S+; stop it: ray job stop", done.stderr
        )
        assert "INFO" not in done.stderr
        ends = done.stderr.splitlines()[-2:]
        assert ends[0] == "MLflow run: http://tracking:5000/#/experiments/7/runs/0a1b2c"
        assert ends[1].endswith(f"SUCCEEDED; in {workspace} `dvc repro train` takes its result")

    def test_the_exit_code_is_the_stages(self, workspace: Path, client: dict[str, str]) -> None:
        (workspace / "code").write_text("2")
        try:
            done = masm(workspace, client, "train")
        finally:
            (workspace / "code").write_text("0")
        assert done.returncode == 2, done.stdout + done.stderr
        assert "FAILED (exit code 2)" in done.stderr
        assert "Traceback" not in done.stderr

    def test_ctrl_c_and_a_lost_connection_leave_the_job_running(
        self, workspace: Path, client: dict[str, str], tmp_path: Path
    ) -> None:
        (workspace / "wait").write_text(str(tmp_path / "end"))
        try:
            detached = masm(workspace, client, "train", "--detach")
        finally:
            (workspace / "wait").write_text("")
        assert detached.returncode == 0, detached.stderr
        number = re.search(r"--follow (\w+)", detached.stderr)[1]
        with following(workspace, client, number, ADDRESS) as one:
            one.send_signal(signal.SIGINT)
            _, said = one.communicate(timeout=60)
        assert one.returncode == 130
        assert f"the job {number} goes on; follow it: masm submit --follow {number}" in said
        assert "Traceback" not in said
        with Line(int(DASHBOARD)) as line, following(workspace, client, number, line.address) as one:
            line.cut()
            _, said = one.communicate(timeout=60)
        assert one.returncode == 2
        assert re.search(
            rf"the connection to {line.address} was lost .*; the job, if it runs, goes on; follow it: masm submit",
            said,
        )
        assert "Traceback" not in said
        (tmp_path / "end").touch()
        again = masm(workspace, client, "--follow", number)
        assert again.returncode == 0, again.stderr
        assert f"the job {number} SUCCEEDED; in {workspace} `dvc repro train` takes its result" in again.stderr

    def test_another_environment_ends_the_job_with_one_sentence(self, workspace: Path, client: dict[str, str]) -> None:
        lock = workspace.parents[1] / "requirements.lock"
        text = lock.read_text()
        lock.write_text(re.sub(r"^packaging==\S+", "packaging==1.0", text, flags=re.MULTILINE))
        try:
            done = masm(workspace, client, "train")
        finally:
            lock.write_text(text)
        assert done.returncode == 2, done.stdout + done.stderr
        assert re.search(r"not that of requirements.lock: packaging \S+ is there, 1.0 in the lock", done.stdout)
        assert "works in" not in done.stdout

    def test_too_few_cpus_are_said_before_anything_is_sent(self, workspace: Path, client: dict[str, str]) -> None:
        text = (workspace / "params.yaml").read_text()
        edit(workspace / "params.yaml", {"train.workers": 4, "train.batch_size": 32})
        try:
            done = masm(workspace, client, "train")
        finally:
            (workspace / "params.yaml").write_text(text)
        assert done.returncode == 2
        said = "4 worker(s) of one CPU each are needed, the Ray cluster has 1 node(s) with 2 CPUs: add nodes"
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1

    @pytest.mark.parametrize("token", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "f" * 64}])
    def test_a_missing_or_wrong_token_is_one_sentence(
        self, workspace: Path, client: dict[str, str], token: dict[str, str]
    ) -> None:
        done = masm(workspace, {**client, **token}, "train")
        assert done.returncode == 2, done.stderr
        assert f"the Ray cluster at {ADDRESS} refuses this token, or the lack of one" in done.stderr
        assert "Traceback" not in done.stderr

    def test_an_unknown_job_is_named(self, workspace: Path, client: dict[str, str]) -> None:
        done = masm(workspace, client, "--follow", "raysubmit_none")
        assert done.returncode == 2
        assert "there is no job raysubmit_none" in done.stderr
