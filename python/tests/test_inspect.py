"""`info`, `map` and `map_offsets`: what the command line tells, as values."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROGRAM, SIZE, Server

import blockferry
from blockferry import Extent, info, map, map_offsets


def told(*words: str) -> object:
    return json.loads(subprocess.check_output([PROGRAM, *words]))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    base, overlay = tmp_path / "base.raw", tmp_path / "overlay.qcow2"
    base.write_bytes(b"b" * 65536 + bytes(1 << 20))
    os.system(f"qemu-img create -q -f qcow2 -F raw -b {base} {overlay}")
    os.system(f"qemu-io -c 'write -P 1 128k 64k' {overlay} > /dev/null")
    return overlay


def test_what_is_known_is_what_the_command_line_tells(writable: str) -> None:
    known = info(writable)
    assert known.raw == told("info", "--json", writable)
    assert known.export.size == SIZE
    assert known.export.read_only is False
    assert "base:allocation" in known.export.contexts
    assert {"flush", "fua"} <= known.export.abilities
    if known.server is not None:
        assert known.server.protocol == "newstyle-fixed" and not known.server.tls
        assert known.export.uri == writable


def test_an_image_tells_its_format_and_its_chain(chain: Path) -> None:
    facts = info(chain).export.format
    assert facts is not None
    assert (facts.name, facts.virtual_size) == ("qcow2", (1 << 20) + 65536)
    assert facts.backing_filename == str(chain.with_name("base.raw"))
    assert facts.backing_filename_format == "raw"
    with pytest.raises(blockferry.NotPermitted):
        info(chain, backing_chain=True)
    facts = info(chain, backing_chain=True, allow_backing=[chain.parent]).export.format
    assert facts is not None and len(facts.raw["chain"]) == 1
    assert info(chain, format="raw").export.format is None


def test_all_exports_of_a_server_are_listed(tmp_path: Path, start: Callable[..., Server]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "disk").write_bytes(bytes(4096))
    (tmp_path / "exports").mkdir()
    for name, size in (("a", 4096), ("b", 8192)):
        (tmp_path / "exports" / name).write_bytes(bytes(size))
    server = start("nbdkit", "--foreground", "--unix=SOCKET", "file", f"dir={tmp_path}/exports")
    exports = info(server.uri, list=True).exports
    assert {(export.name, export.size) for export in exports} == {("a", 4096), ("b", 8192)}
    with pytest.raises(ValueError):
        info(server.uri, list=True).export
    with pytest.raises(blockferry.InvalidInput):
        info("sample:1M", list=True)


def test_the_map_is_the_command_lines(writable: str) -> None:
    extents = map(writable)
    listed = told("map", "--json", writable)
    assert isinstance(listed, list)
    assert extents == [Extent(one["offset"], one["length"], one["type"]) for one in listed]


def test_the_depth_of_a_chain_is_a_context(chain: Path) -> None:
    extents = map(chain, "qemu:allocation-depth", allow_backing=[chain.parent])
    assert {extent.flags for extent in extents} == {1, 2}
    with pytest.raises(blockferry.Unsupported, match="x:y"):
        map(chain, "x:y", allow_backing=[chain.parent])
    with pytest.raises(blockferry.NotPermitted):
        map(chain)


def test_filters_are_mapped_through() -> None:
    extents = map("sample:4M", filters=["truncate:1M"])
    assert sum(extent.length for extent in extents) == 1 << 20


def test_offsets_are_the_command_lines(chain: Path) -> None:
    allowed = chain.parent
    entries = map_offsets(chain, allow_backing=[allowed])
    listed = told("map", "--offsets", "--json", f"--allow-backing={allowed}", str(chain))
    assert isinstance(listed, list)
    assert [entry.start for entry in entries] == [one["start"] for one in listed]
    assert [entry.offset for entry in entries] == [one.get("offset") for one in listed]
    assert {entry.depth for entry in entries} == {0, 1}
    assert entries[0].filename == str(chain.with_name("base.raw"))


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    for ask in (info, map, map_offsets):
        with pytest.raises(blockferry.NotFound):
            ask(tmp_path / "missing")
        with pytest.raises(blockferry.Refused):
            ask("nbd://127.0.0.1:1/")
