"""What the package has from Rust."""

from collections.abc import Callable, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Final, final

from typing_extensions import Buffer

from ._types import BlockSizes, MapEntry

__all__ = ["Client", "Extent", "__version__", "copy", "info", "map", "map_offsets", "serve"]

__version__: Final[str]

@final
class Extent:
    offset: Final[int]
    length: Final[int]
    flags: Final[int]
    __match_args__: Final = ("offset", "length", "flags")
    def __new__(cls, offset: int, length: int, flags: int) -> Extent: ...
    @property
    def end(self) -> int: ...
    @property
    def hole(self) -> bool: ...
    @property
    def zero(self) -> bool: ...
    @property
    def data(self) -> bool: ...
    def __getnewargs__(self) -> tuple[int, int, int]: ...
    def __hash__(self) -> int: ...
    def __eq__(self, value: object, /) -> bool: ...

@final
class Client:
    def __new__(
        cls,
        endpoint: str | PathLike[str] | Sequence[str],
        *,
        read_only: bool = False,
        connections: int = 1,
        retries: int = 0,
        timeout: float | None = None,
        format: str | None = None,
        snapshot: str | None = None,
        filters: Sequence[str] = ...,
        contexts: Sequence[str] | None = None,
        allow_backing: Sequence[str | PathLike[str]] = ...,
        max_size: int | None = None,
    ) -> Client: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def rotational(self) -> bool: ...
    @property
    def description(self) -> str | None: ...
    @property
    def block_sizes(self) -> BlockSizes: ...
    @property
    def capabilities(self) -> frozenset[str]: ...
    @property
    def contexts(self) -> tuple[str, ...]: ...
    @property
    def closed(self) -> bool: ...
    def read(self, length: int, offset: int) -> bytes: ...
    def read_into(self, buffer: Buffer, offset: int) -> None: ...
    def write(self, data: Buffer, offset: int, *, fua: bool = False) -> None: ...
    def zero(
        self, length: int, offset: int, *, no_hole: bool = False, fua: bool = False
    ) -> None: ...
    def trim(self, length: int, offset: int, *, fua: bool = False) -> None: ...
    def flush(self) -> None: ...
    def cache(self, length: int, offset: int) -> None: ...
    def extents(
        self, length: int | None = None, offset: int = 0, context: str = "base:allocation"
    ) -> list[Extent]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Client: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class serve:
    def __new__(
        cls,
        endpoint: str | PathLike[str] | Sequence[str],
        *,
        socket: str | PathLike[str] | None = None,
        read_only: bool = False,
        connections: int = 1,
        timeout: float | None = None,
        format: str | None = None,
        snapshot: str | None = None,
        filters: Sequence[str] = ...,
        allow_backing: Sequence[str | PathLike[str]] = ...,
        max_size: int | None = None,
    ) -> serve: ...
    @property
    def uri(self) -> str: ...
    @property
    def socket(self) -> str: ...
    def close(self) -> None: ...
    def __enter__(self) -> serve: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

def copy(
    words: Sequence[str],
    images: Sequence[str | PathLike[str] | Sequence[str]],
    progress: Callable[..., object] | None,
    interval: float,
    cancel: object | None,
) -> dict[str, Any]: ...
def info(
    endpoint: str | PathLike[str] | Sequence[str],
    *,
    format: str | None,
    list: bool,
    backing_chain: bool,
    allow_backing: Sequence[str | PathLike[str]],
    max_size: int | None,
    timeout: float | None,
) -> str: ...
def map(
    endpoint: str | PathLike[str] | Sequence[str],
    *,
    context: str,
    format: str | None,
    filters: Sequence[str],
    allow_backing: Sequence[str | PathLike[str]],
    max_size: int | None,
    timeout: float | None,
) -> list[Extent]: ...
def map_offsets(
    endpoint: str | PathLike[str] | Sequence[str],
    *,
    format: str | None,
    allow_backing: Sequence[str | PathLike[str]],
    max_size: int | None,
    timeout: float | None,
) -> list[MapEntry]: ...
