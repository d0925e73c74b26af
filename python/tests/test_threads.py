"""Threads, the interpreter's lock, and processes that are forked."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Server

import blockferry
from blockferry import Client


def test_another_thread_runs_while_a_call_waits(nbdkit: Callable[..., Server]) -> None:
    server = nbdkit("--filter=delay", "memory", "1M", "rdelay=1")
    counted = 0
    done = threading.Event()

    def read() -> None:
        with Client(server.uri) as disk:
            disk.read(512, 0)
        done.set()

    reader = threading.Thread(target=read)
    reader.start()
    while not done.is_set():
        counted += 1
        time.sleep(0.001)
    reader.join()
    # One round at most would go by if the interpreter were held.
    assert counted > 10


def test_many_threads_share_a_client(writable: str) -> None:
    part = 64 << 10
    with Client(writable) as disk:

        def work(number: int) -> bool:
            offset = number * part
            for turn in range(8):
                data = bytes([number, turn]) * (part // 2)
                disk.write(data, offset)
                if disk.read(part, offset) != data:
                    return False
            return True

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(work, range(32)))


def test_a_client_that_is_closed_by_another_thread_finishes_its_calls(
    nbdkit: Callable[..., Server],
) -> None:
    server = nbdkit("--filter=delay", "memory", "1M", "rdelay=500ms")
    disk = Client(server.uri)
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(disk.read, 512, 0) for _ in range(4)]
        while not any(read.running() for read in reads):
            time.sleep(0.01)
        time.sleep(0.1)
        disk.close()
        for read in reads:
            try:
                assert read.result() == bytes(512)
            except blockferry.InvalidInput as error:
                assert "closed" in str(error)


def test_a_buffer_cannot_be_resized_while_it_is_filled(nbdkit: Callable[..., Server]) -> None:
    server = nbdkit("--filter=delay", "memory", "1M", "rdelay=500ms")
    buffer = bytearray(512)
    with Client(server.uri) as disk, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(disk.read_into, buffer, 0)
        time.sleep(0.2)
        with pytest.raises(BufferError):
            buffer.extend(b"more")
        reading.result()
    buffer.extend(b"more")


def test_a_forked_process_leaves_the_connection_alone(nbdkit: Callable[..., Server]) -> None:
    with Client(nbdkit("memory", "1M").uri) as disk:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                disk.read(512, 0)
            except blockferry.InvalidInput:
                disk.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert disk.read(512, 0) == bytes(512)


def test_a_file_is_read_by_many_clients_at_once(disk: Path) -> None:
    expected = disk.read_bytes()

    def work(_: int) -> bool:
        with Client(disk, read_only=True) as client:
            return client.read(len(expected), 0) == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))
