"""A version that waits for its commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from storage.errors import (
    StorageError,
)
from storage.formats.manifest import RootNode
from storage.formats.versions import StoredVersion
from storage.keys import StripeKey
from storage.limits import BytesLike
from storage.shards import Shard
from storage.write.target import PushTarget


@dataclass(slots=True, eq=False)
class PendingVersion:
    """A version that waits for its commit. Its chunks are written, or are in ``shards``.

    Attributes:
        target: file to write, and the author's fields of the version.
        root: manifest root.
        nodes: manifest nodes that the catalog does not have yet, as (id, bytes).
        stripes: chunk stripes on which the user gets a claim.
        shards: shards to append with the commit, by volume slot.
        file_id: the file to revise; None: find the file by name, or make a new one.
        base: version that must be the head; None: any.
        epoch: epoch of the fleet when the first part of it was written.
        upload: number of the upload whose claims end with the commit; None if it has none.
        names: names of sealed chunks in the catalog, by their stripes.
        hashes: of the shards of chunks that a client wrote, which are not verified, by their stripes.
        taken: bytes that it adds on the volumes, without its record; None: the shards of all its chunks.
        chunk_bytes: the bytes of its only chunk as it is stored, if they are at hand and do not change any more.
        written: yields every stripe that the version needs; None: these are ``stripes`` and those of ``shards``.
    """

    target: PushTarget
    root: RootNode
    nodes: list[tuple[bytes, bytes]]
    stripes: list[StripeKey]
    shards: dict[int, list[Shard]]
    file_id: bytes | None
    base: bytes | None
    epoch: tuple[int, ...]
    upload: int | None = None
    names: Mapping[StripeKey, bytes] = field(default_factory=dict)
    hashes: Mapping[StripeKey, bytes] = field(default_factory=dict)
    taken: int | None = None
    written: Callable[[], Iterable[StripeKey]] | None = None
    chunk_bytes: BytesLike | None = None
    _wake: threading.Lock = field(default_factory=threading.Lock)
    _woken: bool = False
    _outcome: StoredVersion | BaseException | None = None

    def __post_init__(self) -> None:
        self._wake.acquire()

    def prepare(self) -> None:
        """Make what is missing for the commit. The thread that commits the batch calls this once, before anything else.

        Raises:
            Exception: becomes the outcome of this version; the others of the batch are not affected.
        """

    def settle(self, outcome: StoredVersion | BaseException) -> None:
        """Set what :meth:`result` returns or raises."""
        self._outcome = outcome

    @property
    def settled(self) -> bool:
        """Whether there is an outcome."""
        return self._outcome is not None

    def wait(self) -> None:
        """Sleep until :meth:`wake` is called."""
        self._wake.acquire()

    def wake(self) -> None:
        """Wake the waiting thread. Calls after the first one do nothing."""
        if not self._woken:
            self._woken = True
            self._wake.release()

    def result(self) -> StoredVersion:
        """Return the committed version, or raise the error of its commit."""
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome


class EpochChanged(StorageError):
    """Stores came or went since the parts of a push were made complete. Complete them again, then retry the commit."""
