"""Serving an image while a block of code runs."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
from pathlib import Path

import pytest
from conftest import SIZE, are_closed, descriptors

import blockferry
from blockferry import Client, serve


def test_others_can_reach_what_is_served(disk: Path) -> None:
    with serve(disk, read_only=True) as served:
        assert served.uri in repr(served)
        assert stat.S_IMODE(os.stat(os.path.dirname(served.socket)).st_mode) == 0o700
        size = subprocess.check_output(["nbdinfo", "--size", served.uri])
        assert int(size) == SIZE
        with Client(served.uri) as client:
            assert client.read_only
            assert client.read(SIZE, 0) == disk.read_bytes()
    assert not os.path.exists(os.path.dirname(served.socket))


def test_what_clients_wrote_is_there_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    os.system(f"qemu-img create -q -f qcow2 {path} 1M")
    with serve(path, socket=tmp_path / "socket") as served, Client(served.uri) as disk:
        assert served.socket == str(tmp_path / "socket")
        disk.write(b"x" * 65536, 0)
    assert not (tmp_path / "socket").exists()
    assert subprocess.call(["qemu-img", "check", "-q", str(path)]) == 0
    with Client(path, read_only=True) as disk:
        assert disk.read(4, 0) == b"xxxx"


def test_filters_and_other_servers_are_served() -> None:
    with serve(["nbdkit", "memory", "1M"], connections=2) as inner:
        with serve(inner.uri, filters=["offset:4096"]) as outer, Client(outer.uri) as disk:
            disk.write(b"inside", 0)
        with Client(inner.uri) as disk:
            assert disk.read(6, 4096) == b"inside"


def test_what_cannot_be_served_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(blockferry.NotFound):
        serve(tmp_path / "missing")
    socket = tmp_path / "socket"
    with serve("memory:1M", socket=socket):
        with pytest.raises(blockferry.Error, match="in use"):
            serve("memory:1M", socket=socket)
        Client(f"nbd+unix:///?socket={socket}").close()


def test_nothing_is_left_behind() -> None:
    with serve("memory:1M"):
        pass
    gc.collect()
    before = descriptors()
    for _ in range(10):
        with serve("memory:1M") as served, Client(served.uri) as disk:
            disk.read(512, 0)
        served.close()
    gc.collect()
    assert are_closed(before)
