"""The exceptions: what failed, where, why, and whether trying again may help."""

from __future__ import annotations

import errno as _errno
from typing import Any


class Error(OSError):
    """Something failed. Its subclasses tell the kinds apart.

    `kind` is a word that stays the same ("no-space"), `operation` what was being done ("read"), `offset` and `length`
    the range in bytes, `endpoint` the image as it was named, `transient` whether trying again may help. `notes` say
    what else there is to know, and `hint` what can be done about it; a traceback shows both. `errno` is the system's
    number for the failure, where there is one.
    """

    kind: str
    operation: str | None
    offset: int | None
    length: int | None
    endpoint: str | None
    transient: bool
    notes: tuple[str, ...]
    hint: str | None

    def __init__(
        self,
        message: str,
        *,
        kind: str = "failed",
        operation: str | None = None,
        offset: int | None = None,
        length: int | None = None,
        endpoint: str | None = None,
        transient: bool = False,
        errno: int | None = None,
        notes: tuple[str, ...] | list[str] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.errno = _ERRNO.get(kind) if errno is None else errno
        self.strerror = message
        self.kind = kind
        self.operation = operation
        self.offset = offset
        self.length = length
        self.endpoint = endpoint
        self.transient = transient
        self.notes = tuple(notes)
        self.hint = hint
        for note in self.notes:
            self.add_note(note)
        if hint is not None:
            self.add_note(f"hint: {hint}")

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {
            name: getattr(self, name)
            for name in (
                "kind",
                "operation",
                "offset",
                "length",
                "endpoint",
                "transient",
                "errno",
                "notes",
                "hint",
            )
        }
        return _again, (type(self), self.args[0], facts)


def _again(cls: type[Error], message: str, facts: dict[str, Any]) -> Error:
    return cls(message, **facts)


class ConnectionLost(Error, ConnectionError):
    """The connection to the server broke."""


class TimedOut(Error, TimeoutError):
    """The server did not answer in time."""


class ShuttingDown(Error):
    """The server is shutting down."""


class NotFound(Error, FileNotFoundError):
    """There is no such file, export or host."""


class Refused(Error, ConnectionRefusedError):
    """The server said no, or nobody listens there."""


class NotPermitted(Error, PermissionError):
    """The permissions do not allow it, or the image may not be trusted so far."""


class ReadOnly(Error):
    """The image cannot be written."""


class InvalidInput(Error, ValueError):
    """The request makes no sense, or breaks the rules of the image: its block sizes, for one."""


class OutOfBounds(Error, ValueError):
    """The range lies outside of the image."""


class NoSpace(Error):
    """The destination is full."""


class OutOfMemory(Error, MemoryError):
    """Memory ran out."""


class Overflow(Error):
    """The answer is longer than the request allows."""


class Unsupported(Error):
    """The image cannot do this at all."""


class ProtocolError(Error):
    """The server broke the protocol."""


class Incompatible(Error):
    """The server speaks something else, or lacks what is needed."""


class UnexpectedEnd(Error, EOFError):
    """The data came to an end too early."""


class Mismatch(Error):
    """The data is not what it should be: a digest, or what was read back."""


class Corrupt(Error):
    """What an image consists of contradicts itself, or the rules of its format."""


class ReaderGone(Error, BrokenPipeError):
    """The reader of the output went away."""


class Cancelled(Error):
    """Somebody asked it to end."""


_CLASSES: dict[str, type[Error]] = {
    "connection-lost": ConnectionLost,
    "timed-out": TimedOut,
    "shutting-down": ShuttingDown,
    "not-found": NotFound,
    "refused": Refused,
    "not-permitted": NotPermitted,
    "read-only": ReadOnly,
    "invalid-input": InvalidInput,
    "usage": InvalidInput,
    "out-of-bounds": OutOfBounds,
    "no-space": NoSpace,
    "out-of-memory": OutOfMemory,
    "overflow": Overflow,
    "unsupported": Unsupported,
    "protocol": ProtocolError,
    "incompatible": Incompatible,
    "unexpected-end": UnexpectedEnd,
    "mismatch": Mismatch,
    "corrupt": Corrupt,
    "broken-pipe": ReaderGone,
    "cancelled": Cancelled,
    "interrupted": Cancelled,
}

_ERRNO: dict[str, int] = {
    "io": _errno.EIO,
    "connection-lost": _errno.ECONNRESET,
    "timed-out": _errno.ETIMEDOUT,
    "shutting-down": _errno.ESHUTDOWN,
    "not-found": _errno.ENOENT,
    "refused": _errno.ECONNREFUSED,
    "not-permitted": _errno.EPERM,
    "read-only": _errno.EROFS,
    "invalid-input": _errno.EINVAL,
    "usage": _errno.EINVAL,
    "out-of-bounds": _errno.EINVAL,
    "no-space": _errno.ENOSPC,
    "out-of-memory": _errno.ENOMEM,
    "overflow": _errno.EOVERFLOW,
    "unsupported": _errno.ENOTSUP,
    "broken-pipe": _errno.EPIPE,
    "cancelled": _errno.ECANCELED,
    "interrupted": _errno.ECANCELED,
}


def of_failure(message: str, **facts: Any) -> Error:
    """The exception for a failure of the kind that `facts` say."""
    return _CLASSES.get(facts["kind"], Error)(message, **facts)
