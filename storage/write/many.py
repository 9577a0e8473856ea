"""Pushes of many files by one caller, which share their flushes and transactions.

While one batch of small files is being committed, the next one is taken in and encoded. A batch is whatever waits when
the one before it has ended, so a file on its own is committed at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from storage.errors import InvalidArgument, StorageError, StoreClosed, StoreUnavailable
from storage.keys import StripeKey
from storage.limits import MIB, BytesLike
from storage.outcomes import PushOutcome
from storage.shards import Shard
from storage.submitting import submitted
from storage.system.forks import HomeProcess
from storage.write.chunks import lasting_bytes
from storage.write.context import PushContext
from storage.write.pending import PendingVersion
from storage.write.small import inline_chunk, inline_shards, names_of, root_of_one, with_whole_head
from storage.write.sources import Source, beginning, feed
from storage.write.target import PushTarget
from storage.write.upload import Upload

SMALL_BYTES_MAX = MIB
"""Files up to this size, and to their chunk size, share commits. Larger ones fill the disks' time by themselves."""
_COMMITTED_TOGETHER = 256
_IN_FLIGHT_MAX = 1024
"""Files that wait for their commit. Four batches keep the committing thread busy."""
_UNTAKEN_MAX = 8192
"""Outcomes that wait for the caller. A version has a few hundred bytes."""

TargetOf = Callable[[str], PushTarget]
"""Checks a filename, and returns the target of its push; raises StorageError."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A file that was taken in: it waits for its commit, or has failed and waits for those before it."""

    position: int
    filename: str
    pending: PendingVersion | None = None
    data: BytesLike = b""
    error: Exception | None = None

    @property
    def stripes(self) -> Sequence[StripeKey]:
        """The stripes that are pinned until the commit has ended."""
        return () if self.pending is None else self.pending.stripes

    def outcome(self, context: PushContext) -> PushOutcome:
        """Return the outcome, once the commit has ended."""
        if self.pending is None:
            return PushOutcome(self.position, self.filename, error=self.error)
        try:
            stored = with_whole_head(context, self.pending, self.pending.result(), self.data)
            return PushOutcome(self.position, self.filename, stored.public())
        except Exception as error:
            return PushOutcome(self.position, self.filename, error=error)


class ManyPush:
    """A push of many files. One thread adds files, and the same or another one takes the outcomes.

    Files are committed, and outcomes taken, in the order in which the files were added. Use it as a context manager:
    leaving it drops what is not being committed yet, and waits for the rest.

    Args:
        context: parts of the store.
        target_of: checks a filename, and returns the target of its push.
    """

    def __init__(self, context: PushContext, target_of: TargetOf) -> None:
        self._home = HomeProcess("this push of many files")
        self._context = context
        self._target_of = target_of
        self._changed = threading.Condition()
        self._waiting: deque[_Taken] = deque()
        self._outcomes: deque[PushOutcome] = deque()
        self._in_flight = 0  # files taken in whose outcome is not there yet
        self._committing = False
        self._position = 0
        self._ended = self._left = False

    # -- adding ----------------------------------------------------------------------------------

    def add(self, filename: str, source: Source) -> None:
        """Take in a file. Waits while many others, or many bytes, wait for their commits.

        An error of this file becomes its outcome.

        Raises:
            InvalidArgument: the push has ended.
        """
        self._home.check()
        self._check_open()
        try:
            target = self._target_of(filename)
            data, rest = beginning(source, min(SMALL_BYTES_MAX, target.chunk_size))
            if rest is None:
                self._add_small(target, data)
                return
            upload = Upload(self._context, target)
        except (StorageError, OSError) as error:
            self.add_failed(filename, error)
            return
        try:
            upload.write(data)
            feed(rest, upload, in_order=False)
        except (StorageError, OSError) as error:
            upload.abort(keep_chunks=False)
            self.add_failed(filename, error)
        except BaseException:
            upload.abort(keep_chunks=False)
            raise
        else:
            self.add_upload(filename, upload)

    def add_upload(
        self,
        filename: str,
        upload: Upload,
        size: int | None = None,
        attributes: Mapping[str, bytes] | None = None,
    ) -> None:
        """Take in a file that was written to an upload: commit it, once all files before it are committed.

        Args:
            filename: name of the file.
            upload: has all bytes of the file.
            size: total size announced by the sender, in bytes; it is checked.
            attributes: see :meth:`Upload.commit`.
        """
        self._home.check()
        try:
            self._drain()
            version = upload.commit(size, attributes=attributes)
        except StorageError as error:
            self.add_failed(filename, error)
            return
        with self._changed:
            self._outcomes.append(PushOutcome(self._next(), filename, version))
            self._changed.notify_all()

    def add_failed(self, filename: str, error: Exception) -> None:
        """Take in a file that cannot be stored because of this error."""
        self._put(_Taken(self._next(), filename, error=error))

    def end(self) -> None:
        """Declare that no more files are added."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _add_small(self, target: PushTarget, data: BytesLike) -> None:
        budget = self._context.in_flight
        size = len(data)
        budget.take(size)
        stripes: list[StripeKey] = []
        try:
            pending = self._pending(target, data, stripes)
        except BaseException:
            self._release(stripes, size)
            raise
        self._put(_Taken(self._next(), target.filename, pending, data))

    def _pending(self, target: PushTarget, data: BytesLike, stripes: list[StripeKey]) -> PendingVersion:
        """Return a small file as a version that waits for its commit. Pins its stripes, and adds them to the list."""
        context = self._context
        shards: dict[int, list[Shard]] = {}
        chunk = inline_chunk(target, data) if len(data) else None
        if chunk is not None:
            context.activity.note()
            context.pins.pin(chunk.stripe)
            stripes.append(chunk.stripe)
            shards = inline_shards(context, chunk)
        return PendingVersion(
            target=target,
            root=root_of_one(target, len(data), chunk),
            nodes=[],
            stripes=stripes,
            shards=shards,
            file_id=None,
            base=None,
            epoch=target.epoch,
            names={} if chunk is None else names_of(target, chunk),
            chunk_bytes=None if chunk is None else lasting_bytes(target.key, chunk),
        )

    def _check_open(self) -> None:
        if self._ended:
            raise InvalidArgument("this push of many files has ended; begin another one")

    def _next(self) -> int:
        position = self._position
        self._position += 1
        return position

    def _put(self, taken: _Taken) -> None:
        with self._changed:
            self._waiting.append(taken)
            self._in_flight += 1
            starts, self._committing = not self._committing, True
        if starts:
            self._start()
        with self._changed:
            while not self._left and (self._in_flight > _IN_FLIGHT_MAX or len(self._outcomes) > _UNTAKEN_MAX):
                self._changed.wait()

    def _drain(self) -> None:
        """Wait until all files taken in have their outcomes."""
        with self._changed:
            while self._in_flight:
                self._changed.wait()

    # -- committing ------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            submitted("the store was closed during the push", self._context.committer, self._commit_waiting)
        except (StoreClosed, StoreUnavailable) as error:  # it never runs
            with self._changed:
                self._committing = False
            self._drop(error)

    def _commit_waiting(self) -> None:
        """Commit batches until nothing waits. Runs in one thread at a time."""
        while True:
            with self._changed:
                count = min(len(self._waiting), _COMMITTED_TOGETHER)
                batch = [self._waiting.popleft() for _ in range(count)]
                if not batch:
                    self._committing = False
                    self._changed.notify_all()
                    return
            self._context.commits.commit_all([taken.pending for taken in batch if taken.pending is not None])
            self._settle(batch)

    def _settle(self, batch: Sequence[_Taken]) -> None:
        outcomes = [taken.outcome(self._context) for taken in batch]
        self._release([stripe for taken in batch for stripe in taken.stripes], sum(len(taken.data) for taken in batch))
        with self._changed:
            self._in_flight -= len(batch)
            self._outcomes += outcomes
            self._changed.notify_all()

    def _release(self, stripes: Sequence[StripeKey], size: int) -> None:
        self._context.pins.unpin(stripes)
        self._context.in_flight.give_back(size)

    def _drop(self, error: StorageError) -> None:
        """End the push of all files that wait."""
        with self._changed:
            dropped = list(self._waiting)
            self._waiting.clear()
        for taken in dropped:
            if taken.pending is not None:
                taken.pending.settle(error)
        self._settle(dropped)

    # -- outcomes --------------------------------------------------------------------------------

    def ready(self) -> list[PushOutcome]:
        """Take the outcomes that are there."""
        with self._changed:
            return self._taken()

    def take(self) -> list[PushOutcome]:
        """Wait for outcomes, and take those that are there; an empty list after the last one."""
        with self._changed:
            while not self._outcomes and (self._in_flight or not self._ended):
                self._changed.wait()
            return self._taken()

    def _taken(self) -> list[PushOutcome]:
        outcomes = list(self._outcomes)
        self._outcomes.clear()
        if outcomes:
            self._changed.notify_all()
        return outcomes

    def __enter__(self) -> ManyPush:
        return self

    def __exit__(self, *_: object) -> None:
        if self._home.is_here:
            self.leave()
            self._drain()

    def leave(self) -> None:
        """Drop what is not being committed yet, and take in no more files."""
        with self._changed:
            self._ended = self._left = True
            self._changed.notify_all()
        self._drop(StorageError("the caller left before this file was committed; push it again"))


def push_many(many: ManyPush, files: Iterable[tuple[str, Source]]) -> Iterator[PushOutcome]:
    """Push files with a new ``many``, and yield their outcomes as soon as they are durable.

    While ``files`` keeps its caller waiting, outcomes wait as well.
    """
    with many:
        for filename, source in files:
            many.add(filename, source)
            yield from many.ready()
        many.end()
        while outcomes := many.take():
            yield from outcomes
