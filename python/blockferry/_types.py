"""What functions return."""

from __future__ import annotations

from typing import NamedTuple


class BlockSizes(NamedTuple):
    """What the requests of an image look like, in bytes."""

    minimum: int
    """Offsets and lengths are multiples of this, but at the end of the image."""
    preferred: int
    """The size that works best."""
    maximum: int
    """The longest request that is sent; longer calls are cut."""
