"""What failures are raised as."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Server

import blockferry
from blockferry import Client


def test_a_range_outside_of_the_disk_is_refused_before_it_is_sent(writable: str) -> None:
    with Client(writable) as disk:
        for call in (
            lambda: disk.read(512, disk.size),
            lambda: disk.read(1 << 40, 0),
            lambda: disk.read_into(bytearray(1024), disk.size - 512),
            lambda: disk.write(b"x" * 512, (1 << 63) - 512),
            lambda: disk.extents(512, disk.size),
        ):
            with pytest.raises((blockferry.OutOfBounds, blockferry.NoSpace)) as caught:
                call()
            assert caught.value.offset is not None
            assert caught.value.operation in ("read", "write", "extents")
        # It is of use as before.
        assert len(disk.read(512, 0)) == 512


def test_what_is_known_of_a_failure_is_in_the_exception() -> None:
    disk = Client("memory:1M")
    with pytest.raises(blockferry.OutOfBounds) as caught:
        disk.read(512, 1 << 20)
    error = caught.value
    assert isinstance(error, blockferry.Error) and isinstance(error, OSError)
    assert isinstance(error, ValueError)
    assert (error.kind, error.operation) == ("out-of-bounds", "read")
    assert (error.offset, error.length) == (1 << 20, 512)
    assert (error.endpoint, error.transient) == ("memory:1M", False)
    assert error.errno == errno.EINVAL
    assert str(error).startswith("memory:1M: read of 512 bytes at offset 1048576")


def test_an_exception_travels_between_processes() -> None:
    with pytest.raises(blockferry.NotFound) as caught:
        Client("/nonexistent/disk.raw")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is blockferry.NotFound
    assert str(again) == str(caught.value)
    assert vars(again) == vars(caught.value)


def test_a_missing_file_is_a_missing_file() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Client("/nonexistent/disk.raw")
    assert caught.value.errno == errno.ENOENT


def test_nobody_listening_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError) as caught:
        Client("nbd://127.0.0.1:1/")
    error = caught.value
    assert isinstance(error, blockferry.Refused)
    assert error.hint is not None
    assert any("hint" in note for note in error.__notes__)


def test_a_read_only_disk_is_not_written(nbdkit: Callable[..., Server], disk: Path) -> None:
    with Client(nbdkit("--readonly", "memory", "1M").uri) as client:
        assert client.read_only
        with pytest.raises(blockferry.ReadOnly):
            client.write(b"x", 0)
        with pytest.raises(blockferry.ReadOnly):
            client.zero(512, 0)
    with Client(disk, read_only=True) as client:
        with pytest.raises(blockferry.ReadOnly) as caught:
            client.write(b"x", 0)
        assert caught.value.errno == errno.EROFS


def test_an_error_of_the_server_leaves_the_client_usable(nbdkit: Callable[..., Server]) -> None:
    server = nbdkit("--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    with Client(server.uri) as disk:
        with pytest.raises(blockferry.NoSpace) as caught:
            disk.write(b"x" * 512, 4096)
        assert caught.value.errno == errno.ENOSPC
        assert (caught.value.offset, caught.value.length) == (4096, 512)
        assert disk.read(512, 0) == bytes(512)


def test_a_server_that_dies_is_a_lost_connection(nbdkit: Callable[..., Server]) -> None:
    server = nbdkit("memory", "1M")
    with Client(server.uri) as disk:
        disk.read(512, 0)
        server.kill()
        with pytest.raises(ConnectionError) as caught:
            disk.read(512, 0)
        assert isinstance(caught.value, blockferry.ConnectionLost)
        assert caught.value.transient


def test_a_silent_server_times_out(nbdkit: Callable[..., Server]) -> None:
    server = nbdkit("memory", "1M")
    with Client(server.uri, timeout=0.5) as disk:
        server.pause()
        with pytest.raises(TimeoutError) as caught:
            disk.read(512, 0)
        assert isinstance(caught.value, blockferry.TimedOut)


def test_a_lost_connection_is_opened_again_where_that_is_wanted(
    nbdkit: Callable[..., Server],
) -> None:
    server = nbdkit("memory", "1M")
    with Client(server.uri, retries=20) as disk:
        disk.read(512, 0)
        words = server.process.args
        server.kill()
        server.socket.unlink()
        assert isinstance(words, list)
        again = Server(words, server.socket)
        try:
            assert disk.read(512, 0) == bytes(512)
        finally:
            again.kill()


def test_a_closed_client_is_of_no_use() -> None:
    disk = Client("sample:1M", read_only=True)
    disk.close()
    assert disk.size == 1 << 20
    for call in (lambda: disk.read(1, 0), disk.flush, disk.extents):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("data", ["text", 5, None, [1, 2]])
def test_what_has_no_buffer_is_a_wrong_type(data: object) -> None:
    with Client("memory:1M") as disk:
        with pytest.raises(TypeError):
            disk.write(data, 0)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            disk.read_into(data, 0)  # type: ignore[arg-type]


def test_buffers_that_cannot_be_filled_are_refused() -> None:
    with Client("memory:1M") as disk:
        with pytest.raises(BufferError):
            disk.read_into(b"fixed", 0)
        with pytest.raises(BufferError):
            disk.write(memoryview(bytes(16))[::2], 0)
        with pytest.raises(OverflowError):
            disk.read(-1, 0)
        with pytest.raises(TypeError):
            disk.read("1", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("endpoint", "options"),
    [
        ("http://host/disk", {}),
        ("", {}),
        ("sample:1M", {"format": "nonsense"}),
        ("sample:1M", {"filters": ["nonsense"]}),
        ("sample:1M", {"connections": 0}),
        ("sample:1M", {"timeout": -1.0}),
        ("sample:1M", {"timeout": float("nan")}),
        ([], {}),
        (["["], {}),
        ("-", {}),
    ],
)
def test_arguments_that_make_no_sense_are_refused(endpoint: str, options: dict[str, object]) -> None:
    with pytest.raises(blockferry.InvalidInput):
        Client(endpoint, read_only=True, **options)  # type: ignore[arg-type]


def test_an_endpoint_of_a_wrong_type_is_a_wrong_type() -> None:
    with pytest.raises(TypeError, match="an endpoint is a str"):
        Client(5)  # type: ignore[arg-type]


def test_a_backing_file_is_not_opened_unless_it_is_allowed(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.raw", tmp_path / "overlay.qcow2"
    base.write_bytes(b"base" * 16384)
    os.system(f"qemu-img create -q -f qcow2 -F raw -b {base} {overlay}")
    with pytest.raises(PermissionError) as caught:
        Client(overlay, read_only=True)
    assert isinstance(caught.value, blockferry.NotPermitted)
    with Client(overlay, read_only=True, allow_backing=[tmp_path]) as disk:
        assert disk.read(4, 0) == b"base"
    with pytest.raises(blockferry.Error):
        Client(overlay, read_only=True, allow_backing=[tmp_path], max_size=1024)


INTERRUPTED = """
import sys, time
from blockferry import Client
disk = Client({uri!r})
print("reading", flush=True)
try:
    disk.read(512, 0)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    print(len(disk.read(512, 524288)), flush=True)
    disk.close()
"""


def test_ctrl_c_ends_a_call_and_the_client_is_of_use_afterwards(
    nbdkit: Callable[..., Server], script: Callable[..., object]
) -> None:
    # The first half of the disk is never read, as far as a test can wait.
    server = nbdkit(
        "eval",
        "get_size=echo 1048576",
        "pread=if [ $4 -lt 524288 ]; then sleep 600; fi; head -c $3 /dev/zero",
        "thread_model=echo parallel",
    )
    process = script(INTERRUPTED.format(uri=server.uri))
    assert process.stdout.readline() == "reading\n"  # type: ignore[attr-defined]
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)  # type: ignore[attr-defined]
    output, errors = process.communicate(timeout=60)  # type: ignore[attr-defined]
    assert output == "interrupted\n512\n", errors
