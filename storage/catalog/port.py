"""The catalog's port: heads, names, who holds what; versions and nodes for fast reading.

Everything in it but heads and leases can be made again from the volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import msgspec
from blake3 import blake3

from storage.errors import FormatError
from storage.keys import StripeKey

T = TypeVar("T")

USER_KEY_BYTES = 16
COPIED_IN_USE = "catalog-copied-in-use"
"""Document of a catalog that was copied while it was in use, so that it may lack entries; empty after a rebuild."""

_NAME_PLAIN_MAX = 440  # LMDB keys have at most 511 bytes


class DamagedSettings(FormatError):
    """The settings in the catalog cannot be read. All of its other records may be whole."""


class StoreSettings(msgspec.Struct, frozen=True):
    """What a store was created with.

    Attributes:
        store_id: hex id.
        k, n: default erasure profile.
        chunk_size: default chunk size in bytes.
        volumes: directories by slot, relative to the store's where they lie in it.
        incomplete: volume slots that wait for repair.
        format: 1.
    """

    store_id: str
    k: int
    n: int
    chunk_size: int
    volumes: list[str]
    incomplete: list[int] = []
    format: int = 1


class FileEntry(msgspec.Struct, frozen=True, array_like=True):
    """A file: its owner, name, head version and that version's size in bytes."""

    user_id: str
    filename: str
    head: bytes
    size: int


class Counters(msgspec.Struct, frozen=True, array_like=True):
    """Totals kept in step with every commit.

    Attributes:
        files, versions, logical_bytes: what there is.
        sequence: the last one given to a version or tombstone.
        latest: file id and version id of the version committed last; empty if there is none.
        closed: whether the store was closed in good order after that.
        committed: the last sequence that was committed, where ``sequence`` has been raised past it to that of a record
            which only the volumes know; None: it is ``sequence``.
        reserved: no version has gone to the volumes with a later sequence than this; 0 in stores of earlier releases.
    """

    files: int = 0
    versions: int = 0
    logical_bytes: int = 0
    sequence: int = 0
    latest: bytes = b""
    closed: bool = False
    committed: int | None = None
    reserved: int = 0

    @property
    def reached(self) -> int:
        """The sequence up to which the catalog has committed everything."""
        return self.sequence if self.committed is None else self.committed


class ProfileCount(NamedTuple):
    """Of a (k, n) profile: how many files' heads are coded with it, and how many versions that are kept in all."""

    k: int
    n: int
    files: int
    versions: int


class StoredEntry(NamedTuple):
    """A version object in the catalog, and the entry of its file: None if the file was deleted.

    Where the file has an entry that cannot be read, ``problem`` says so, and ``entry`` is None as well.
    """

    file_id: bytes
    entry: FileEntry | None
    version_id: bytes
    raw: bytes
    problem: str = ""


class Holding(NamedTuple):
    """A user's claim on a stripe: for a live version of theirs that reaches it, or for uploads, by their numbers.

    Where it cannot be read for whom it is, ``problem`` says so; it must be kept.
    """

    stripe: StripeKey
    user: bytes
    uploads: tuple[int, ...]
    problem: str = ""


LEASES_BEFORE = 0
"""Stands for the uploads whose claims are of the format before, which had times instead of numbers."""


class UploadRecord(msgspec.Struct, frozen=True, array_like=True):
    """An upload that has claims. ``interrupted_s``: when it was cut off, in the store's time; None: it goes on."""

    interrupted_s: float | None = None


class StoreTime(msgspec.Struct, frozen=True, array_like=True):
    """The store's own sequence of events.

    Attributes:
        open_s: for how many seconds it was open, as far as is known.
        last_upload: number of the latest upload.
        format: of claims: 1; 0 before there were numbers of uploads.
    """

    open_s: float = 0.0
    last_upload: int = 0
    format: int = 0


@lru_cache(maxsize=1024)
def user_key(user_id: bytes) -> bytes:
    """Fixed-length stand-in for a user id in keys."""
    return blake3(user_id).digest(USER_KEY_BYTES)


def name_key(user: bytes, filename: bytes) -> bytes:
    """Key of a name; sorts by user, then by name (by its first 440 bytes for longer ones)."""
    if len(filename) <= _NAME_PLAIN_MAX:
        return user + filename
    return user + filename[:_NAME_PLAIN_MAX] + blake3(filename).digest()


class CatalogTransaction(Protocol):
    """Reads and changes that take effect together or not at all."""

    def file(self, file_id: bytes) -> FileEntry | None:
        """A live file."""

    def find(self, key: bytes) -> bytes | None:
        """File id under a :func:`name_key`."""

    def version(self, file_id: bytes, version_id: bytes) -> bytes | None:
        """Bytes of a version object."""

    def put_version(self, file_id: bytes, version_id: bytes, raw: bytes) -> None:
        """Keep a version object."""

    def set_file(self, file_id: bytes, entry: FileEntry, key: bytes) -> None:
        """Create a file or move its head; ``key`` is its :func:`name_key`."""

    def delete_file(self, file_id: bytes, key: bytes, tombstone: bytes) -> None:
        """Remove a file and its name, keeping the tombstone, which is pending until :meth:`tombstones_written`.

        Its versions stay until collected.
        """

    def keep_tombstone(self, file_id: bytes, tombstone: bytes) -> None:
        """Keep a tombstone."""

    def tombstones_written(self, file_ids: Iterable[bytes]) -> None:
        """The tombstones of these files are on the volumes."""

    def forget_file(self, file_id: bytes) -> None:
        """Remove a file's entry; its name and versions stay."""

    def forget_name(self, key: bytes, file_id: bytes) -> None:
        """Free a name if it is this file's."""

    def put_nodes(self, nodes: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep manifest nodes (id, bytes)."""

    def hold(self, user: bytes, stripes: Iterable[StripeKey], upload: int | None) -> None:
        """Record that a user has these stripes: in an upload, or (None) in a version."""

    def keep_upload(self, number: int, record: UploadRecord) -> None:
        """Keep an upload, in place of its former record."""

    def end_upload(self, number: int) -> None:
        """Forget an upload: nothing is kept on its account any more."""

    def set_store_time(self, time: StoreTime) -> None:
        """Replace the store's time."""

    def keep_incomplete(self, slots: Iterable[int]) -> None:
        """Keep in the settings which volumes wait for repair. Damaged settings stay as they are: then all do."""

    def counters(self) -> Counters:
        """Current totals."""

    def set_counters(self, counters: Counters) -> None:
        """Replace the totals."""


class Catalog(Protocol):
    """Thread-safe. ``transact`` serialises writers; readers see the last commit."""

    def trouble(self) -> str:
        """Why it cannot be used or written now, tried again if it could not be lately; empty if it can."""

    def settings(self) -> StoreSettings | None:
        """Settings, None in a catalog that was never set up.

        Raises:
            DamagedSettings: they cannot be read.
            FormatError: they are of a newer format.
        """

    def save_settings(self, settings: StoreSettings) -> None:
        """Durably replace the settings."""

    def document(self, name: str) -> bytes | None:
        """What was kept under a name by :meth:`save_document`: a pool's members and layouts."""

    def save_document(self, name: str, raw: bytes) -> None:
        """Durably keep a small document, in place of the one before."""

    def save_documents(self, documents: Mapping[str, bytes]) -> None:
        """Durably keep several by their names, all of them or none."""

    def transact(self, work: Callable[[CatalogTransaction], T]) -> T:
        """Run ``work``, then commit durably; if it raises, nothing is kept.

        Args:
            work: reads and changes. It may be run more than once: a catalog may run it on the state that it committed
                last, and commit only if nothing that it read has changed since. So it does no I/O, waits for nobody,
                and changes nothing but the transaction. Each run reads one state. It may raise.
        """

    def file(self, file_id: bytes) -> FileEntry | None:
        """A live file."""

    def find(self, key: bytes) -> bytes | None:
        """File id under a :func:`name_key`."""

    def names(self, user: bytes, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """(key, file id) in name order: names that start with ``prefix`` (its first 440 bytes), after key ``after``."""

    def version(self, file_id: bytes, version_id: bytes) -> bytes | None:
        """Bytes of a version object."""

    def node(self, node_id: bytes) -> bytes | None:
        """Bytes of a manifest node."""

    def is_held(self, stripe: StripeKey) -> bool:
        """Whether anybody at all has a claim on a stripe."""

    def holds(self, user: bytes, stripes: Sequence[StripeKey]) -> list[bool]:
        """Which of these stripes the user has a claim on."""

    def counters(self) -> Counters:
        """Current totals."""

    def profiles(self) -> list[ProfileCount]:
        """The erasure profiles in use, by k and n."""

    def recount(self) -> None:
        """Make totals and profiles again that cannot be read, or that older software did not keep.

        From then on they are kept in step. To be called while nobody writes.
        """

    def versions(self) -> Iterator[StoredEntry]:
        """All version objects kept, by file."""

    def nodes(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[bytes]:
        """Ids of nodes kept, from ``start`` to before ``stop``."""

    def tombstones(self) -> Iterator[tuple[bytes, bytes]]:
        """All tombstones: (file id, bytes)."""

    def pending_tombstones(self) -> list[tuple[bytes, bytes]]:
        """Tombstones that may not be on the volumes yet: (file id, bytes)."""

    def holdings(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[Holding]:
        """All claims, ordered by stripe key."""

    def uploads(self) -> dict[int, UploadRecord]:
        """The uploads kept, by number."""

    def store_time(self) -> StoreTime | None:
        """The store's time; None where none was kept yet."""

    def claims(self) -> int:
        """Number of claims; about the number of chunks."""

    def drop_versions(self, keys: Iterable[tuple[bytes, bytes]], *, counted: bool = False) -> None:
        """Forget version objects of deleted files: (file id, version id); ``counted`` takes them off the totals."""

    def drop_nodes(self, node_ids: Iterable[bytes]) -> None:
        """Forget nodes."""

    def drop_holdings(self, holdings: Iterable[Holding]) -> None:
        """Forget those claims that are still as they are given here."""

    def close(self) -> None:
        """Let go of the database."""
