"""The machines of the tests: network namespaces on a bridge, or loopback addresses where those are not permitted.

A namespace has an address, ports and a disk of its own: DISK is the same path on each, and another folder. On loopback
the machines share it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
BASE = Path(tempfile.gettempdir()) / "masm-cluster"
"""Everything of a run, at a short path: Ray's sockets lie below it, whose names have 107 bytes at most."""
DISK = BASE / "disk"
SMALL, ROOM = BASE / "small", 2**28
"""A file system of its own that all machines share, and the bytes that it has room for; not on loopback."""
BRIDGE, NETWORK = "masm-bridge", "10.223.117"
NAMES = ("services", "head", "first", "second")


class Machine:
    """Where processes run: here, on a loopback address.

    Attributes:
        name: one of NAMES.
        number: its place among them.
        address: where its servers listen, and by which the others know it.
        log: what its processes print.
    """

    prefix: tuple[str, ...] = ()

    def __init__(self, number: int) -> None:
        self.name = NAMES[number]
        self.number = number
        self.address = f"127.0.0.{number + 2}"
        self.log = BASE / f"{self.name}.log"
        self._started: list[psutil.Popen] = []

    def start(self, *command: str, environment: Mapping[str, str], folder: Path = BASE) -> psutil.Popen:
        """Start a process, with its output in the log."""
        with self.log.open("ab") as log:
            process = psutil.Popen(
                [*self.prefix, *command], cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def processes(self) -> list[psutil.Process]:
        """All that run on it."""
        living = [process for process in self._started if process.is_running()]
        return [each for process in living for each in (process, *process.children(recursive=True))]

    def find(self, title: str) -> list[psutil.Process]:
        """Its processes whose command line has these words."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def lose(self) -> None:
        """End all of its processes at once, as when the power goes."""
        deadline = time.monotonic() + 30
        while living := [process for process in self.processes() if _lives(process)]:
            assert time.monotonic() < deadline, f"these do not end: {living}"
            for process in living:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
        for process in self._started:
            process.wait()
        self._started.clear()

    def connect(self) -> None:
        """Make it ready: after a loss, too."""

    @classmethod
    def remove_all(cls) -> None:
        """End what runs on the machines, that of a run that was killed, too, and remove them."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.uids().real == os.getuid() and f"{BASE}/" in " ".join(process.cmdline()):
                    process.kill()


class Namespace(Machine):
    """A machine with a network and a disk of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.address = f"{NETWORK}.{number + 2}"
        self.space = f"masm-{self.name}"
        self.disk = BASE / "disks" / self.name
        self._isolate()
        if number == 0:
            _ip("link", "add", BRIDGE, "type", "bridge")
            _ip("address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)  # the tests' own
            _ip("link", "set", BRIDGE, "up")
        _ip("netns", "add", self.space)
        _ip("link", "add", f"masm-cable{number}", "type", "veth", "peer", "name", "eth0", "netns", self.space)
        _ip("link", "set", f"masm-cable{number}", "master", BRIDGE, "up")
        _ip("-n", self.space, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.space, "link", "set", "lo", "up")

    def _isolate(self) -> None:
        """Its disk, and a name by which it finds its own address: workers of torch tell it to each other."""
        hosts = BASE / f"{self.name}.hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{self.address} {self.space}\n")
        steps = (
            f"mount --bind {self.disk} {DISK}",
            f"mount --bind {hosts} /etc/hosts",
            f"echo {self.space} > /proc/sys/kernel/hostname",
            'exec "$@"',
        )
        shell = ("unshare", "--mount", "--uts", "--propagation", "slave", "sh", "-c", " && ".join(steps), "sh")
        self.prefix = ("ip", "netns", "exec", self.space, *shell)

    def processes(self) -> list[psutil.Process]:
        """All that run on it."""
        return _inhabitants(self.space)

    def lose(self) -> None:
        """Its network goes first, so that nobody sees a connection closed."""
        _ip("-n", self.space, "link", "set", "eth0", "down")
        super().lose()

    def connect(self) -> None:
        """With an empty disk."""
        shutil.rmtree(self.disk, ignore_errors=True)
        self.disk.mkdir(parents=True)
        _ip("-n", self.space, "link", "set", "eth0", "up")

    @classmethod
    def remove_all(cls) -> None:
        """End what runs on the machines, that of a run that was killed, too, and remove them."""
        for space in {f"masm-{name}" for name in NAMES} & set(_names()):
            while living := [process for process in _inhabitants(space) if _lives(process)]:
                for process in living:
                    with suppress(psutil.Error):
                        process.kill()
                time.sleep(0.05)
            _ip("netns", "delete", space)
        # A namespace stays, without a name, while connections that nobody closed wait in it: its cable is cut apart.
        for link in [BRIDGE, *(f"masm-cable{number}" for number in range(len(NAMES)))]:
            if Path("/sys/class/net", link).exists():
                _ip("link", "delete", link)


@contextmanager
def made_machines() -> Iterator[dict[str, Machine]]:
    """The machines by name; nothing that runs on them outlives the tests."""
    kind = Namespace if permitted() else Machine
    if kind is Machine:
        warnings.warn("no root: the machines are loopback addresses, which share ports and a disk", stacklevel=1)
    kind.remove_all()
    unmount()
    shutil.rmtree(BASE, ignore_errors=True)
    DISK.mkdir(parents=True)
    SMALL.mkdir()
    with ExitStack() as ends:
        ends.callback(unmount)
        ends.callback(kind.remove_all)
        if kind is Namespace:  # before there are machines, which have mounts of their own
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(SMALL)], check=True)
        machines = [kind(number) for number in range(len(NAMES))]
        for machine in machines:
            machine.connect()
            ends.callback(machine.lose)
        yield {machine.name: machine for machine in machines}


def clean_environment() -> dict[str, str]:
    """Ours without what names servers from outside, and with the programs of this Python first."""
    foreign = ("RAY_", "MLFLOW_", "MASM_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def permitted() -> bool:
    """Whether this user may make namespaces, on this system."""
    enough = ("unshare", "--net", "--uts", "--mount", "--propagation", "slave", "true")
    return shutil.which("ip") is not None and subprocess.run(enough, capture_output=True, check=False).returncode == 0


def resize(size: int) -> None:
    """Give SMALL room for some bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(SMALL)], check=True)


def unmount() -> None:
    """Take away what is mounted below BASE."""
    for part in psutil.disk_partitions(all=True):
        if Path(part.mountpoint).is_relative_to(BASE):
            subprocess.run(["umount", part.mountpoint], check=True)


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _inhabitants(space: str) -> list[psutil.Process]:
    found = []
    for pid in _ip("netns", "pids", space).split():
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(int(pid)))
    return found


def _names() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line]


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
