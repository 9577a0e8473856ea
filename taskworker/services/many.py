"""The calls on many files: each file has a result of its own, sent as soon as the file is durable or read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain, groupby

from storage import (
    DeleteOutcome,
    FileNotFound,
    FileStorage,
    GetOutcome,
    InvalidArgument,
    PushOutcome,
    StorageError,
    Upload,
    Version,
)
from storage.options import PushOptions
from storage.write.many import ManyPush
from taskworker.protos import store_pb2
from taskworker.rpc import status
from taskworker.rpc.admission import Gate
from taskworker.rpc.authorization import hidden_from, user_of
from taskworker.rpc.binding import Caller, foreseen, require_active
from taskworker.rpc.conversion import describe_version, many_options, push_options
from taskworker.rpc.guests import Hidden
from taskworker.rpc.limits import (
    CHUNK_IDS_MAX,
    FILES_MAX,
    GET_DATA_BYTES,
    GET_FILES_BYTES_MAX,
    GET_FILES_MAX,
    MANY_BYTES_MAX,
)
from taskworker.services.maintenance import MaintenanceService
from taskworker.services.pieces import pieces_of
from taskworker.services.revision import Revisions

_RESULTS_MAX = 256
"""Results in one message. A version takes up to 6 KiB, without its attributes."""


class ManyFilesService(MaintenanceService):
    """The methods of ``StoreService`` for many files; thread-safe.

    Args:
        store: the store to serve.
        transfers: limits how many transfers run at once.
        revisions: limits what is expensive.
        hide: paths that must not appear in texts sent to callers.
    """

    def __init__(self, store: FileStorage, transfers: Gate, revisions: Revisions, hide: Sequence[str]) -> None:
        super().__init__(store)
        self._transfers = transfers
        self._revisions = revisions
        self._hide = hide

    def PushMany(  # noqa: N802 - the names are the contract's
        self, parts: Iterator[store_pb2.PushManyPart], caller: Caller
    ) -> Iterator[store_pb2.PushManyResults]:
        """Store many files."""
        with self._transfers.place(user_of(caller)):
            first = next(parts, None)
            if first is None or not first.HasField("header"):
                raise InvalidArgument("the first message of PushMany must carry the header; send it first")
            options = many_options(first.header)
            with (
                self._store.pushing_many(
                    user_id=options.user_id,
                    profile=options.profile,
                    chunk_size=options.chunk_size,
                    time_ms=options.time_ms,
                    note=options.note,
                    attributes=options.attributes_now(),
                ) as many,
                _Intake(self._store, options, many, chain((first,), parts), caller, self._revisions) as intake,
            ):
                while outcomes := many.take():
                    yield from self._push_results(outcomes)
                intake.raise_error()

    def GetMany(  # noqa: N802
        self, request: store_pb2.GetManyRequest, caller: Caller
    ) -> Iterator[store_pb2.GetManyPart | list[memoryview]]:
        """Return the contents of many files."""
        _check_count(len(request.files))
        bytes_max = request.bytes_max if request.HasField("bytes_max") else None
        together_max = GET_DATA_BYTES if bytes_max is None else min(bytes_max, GET_DATA_BYTES)
        with self._transfers.place(user_of(caller)):
            gathered = store_pb2.GetManyPart()
            size = 0
            for position, outcome in enumerate(self._got(request, hidden_from(caller), together_max)):
                size += self._add_get_result(gathered, position, outcome)
                version = outcome.version
                if (
                    outcome.data is None
                    and version is not None
                    and _is_wanted(version, bytes_max)
                    and not outcome.error
                ):
                    yield from self._large(request.user_id, version, gathered)
                elif size < GET_DATA_BYTES and len(gathered.results) < _RESULTS_MAX:
                    continue
                else:
                    yield gathered
                gathered, size = store_pb2.GetManyPart(), 0
            if gathered.results:
                yield gathered

    def GetFiles(  # noqa: N802
        self, request: store_pb2.GetManyRequest, caller: Caller
    ) -> store_pb2.GetManyPart:
        """Return a few small files in one message."""
        require_active(caller)
        _check_count(len(request.files), GET_FILES_MAX)
        wanted = request.bytes_max if request.HasField("bytes_max") else GET_FILES_BYTES_MAX
        gathered = store_pb2.GetManyPart()
        size = 0
        with self._transfers.place(user_of(caller)):
            got = self._got(request, hidden_from(caller), min(wanted, GET_FILES_BYTES_MAX))
            for position, outcome in enumerate(got):
                size += self._add_get_result(gathered, position, outcome)
                if size >= MANY_BYTES_MAX:
                    break
        return gathered

    def DeleteMany(  # noqa: N802
        self, request: store_pb2.DeleteManyRequest, _caller: Caller
    ) -> Iterator[store_pb2.DeleteManyResults]:
        """Delete many files with all their versions."""
        _check_count(len(request.file_ids))
        gathered: list[store_pb2.DeleteResult] = []
        for outcome in self._store.delete_many(list(request.file_ids), user_id=request.user_id):
            gathered.append(self._delete_result(outcome))
            if len(gathered) == _RESULTS_MAX:
                yield store_pb2.DeleteManyResults(results=gathered)
                gathered = []
        if gathered:
            yield store_pb2.DeleteManyResults(results=gathered)

    def _got(self, request: store_pb2.GetManyRequest, hidden: Hidden, bytes_max: int) -> Iterator[GetOutcome]:
        """Read the files of a request, in order; those given by name and those given by id are read in runs."""
        for (by_name, error), run in groupby(request.files, partial(_kind, hidden)):
            asked = [each.filename if by_name else each.file_id for each in run]
            if error is not None:
                yield GetOutcome(0, asked[0], error=error)
            else:
                yield from self._store.get_many(asked, user_id=request.user_id, by_name=by_name, bytes_max=bytes_max)

    def _large(
        self, user_id: str, version: Version, gathered: store_pb2.GetManyPart
    ) -> Iterator[store_pb2.GetManyPart | list[memoryview]]:
        """The results gathered so far, of which the last is of a large file, then its content in pieces."""
        result = gathered.results[-1]
        try:
            with self._store.open_file(version.file_id, user_id=user_id, version_id=version.version_id) as reader:
                result.data = reader.read(GET_DATA_BYTES)
                result.more = True
                yield gathered
                yield from pieces_of(reader, GET_DATA_BYTES, reader.size)
        except StorageError as error:
            if result.more:
                raise  # the pieces that were sent cannot be taken back
            result.error.CopyFrom(self._error(error))
            yield gathered

    def _push_results(self, outcomes: Iterable[PushOutcome]) -> Iterator[store_pb2.PushManyResults]:
        """The results, in messages of which none is too large."""
        gathered = store_pb2.PushManyResults()
        size = 0
        for outcome in outcomes:
            result, version = gathered.results.add(position=outcome.position), outcome.version
            if version is None:
                result.error.CopyFrom(self._error(outcome.error))
            else:
                describe_version(result.version, version)
                result.unchanged = version.unchanged
            size += result.ByteSize()
            if len(gathered.results) == _RESULTS_MAX or size >= GET_DATA_BYTES:
                yield gathered
                gathered, size = store_pb2.PushManyResults(), 0
        if gathered.results:
            yield gathered

    def _add_get_result(self, gathered: store_pb2.GetManyPart, position: int, outcome: GetOutcome) -> int:
        """Add a result to a message; return its size in bytes, without a few for its fields."""
        data = outcome.data or b""
        result = gathered.results.add(position=position, data=data)
        size = len(data)
        if outcome.version is not None:
            describe_version(result.version, outcome.version)
            size += result.version.ByteSize()
        if outcome.error is not None:
            result.error.CopyFrom(self._error(outcome.error))
            size += result.error.ByteSize()
        return size

    def _delete_result(self, outcome: DeleteOutcome) -> store_pb2.DeleteResult:
        error = None if outcome.error is None else self._error(outcome.error)
        return store_pb2.DeleteResult(position=outcome.position, error=error)

    def _error(self, error: Exception | None) -> store_pb2.FileError:
        return status.file_error(
            foreseen(error or StorageError("there is no outcome"), "a call on many files"), self._hide
        )


def _kind(hidden: Hidden, file: store_pb2.FileReference) -> tuple[bool, FileNotFound | None]:
    """Whether a file is given by name, and the error if the caller does not see it: one of its own for each file."""
    return file.WhichOneof("file") == "filename", hidden(file.filename, file.file_id)


def _is_wanted(version: Version, bytes_max: int | None) -> bool:
    return bytes_max is None or version.size <= bytes_max


def _check_count(count: int, most: int = FILES_MAX) -> None:
    if count > most:
        raise InvalidArgument(f"{count} files in one message, at most {most} are allowed; send more messages")


class _Intake:
    """Reads the messages of a push in a thread of its own, while the caller's thread sends results.

    Args:
        store: the store to push to.
        options: the options of all files.
        many: takes the files.
        parts: the messages.
        caller: whoever sends them.
        revisions: limits what is expensive.
    """

    def __init__(
        self,
        store: FileStorage,
        options: PushOptions,
        many: ManyPush,
        parts: Iterable[store_pb2.PushManyPart],
        caller: Caller,
        revisions: Revisions,
    ) -> None:
        self._store = store
        self._revisions = revisions
        self._options = options
        self._many = many
        self._parts = parts
        self._caller = caller
        self._using = threading.Lock()  # held while the store is used
        self._left = False
        self._large: _LargePush | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="push-many", daemon=True)

    def __enter__(self) -> _Intake:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._many.leave()
        with self._using:
            self._left = True
            if self._large is not None:
                self._large.interrupt()

    def raise_error(self) -> None:
        """Raise the error that ended the messages early, if there was one."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for position, part in enumerate(self._parts):
                with self._using:
                    if self._left:
                        return
                    self._take(part, is_first=not position)
            if self._large is not None and self._caller.is_active():
                raise InvalidArgument(
                    f"the stream ended in the middle of {self._large.filename[:80]!r}, which was not stored; push it "
                    "again and only what is missing needs to be sent"
                )
        except BaseException as error:  # raised in the thread that sends results
            self._error = error
        finally:
            self._many.end()

    def _take(self, part: store_pb2.PushManyPart, *, is_first: bool) -> None:
        if part.HasField("header") and not is_first:
            raise InvalidArgument("PushMany got a second header; send one at the beginning")
        _check_count(len(part.files))
        if part.files and self._large is not None:
            raise InvalidArgument("PushMany got a file before the end of another one; send its commit first")
        for file in part.files:
            self._many.add(file.filename, file.data)
        if part.HasField("part"):
            self._take_part(part.part)

    def _take_part(self, part: store_pb2.PushPart) -> None:
        if part.HasField("header") == (self._large is not None):
            raise InvalidArgument("a large file in PushMany begins with one header, and ends with a commit")
        if self._large is None:
            reading = self._revisions.reading(self._caller, part.header.sha256)
            self._large = _LargePush(self._store, self._options, part.header, reading)
        if self._large.take(part, self._caller):
            large, self._large = self._large, None
            large.hand_over(self._many, part.commit.size)


class _LargePush:
    """A large file that is being received. Its errors are kept for its result.

    Args:
        store: the store to push to.
        options: of all files of the call.
        header: of this one.
        reading: makes contexts in which chunks are named that the user has.
    """

    def __init__(
        self,
        store: FileStorage,
        options: PushOptions,
        header: store_pb2.PushHeader,
        reading: Callable[[], AbstractContextManager[None]],
    ) -> None:
        if header.user_id not in ("", options.user_id):
            raise InvalidArgument("all files of one PushMany have one owner; send another call for another user")
        self.filename = header.filename
        self._reading = reading
        self._upload: Upload | None = None
        self._error: StorageError | None = None
        try:
            given = push_options(header)
            self._upload = store.upload(
                filename=header.filename,
                user_id=options.user_id,
                profile=given.profile or options.profile,
                chunk_size=given.chunk_size or options.chunk_size,
                time_ms=options.time_ms if given.time_ms is None else given.time_ms,
                note=given.note or options.note,
                attributes=options.attributes_now(),
                sha256=given.sha256,
                if_absent=given.if_absent,
                if_head=given.if_head,
                size_hint=header.size_hint or None,
            )
        except StorageError as error:
            self._error = error

    def take(self, part: store_pb2.PushPart, caller: Caller) -> bool:
        """Take a message; return whether it was the last one."""
        if len(part.reuse.chunk_ids) > CHUNK_IDS_MAX:
            raise InvalidArgument(
                f"{len(part.reuse.chunk_ids)} chunk ids in one message, at most {CHUNK_IDS_MAX} are allowed; send more "
                "messages"
            )
        if self._upload is not None:
            try:
                if part.data:
                    self._upload.write(part.data)
                if part.HasField("reuse"):
                    for chunk_id in part.reuse.chunk_ids:
                        require_active(caller)
                        with self._reading():
                            self._upload.reuse([chunk_id])
            except StorageError as error:
                self._error = error
                self._upload.abort(keep_chunks=False)
                self._upload = None
        return part.HasField("commit")

    def hand_over(self, many: ManyPush, size: int) -> None:
        """Commit the file, or report its error."""
        if self._upload is not None:
            many.add_upload(self.filename, self._upload, size)
        else:
            many.add_failed(self.filename, self._error or StorageError("there is no upload"))

    def interrupt(self) -> None:
        """End the upload. Its chunks are kept for a while, as the sender may come back."""
        if self._upload is not None:
            self._upload.abort(keep_chunks=True)
