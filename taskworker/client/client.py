"""Client: a store on a server, with the methods and errors of an embedded one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from io import TextIOBase
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from storage import (
    CollectReport,
    ConflictError,
    ErasureProfile,
    FileNotFound,
    ManifestDiff,
    RebuildReport,
    RepairReport,
    ScrubReport,
    StoreStats,
    Version,
)
from storage.arguments import anything, checked, instance, path, seconds, text, whole_number
from storage.diff.local_diff import Changed
from storage.errors import InvalidArgument
from storage.limits import BytesLike
from storage.reports import Progress
from taskworker.client import sources
from taskworker.client.channel import Channel
from taskworker.client.connection import IncomingMessages
from taskworker.client.deadline import Deadline, retried
from taskworker.client.differences import (
    RemoteDiff,
    RevisionOptions,
    changed_places,
    pieces_of,
    revision_messages,
    version_of,
)
from taskworker.client.fetching import Fetch, RemoteFile, Wanted, write_to
from taskworker.client.local_files import LocalFile, replacing
from taskworker.client.pushing import PushOptions, push
from taskworker.client.sending import OutgoingMessages
from taskworker.client.sources import Pushable
from taskworker.errors import FunctionFailed, MessageTooLarge, ServerFault
from taskworker.protos import functions_pb2, store_pb2, taskworker_pb2
from taskworker.rpc import conversion as convert
from taskworker.rpc.limits import DELETE_MAX, MIB, PAGE_MAX, TAIL_MAX, UNARY_BYTES_MAX

if TYPE_CHECKING:
    from taskworker.client.deploying import Deployment
    from taskworker.client.functions import FunctionStatus, LogLine

ReadableAnywhere = BytesLike | str | os.PathLike[str] | BinaryIO

_RETRIES = 3


def _target(value: Any) -> Any:
    """A path, or a file to write bytes to."""
    if isinstance(value, str | os.PathLike):
        return path(value)
    if isinstance(value, TextIOBase) or not callable(getattr(value, "write", None)):
        raise InvalidArgument(f"target must be a path or a writable binary file, not {type(value).__name__}")
    return value


def _args(value: Any) -> list[Any]:
    if isinstance(value, str | bytes | bytearray):
        raise InvalidArgument(f"args are the function's arguments in a list: write [{value[:40]!r}] for one")
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"args are the function's arguments in a list, not {type(value).__name__}")
    return list(value)


def _kwargs(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"kwargs must be a mapping of names to values, not {type(value).__name__}")
    return {text("a name in kwargs")(name): argument for name, argument in value.items()}


def _include(value: Any) -> list[str]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidArgument(f"include must be a list of names or patterns, not {type(value).__name__}")
    return [text("a name in include")(one) for one in value]


_RULES = {
    "offset": whole_number("offset", 0),
    "length": whole_number("length", 0),
    "timeout_s": seconds("timeout_s"),
    "function": text("function"),
    "name": text("name"),
    "type": text("type"),
    "target": _target,
    "changed": changed_places,
    "args": _args,
    "kwargs": _kwargs,
    "entry": text("entry"),
    "directory": path,
    "include": _include,
    "requirements": path,
    "dry_run": instance(bool, "dry_run"),
    "call_id": text("call_id"),
    "since_ms": whole_number("since_ms", 0),
    "tail": whole_number("tail", 0, TAIL_MAX),
    "follow": instance(bool, "follow"),
    "options": anything,  # checked by spec_from_options
}

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


def _as_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"an argument cannot be sent as JSON: {error}") from None


def texts_of(args: Sequence[object], kwargs: Mapping[str, object] | None) -> tuple[list[str], dict[str, str]]:
    """Arguments of a function, each as JSON.

    Raises:
        InvalidArgument: one has no JSON form; or ``args`` is a text, whose characters would be the arguments.
    """
    args = _args(args)
    return [_as_json(value) for value in args], {name: _as_json(value) for name, value in (kwargs or {}).items()}


def _check_texts(args: Sequence[str], kwargs: Mapping[str, str]) -> None:
    for value in (*args, *kwargs.values()):
        text("an argument")(value)


def _arguments_checked(
    method: Callable[Concatenate[Client, P], ResultT],
) -> Callable[Concatenate[Client, P], ResultT]:
    """Check arguments as the engine does; what no message can hold raises InvalidArgument, too."""
    checked_method = checked(method, _RULES)

    @wraps(method)
    def at_the_door(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        try:
            return checked_method(self, *args, **kwargs)
        except UnicodeEncodeError:
            raise InvalidArgument("a text has characters that UTF-8 cannot encode (lone surrogates)") from None
        except ValueError as error:
            if "out of range" not in str(error):
                raise
            raise InvalidArgument(f"a number is too small or too large ({error})") from None

    return at_the_door


@dataclass(frozen=True, slots=True)
class Synchronized:
    """What Synchronous answered: the head, and the diff that takes the caller's copy there, if any."""

    version_id: str
    diff: ManifestDiff | None


@dataclass(frozen=True, slots=True)
class SyncResult:
    """How a local file and the head came into step, and the version both are now.

    ``outcome``: ``"equal"`` nothing was to be done; ``"pulled"`` the file was brought up to the head;
    ``"pushed"`` the file's changes became the new head.
    """

    outcome: Literal["equal", "pulled", "pushed"]
    version: Version


class Client:
    """A store on a server. Thread-safe; connects when first used; a context manager.

    Errors are those of ``storage``, and ``StorageUnavailable``, ``ServerBusy``, ``DeadlineExceeded``
    and ``ServerFault`` of ``taskworker.errors``, which belong to the same family. While a server is
    unavailable, reads are tried again a few times, and so are pushes as long as that cannot store
    anything twice; everything else fails at once. Every method takes ``timeout_s``, the seconds all of
    it may take, retries included.

    Args:
        address: ``host:port``, ``[ipv6]:port`` or ``unix:/path``.
        timeout_s: for calls that name none themselves; None: no limit.

    Raises:
        InvalidArgument: malformed address.
    """

    def __init__(self, address: str, *, timeout_s: float | None = None) -> None:
        if timeout_s is not None:
            seconds("timeout_s")(timeout_s)
        self.address = address
        self._timeout_s = timeout_s
        self._channel = Channel(address)

    def close(self) -> None:
        """End the connection. Calls under way in other threads fail."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    # Whole files

    @_arguments_checked
    def push(
        self,
        source: Pushable,
        *,
        user_id: str,
        filename: str | None = None,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        time_ms: int | None = None,
        note: str = "",
        sha256: str | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Version:
        """Store content under (user, filename): of any size, in bounded memory.

        Content that can be read again (bytes, regular files) is not sent as far as the server has it
        from this user already, as after an interrupted push.

        Args:
            source: bytes, a path, a binary file (from its position on), or an iterable of bytes.
            user_id: the owner.
            filename: the name to store it under; may be left out for a path, whose last part it then is.
            profile: erasure profile; default the store's.
            chunk_size: bytes; default the store's.
            time_ms: the author's clock, ms since 1970; default the server's.
            note: up to 4,096 bytes.
            sha256: hex digest of the whole content, checked before it becomes visible.
            progress: called with (bytes done, bytes in all or 0), from another thread.
            timeout_s: seconds.

        Raises:
            InvalidArgument: an argument is malformed or out of bounds.
            StoreFull: a disk or quota is full; nothing was stored.
            InsufficientWorkers: too few volumes or workers are there to store it safely.
            OSError: ``source`` cannot be read.
        """
        options = PushOptions(
            filename=filename if filename is not None else _own_name(source),
            user_id=user_id,
            profile=profile,
            chunk_size=chunk_size,
            time_ms=time_ms,
            note=note,
            sha256=sha256,
        )
        with sources.opened(source) as content:
            return push(
                self._channel,
                content,
                options,
                deadline=self._deadline(timeout_s),
                retries=_RETRIES,
                progress=progress,
            )

    @_arguments_checked
    def get(
        self,
        file_id: str,
        *,
        user_id: str,
        version_id: str | None = None,
        offset: int = 0,
        length: int | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Bytes of a version in memory; use :meth:`download` or :meth:`open` for large ones.

        Args:
            file_id: the file.
            user_id: its owner.
            version_id: default the head.
            offset: first byte wanted.
            length: bytes wanted; default up to the end, where more are cut off.
            progress: called with (bytes done, bytes in all).
            timeout_s: seconds.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            DataLossError: too few intact shards are left.
            InvalidArgument: an argument is malformed or out of bounds.
        """
        with self._fetch(Wanted(file_id, user_id, version_id, offset, length), timeout_s) as fetch:
            pieces: list[memoryview] = []
            done = 0
            for piece in fetch:
                pieces.append(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, fetch.size)
            return b"".join(pieces)

    @_arguments_checked
    def download(
        self,
        file_id: str,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        user_id: str,
        version_id: str | None = None,
        offset: int = 0,
        length: int | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Version:
        """Write a version's bytes to a file, in bounded memory.

        Args:
            file_id: the file.
            target: a writable binary file; or a path, which then has all or nothing of it.
            user_id: its owner.
            version_id: default the head.
            offset: first byte wanted.
            length: bytes wanted; default up to the end.
            progress: called with (bytes done, bytes in all).
            timeout_s: seconds.

        Raises:
            as :meth:`get`, and OSError from writing ``target``.
        """
        with self._fetch(Wanted(file_id, user_id, version_id, offset, length), timeout_s) as fetch:
            if isinstance(target, str | os.PathLike):
                with replacing(Path(target), durable=True) as file:
                    write_to(fetch, file, progress)
            else:
                write_to(fetch, target, progress)
            return fetch.version

    @_arguments_checked
    def open(
        self, file_id: str, *, user_id: str, version_id: str | None = None, timeout_s: float | None = None
    ) -> RemoteFile:
        """A version as a seekable binary file; ``timeout_s`` is for each fetch it makes.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
        """
        return RemoteFile(
            self._channel,
            Wanted(file_id, user_id, version_id),
            timeout_s=timeout_s if timeout_s is not None else self._timeout_s,
            retries=_RETRIES,
        )

    # Changes

    @_arguments_checked
    def diff(
        self,
        file_id: str,
        source: ReadableAnywhere,
        *,
        user_id: str,
        base_version_id: str | None = None,
        changed: Changed | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> ManifestDiff:
        """What takes a version (default the head) to local content, with the data the server lacks.

        The data is held in memory; :meth:`revise` sends it as it finds it. Arguments as there.
        """
        deadline = self._deadline(timeout_s)
        base = self._stat(file_id, user_id, base_version_id, deadline)
        with sources.opened_seekable(source) as content:
            local = RemoteDiff(self._channel, base, content, changed=changed, deadline=deadline, progress=progress)
            return ManifestDiff(base.version_id, content.size, base.chunk_size, tuple(local.patches()))

    @_arguments_checked
    def revise(
        self,
        file_id: str,
        source: ReadableAnywhere,
        *,
        user_id: str,
        base_version_id: str | None = None,
        changed: Changed | None = None,
        sha256: str | None = None,
        time_ms: int | None = None,
        note: str = "",
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Version:
        """Make local content the file's new version, sending only changed chunks; none if it is the same.

        Args:
            file_id: the file.
            source: bytes, a path or a seekable binary file (from its position on).
            user_id: the owner.
            base_version_id: the version that must still be the head; default whatever is now.
            changed: (offset, length) of all places that changed, if known: only they are read.
            sha256: hex digest of the whole content, checked before it becomes visible.
            time_ms: the author's clock, ms since 1970; default the server's.
            note: up to 4,096 bytes.
            progress: called with (bytes compared, bytes in all), from another thread.
            timeout_s: seconds.

        Raises:
            ConflictError: the base is not the head any more.
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            InvalidArgument: an argument is malformed or out of bounds.
            StoreFull: a disk or quota is full; nothing was stored.
            OSError: the local file cannot be read or written.
        """
        deadline = self._deadline(timeout_s)
        base = self._stat(file_id, user_id, base_version_id, deadline)
        options = RevisionOptions(file_id, user_id, sha256=sha256, time_ms=time_ms, note=note)
        with sources.opened_seekable(source) as content:
            local = RemoteDiff(self._channel, base, content, changed=changed, deadline=deadline, progress=progress)
            return self._send_revision(base, content.size, local, options, deadline)

    @_arguments_checked
    def apply(
        self,
        file_id: str,
        diff: ManifestDiff,
        *,
        user_id: str,
        sha256: str | None = None,
        time_ms: int | None = None,
        note: str = "",
        timeout_s: float | None = None,
    ) -> Version:
        """Apply a diff to the head it was made from; ``FileStorage.revise`` on a server.

        Raises:
            ConflictError: the diff's base is not the head any more.
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            InvalidArgument: the diff is malformed; nothing was kept.
            StoreFull: a disk or quota is full; nothing was stored.
        """
        options = RevisionOptions(file_id, user_id, sha256=sha256, time_ms=time_ms, note=note)
        header = options.header(diff.base_version_id, diff.new_size, diff.chunk_size)
        messages = OutgoingMessages(revision_messages(header, diff.patches))
        return version_of(self._channel.revise(messages, self._deadline(timeout_s)))

    @_arguments_checked
    def synchronize(
        self,
        file_id: str,
        *,
        user_id: str,
        have_version_id: str,
        diff: ManifestDiff | None = None,
        timeout_s: float | None = None,
    ) -> Synchronized:
        """Bring two copies into step, by one call of the public contract.

        Args:
            file_id: the file.
            user_id: the owner.
            have_version_id: the version the caller's copy was made from.
            diff: what the caller changed since.
            timeout_s: seconds.

        Raises:
            ConflictError: both sides moved.
            MessageTooLarge: the diff is too large for one call; :meth:`apply` takes any.
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            InvalidArgument: an argument is malformed or out of bounds.
            StoreFull: a disk or quota is full; nothing was stored.
        """
        state = store_pb2.SyncState(
            version_id=have_version_id,
            user_id=user_id,
            diff=convert.diff_to_proto(diff) if diff is not None else None,
        )
        request = taskworker_pb2.SynchronousRequest(file_id=file_id, difference=state.SerializeToString())
        if request.ByteSize() > UNARY_BYTES_MAX:
            raise MessageTooLarge(
                f"diff of {request.ByteSize() / MIB:.1f} MiB is above the limit of {UNARY_BYTES_MAX // MIB} MiB "
                "for one message; use apply() or revise()"
            )
        response = self._channel.unary(self._channel.files.Synchronous, request, self._deadline(timeout_s))
        return Synchronized(response.version_id, _diff_in(response))

    @_arguments_checked
    def sync(
        self,
        file_id: str,
        path: str | os.PathLike[str],
        *,
        user_id: str,
        base_version_id: str,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> SyncResult:
        """Bring a local file into step with the head: whichever of the two changed is carried over.

        Args:
            file_id: the file on the server.
            path: the local file; replaced as a whole if the head moved.
            user_id: the owner.
            base_version_id: the version the local file was made from, as of the last time.
            progress: called with (bytes compared, bytes in all).
            timeout_s: seconds.

        Raises:
            ConflictError: both changed, differently; neither is touched.
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            InvalidArgument: an argument is malformed or out of bounds.
            StoreFull: a disk or quota is full; nothing was stored.
            OSError: the local file cannot be read or written.
        """
        deadline = self._deadline(timeout_s)
        base = self._stat(file_id, user_id, base_version_id, deadline)
        local_file = LocalFile(Path(path))
        with sources.opened_seekable(path) as content:
            local = RemoteDiff(self._channel, base, content, changed=None, deadline=deadline, progress=progress)
            if not local.is_empty():
                return self._push_changes(base, content, local, deadline)
        return self._pull(base, local_file, deadline)

    # Finding and managing files

    @_arguments_checked
    def stat(
        self, file_id: str, *, user_id: str, version_id: str | None = None, timeout_s: float | None = None
    ) -> Version:
        """A version by its file's id, the head by default.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
        """
        return self._stat(file_id, user_id, version_id, self._deadline(timeout_s))

    @_arguments_checked
    def find(self, filename: str, *, user_id: str, timeout_s: float | None = None) -> Version | None:
        """The head of the file of that name, None if there is none."""
        request = store_pb2.StatRequest(user_id=user_id, filename=filename)
        try:
            message = self._channel.unary(self._channel.store.Stat, request, self._deadline(timeout_s))
        except FileNotFound:
            return None
        return convert.version_from_proto(message) if message.file_id else None  # as servers before 0.1 said it

    @_arguments_checked
    def history(
        self,
        file_id: str,
        *,
        user_id: str,
        limit: int | None = None,
        before: str | None = None,
        timeout_s: float | None = None,
    ) -> list[Version]:
        """Versions of a file, newest first: at most ``limit``, after version ``before``.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
        """
        deadline = self._deadline(timeout_s)
        versions: list[Version] = []
        while limit is None or len(versions) < limit:
            request = store_pb2.HistoryRequest(
                file_id=file_id, user_id=user_id, limit=_page(limit, len(versions)), before=before or ""
            )
            page = self._channel.unary(self._channel.store.History, request, deadline)
            versions += map(convert.version_from_proto, page.versions)
            before = page.next_before
            if not before:
                break
        return versions

    @_arguments_checked
    def list_files(
        self,
        *,
        user_id: str,
        prefix: str = "",
        after: str | None = None,
        limit: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Version]:
        """Heads of a user's files ordered by name: at most ``limit``, named ``prefix…``, after name ``after``."""
        deadline = self._deadline(timeout_s)
        files: list[Version] = []
        while limit is None or len(files) < limit:
            page = self._files_page(user_id, prefix, after, _page(limit, len(files)), deadline)
            files += map(convert.version_from_proto, page.files)
            after = page.next_after
            if not after:
                break
        return files

    @_arguments_checked
    def iter_files(self, *, user_id: str, prefix: str = "", timeout_s: float | None = None) -> Iterator[Version]:
        """As :meth:`list_files`, page by page, however many there are; ``timeout_s`` is for each page."""
        after: str | None = None
        while after != "":
            page = self._files_page(user_id, prefix, after, 0, self._deadline(timeout_s))
            yield from map(convert.version_from_proto, page.files)
            after = page.next_after

    @_arguments_checked
    def delete(self, file_id: str, *, user_id: str, timeout_s: float | None = None) -> None:
        """End a file's chain; ``collect`` frees its space.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
        """
        request = store_pb2.DeleteRequest(file_id=file_id, user_id=user_id)
        self._channel.unary(self._channel.store.Delete, request, self._deadline(timeout_s))

    @_arguments_checked
    def delete_files(self, file_ids: Sequence[str], *, user_id: str, timeout_s: float | None = None) -> None:
        """End many files at once; a few hundred together take hardly longer than one.

        Up to 1,000 of them are deleted together: all, or none if one is not there. Of more, some may be deleted when
        an error is raised.

        Raises:
            FileNotFound: no such file, or another user's; names it.
        """
        deadline = self._deadline(timeout_s)
        for start in range(0, len(file_ids), DELETE_MAX):
            request = store_pb2.DeleteFilesRequest(file_ids=file_ids[start : start + DELETE_MAX], user_id=user_id)
            self._channel.unary(self._channel.store.DeleteFiles, request, deadline)

    # Functions

    @_arguments_checked
    def call(
        self,
        function: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> Any:
        """Call a function by its name; what it returns, as JSON has it.

        Args:
            function: its name.
            args: values that JSON can hold.
            kwargs: likewise, by parameter.
            user_id: on whose behalf it runs.
            timeout_s: after that many seconds the call is ended wherever it runs.

        Raises:
            FunctionNotFound: there is no such function.
            FunctionFailed: it raised an exception; the text has its type, its message and its own frames.
            FunctionLimitExceeded: the call used more than it may.
            FunctionBusy: as many calls run and wait as are allowed; try again later.
            DeadlineExceeded: the time is up.
            InvalidArgument: an argument does not fit its parameter.
            StorageError: one of the other errors of ``taskworker.errors``.
        """
        texts, named = texts_of(args, kwargs)
        return value_of(self.call_texts(function, texts, named, user_id=user_id, timeout_s=timeout_s))

    @_arguments_checked
    def call_texts(
        self,
        function: str,
        args: Sequence[str],
        kwargs: Mapping[str, str],
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> str:
        """As :meth:`call`, with arguments as texts (JSON values, or bare words), and the result as JSON."""
        _check_texts(args, kwargs)
        request = taskworker_pb2.FunctionCallRequest(function_name=function, args=args, kwargs=kwargs, user_id=user_id)
        return self._channel.unary(self._channel.rpc.CallFunction, request, self._deadline(timeout_s)).result

    @_arguments_checked
    def stream(
        self,
        function: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> Generator[Any, None, None]:
        """Call a function that is a generator: each item as it comes. Of any other function, its result as one item.

        Leaving the iteration early ends the call.

        Args:
            function: its name.
            args: values that JSON can hold.
            kwargs: likewise, by parameter.
            user_id: on whose behalf it runs.
            timeout_s: after that many seconds the call is ended wherever it runs.

        Raises:
            CallUncertain: its worker was lost after it gave some items; and what :meth:`call` raises.
        """
        texts, named = texts_of(args, kwargs)
        return _values_of(self.stream_texts(function, texts, named, user_id=user_id, timeout_s=timeout_s))

    @_arguments_checked
    def stream_texts(
        self,
        function: str,
        args: Sequence[str],
        kwargs: Mapping[str, str],
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> Generator[str, None, None]:
        """As :meth:`stream`, with arguments as texts (JSON values, or bare words), and items as JSON."""
        _check_texts(args, kwargs)
        request = functions_pb2.StreamFunctionRequest(function_name=function, args=args, kwargs=kwargs, user_id=user_id)
        items = self._channel.receive(self._channel.streams.StreamFunction, request, self._deadline(timeout_s))
        return _items_of(items)

    @_arguments_checked
    def deploy(
        self,
        /,
        name: str,
        entry: str,
        *,
        user_id: str,
        directory: str | os.PathLike[str] = ".",
        include: Sequence[str] = (),
        requirements: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Deployment:
        """Put a function into the pool as the newest version of ``name``, as ``taskworker deploy`` does.

        A worker imports it first: what fails then does not go live.

        Args:
            name: what callers call it.
            entry: ``module:function``.
            user_id: who deploys it.
            directory: where the module is; what it imports from there travels along.
            include: further files of that directory: names, directories, or patterns.
            requirements: a requirements file.
            dry_run: only say what would travel, and have it imported.
            timeout_s: how long to wait for the pool to take the bundle; not for packages.
            options: as of ``TaskWorker.function``, and ``needs``: labels that a worker must have to run it.

        Raises:
            InvalidArgument: it cannot be packed, or an option is unknown or out of bounds.
            FunctionBroken: it cannot be imported, or has no such entry.
            FunctionsUnavailable: no worker could import it, and there is an earlier version.
        """
        from taskworker.calls.spec import spec_from_options
        from taskworker.client.deploying import Source, deploy
        from taskworker.client.functions import FunctionClient

        spec = spec_from_options(name, entry, options)
        source = Source(Path(directory), include, None if requirements is None else Path(requirements))

        def remaining_s() -> float | None:
            return self._deadline(timeout_s).remaining_s()

        with FunctionClient(self.address) as client:
            return deploy(client, spec, source, user_id=user_id, dry_run=dry_run, remaining_s=remaining_s)

    @_arguments_checked
    def functions(self, *, timeout_s: float | None = None) -> list[FunctionStatus]:
        """The pool's functions and how their calls do, by name, as ``taskworker functions`` lists them."""
        from taskworker.client.functions import FunctionClient

        with FunctionClient(self.address) as client:
            return client.functions(timeout_s=self._deadline(timeout_s).remaining_s())

    @_arguments_checked
    def logs(
        self, function: str = "", *, call_id: str = "", since_ms: int = 0, tail: int | None = None, follow: bool = False
    ) -> Generator[LogLine, None, None]:
        """What the calls of a function printed and logged, and the errors they ended with, as ``taskworker logs``.

        Args:
            function: its name; may be left out with ``call_id``.
            call_id: only of calls whose id begins so, and of those they led to.
            since_ms: only lines that are not older, in ms since 1970.
            tail: only the last so many of those kept.
            follow: whether to go on with those that come, without end.

        Raises:
            InvalidArgument: neither a function nor a call is given.
        """
        return _logs_of(self.address, function, call_id, since_ms, tail, follow=follow)

    # Names

    @_arguments_checked
    def resolve(self, name: str, type: str = "A", *, timeout_s: float | None = None) -> list[str]:  # noqa: A002
        """Resolve a name by the pool: one of its own, as ``worker_001.worker.hive``, or any other.

        Args:
            name: the name; for PTR an address will do.
            type: A, AAAA, CNAME, MX, TXT, SRV, NS or PTR.
            timeout_s: how long to wait.

        Returns:
            The records as texts, at least one; names in them have no dot at their end.

        Raises:
            NameNotFound: it does not exist, or has no such records.
            PermissionDenied: it is blocked, or is an outside name that means a private address.
            NameServersUnavailable: no name server answers.
        """
        request = taskworker_pb2.DNSRequest(domain=name, request_type=type)
        response = self._channel.unary(self._channel.dns.ResolveDomain, request, self._deadline(timeout_s))
        return list(response.answers)

    # Maintenance of the store

    @_arguments_checked
    def stats(self, *, timeout_s: float | None = None) -> StoreStats:
        """The store at a glance."""
        response = self._channel.unary(self._channel.store.Stats, store_pb2.StatsRequest(), self._deadline(timeout_s))
        return convert.stats_from_proto(response)

    @_arguments_checked
    def scrub(self, *, progress: Progress | None = None, timeout_s: float | None = None) -> ScrubReport:
        """Verify all shards; ``progress`` gets (bytes done, bytes in all). Leaving early stops it."""
        event = self._maintenance(self._channel.store.Scrub, store_pb2.ScrubRequest(), progress, timeout_s)
        return convert.scrub_from_proto(event.report)

    @_arguments_checked
    def repair(self, *, progress: Progress | None = None, timeout_s: float | None = None) -> RepairReport:
        """Re-make missing and rotten shards; ``progress`` gets (objects done, objects in all)."""
        event = self._maintenance(self._channel.store.Repair, store_pb2.RepairRequest(), progress, timeout_s)
        return convert.repair_from_proto(event.report)

    @_arguments_checked
    def collect(
        self, *, progress: Progress | None = None, grace_s: float | None = None, timeout_s: float | None = None
    ) -> CollectReport:
        """Drop what no version reaches and is older than ``grace_s`` seconds (default a day)."""
        request = store_pb2.CollectRequest(grace_s=grace_s)
        event = self._maintenance(self._channel.store.Collect, request, progress, timeout_s)
        return convert.collect_from_proto(event.report)

    @_arguments_checked
    def rebuild(self, *, progress: Progress | None = None, timeout_s: float | None = None) -> RebuildReport:
        """Make the catalog again from the volumes."""
        event = self._maintenance(self._channel.store.Rebuild, store_pb2.RebuildRequest(), progress, timeout_s)
        return convert.rebuild_from_proto(event.report)

    # Inside

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(timeout_s if timeout_s is not None else self._timeout_s)

    def _fetch(self, wanted: Wanted, timeout_s: float | None) -> Fetch:
        return Fetch(self._channel, wanted, deadline=self._deadline(timeout_s), retries=_RETRIES)

    def _stat(self, file_id: str, user_id: str, version_id: str | None, deadline: Deadline) -> Version:
        request = store_pb2.StatRequest(user_id=user_id, file_id=file_id, version_id=version_id or "")
        return convert.version_from_proto(self._channel.unary(self._channel.store.Stat, request, deadline))

    def _files_page(
        self, user_id: str, prefix: str, after: str | None, limit: int, deadline: Deadline
    ) -> store_pb2.ListFilesResponse:
        request = store_pb2.ListFilesRequest(user_id=user_id, prefix=prefix, after=after or "", limit=limit)
        return self._channel.unary(self._channel.store.ListFiles, request, deadline)

    def _send_revision(
        self, base: Version, size: int, local: RemoteDiff, options: RevisionOptions, deadline: Deadline
    ) -> Version:
        header = options.header(base.version_id, size, base.chunk_size)
        messages = OutgoingMessages(revision_messages(header, local.patches()))
        return version_of(self._channel.revise(messages, deadline))

    def _push_changes(
        self, base: Version, content: sources.SeekableSource, local: RemoteDiff, deadline: Deadline
    ) -> SyncResult:
        options = RevisionOptions(base.file_id, base.user_id)
        try:
            return SyncResult("pushed", self._send_revision(base, content.size, local, options, deadline))
        except ConflictError:
            head = self._stat(base.file_id, base.user_id, None, deadline)
            theirs = RemoteDiff(self._channel, head, content, changed=None, deadline=deadline)
            if not theirs.is_empty():
                raise
            return SyncResult("equal", head)

    def _pull(self, base: Version, local: LocalFile, deadline: Deadline) -> SyncResult:
        head = self._stat(base.file_id, base.user_id, None, deadline)
        if head.version_id == base.version_id:
            return SyncResult("equal", head)
        wanted = Wanted(head.file_id, head.user_id, head.version_id)
        if head.chunk_size != base.chunk_size:
            # Stored anew with other chunks: there is no difference smaller than the file.
            with Fetch(self._channel, wanted, deadline=deadline, retries=_RETRIES) as fetch, local.replaced() as file:
                write_to(fetch, file, None)
            return SyncResult("pulled", head)
        return self._pull_diff(base, local, deadline)

    def _pull_diff(self, base: Version, local: LocalFile, deadline: Deadline) -> SyncResult:
        state = store_pb2.SyncState(version_id=base.version_id, user_id=base.user_id)
        request = taskworker_pb2.SynchronousRequest(file_id=base.file_id, difference=state.SerializeToString())
        # Without a diff of ours the call changes nothing, so it may be made again.
        response = retried(
            lambda: self._channel.unary(self._channel.files.Synchronous, request, deadline), deadline, _RETRIES
        )
        diff = _diff_in(response)
        head = self._stat(base.file_id, base.user_id, response.version_id, deadline)
        if diff is None:
            return SyncResult("equal", head)

        def fetch(offset: int, length: int) -> list[memoryview]:
            wanted = Wanted(head.file_id, head.user_id, head.version_id, offset, length)
            with Fetch(self._channel, wanted, deadline=deadline, retries=_RETRIES) as pieces:
                return list(pieces)

        local.patch(diff.new_size, pieces_of(diff, fetch))
        return SyncResult("pulled", head)

    def _maintenance(
        self,
        method: grpc.UnaryStreamMultiCallable[Any, EventT],
        request: Message,
        progress: Progress | None,
        timeout_s: float | None,
    ) -> EventT:
        with self._channel.receive(method, request, self._deadline(timeout_s)) as events:
            for event in events:
                if event.HasField("report"):
                    return event
                if progress is not None:
                    progress(event.progress.done, event.progress.total)
        raise ServerFault("the server ended the operation without a report; its log tells why")


def _own_name(source: Pushable) -> str:
    if isinstance(source, str | os.PathLike):
        return Path(source).name
    raise InvalidArgument("filename is needed for content that is no path; say what to store it as")


def _page(limit: int | None, have: int) -> int:
    """How many more to ask for at once; 0 leaves it to the server."""
    return 0 if limit is None else min(limit - have, PAGE_MAX)


def _diff_in(response: taskworker_pb2.SynchronousResponse) -> ManifestDiff | None:
    if not response.difference:
        return None
    return convert.diff_from_proto(
        convert.parsed(store_pb2.ManifestDiff.FromString, response.difference, "difference from the server")
    )


class _Event(Protocol):
    """An event of an maintenance call."""

    @property
    def progress(self) -> store_pb2.Progress: ...

    def HasField(self, field_name: Literal["report"], /) -> bool: ...  # noqa: N802 - protobuf's name


EventT = TypeVar("EventT", bound=_Event)


def _values_of(items: Generator[str, None, None]) -> Generator[Any, None, None]:
    with contextlib.closing(items):
        for item in items:
            yield value_of(item)


def value_of(result: str) -> Any:
    """What a function gave, from JSON.

    Raises:
        FunctionFailed: Python cannot read it; the text says why.
    """
    try:
        return json.loads(result)
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError:  # the pool has seen that it is JSON
        fault = "it holds a number of too many digits; let the function return it as a text"
    raise FunctionFailed(f"the result cannot be read by Python: {fault}")


def _logs_of(
    address: str, function: str, call_id: str, since_ms: int, tail: int | None, *, follow: bool
) -> Generator[LogLine, None, None]:
    from taskworker.client.functions import FunctionClient

    with FunctionClient(address) as client:
        yield from client.logs(function, follow=follow, since_ms=since_ms, tail=tail, call_id=call_id)


def _items_of(messages: IncomingMessages[functions_pb2.FunctionItem]) -> Generator[str, None, None]:
    with messages:
        for message in messages:
            yield message.item
