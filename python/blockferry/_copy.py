"""`copy`: the command line's, as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import Protocol, Self

from . import _native
from ._types import Endpoint, Progress, Report


class Event(Protocol):
    """What can be asked whether it has happened: `threading.Event`."""

    def is_set(self) -> bool:
        """Whether it has."""
        ...


class _Words(list[str]):
    """The words of a command line. A value never stands alone, so that none is taken for an option."""

    def flag(self, name: str, given: bool) -> Self:
        if given:
            self.append(f"--{name}")
        return self

    def value(self, name: str, value: object | None) -> Self:
        if value is not None:
            self.append(f"--{name}={value}")
        return self


def copy(
    source: Endpoint,
    destination: Endpoint,
    *,
    format: str | None = None,
    output_format: str | None = None,
    options: Mapping[str, object] | None = None,
    compress: bool = False,
    snapshot: str | None = None,
    filters: Sequence[str] = (),
    backing: str | PathLike[str] | None = None,
    backing_format: str | None = None,
    bitmaps: bool = False,
    skip_broken_bitmaps: bool = False,
    salvage: bool = False,
    in_place: bool = False,
    shared: bool = False,
    verify: bool = False,
    checksum: bool | str = False,
    expect: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    report: str | PathLike[str] | None = None,
    flush: bool = True,
    extents: bool = True,
    sparse: int | None = None,
    allocated: bool = False,
    destination_is_zero: bool = False,
    rate: int | None = None,
    retries: int | None = None,
    timeout: int | None = None,
    connections: int | None = None,
    requests: int | None = None,
    parallel: int | None = None,
    request_size: int | None = None,
    queue_size: int | None = None,
    in_order: bool = False,
    out_of_order: bool = False,
    allow_backing: Sequence[str | PathLike[str]] = (),
    max_size: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    interval: float = 0.1,
    cancel: Event | None = None,
) -> Report:
    """Copies an image from one endpoint to another, and from one format to another.

    What it does, refuses and promises is what `blockferry copy` does, and options without a value here have the command
    line's: a new file appears when it is whole and durable, one that is there is written in place, an image's backing
    file is only opened where `allow_backing` says so, and the destination is flushed before this returns. Messages call
    the options as the command line does. Sizes are bytes.

    source, destination  endpoints, as of `Client`
    format               what the source is in; None: a local file is looked into, everything else is raw
    output_format        what the destination becomes: "raw" (the default), "qcow2", "vmdk", "vpc", "vhdx", "vdi", "gzip", "zstd"
    options              how that is made: {"cluster_size": "128K"}
    compress             compress a qcow2 destination
    snapshot             the internal snapshot of the source that is read
    filters              what stands in front of the source, the first one nearest to the reader
    backing              make an overlay, which has only what differs from this file; its format: backing_format
    bitmaps              copy the persistent bitmaps, too; skip_broken_bitmaps leaves out those that are broken
    salvage              go on where the source cannot be read
    in_place             write into the destination as it is: --no-create
    shared               it is known that others may write the source meanwhile: --force-share
    verify               read the destination back in the end
    checksum             compute the digest: True, or "ALGORITHM/SIZE"; expect: fail unless it is this one
    checkpoint           a file in which it is noted what is done, so that the same call goes on from there
    report               an HTML page that is written about the copy, also when it fails
    flush                wait until the destination is durable
    extents              ask the source where its holes are
    sparse               make holes where so many bytes are zero; 0: look for none
    allocated            allocate the whole destination
    destination_is_zero  trust that the destination reads as zeroes
    rate                 bytes of data a second at most
    retries              attempts in a row that may fail to open a lost connection again
    timeout              seconds that a server which owes an answer may move no byte; 0: for ever
    connections, requests, parallel, request_size, queue_size, in_order, out_of_order
                         how it goes about it; without them as fits best
    allow_backing        directories, or files, in which other files may be opened that an image names
    max_size             the largest disk that is opened of an image in a format
    progress             called with a `Progress`, on this thread, not more often than every `interval` seconds. What it
                         raises ends the copy and is raised here
    cancel               a `threading.Event`: the copy ends soon after it is set, with `Cancelled`

    The interpreter is only held while `progress` runs. A signal whose handler raises (Ctrl-C) ends the copy; what is in
    flight is finished, for some seconds at most, and a second one ends it at once.

    >>> done = copy("sample:1M", "null:", checksum=True)
    >>> done.size, done.data + done.zero, done.digest_algorithm
    (1048576, 1048576, 'sha256/64k')
    """
    words = _Words()
    words.value("source-format", format).value("output-format", output_format)
    for key, value in (options or {}).items():
        words.value("option", f"{key}={_text(value).replace(',', ',,')}")
    words.flag("compress", compress).value("snapshot", snapshot)
    for one in filters:
        words.value("filter", one)
    words.value("backing", None if backing is None else fspath(backing))
    words.value("backing-format", backing_format)
    words.flag("bitmaps", bitmaps).flag("skip-broken-bitmaps", skip_broken_bitmaps)
    words.flag("salvage", salvage).flag("no-create", in_place).flag("force-share", shared)
    words.flag("verify", verify).value("expect", expect)
    words.flag("checksum", checksum is True)
    words.value("checksum", checksum if isinstance(checksum, str) else None)
    words.value("checkpoint", None if checkpoint is None else fspath(checkpoint))
    words.value("report", None if report is None else fspath(report))
    words.flag("no-flush", not flush).flag("no-extents", not extents)
    words.value("sparse", sparse).flag("allocated", allocated)
    words.flag("destination-is-zero", destination_is_zero)
    words.value("rate", rate).value("retries", retries).value("timeout", timeout)
    words.value("connections", connections).value("requests", requests)
    words.value("parallel", parallel)
    words.value("request-size", request_size).value("queue-size", queue_size)
    words.flag("in-order", in_order).flag("out-of-order", out_of_order)
    for place in allow_backing:
        words.value("allow-backing", fspath(place))
    words.value("max-size", max_size)
    tell = None if progress is None else lambda *facts: progress(Progress(*facts))
    facts = _native.copy(words, [source, destination], tell, interval, cancel)
    return Report(**facts)


def _text(value: object) -> str:
    """An option's value as the command line spells it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
