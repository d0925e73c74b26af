"""Moves disk images between NBD servers, files, devices and image formats.

`Client` reads and writes an image in place, `copy` moves a whole one, `info` and `map` tell what it is and where it
has data, `serve` serves one over NBD. Whatever fails raises an `Error`.

>>> import blockferry
>>> with blockferry.Client("sample:1M", read_only=True) as disk:
...     sector = disk.read(512, 0)
...     [extent for extent in disk.extents() if extent.data][:1]
[Extent(offset=65536, length=131072, flags=0)]
"""

from ._copy import copy
from ._errors import (
    Cancelled,
    ConnectionLost,
    Corrupt,
    Error,
    Incompatible,
    InvalidInput,
    Mismatch,
    NoSpace,
    NotFound,
    NotPermitted,
    OutOfBounds,
    OutOfMemory,
    Overflow,
    ProtocolError,
    ReaderGone,
    ReadOnly,
    Refused,
    ShuttingDown,
    TimedOut,
    UnexpectedEnd,
    Unsupported,
)
from ._inspect import ExportInfo, ImageInfo, Info, Server, info, map, map_offsets
from ._native import Client, Extent, __version__, serve
from ._types import BlockSizes, Endpoint, MapEntry, Progress, Report

__all__ = [
    "BlockSizes",
    "Cancelled",
    "Client",
    "ConnectionLost",
    "Corrupt",
    "Endpoint",
    "Error",
    "ExportInfo",
    "Extent",
    "ImageInfo",
    "Incompatible",
    "Info",
    "InvalidInput",
    "MapEntry",
    "Mismatch",
    "NoSpace",
    "NotFound",
    "NotPermitted",
    "OutOfBounds",
    "OutOfMemory",
    "Overflow",
    "Progress",
    "ProtocolError",
    "ReadOnly",
    "ReaderGone",
    "Refused",
    "Report",
    "Server",
    "ShuttingDown",
    "TimedOut",
    "UnexpectedEnd",
    "Unsupported",
    "__version__",
    "copy",
    "info",
    "map",
    "map_offsets",
    "serve",
]
