"""The errors of the engine, in one family.

Every failure a caller can meet is a :class:`StorageError`; its text says what was wrong and what to
do about it. Services map the classes to their own status codes.
"""

from __future__ import annotations

from typing import Any


class StorageError(Exception):
    """Base of all errors raised by ``storage``. They can be pickled, which ``multiprocessing`` needs."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ would call the class with the text alone, but some classes take other arguments.
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(cls: type[StorageError], args: tuple[Any, ...], attributes: dict[str, Any]) -> StorageError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


class FileNotFound(StorageError):
    """No file with this id or name exists, or it has been deleted, or is another user's."""


class VersionNotFound(StorageError):
    """The file exists, but has no such version in its chain."""


class PermissionDenied(StorageError):
    """The request is not allowed, for instance access to a secret, an outside address or a blocked name."""


class ConflictError(StorageError):
    """A change cannot be applied, because its base is no longer the head of the file.

    Attributes:
        head: version id (hex) of the present head.
        base: version id (hex) that the refused change was made against, or None.
    """

    def __init__(self, message: str, *, head: str, base: str | None = None) -> None:
        super().__init__(message)
        self.head = head
        self.base = base


class InvalidArgument(StorageError):
    """An argument or an outside input (a diff, a name, a request) is malformed or out of bounds."""


class DataLossError(StorageError):
    """Fewer intact shards of an object are left than its erasure code needs.

    Attributes:
        chunk: hex id of the chunk (or metadata object) that cannot be read.
        found: number of intact shards found.
        needed: number of shards needed (k).
        filename: name of the file being read, if known.
        file_id: id of the file being read, if known.
    """

    def __init__(
        self,
        chunk: str,
        found: int,
        needed: int,
        *,
        filename: str | None = None,
        file_id: str | None = None,
    ) -> None:
        where = f" of file {filename!r} ({file_id})" if filename is not None else ""
        super().__init__(
            f"chunk {chunk}{where} is lost: {found} intact shards found, {needed} needed; "
            "bring back a missing volume and run repair, or delete the file"
        )
        self.chunk = chunk
        self.found = found
        self.needed = needed
        self.filename = filename
        self.file_id = file_id


class InsufficientWorkers(StorageError):
    """Too few volumes (or workers) are available to store data that survives one more loss, or to read it."""


class IncompletePush(StorageError):
    """A part of a push was removed before its commit, or could not be stored. Nothing became visible; push again."""


class ShardsUnavailable(InsufficientWorkers):
    """An object cannot be read now, as too many of its shards are out of reach. They are not known to be lost.

    Attributes:
        chunk: hex id of the chunk (or metadata object).
        found: number of intact shards found.
        needed: number of shards needed (k).
        away: number of shards that are out of reach.
        causes: the volumes or workers that hold those, each with the reason why it is out of reach.
    """

    def __init__(
        self,
        chunk: str,
        found: int,
        needed: int,
        *,
        away: int,
        causes: tuple[str, ...] = (),
        filename: str | None = None,
        file_id: str | None = None,
    ) -> None:
        what = f"file {filename!r} ({file_id})" if filename is not None else f"chunk {chunk}"
        why = f": {'; '.join(causes)}" if causes else ""
        super().__init__(
            f"{what} cannot be read now: {found} of {needed} shards needed are within reach, {away} more are not"
            f"{why}; bring back what is away, or wait for it"
        )
        self.chunk = chunk
        self.found = found
        self.needed = needed
        self.away = away
        self.causes = causes


class StoreUnavailable(StorageError):
    """The machine or a disk cannot handle this request now. Nothing is lost; try again when the cause is gone."""


class StoreReadOnly(StoreUnavailable):
    """The file system is read-only. Files can be read, but nothing can be stored or deleted."""


class StoreFull(StorageError):
    """A disk, quota or file size limit is reached. Nothing of the refused write is visible."""


class QuotaExceeded(StoreFull):
    """The user would store more than the operator allows. Nothing of the refused write is visible."""


class StoreLocked(StorageError):
    """Another process has this store directory open."""


class FormatError(StorageError):
    """Data on disk was not written by this store, or not in a format that this release understands."""


class SealBroken(FormatError):
    """Encrypted data was changed, or belongs to another key."""


class KeyRequired(FormatError):
    """Data is encrypted, and its key was not given, or another one was."""


class CatalogBehind(StorageError):
    """The catalog is, or may be, older than the volumes. Files can be read; run rebuild before changing anything."""


class StoreClosed(StorageError):
    """The store was closed before or during the call."""


class UsedAfterFork(StorageError):
    """A store, client, pool or worker was used in a fork of the process that opened it. Open another one there.

    The child may close, drop or ignore the inherited object. gRPC supports a new client or server in a child only if
    no other thread of the parent was in a gRPC call during the fork; otherwise it logs "skipping fork() handlers". In
    rare cases gRPC's threads end such a child with SIGABRT. A program whose children need a client should fork before
    it creates its first client, or start them with the ``spawn`` or ``forkserver`` method of ``multiprocessing``. If a
    program runs a server, pool or worker, and its children need no gRPC, set ``GRPC_ENABLE_FORK_SUPPORT=0`` in its
    environment, which keeps gRPC's threads out of the children.
    """
