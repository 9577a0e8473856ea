"""Reads many files. Small ones are read together, in batches of which some are under way ahead of the reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from storage.activity import Activity
from storage.batching import batched_by_size
from storage.errors import DataLossError, ShardsUnavailable, StorageError
from storage.formats.manifest import plain_id, stored_id
from storage.formats.sealed_nodes import LoadObject, manifest_of
from storage.formats.versions import StoredVersion
from storage.limits import MIB
from storage.outcomes import GetOutcome
from storage.read.reader import VersionStream
from storage.stripes.contents import ContentRead, Contents
from storage.stripes.stripes import chunk_stripe
from storage.submitting import submitted

_TOGETHER_BYTES = 4 * MIB  # of one batch, of which up to three are in memory for a call
_TOGETHER_MAX = 128
_AHEAD = 2
_SMALL_BYTES_MAX = MIB  # larger files are read on their own, chunk by chunk


@dataclass(slots=True, eq=False)
class Wanted:
    """A file to read.

    Attributes:
        position: place in the call.
        file: the id or name asked for.
        done: ends the registration of the read.
        file_id: id of the file; empty if there is an error.
        stored: the version to read; None if there is an error.
        error: why there is none.
        bytes_max: size above which the content is not wanted; None: no limit.
        target: memory for the content; None until it is needed.
    """

    position: int
    file: str
    done: Callable[[], None]
    file_id: str = ""
    stored: StoredVersion | None = None
    error: StorageError | None = None
    bytes_max: int | None = None
    target: bytearray | None = None

    @property
    def small_bytes(self) -> int:
        """Bytes to read together with other files; 0 if there are none."""
        return self.stored.record.size if self.stored is not None and self._is_small(self.stored) else 0

    def _is_small(self, stored: StoredVersion) -> bool:
        return stored.record.size <= _SMALL_BYTES_MAX and self.is_wanted(stored)

    def is_wanted(self, stored: StoredVersion) -> bool:
        """Whether the content is wanted."""
        return self.bytes_max is None or stored.record.size <= self.bytes_max


class ManyReader:
    """Reads many files of one caller.

    Args:
        contents: reads chunks.
        load_node: loads nodes of manifests.
        activity: is notified of reads.
        workers: reads batches ahead.
        stream: opens a version, by the ids of its file, its owner and its own, to read it on its own.
    """

    def __init__(
        self,
        contents: Contents,
        load_node: LoadObject,
        activity: Activity,
        workers: Executor,
        stream: Callable[[str, str, str], VersionStream],
    ) -> None:
        self._contents = contents
        self._load_node = load_node
        self._activity = activity
        self._workers = workers
        self._stream = stream

    def read(self, files: Iterable[Wanted]) -> Iterator[GetOutcome]:
        """Yield the outcome of each file, in order. Small files are read in batches, ahead of the caller."""
        ahead: deque[tuple[list[Wanted], Future[bool]]] = deque()
        gathered: list[Wanted] = []  # of a batch that is not complete

        def each() -> Iterator[Wanted]:
            for wanted in files:
                gathered.append(wanted)
                yield wanted

        try:
            for batch in batched_by_size(each(), _TOGETHER_MAX, _TOGETHER_BYTES, lambda wanted: wanted.small_bytes):
                gathered.clear()
                ahead.append((batch, self._submit(batch)))
                if len(ahead) > _AHEAD:
                    yield from self._outcomes(*ahead.popleft())
            while ahead:
                yield from self._outcomes(*ahead.popleft())
        finally:
            end_all(gathered)
            for batch, reading in ahead:
                reading.exception()  # it still uses the shards
                end_all(batch)

    def content(self, stored: StoredVersion, bytes_max: int) -> bytes | None:
        """Read one version in this thread; None if it has more than ``bytes_max`` bytes.

        Raises:
            DataLossError, ShardsUnavailable: it cannot be read.
        """
        size = stored.record.size
        if size > bytes_max:
            return None
        self._activity.note()
        if size <= _SMALL_BYTES_MAX:
            target = bytearray(size)
            try:
                self._contents.read_all(list(self._reads(stored, memoryview(target))))
                return bytes(target)
            except (ShardsUnavailable, DataLossError):
                pass  # the stream finds out why, and what can be done about it
        record = stored.record
        with self._stream(record.file_id.hex(), record.user_id, stored.version_id.hex()) as stream:
            return stream.readall()

    def _submit(self, batch: list[Wanted]) -> Future[bool]:
        try:
            return submitted("the store was closed while files were being read", self._workers, self._read_batch, batch)
        except BaseException:  # it never runs
            end_all(batch)
            raise

    def _read_batch(self, batch: list[Wanted]) -> bool:
        """Read the small files of a batch; return whether that succeeded for all."""
        reads: list[ContentRead] = []
        for wanted in batch:
            if wanted.small_bytes and wanted.stored is not None:
                wanted.target = bytearray(wanted.small_bytes)
                reads += self._reads(wanted.stored, memoryview(wanted.target))
        self._activity.note()
        try:
            self._contents.read_all(reads)
        except (ShardsUnavailable, DataLossError):
            return False
        return True

    def _reads(self, stored: StoredVersion, target: memoryview) -> Iterator[ContentRead]:
        root, keys = stored.root, stored.keys if stored.root.is_sealed else None
        for index, reference in enumerate(manifest_of(stored, self._load_node).references()):
            space = target[index * root.chunk_size : (index + 1) * root.chunk_size]
            stripe = chunk_stripe(stored_id(reference), root.profile)
            yield ContentRead(stripe, plain_id(reference), keys, space)

    def _outcomes(self, batch: list[Wanted], reading: Future[bool]) -> Iterator[GetOutcome]:
        try:
            are_read = reading.result()
            for wanted in batch:
                yield self._outcome(wanted, is_read=are_read)
                wanted.target = None
        finally:
            end_all(batch)

    def _outcome(self, wanted: Wanted, *, is_read: bool) -> GetOutcome:
        stored = wanted.stored
        if stored is None:
            return GetOutcome(wanted.position, wanted.file, error=wanted.error)
        version = stored.public()
        if not wanted.is_wanted(stored):
            return GetOutcome(wanted.position, wanted.file, version)
        if is_read and (wanted.target is not None or not stored.record.size):
            return GetOutcome(wanted.position, wanted.file, version, bytes(wanted.target or b""))
        try:
            with self._stream(version.file_id, version.user_id, version.version_id) as stream:
                return GetOutcome(wanted.position, wanted.file, version, stream.readall())
        except StorageError as error:
            return GetOutcome(wanted.position, wanted.file, version, error=error)


def end_all(batch: Iterable[Wanted]) -> None:
    """End the registrations of reads."""
    for wanted in batch:
        wanted.done()
