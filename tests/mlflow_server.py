"""A real MLflow server that tests kill and start again, and a proxy that loses it at a chosen request."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.ports import free_port
from tests.waiting import answers, wait_for


class Server:
    """A real `mlflow server`, which can be killed and started again on the same store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts")]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command = [str(Path(sys.executable).parent / "mlflow"), "server", *store, *artifacts, *address]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        wait_for("MLflow's server", self._ready)

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        return answers(f"http://127.0.0.1:{self.port}/health")

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Proxy(ThreadingHTTPServer):
    """Stands before the server, and loses it at the n-th request that changes something.

    Attributes:
        remaining: changes until then; None is never.
        reaches: whether the last request still reaches the server, so that only its answer is lost.
        on_loss: what happens at that moment.
    """

    daemon_threads = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.target, self.remaining, self.reaches, self.lost = target, None, False, False
        self.on_loss: Callable[[], None] = lambda: None
        self.changes: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    remaining: int | None

    def lose(self, changes: int | None, reaches: bool = False, on_loss: Callable[[], None] = lambda: None) -> None:
        self.remaining, self.reaches, self.lost, self.on_loss, self.changes = changes, reaches, False, on_loss, []


class Passing(BaseHTTPRequestHandler):
    """Hands requests on, one a connection."""

    server: Proxy

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass

    def _pass(self) -> None:
        proxy = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":  # so are empty files sent
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        last = False
        if self.command != "GET":
            proxy.changes.append(f"{self.command} {self.path}")
            last = proxy.remaining is not None and len(proxy.changes) > proxy.remaining
        if proxy.lost or (last and not proxy.reaches):
            self._lose()
            return
        kept = {key: self.headers[key] for key in self.headers if key not in ("Host", "Transfer-Encoding")}
        kept["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=60)
        connection.request(self.command, self.path, body, kept)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if last:
            self._lose()
            return
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _lose(self) -> None:
        if not self.server.lost:
            self.server.lost = True
            self.server.on_loss()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815
