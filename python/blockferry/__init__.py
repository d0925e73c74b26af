"""Moves disk images between NBD servers, files, devices and image formats.

`Client` reads and writes an image in place.

>>> import blockferry
>>> with blockferry.Client("sample:1M", read_only=True) as disk:
...     sector = disk.read(512, 0)
...     [extent for extent in disk.extents() if extent.data][:1]
[Extent(offset=0, length=65536, flags=0)]
"""

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
from ._native import Client, Extent, __version__
from ._types import BlockSizes

__all__ = [
    "BlockSizes",
    "Cancelled",
    "Client",
    "ConnectionLost",
    "Corrupt",
    "Error",
    "Extent",
    "Incompatible",
    "InvalidInput",
    "Mismatch",
    "NoSpace",
    "NotFound",
    "NotPermitted",
    "OutOfBounds",
    "OutOfMemory",
    "Overflow",
    "ProtocolError",
    "ReadOnly",
    "ReaderGone",
    "Refused",
    "ShuttingDown",
    "TimedOut",
    "UnexpectedEnd",
    "Unsupported",
    "__version__",
]
