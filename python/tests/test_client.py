"""Reading and writing in place, through each kind of server."""

from __future__ import annotations

import array
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SIZE, Server, are_closed, descriptors

import blockferry
from blockferry import Client, Extent


def test_what_a_disk_is_can_be_asked(writable: str) -> None:
    with Client(writable) as disk:
        assert disk.size == SIZE
        assert not disk.read_only
        assert disk.endpoint == writable
        assert disk.block_sizes.minimum == disk.block_sizes[0]
        assert {"write", "flush"} <= disk.capabilities
        assert disk.contexts == ("base:allocation",)
        assert disk.format == "raw"


def test_data_is_read(writable: str, disk: Path) -> None:
    expected = disk.read_bytes()
    with Client(writable) as client:
        assert client.read(512, 0) == bytes(range(256)) * 2
        assert client.read(SIZE, 0) == expected
        assert client.read(0, SIZE) == b""
        assert client.read(SIZE - 1024, 512) == expected[512:-512]


def test_what_was_written_is_read(writable: str, disk: Path) -> None:
    data = os.urandom(3 << 20)
    with Client(writable) as client:
        client.write(data, 512)
        client.write(bytearray(b"x" * 512), 0, fua=True)
        client.write(memoryview(data)[:512], SIZE - 512)
        client.flush()
        assert client.read(512 + len(data), 0) == b"x" * 512 + data
    written = disk.read_bytes()
    assert written[512 : 512 + len(data)] == data
    assert written[-512:] == data[:512]


@pytest.mark.parametrize("kind", [bytearray, lambda n: array.array("Q", bytes(n))])
def test_any_buffer_is_read_into(
    writable: str, disk: Path, kind: Callable[[int], bytearray | array.array[int]]
) -> None:
    with Client(writable) as client:
        buffer = kind(SIZE)
        client.read_into(buffer, 0)
        assert bytes(buffer) == disk.read_bytes()
        part = memoryview(bytearray(8192))[1024:2048]
        client.read_into(part, 1024)
        assert bytes(part) == disk.read_bytes()[1024:2048]
        client.read_into(bytearray(), SIZE)


def test_items_of_any_size_are_written(writable: str) -> None:
    numbers = array.array("I", range(1 << 18))
    with Client(writable) as client:
        client.write(numbers, 0)
        assert client.read(len(numbers) * 4, 0) == numbers.tobytes()


def test_zeroes_are_made(writable: str) -> None:
    with Client(writable) as client:
        client.zero(65536, 65536)
        client.zero(65536, 262144, no_hole=True, fua=True)
        assert client.read(65536, 65536) == bytes(65536)
        assert client.read(65536, 262144) == bytes(65536)
        assert client.read(512, 0) == bytes(range(256)) * 2


def test_a_range_is_discarded(writable: str) -> None:
    with Client(writable) as client:
        if "trim" in client.capabilities:
            client.trim(1 << 20, 0)
        client.cache(65536, 1 << 20)
        assert client.read(512, SIZE - 512) == b"end!" * 128


def test_extents_tell_holes_from_data(writable: str) -> None:
    with Client(writable) as client:
        extents = client.extents()
        assert sum(extent.length for extent in extents) == SIZE
        assert [extent.data for extent in extents] == [True, False, True]
        hole = extents[1]
        assert hole == Extent(1 << 20, 2 << 20, 3)
        assert hole.hole and hole.zero and hole.end == 3 << 20
        part = client.extents(1 << 20, 512 << 10)
        assert [(one.offset, one.length) for one in part] == [
            (512 << 10, 512 << 10),
            (1 << 20, 512 << 10),
        ]
        assert client.extents(0, 0) == []


def test_an_image_in_a_format_is_its_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    os.system(f"qemu-img create -q -f qcow2 {path} 1M")
    with Client(path) as disk:
        assert (disk.size, disk.format) == (1 << 20, "qcow2")
        disk.write(b"a" * 65536, 65536)
        disk.flush()
    with Client(path, read_only=True) as disk:
        assert disk.read(4, 65536) == b"aaaa"
        assert [one.data for one in disk.extents()] == [False, True, False]
    with Client(path, format="raw", read_only=True) as file:
        assert file.read(4, 0) == b"QFI\xfb"


def test_filters_stand_in_front() -> None:
    with Client("pattern:1M", read_only=True, filters=["offset:65536"]) as disk:
        assert disk.size == (1 << 20) - 65536
        assert disk.read(8, 0) == (65536).to_bytes(8, "big")


def test_a_command_is_started_and_ended() -> None:
    with Client(["nbdkit", "-f", "memory", "1M"]) as disk:
        disk.write(b"hello", 0)
        assert disk.read(5, 0) == b"hello"


def test_several_connections_are_one_disk(nbdkit: Callable[..., Server]) -> None:
    with Client(nbdkit("memory", "8M").uri, connections=4) as disk:
        data = os.urandom(8 << 20)
        disk.write(data, 0)
        assert disk.read(8 << 20, 0) == data


def test_nothing_is_left_open(nbdkit: Callable[..., Server]) -> None:
    server = nbdkit("memory", "1M")
    with Client(server.uri):
        pass
    gc.collect()
    before = descriptors()
    for _ in range(20):
        with Client(server.uri, connections=2) as disk:
            disk.read(512, 0)
        # Collected without being closed.
        Client(server.uri).read(512, 0)
        with pytest.raises(blockferry.NotFound):
            Client(f"nbd+unix:///?socket={server.socket}-gone")
    gc.collect()
    assert are_closed(before)


def test_an_object_tells_what_it_is() -> None:
    disk = Client("sample:1M", read_only=True)
    assert repr(disk) == "<blockferry.Client \"sample:1M\", 1048576 bytes>"
    disk.close()
    disk.close()
    assert disk.closed and "closed" in repr(disk)
    assert repr(Extent(0, 1, 2)) == "Extent(offset=0, length=1, flags=2)"
    assert Client.__doc__ is not None and "timeout" in Client.__doc__
