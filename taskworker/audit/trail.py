"""The audit trail of a pool: an append-only, hash-chained log in private files of bounded size.

Records are written and flushed in batches by a thread of their own. After each batch, the newest hash is written to a
document of the catalog, so that records which are cut off at the end are missed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from storage.clocks import monotonic_s, wall_ms
from storage.errors import StorageError
from storage.system.directories import sync_directory
from storage.system.private_paths import make_own_directory, open_private
from taskworker.audit.files import Anchor, Verification, end_of, files_in, first_in, path_of, records_in, verify
from taskworker.audit.records import NO_HASH, Entry, Record, header, line_of
from taskworker.audit.repeats import Repeats
from taskworker.auth.documents import Documents

log = logging.getLogger(__name__)

DOCUMENT = "audit"
BYTES_DEFAULT = 256 << 20
BYTES_MIN = 8 << 20
_FILES = 32
_BATCH_S = 0.2  # refusals and counts wait for so long for others
_RETRY_S = 5.0
_BATCH_MAX = 256  # records at once, so that files do not become much larger than intended
_PENDING_MAX = 10_000
_WAKE_S = 1.0

_decoder = msgspec.msgpack.Decoder(Anchor)


class Trail(Protocol):
    """Takes what happened."""

    def add(self, entry: Entry) -> None:
        """Record something; return once it is durable, or cannot be made so now."""

    def count(self, entry: Entry) -> None:
        """Record something that may be repeated often: once, and then how often within some minutes."""


class AuditTrail:
    """The trail in a directory. Thread-safe.

    Args:
        directory: where its files are; made if absent.
        documents: where its anchor is.
        bytes_max: size of all files; the oldest are removed when there is more.
        now_ms: milliseconds since 1970.
        clock_s: monotonic seconds.

    Raises:
        OSError: the files cannot be read.
    """

    def __init__(
        self,
        directory: Path,
        documents: Documents,
        *,
        bytes_max: int = BYTES_DEFAULT,
        now_ms: Callable[[], int] = wall_ms,
        clock_s: Callable[[], float] = monotonic_s,
    ) -> None:
        self._directory = directory
        self._documents = documents
        self._file_bytes_max = max(bytes_max, BYTES_MIN) // _FILES
        self._now_ms = now_ms
        self._clock_s = clock_s
        self._changed = threading.Condition()
        self._pending: list[tuple[Entry, int]] = []
        self._taken = self._written = 0  # how many entries came, and how many of them are durable
        self._hurry = self._closing = self._failing = False
        self._lost = 0
        self._repeats = Repeats()
        self._files = threading.Lock()  # held while files change, or must not
        make_own_directory(directory)
        raw = documents.document(DOCUMENT)
        self._anchor = _decoder.decode(raw) if raw else Anchor()
        self._size = 0
        self._path = self._continued(is_known=raw is not None)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    # -- writing ---------------------------------------------------------------------------------

    def add(self, entry: Entry) -> None:
        """See :class:`Trail`."""
        with self._changed:
            self._put(entry, 1)
            mine, self._hurry = self._taken, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._written >= mine or self._failing or self._closing)

    def count(self, entry: Entry) -> None:
        """See :class:`Trail`."""
        with self._changed:
            first = self._repeats.note(entry, self._clock_s())
            if first is not None:
                self._put(first, 1)
                self._changed.notify_all()

    def _put(self, entry: Entry, count: int) -> None:
        if len(self._pending) >= _PENDING_MAX:
            self._lost += 1
            return
        self._pending.append((entry, count))
        self._taken += 1

    def close(self) -> None:
        """Write what is left, and stop."""
        with self._changed:
            for entry, count in self._repeats.take():
                self._put(entry, count)
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due, self._repeats.due_s(self._clock_s()))
                if not self._hurry and not self._closing and self._pending:
                    self._changed.wait_for(lambda: self._hurry or self._closing, _BATCH_S)
                if self._repeats.due_s(self._clock_s()) == 0.0:
                    for entry, count in self._repeats.take():
                        self._put(entry, count)
                batch, self._pending = self._pending[:_BATCH_MAX], self._pending[_BATCH_MAX:]
                self._hurry = self._hurry and bool(self._pending)
                lost, self._lost = self._lost, 0
                is_last = self._closing and not self._pending
            if lost:
                batch.append((_own("audit.lost", f"{lost} records"), 1))
            written = self._is_written(batch)
            with self._changed:
                self._failing = not written
                if written:
                    self._written += len(batch) - bool(lost)
                else:
                    self._pending[:0] = batch[: len(batch) - bool(lost)]
                    self._lost += lost
                self._changed.notify_all()
                if is_last or (self._closing and not written):
                    return
                if not written:
                    self._changed.wait_for(lambda: self._closing, _RETRY_S)

    def _is_due(self) -> bool:
        return bool(self._pending) or self._closing or self._repeats.due_s(self._clock_s()) == 0.0

    def _is_written(self, batch: list[tuple[Entry, int]]) -> bool:
        try:
            with self._files:
                self._write(batch)
        except (OSError, StorageError) as error:
            log.error("the audit trail cannot be written now, and is tried again: %s", error)
            return False
        except Exception:  # without this thread, every call that is audited would wait for ever
            log.exception("the audit trail cannot be written now, and is tried again")
            return False
        return True

    def _write(self, batch: list[tuple[Entry, int]]) -> None:
        """Write entries and make them durable; after an error, it is as if this had not been called."""
        if not batch:
            return
        if self._size > self._file_bytes_max:
            self._path, self._size = path_of(self._directory, self._anchor.last + 1), 0
        number, digest, now_ms = self._anchor.last, self._anchor.digest, self._now_ms()
        content = b"" if self._size else header(digest)
        for entry, count in batch:
            number += 1
            line, digest = line_of(Record.of(entry, number, now_ms, count), digest)
            content += line
        descriptor = open_private(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            os.ftruncate(descriptor, self._size)  # what a failed attempt left
            view = memoryview(content)
            while view:
                view = view[os.pwrite(descriptor, view, self._size + len(content) - len(view)) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not self._size:
            sync_directory(self._directory)
        paths = files_in(self._directory)
        removed, kept = paths[:-_FILES], paths[-_FILES:]
        first, before = self._anchor.first, self._anchor.before
        if removed:
            first, before = first_in(kept[0]), _before(kept[0])
        anchor = Anchor(first, before, number, digest)
        self._documents.save_document(DOCUMENT, msgspec.msgpack.encode(anchor))
        for path in removed:
            path.unlink()
        self._size += len(content)
        with self._changed:
            self._anchor = anchor
            self._changed.notify_all()

    # -- opening ---------------------------------------------------------------------------------

    def _continued(self, *, is_known: bool) -> Path:
        """Find where to go on. What a crash left half written is dropped; what was changed is told, and left."""
        paths = files_in(self._directory)
        anchor = self._anchor
        if not paths:
            if anchor.last:
                self._damaged("all records are missing")
            return path_of(self._directory, self._anchor.last + 1)
        end = end_of(paths[-1])
        if is_known and not end.size and first_in(paths[-1]) == anchor.last + 1:
            return paths[-1]  # a crash when it was made
        if not is_known:
            self._anchor = Anchor(first_in(paths[0]), _before(paths[0]), end.last, end.digest)
            self._pending.append((_own("audit.continued", "the catalog did not know of these records"), 1))
            self._taken += 1
        elif end.last < anchor.last or (end.last == anchor.last and end.digest != anchor.digest):
            self._damaged(
                f"records up to {anchor.last} were written, and those after {end.last} are missing or changed"
            )
            return path_of(self._directory, anchor.last + 1)
        elif paths[-1].stat().st_size != end.size and _is_changed(paths[-1], end.size):
            self._damaged(f"what follows record {end.last} was changed")
            self._anchor = Anchor(anchor.first, anchor.before, end.last, end.digest)
            return path_of(self._directory, end.last + 1)
        else:
            self._anchor = Anchor(anchor.first, anchor.before, end.last, end.digest)
        if paths[-1].stat().st_size != end.size:
            os.truncate(paths[-1], end.size)
        self._size = end.size
        return paths[-1]

    def _damaged(self, what: str) -> None:
        log.error("the audit trail in %s is damaged: %s; see `taskworker audit --verify`", self._directory, what)
        self._pending.append((_own("audit.damaged", what), 1))
        self._taken += 1

    # -- reading ---------------------------------------------------------------------------------

    def read(self, *, since_ms: int = 0, follow: bool = False) -> Iterator[Record | None]:
        """Yield the records, oldest first; with ``follow``, go on with new ones, yielding None periodically.

        Args:
            since_ms: only records written at or after this time.
            follow: whether to go on with new records.
        """
        self._flush()
        last = 0
        while True:
            with self._changed:
                end = self._anchor.last
            for record in self._records_after(last, end):
                last = record.n
                if record.ms >= since_ms:
                    yield record
            if not follow:
                return
            yield None
            if not self._waits_for_more(last):
                return

    def _waits_for_more(self, last: int) -> bool:
        """Wait a little for records after this one; False: the trail is being closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._anchor.last > last or self._closing, _WAKE_S)
            return not self._closing

    def _records_after(self, last: int, end: int) -> Iterator[Record]:
        for path in self._files_after(last):
            try:
                for found in records_in(path, []):
                    if last < found.record.n <= end:
                        last = found.record.n
                        yield found.record
            except FileNotFoundError:  # it is the oldest, and was removed
                log.info("%s was removed while it was read", path)

    def _files_after(self, last: int) -> list[Path]:
        """The files that may have records after this one."""
        paths = files_in(self._directory)
        return [path for at, path in enumerate(paths) if path == paths[-1] or first_in(paths[at + 1]) > last + 1]

    def verify(self) -> Verification:
        """Check that the trail is what was written."""
        self._flush()
        with self._files:
            return verify(files_in(self._directory), self._anchor)

    def _flush(self) -> None:
        with self._changed:
            mine, self._hurry = self._taken, bool(self._pending)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._written >= mine or self._failing or self._closing)


def _own(call: str, on: str) -> Entry:
    return Entry("", "", call, on, "", "OK")


def _before(path: Path) -> bytes:
    found: bytes = NO_HASH
    with path.open("rb") as file:
        line = file.readline()
    try:
        found = bytes.fromhex(line.removeprefix(b"after ").strip().decode("ascii"))
    except ValueError:
        log.error("%s is damaged: it does not say what came before it", path)
    return found


def _is_changed(path: Path, size: int) -> bool:
    """Whether what follows the sound part of a file is more than one line that a crash left incomplete."""
    with path.open("rb") as file:
        file.seek(size)
        rest = file.read()
    return b"\n" in rest
