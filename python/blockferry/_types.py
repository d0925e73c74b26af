"""What functions take and return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal, NamedTuple

Endpoint = str | PathLike[str] | Sequence[str]
"""What stands for an image: the text of the command line, a path, or the words of a command that serves it."""


class BlockSizes(NamedTuple):
    """What the requests of an image look like, in bytes."""

    minimum: int
    """Offsets and lengths are multiples of this, but at the end of the image."""
    preferred: int
    """The size that works best."""
    maximum: int
    """The longest request that is sent; longer calls are cut."""


class Progress(NamedTuple):
    """How far a copy is, in bytes."""

    phase: Literal["copying", "flushing", "verifying"]
    done: int
    """What is in the destination; of a destination that is read back, what was compared."""
    size: int | None
    """The size of the image; `None` where the end of a stream will tell."""
    data: int
    """What was moved as data."""
    zero: int
    """What was zeroes."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a copy did. Sizes are bytes."""

    size: int
    """The size of the image."""
    data: int
    """What was moved as data."""
    zero: int
    """What was zeroes, known or found."""
    seconds: float
    """How long it took."""
    flushed: bool
    """Whether the destination was made durable."""
    verified: bool
    """Whether it was read back, and held what was written."""
    resumed: int
    """What an earlier copy had done, as a checkpoint said."""
    reconnections: int
    """How many lost connections were opened again."""
    digest: str | None
    """The digest, where one was wanted."""
    digest_algorithm: str | None
    """How it was computed: "sha256/64k"."""
    source_connections: int
    destination_connections: int
    request_size: int
    """The bytes per request in the end."""
    queue_size: int
    """The bytes in flight in the end, at most."""
    warnings: tuple[str, ...]
    """What was not as it should be, in sentences."""

    @property
    def bytes_per_second(self) -> float:
        """How fast this copy was."""
        return (self.size - self.resumed) / max(self.seconds, 0.001)


class MapEntry(NamedTuple):
    """A part of an image's disk, and where it lies."""

    start: int
    """Where it begins on the disk, in bytes."""
    length: int
    """How long it is, in bytes."""
    depth: int
    """Which image of the chain it is in, from 0 on."""
    present: bool
    """Whether an image says anything of it."""
    zero: bool
    """Whether it reads as zeroes."""
    data: bool
    """Whether it has space in a file."""
    compressed: bool
    """Whether it is compressed there."""
    offset: int | None
    """Where its first byte lies in that file."""
    filename: str | None
    """That file."""
