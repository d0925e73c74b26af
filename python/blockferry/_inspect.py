"""`info`, `map` and `map_offsets`: what is known of an image without reading it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from . import _native
from ._native import Extent
from ._types import BlockSizes, Endpoint, MapEntry


@dataclass(frozen=True, slots=True)
class Server:
    """What holds for the connection to a server."""

    protocol: str
    """The style of the handshake: "newstyle-fixed", ..."""
    tls: bool
    """Whether it is encrypted."""
    structured: bool
    """Whether replies come in chunks."""
    extended: bool
    """Whether requests have 64 bit lengths."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of an image in a format. What came from the image is as hostile as it is."""

    name: str
    """The format: "qcow2", ..."""
    virtual_size: int
    """The size of its disk in bytes."""
    cluster_size: int | None
    """The size of its clusters in bytes."""
    backing_filename: str | None
    """The image behind it, as it names that."""
    backing_filename_format: str | None
    """The format of that, as it says."""
    raw: dict[str, Any]
    """All that `blockferry info --json` has below `format`: snapshots, bitmaps, the chain, and what only this format
    has to tell."""


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What is known of one image. What came from its server is as hostile as the server."""

    name: str
    """The name; of what needs no server, as it was written."""
    size: int | None
    """Its size in bytes; `None` where it could not be asked, and `error` says why."""
    error: str | None
    """Why nothing more is known of it."""
    description: str | None
    """What the server says of it to people."""
    uri: str | None
    """Where others find it."""
    contexts: tuple[str, ...]
    """What `extents` can be asked for."""
    block_sizes: BlockSizes | None
    """The block sizes that it told."""
    read_only: bool | None
    """Whether it takes no writes."""
    rotational: bool | None
    """Whether it says that it is a spinning disk."""
    abilities: frozenset[str]
    """What it can do: "flush", "fua", "trim", "zero", "fast_zero", "cache", "df", "multi_conn", ..."""
    disk_size: int | None
    """The space that its file takes, in bytes."""
    format: ImageInfo | None
    """What is known of the image that its bytes are."""


@dataclass(frozen=True, slots=True)
class Info:
    """What a server, a file or an image offers."""

    exports: tuple[ExportInfo, ...]
    """The image, or all that a server lists."""
    server: Server | None
    """What holds for the connection, where there is a server."""
    raw: dict[str, Any]
    """What `blockferry info --json` prints."""

    @property
    def export(self) -> ExportInfo:
        """The one image."""
        (export,) = self.exports
        return export


def info(
    endpoint: Endpoint,
    *,
    format: str | None = None,
    list: bool = False,
    backing_chain: bool = False,
    allow_backing: Sequence[str | PathLike[str]] = (),
    max_size: int | None = None,
    timeout: float | None = None,
) -> Info:
    """What a server, a file or an image offers: what `blockferry info` tells.

    The parameters are those of `Client`. `list` asks an NBD server for all of its exports, `backing_chain` looks at the
    images behind this one, too.

    >>> info("sample:1M").export.size
    1048576
    """
    text = _native.info(
        endpoint,
        format=format,
        list=list,
        backing_chain=backing_chain,
        allow_backing=allow_backing,
        max_size=max_size,
        timeout=timeout,
    )
    raw: dict[str, Any] = json.loads(text)
    server = None
    if "protocol" in raw:
        server = Server(raw["protocol"], raw["TLS"], raw["structured"], raw["extended"])
    return Info(tuple(_export(export) for export in raw["exports"]), server, raw)


def _export(raw: dict[str, Any]) -> ExportInfo:
    """An export as JSON tells it."""
    sizes = None
    if "block_size_minimum" in raw:
        names = ("minimum", "preferred", "maximum")
        sizes = BlockSizes(*(raw[f"block_size_{name}"] for name in names))
    able = (key.removeprefix("can_") for key, can in raw.items() if key[:4] == "can_" and can)
    return ExportInfo(
        name=raw["export-name"],
        size=raw.get("export-size"),
        error=raw.get("error"),
        description=raw.get("description"),
        uri=raw.get("uri"),
        contexts=tuple(raw.get("contexts", ())),
        block_sizes=sizes,
        read_only=raw.get("is_read_only"),
        rotational=raw.get("is_rotational"),
        abilities=frozenset(able),
        disk_size=raw.get("disk-size"),
        format=None if "format" not in raw else _image(raw["format"]),
    )


def _image(raw: dict[str, Any]) -> ImageInfo:
    """An image as JSON tells it."""
    return ImageInfo(
        name=raw["name"],
        virtual_size=raw["virtual-size"],
        cluster_size=raw.get("cluster-size"),
        backing_filename=raw.get("backing-filename"),
        backing_filename_format=raw.get("backing-filename-format"),
        raw=raw,
    )


def map(
    endpoint: Endpoint,
    context: str = "base:allocation",
    *,
    format: str | None = None,
    filters: Sequence[str] = (),
    allow_backing: Sequence[str | PathLike[str]] = (),
    max_size: int | None = None,
    timeout: float | None = None,
) -> list[Extent]:
    """The extents of an image, in order: what `blockferry map` tells.

    The parameters are those of `Client`; `context` is what is asked for: "base:allocation" for holes and zeroes,
    "qemu:dirty-bitmap:NAME", "qemu:allocation-depth".

    >>> sum(extent.length for extent in map("sample:1M"))
    1048576
    """
    return _native.map(
        endpoint,
        context=context,
        format=format,
        filters=filters,
        allow_backing=allow_backing,
        max_size=max_size,
        timeout=timeout,
    )


def map_offsets(
    endpoint: Endpoint,
    *,
    format: str | None = None,
    allow_backing: Sequence[str | PathLike[str]] = (),
    max_size: int | None = None,
    timeout: float | None = None,
) -> list[MapEntry]:
    """Where the bytes of an image lie, through its whole chain: what `blockferry map --offsets` tells.

    The parameters are those of `Client`.

    >>> [(entry.start, entry.offset) for entry in map_offsets("sample:1M")][:1]
    [(0, 0)]
    """
    return _native.map_offsets(
        endpoint,
        format=format,
        allow_backing=allow_backing,
        max_size=max_size,
        timeout=timeout,
    )
