"""A job's log over a connection that goes silent: nothing is waited for, for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import ray
from aiohttp import web

from masm import jobs
from masm.cli import jobs as cli
from masm.errors import UserError
from masm.jobs import client, following, submission

VERSION = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": "s"}
ENDED = {"type": "SUBMISSION", "submission_id": "x", "entrypoint": "e", "status": "SUCCEEDED", "driver_exit_code": 0}


class Silent:
    """A job server whose log stops after its first line; then the job has ended.

    Attributes:
        address: of it.
        looks: questions for the job's status that it answers.
        status: HTTP's, of those answers.
    """

    def __init__(self) -> None:
        self.looks, self.status, self._told = 100, 200, False
        self._loop = asyncio.new_event_loop()
        ready: threading.Event = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        assert ready.wait(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        ready.set()
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/jobs/x", self._look)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/x/logs/tail", self._tail)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response(VERSION)

    async def _look(self, _: web.Request) -> web.Response:
        self.looks -= 1
        if self.looks < 0:
            await asyncio.sleep(600)
        state = {} if self._told else {"status": "RUNNING", "driver_exit_code": None}
        return web.json_response({**ENDED, **state}, status=self.status)

    async def _submit(self, _: web.Request) -> web.Response:
        return web.Response(status=504, text="gateway timeout")

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("first line\n")
        self._told = True
        await asyncio.sleep(600)
        return socket

    def stop(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # gone after the test, as connect() sets it
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(following, "END_SECONDS", 2)
    server = Silent()
    yield server
    server.stop()


def test_the_end_of_a_job_ends_its_log(silent: Silent, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._followed(jobs.Submitted("x", silent.address)) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("first line\n")
    assert f"the log's end did not come: ray job logs x --address {silent.address}" in shown.out
    assert shown.err.splitlines() == ["the job x SUCCEEDED"]  # it is no stage's: there is no result to take


@pytest.mark.parametrize("looks", [0, 1])
def test_a_server_that_answers_no_more_is_a_lost_connection(
    silent: Silent, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 2)
    silent.looks = looks
    with pytest.raises(UserError, match=r"was lost .*timed out.*; the job, if it runs, goes on; follow it: masm"):
        jobs.follow(jobs.Submitted("x", silent.address), lambda text: None)


@pytest.mark.parametrize(
    ("status", "says"),
    [(404, "there is no job x"), (502, r"was lost \(.* status code 502.*; the job, if it runs, goes on; follow it")],
)
def test_only_a_job_that_is_not_found_is_none(silent: Silent, status: int, says: str) -> None:
    silent.status = status
    with pytest.raises(UserError, match=says):
        jobs.follow(jobs.Submitted("x", silent.address), lambda text: None)


def test_an_acceptance_that_did_not_come_back_is_looked_up(silent: Silent) -> None:
    server = jobs.connect(silent.address)
    assert submission._accepted(server, {"submission_id": "x", "entrypoint": "e"}) == "x"
    with pytest.raises(UserError, match=r"did not take the job: .*; if it comes through all the same, it is y"):
        submission._accepted(server, {"submission_id": "y", "entrypoint": "e"})


@pytest.mark.parametrize(
    ("uri", "elsewhere", "says"),
    [
        ("sqlite:///mlflow.db", False, "lost with its folder"),
        ("http://127.0.0.1:5000", True, "127.0.0.1 is another machine on each node"),
        ("http://localhost:5000", True, "localhost is another machine"),
        ("http://localhost:5000", False, None),
        ("http://mlflow:5000", True, None),
    ],
)
def test_a_tracking_server_that_no_node_reaches_is_named(uri: str, elsewhere: bool, says: str | None) -> None:
    warning = submission.lost_runs(uri, elsewhere)
    assert warning is None if says is None else says in str(warning)


def test_what_is_shown_cannot_be_detached() -> None:
    with pytest.raises(UserError, match="--follow shows a log, --detach shows none"):
        cli.submit(follow="x", detach=True)
