"""Reads an image in a loop: ours beside libnbd's bindings (Debian: python3-libnbd), in interleaved rounds.

    python3 read.py [--size MIB] [--request KIB] [--rounds N] [--server qemu-nbd|nbdkit]

Install the wheel of a release build first. What is compared is the time for the whole image, as GB/s, and the
processor time of this process for it, without the server's; the rival's rounds are left out where its module is not
installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import blockferry

Contender = Callable[[str, int, int], None]


def ours(uri: str, size: int, request: int) -> None:
    with blockferry.Client(uri, read_only=True) as disk:
        for offset in range(0, size, request):
            disk.read(min(request, size - offset), offset)


def ours_into(uri: str, size: int, request: int) -> None:
    buffer = bytearray(request)
    with blockferry.Client(uri, read_only=True) as disk:
        for offset in range(0, size - request + 1, request):
            disk.read_into(buffer, offset)


def theirs(uri: str, size: int, request: int) -> None:
    handle = importlib.import_module("nbd").NBD()
    handle.connect_uri(uri)
    for offset in range(0, size, request):
        handle.pread(min(request, size - offset), offset)
    handle.shutdown()


def copied(uri: str, size: int, request: int) -> None:
    blockferry.copy(uri, "null:")


@contextmanager
def served(kind: str, size: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        image, socket = Path(directory, "image"), Path(directory, "socket")
        with image.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        words = {
            "qemu-nbd": ["qemu-nbd", "-r", "-t", "-e8", "-f", "raw", "-k", str(socket), str(image)],
            "nbdkit": ["nbdkit", "-f", "-r", "-U", str(socket), "file", str(image)],
        }
        server = subprocess.Popen(words[kind])
        try:
            while not socket.exists():
                time.sleep(0.01)
            yield f"nbd+unix:///?socket={socket}"
        finally:
            server.kill()
            server.wait()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--size", type=int, default=1024)
    arguments.add_argument("--request", type=int, default=1024)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--server", choices=["qemu-nbd", "nbdkit"], default="qemu-nbd")
    given = arguments.parse_args()
    contenders: dict[str, Contender] = {
        "blockferry read": ours,
        "blockferry read_into": ours_into,
        "blockferry copy": copied,
    }
    if importlib.util.find_spec("nbd"):
        contenders["libnbd pread"] = theirs
    size, request = given.size << 20, given.request << 10
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    with served(given.server, size) as uri:
        for _ in range(given.rounds):
            for name, contender in contenders.items():
                begun, used = time.perf_counter(), time.process_time()
                contender(uri, size, request)
                rates[name].append(size / (time.perf_counter() - begun) / 1e9)
                processor[name].append(time.process_time() - used)
    for name, all_rates in rates.items():
        spread = f"{min(all_rates):.2f} to {max(all_rates):.2f}"
        cpu = statistics.median(processor[name])
        print(f"{name:22} {statistics.median(all_rates):.2f} GB/s ({spread}), {cpu:.2f} s CPU")


if __name__ == "__main__":
    main()
