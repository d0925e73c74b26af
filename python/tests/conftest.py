"""Real servers for the tests, and what tells that nothing was left behind.

`BLOCKFERRY` names the program that serves; `cargo xtask test` sets it, and `PYTHONPATH` to the package.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = os.environ.get("BLOCKFERRY", "blockferry")

SIZE = 4 << 20


def answers(path: Path) -> bool:
    """Whether somebody listens there: a socket has its name before it does."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Server:
    """A program that serves NBD on a unix socket."""

    def __init__(self, words: list[str], path: Path) -> None:
        self.socket = path
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        while not answers(path):
            if self.process.poll() is not None:
                raise RuntimeError(f"{words}: ended with {self.process.returncode}")
            time.sleep(0.01)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        os.kill(self.process.pid, 19)
        # Its threads stop one after the other. What follows the name, in brackets, is the state.
        while any(
            not (thread / "stat").read_text().rpartition(") ")[2].startswith("T")
            for thread in Path(f"/proc/{self.process.pid}/task").iterdir()
        ):
            time.sleep(0.01)


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers, with `SOCKET` in their words for the socket; they end with the test."""
    servers: list[Server] = []

    def start(*words: str) -> Server:
        path = tmp_path / f"socket{len(servers)}"
        server = Server([word.replace("SOCKET", str(path)) for word in words], path)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def nbdkit(start: Start) -> Callable[..., Server]:
    return lambda *words: start("nbdkit", "--foreground", "--unix", "SOCKET", *words)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file with data, a hole and data again."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(bytes(range(256)) * 4096)
        file.truncate(SIZE - (1 << 20))
        file.seek(0, os.SEEK_END)
        file.write(b"end!" * (1 << 18))
    return path


@pytest.fixture(params=["qemu-nbd", "nbdkit", "blockferry", "file"])
def writable(request: pytest.FixtureRequest, disk: Path, start: Start) -> str:
    """The disk, behind each kind of server, and as the file that it is."""
    match request.param:
        case "qemu-nbd":
            words = ["qemu-nbd", "--persistent", "--shared=8", "--format=raw"]
            return start(*words, "--discard=unmap", "--socket=SOCKET", str(disk)).uri
        case "nbdkit":
            words = ["nbdkit", "--foreground", "--unix=SOCKET", "file", str(disk)]
            return start(*words).uri
        case "blockferry":
            return start(PROGRAM, "serve", "--unix=SOCKET", str(disk)).uri
        case _:
            return str(disk)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def are_closed(before: int) -> bool:
    """Whether soon no more descriptors are open than `before`, when some of an earlier test may still have been."""
    deadline = time.monotonic() + 20
    while descriptors() > before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Runs a script in an interpreter of its own."""

    def run(text: str) -> subprocess.Popen[str]:
        path = tmp_path / "script.py"
        # What a shell runs in the background ignores SIGINT, and what that starts inherits it.
        heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        path.write_text(heard + text)
        return subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return run
