"""Calls on many files: PushMany, GetMany and DeleteMany, with an outcome for each file."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from storage import Version
from storage.batching import UpToError, batched
from storage.errors import InvalidArgument, StorageError
from storage.limits import check_filename
from storage.options import PushOptions
from storage.outcomes import DeleteOutcome, GetOutcome, PushOutcome
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.client.pushing import push_messages
from taskworker.client.sources import Pushable, SeekableSource, Source, opened
from taskworker.errors import ServerFault, StorageUnavailable
from taskworker.protos import store_pb2
from taskworker.rpc import status
from taskworker.rpc.conversion import many_header, version_from_proto
from taskworker.rpc.data_frames import part_frame
from taskworker.rpc.limits import KIB, MIB

NamedSource = str | os.PathLike[str] | tuple[str, Pushable]
"""A file to push: a path, whose last component becomes the name, or a name with the content."""

_WHOLE_BYTES_MAX = 512 * KIB
"""Files up to this size share messages; larger ones are sent in parts."""
_MESSAGE_BYTES = MIB
_MESSAGE_FILES_MAX = 1024
_QUEUED_BYTES_MAX = 4 * MIB
_UNANSWERED_MAX = 8192
"""Files without a result. The server has fewer than that in flight."""
_LINGER_S = 0.001
"""How long a message that is not full waits for more files: less than one file takes to become durable."""
_LINGER_BYTES = 64 * KIB
_ASKED_TOGETHER = 1024
"""Files in one call of GetMany or DeleteMany, which is repeated for more."""


# -- pushing ------------------------------------------------------------------------------------------


Prepared = Callable[[str, Source], tuple[str, Source]]
"""From a file's name and content to those to send in their place."""
Shown = Callable[[Version], Version]
"""From a version as the server knows it to what callers get."""


def push_many(
    channel: Channel,
    files: Iterable[NamedSource],
    options: PushOptions,
    deadline: Deadline,
    *,
    prepared: Prepared = lambda filename, source: (filename, source),
    shown: Shown = lambda version: version,
) -> Iterator[PushOutcome]:
    """Push files, and yield the outcome of each once it is durable. ``files`` is iterated in a thread of its own.

    Args:
        channel: connection to the server.
        files: paths, or names with content.
        options: the options of all files; the filename is not used.
        deadline: by when all must be done.
        prepared: what to send for a file.
        shown: what callers get for a version.

    Raises:
        Exception: whatever ``files`` raises, after the outcomes of the files before.
    """
    sending = _Sending(channel, files, options, deadline, prepared, shown)
    try:
        with channel.push_many(sending.messages(), deadline) as results:
            try:
                sending.start()
                for message in results:
                    for result in message.results:
                        yield sending.outcome(result)
            finally:
                sending.stop()
    except StorageError:
        sending.raise_error()  # because of which the server may have refused the rest
        raise
    sending.check_ended()


@dataclass(slots=True)
class _Sent:
    """A file that was sent and has no outcome yet, or one that could not be read because of ``error``."""

    position: int
    filename: str
    error: Exception | None = None


class _Sending:
    """The messages of a PushMany call, made in one thread, and sent in another one.

    Args: see :func:`push_many`.
    """

    def __init__(
        self,
        channel: Channel,
        files: Iterable[NamedSource],
        options: PushOptions,
        deadline: Deadline,
        prepared: Prepared,
        shown: Shown,
    ) -> None:
        self._prepared = prepared
        self._shown = shown
        self._channel = channel
        self._files = files
        self._options = options
        self._deadline = deadline
        self._changed = threading.Condition()
        self._whole: list[store_pb2.WholeFile] = []  # not in a message yet
        self._whole_bytes = 0
        self._queue: deque[bytes] = deque()  # messages in wire form
        self._queued_bytes = 0
        self._unanswered: deque[_Sent] = deque()
        self._position = 0
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="push-many", daemon=True)

    def start(self) -> None:
        """Begin to read the files."""
        self._thread.start()

    def stop(self) -> None:
        """Read and send no more, as the call has ended."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # -- reading, in a thread of its own ------------------------------------------------------------

    def _read(self) -> None:
        try:
            for file in self._files:
                self._take(file)
                if self._stopped:
                    return
        except BaseException as error:  # raised where the outcomes are awaited
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _take(self, file: Any) -> None:
        filename, content = named(file)
        sent = _Sent(self._position, filename)
        self._position += 1
        try:
            check_filename(filename)
            with opened(content) as plain:
                stored_name, source = self._prepared(filename, plain)
                if isinstance(source, SeekableSource) and source.size <= _WHOLE_BYTES_MAX:
                    self._put_whole(sent, stored_name, bytes(source.read(0, source.size)))
                else:
                    self._put_parts(sent, stored_name, source)
        except (StorageError, OSError) as error:
            sent.error = error
            # The server refuses a file without a name, so that the outcomes come in order, and no more wait than may.
            self._put_whole(sent, "", b"")

    def _put_whole(self, sent: _Sent, stored_name: str, data: bytes) -> None:
        file = store_pb2.WholeFile(filename=stored_name, data=data)
        with self._changed:
            while not self._stopped and (
                self._queued_bytes + self._whole_bytes > _QUEUED_BYTES_MAX or len(self._unanswered) >= _UNANSWERED_MAX
            ):
                self._changed.wait()
            if self._whole_bytes + len(data) > _MESSAGE_BYTES or len(self._whole) == _MESSAGE_FILES_MAX:
                self._close_message()
            self._whole.append(file)
            self._whole_bytes += len(data)
            self._unanswered.append(sent)
            if len(self._whole) == 1 or self._whole_bytes >= _LINGER_BYTES:
                self._changed.notify_all()

    def _put_parts(self, sent: _Sent, stored_name: str, source: Source) -> None:
        """Queue the messages of a large file. If it cannot be read to its end, end it so that it is refused."""
        options = replace(self._options, filename=stored_name)
        begun = False
        try:
            for part in push_messages(self._channel, source, options, self._deadline):
                self._put_part(part, None if begun else sent)
                begun = True
        except (StorageError, OSError) as error:
            if not begun:
                raise
            sent.error = error
            refused = store_pb2.PushPart(commit=store_pb2.PushCommit(size=(1 << 64) - 1))
            self._put_part(refused.SerializeToString(), None)

    def _put_part(self, part: bytes, sent: _Sent | None) -> None:
        with self._changed:
            while not self._stopped and self._queued_bytes > _QUEUED_BYTES_MAX:
                self._changed.wait()
            self._close_message()
            message = part_frame(part)
            self._queue.append(message)
            self._queued_bytes += len(message)
            if sent is not None:
                self._unanswered.append(sent)
            self._changed.notify_all()

    def _close_message(self) -> None:
        """Turn the files gathered so far into a message, if there are any. The caller holds the condition."""
        if not self._whole:
            return
        message = store_pb2.PushManyPart(files=self._whole).SerializeToString()
        self._queue.append(message)
        self._queued_bytes += len(message)
        self._whole, self._whole_bytes = [], 0

    # -- sending, in gRPC's thread ------------------------------------------------------------------

    def messages(self) -> Iterator[bytes]:
        """The messages in wire form. One that is not full is sent once nothing else has come for a moment."""
        yield store_pb2.PushManyPart(header=many_header(self._options)).SerializeToString()
        while (message := self._next_message()) is not None:
            yield message

    def _next_message(self) -> bytes | None:
        with self._changed:
            while not self._stopped and not self._queue and not self._whole and not self._ended:
                self._changed.wait()
            if not self._queue and self._whole_bytes < _LINGER_BYTES and not self._ended:
                self._changed.wait_for(self._need_not_linger, _LINGER_S)
            if not self._queue:
                self._close_message()
            if self._stopped or not self._queue:
                return None
            message = self._queue.popleft()
            self._queued_bytes -= len(message)
            self._changed.notify_all()
            return message

    def _need_not_linger(self) -> bool:
        return self._stopped or self._ended or bool(self._queue) or self._whole_bytes >= _LINGER_BYTES

    # -- outcomes -----------------------------------------------------------------------------------

    def outcome(self, result: store_pb2.PushResult) -> PushOutcome:
        """The outcome of the next file."""
        with self._changed:
            sent = self._unanswered.popleft() if self._unanswered else None
            if len(self._unanswered) == _UNANSWERED_MAX - 1:
                self._changed.notify_all()
        if sent is None:
            raise ServerFault("the server sent a result that nobody asked for; is it a TaskWorker server?")
        if result.HasField("version") and sent.error is None:
            version = version_from_proto(result.version, unchanged=result.unchanged)
            try:
                return PushOutcome(sent.position, sent.filename, self._shown(version))
            except StorageError as unlike:
                return PushOutcome(sent.position, sent.filename, error=unlike)
        error = sent.error or status.file_error_from(result.error, self._channel.address)
        return PushOutcome(sent.position, sent.filename, error=error)

    def raise_error(self) -> None:
        """Raise the error of the iterator of files, or of reading one of them, if there was one."""
        if self._error is not None:
            raise self._error

    def check_ended(self) -> None:
        """Check that nothing is left after the last result.

        Raises:
            Exception: the files could not be iterated.
            ServerFault: the server did not send all results.
        """
        self.raise_error()
        if self._unanswered:
            raise ServerFault(
                f"the server ended the call without the results of {len(self._unanswered)} files; push them again"
            )


def named(file: Any) -> tuple[str, Pushable]:
    """The name and the content of a file to push.

    Raises:
        InvalidArgument: it is neither a path nor a pair.
    """
    if isinstance(file, str | os.PathLike):
        return Path(file).name, file
    if isinstance(file, tuple) and len(file) == 2:
        return file
    raise InvalidArgument(f"files are paths, or pairs of a name and content, not {type(file).__name__}")


# -- fetching -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ManyWanted:
    """What a call of GetMany asks for; see ``Client.get_many``."""

    user_id: str
    by_name: bool
    bytes_max: int | None


def get_many(
    channel: Channel, files: Iterable[str], wanted: ManyWanted, deadline: Deadline, retries: int
) -> Iterator[GetOutcome]:
    """Get files, and yield the outcome of each, in order. After an interruption, the rest is asked for again.

    Raises:
        Exception: whatever ``files`` raises, after the outcomes of those before.
    """
    position, given = 0, UpToError(files)
    for batch in batched(given, _ASKED_TOGETHER):
        yield from _get_batch(channel, batch, position, wanted, deadline, retries)
        position += len(batch)
    given.raise_error()


def _get_batch(
    channel: Channel, files: list[str], position: int, wanted: ManyWanted, deadline: Deadline, retries: int
) -> Iterator[GetOutcome]:
    done = attempt = 0
    while done < len(files):
        try:
            for outcome in _got(channel, files[done:], wanted, deadline):
                yield replace(outcome, position=position + done)
                done, attempt = done + 1, 0
        except StorageUnavailable:
            attempt += 1
            if attempt > retries:
                raise
            deadline.back_off(attempt)


def _got(channel: Channel, files: Sequence[str], wanted: ManyWanted, deadline: Deadline) -> Iterator[GetOutcome]:
    """The outcomes of one call, whose positions are left at 0. It may end after a file that broke off."""
    request = store_pb2.GetManyRequest(
        user_id=wanted.user_id,
        files=[store_pb2.FileReference(filename=file) for file in files]
        if wanted.by_name
        else [store_pb2.FileReference(file_id=file) for file in files],
        bytes_max=wanted.bytes_max,
    )
    asked = iter(files)
    with channel.get_many(request, deadline) as messages:
        for message in messages:
            if isinstance(message, memoryview):
                raise ServerFault("the server sent data of no file; is it a TaskWorker server?")
            for result in message.results:
                file = next(asked, None)
                if file is None:
                    raise ServerFault("the server sent more files than were asked for; is it a TaskWorker server?")
                if result.more:
                    outcome = _joined(file, result, messages)
                else:
                    outcome = _get_outcome(file, result, channel.address, wanted.bytes_max)
                yield outcome
                if result.more and outcome.error is not None:
                    return
    if next(asked, None) is not None:
        raise ServerFault("the server sent fewer files than were asked for; get the rest again")


def _get_outcome(file: str, result: store_pb2.GetResult, address: str, bytes_max: int | None) -> GetOutcome:
    version = version_from_proto(result.version) if result.HasField("version") else None
    if result.HasField("error") or version is None:
        return GetOutcome(0, file, version, error=status.file_error_from(result.error, address))
    if len(result.data) == version.size:
        return GetOutcome(0, file, version, result.data)
    if bytes_max is None or version.size <= bytes_max:
        raise ServerFault(f"the server sent {len(result.data)} of {version.size} bytes; get the file again")
    return GetOutcome(0, file, version)


def _joined(
    file: str, result: store_pb2.GetResult, messages: Iterator[memoryview | store_pb2.GetManyPart]
) -> GetOutcome:
    """The outcome of a large file, whose further data are in the next messages."""
    version = version_from_proto(result.version)
    pieces: list[bytes | memoryview] = [result.data]
    missing = version.size - len(result.data)
    while missing > 0:
        try:
            piece = next(messages, None)
        except StorageUnavailable:
            raise
        except StorageError as error:
            return GetOutcome(0, file, version, error=error)
        if not isinstance(piece, memoryview):
            raise ServerFault(f"the server's stream lacks {missing} bytes of a file; get the file again")
        pieces.append(piece)
        missing -= len(piece)
    if missing:
        raise ServerFault(f"the server sent {-missing} bytes too many of a file; get the file again")
    return GetOutcome(0, file, version, b"".join(pieces))


# -- deleting -----------------------------------------------------------------------------------------


def delete_many(channel: Channel, files: Iterable[str], user_id: str, deadline: Deadline) -> Iterator[DeleteOutcome]:
    """Delete files, and yield the outcome of each, in order.

    Raises:
        Exception: whatever ``files`` raises, after the outcomes of those before.
    """
    position, given = 0, UpToError(files)
    for batch in batched(given, _ASKED_TOGETHER):
        yield from _delete_batch(channel, batch, position, user_id, deadline)
        position += len(batch)
    given.raise_error()


def _delete_batch(
    channel: Channel, files: list[str], position: int, user_id: str, deadline: Deadline
) -> Generator[DeleteOutcome, None, None]:
    request = store_pb2.DeleteManyRequest(user_id=user_id, file_ids=files)
    done = 0
    with channel.receive(channel.store.DeleteMany, request, deadline) as messages:
        for message in messages:
            for result, file in zip(message.results, islice(files, done, None), strict=False):
                error = status.file_error_from(result.error, channel.address) if result.HasField("error") else None
                yield DeleteOutcome(position + done, file, error)
                done += 1
    if done != len(files):
        raise ServerFault("the server ended the call without all results; list the files to see which are left")
