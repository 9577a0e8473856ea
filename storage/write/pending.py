"""A version that waits for its commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from storage.errors import (
    StorageError,
)
from storage.formats.manifest import RootNode
from storage.formats.versions import (
    StoredVersion,
)
from storage.keys import StripeKey
from storage.shards import Shard
from storage.write.target import PushTarget


@dataclass(slots=True, eq=False)
class PendingVersion:
    """A version whose chunks are written (or ride along in ``shards``) and that waits for its commit.

    Attributes:
        target: whose file, named how, and what goes into the version.
        root: manifest root.
        nodes: manifest nodes the catalog has not got yet, (id, bytes).
        stripes: chunk stripes the user gets a claim on.
        shards: shards not yet appended, by volume slot.
        file_id: the file to revise; None finds it by name, or makes a new one.
        base: version the head must be; None takes whatever the head is.
        epoch: of the volumes when the first of it was written.
        upload: number of the upload that has claims, which ends with the commit; None if there is none.
        written: gives every stripe the push counts on; None: they are ``stripes``, and in ``shards``.
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
    written: Callable[[], Iterable[StripeKey]] | None = None
    _wake: threading.Lock = field(default_factory=threading.Lock)
    _outcome: StoredVersion | BaseException | None = None

    def __post_init__(self) -> None:
        self._wake.acquire()

    def settle(self, outcome: StoredVersion | BaseException) -> None:
        """Set what :meth:`result` gives."""
        self._outcome = outcome

    @property
    def settled(self) -> bool:
        """Whether there is an outcome."""
        return self._outcome is not None

    def wait(self) -> None:
        """Sleep until woken."""
        self._wake.acquire()

    def wake(self) -> None:
        """Wake the waiting thread."""
        self._wake.release()

    def result(self) -> StoredVersion:
        """The committed version, or the error that kept it from being committed."""
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome


class EpochChanged(StorageError):
    """Stores came or went since what a push counts on was made whole: it is to be made whole again, then committed."""
