"""Answers a function's questions to its worker, about the calling user's files, nested calls, and capabilities.

Questions are written by code in a sandbox, so they are untrusted: they are parsed strictly, within bounds, and
always answered on behalf of the call's user, whatever they say.
"""

from __future__ import annotations

import itertools
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import msgspec

from storage import Version
from storage.errors import InvalidArgument, StorageError
from taskworker.calls.call import ARGUMENTS_MAX, Call, RunningCall
from taskworker.calls.capabilities import REQUEST_BYTES_MAX, ApiRequest, Capabilities
from taskworker.sandbox import Asked

READ_BYTES_MAX = 512 << 10
PAGE = 200
PUSHES_MAX = 16
"""Concurrent pushes of one call."""
_LENGTH = struct.Struct("<I")
_HEADER_BYTES_MAX = 1 << 20
_TEXTS_MAX = 2 * ARGUMENTS_MAX  # arguments by name also have the name
_SPOOL_BYTES = 1 << 20


class UserFiles(Protocol):
    """The files of one user, in any kind of store. Methods raise the engine's errors."""

    def stat(self, name: str, version_id: str | None) -> Version:
        """The head, or a given version, of the file with this id or name."""

    def read(self, file_id: str, version_id: str, offset: int, length: int) -> bytes:
        """Verified bytes of a version."""

    def push(self, source: BinaryIO, filename: str) -> Version:
        """Store all of ``source``."""

    def write(self, name: str, source: BinaryIO, offset: int) -> Version:
        """Write all of ``source`` into the file with this id or name at ``offset``, as a new version."""

    def delete(self, name: str) -> None:
        """Delete the file with this id or name."""

    def history(self, name: str, before: str | None, limit: int) -> list[Version]:
        """At most ``limit`` versions of the file with this id or name, newest first, starting after ``before``."""

    def page(self, prefix: str, after: str, limit: int) -> list[Version]:
        """At most ``limit`` heads by name, starting after ``after``."""


class _Stat(msgspec.Struct, tag="stat", tag_field="op", forbid_unknown_fields=True):
    name: str
    version_id: str | None = None


class _Read(msgspec.Struct, tag="read", tag_field="op", forbid_unknown_fields=True):
    file_id: str
    version_id: str
    offset: int
    length: int


class _List(msgspec.Struct, tag="list", tag_field="op", forbid_unknown_fields=True):
    prefix: str = ""
    after: str = ""


class _PushBegin(msgspec.Struct, tag="push-begin", tag_field="op", forbid_unknown_fields=True):
    filename: str


class _WriteBegin(msgspec.Struct, tag="write-begin", tag_field="op", forbid_unknown_fields=True):
    name: str
    offset: int


class _PushPart(msgspec.Struct, tag="push-part", tag_field="op", forbid_unknown_fields=True):
    push: int


class _PushEnd(msgspec.Struct, tag="push-end", tag_field="op", forbid_unknown_fields=True):
    push: int


class _Delete(msgspec.Struct, tag="delete", tag_field="op", forbid_unknown_fields=True):
    name: str


class _History(msgspec.Struct, tag="history", tag_field="op", forbid_unknown_fields=True):
    name: str
    before: str | None = None


class _Nested(msgspec.Struct, tag="call", tag_field="op", forbid_unknown_fields=True):
    """A nested call. Its data is length-prefixed texts: ``args`` of them, then alternating names and arguments."""

    name: str
    args: int = 0


class _Secret(msgspec.Struct, tag="secret", tag_field="op", forbid_unknown_fields=True):
    name: str


class _Http(msgspec.Struct, tag="http", tag_field="op", forbid_unknown_fields=True):
    method: str
    url: str
    headers: list[tuple[str, str]] = []
    timeout_s: float | None = None
    cache: bool = False
    follow_redirects: bool = True


class _Resolve(msgspec.Struct, tag="resolve", tag_field="op", forbid_unknown_fields=True):
    name: str
    type: str = "A"


_OfPush = _PushBegin | _WriteBegin | _PushPart | _PushEnd
_OfFiles = _Stat | _Read | _List | _History | _Delete
_OfCapabilities = _Secret | _Http | _Resolve
_Question = _OfFiles | _OfPush | _OfCapabilities | _Nested
_decoder = msgspec.json.Decoder(_Question)
_encode = msgspec.json.Encoder().encode

_NOTHING: dict[str, object] = {}


@dataclass(frozen=True, slots=True)
class _Push:
    """A push that arrives in parts; with an offset, a write into a file."""

    name: str
    offset: int | None
    spool: BinaryIO


class Bridge:
    """Answers the questions of one call, several at once if need be; close it when the call ends.

    Args:
        call: the call that asks.
        files: the files of the call's user.
        call_function: calls another function and returns its result as JSON, or raises; can be ended by its argument.
        outside: the call's capabilities.
        disk_bytes: bytes that all unfinished pushes together may hold here.
        asking: the pending requests for capabilities and nested calls; they end with the call.
    """

    def __init__(
        self,
        call: Call,
        files: UserFiles,
        call_function: Callable[[Call, RunningCall], str],
        outside: Capabilities,
        *,
        disk_bytes: int,
        asking: RunningCall,
    ) -> None:
        self._call = call
        self._capabilities = outside
        self._files = files
        self._call_function = call_function
        self._disk_bytes = disk_bytes
        self._asking = asking
        self._lock = threading.Lock()
        self._pushes: dict[int, _Push] = {}
        self._push_numbers = itertools.count(1)
        self._held_bytes = 0
        self._closed = False

    def stop(self) -> None:
        """End pending requests, since nobody waits for their answers any more."""
        self._asking.cancel()

    def close(self) -> None:
        """Discard the data of unfinished pushes."""
        with self._lock:
            self._closed = True
            pushes, self._pushes = list(self._pushes.values()), {}
        for push in pushes:
            push.spool.close()

    def __call__(self, question: bytes, asking: Asked) -> bytes:
        """The answer to a question; a refusal is also an answer."""
        try:
            header, data = self._answer(question, asking)
        except StorageError as error:
            header, data = {"error": type(error).__name__, "text": str(error)}, b""
        document = _encode(header)
        return b"".join((_LENGTH.pack(len(document)), document, data))

    def _answer(self, question: bytes, asking: Asked) -> tuple[dict[str, object], bytes]:
        asked, data = _parsed(question)
        if isinstance(asked, _Nested):
            running = RunningCall()
            with self._asking.ended_by(running.cancel), asking.ended_by(running.cancel):
                return _NOTHING, self._nested(asked, data, running).encode()
        if isinstance(asked, _OfCapabilities):
            return self._answer_by_capability(asked, data)
        if isinstance(asked, _OfPush):
            return self._answer_of_push(asked, data), b""
        return self._answer_of_files(asked)

    def _answer_of_files(self, asked: _OfFiles) -> tuple[dict[str, object], bytes]:
        match asked:
            case _Stat():
                return _told(self._files.stat(asked.name, asked.version_id)), b""
            case _Read():
                return _NOTHING, self._read(asked)
            case _List():
                return self._list(asked), b""
            case _History():
                return self._history(asked), b""
            case _Delete():
                self._files.delete(asked.name)
        return _NOTHING, b""

    def _answer_of_push(self, asked: _OfPush, data: memoryview) -> dict[str, object]:
        match asked:
            case _PushBegin():
                return {"push": self._begin(asked.filename, None)}
            case _WriteBegin():
                return {"push": self._begin(asked.name, asked.offset)}
            case _PushPart():
                self._add(asked.push, data)
            case _PushEnd():
                return self._end(asked.push)
        return _NOTHING

    def _read(self, asked: _Read) -> bytes:
        if asked.offset < 0 or not 0 <= asked.length <= READ_BYTES_MAX:
            raise InvalidArgument(f"{asked.length} bytes at {asked.offset}: ask for at most {READ_BYTES_MAX}")
        return self._files.read(asked.file_id, asked.version_id, asked.offset, asked.length)

    def _list(self, asked: _List) -> dict[str, object]:
        page = self._files.page(asked.prefix, asked.after, PAGE)
        return {
            "files": [_told(version) for version in page],
            "after": page[-1].filename if len(page) == PAGE else None,
        }

    def _history(self, asked: _History) -> dict[str, object]:
        page = self._files.history(asked.name, asked.before, PAGE)
        return {
            "files": [_told(version) for version in page],
            "before": page[-1].version_id if len(page) == PAGE else None,
        }

    def _nested(self, asked: _Nested, data: memoryview, running: RunningCall) -> str:
        args, kwargs = _arguments(asked.args, _texts(data))
        mine = self._call
        nested = Call(
            function=asked.name,
            args=args,
            kwargs=kwargs,
            user_id=mine.user_id,
            call_id=mine.call_id,
            chain=(*mine.chain, mine.function),
            parent=mine.token,
        )
        return self._call_function(nested.checked(), running)

    def _answer_by_capability(self, asked: _OfCapabilities, data: memoryview) -> tuple[dict[str, object], bytes]:
        if isinstance(asked, _Secret):
            return {"value": self._capabilities.secret(asked.name)}, b""
        if isinstance(asked, _Resolve):
            return {"answers": self._capabilities.resolve(asked.name, asked.type)}, b""
        if len(data) > REQUEST_BYTES_MAX:
            raise InvalidArgument(f"a request body of {len(data):,} bytes: at most {REQUEST_BYTES_MAX:,} are sent")
        headers = tuple(asked.headers)
        request = ApiRequest(
            asked.method, asked.url, headers, bytes(data), asked.timeout_s, asked.cache, asked.follow_redirects
        )
        response = self._capabilities.request(request)
        told = {
            "status": response.status,
            "headers": response.headers,
            "url": response.url,
            "from_cache": response.from_cache,
        }
        return told, response.body

    # -- a push in parts -------------------------------------------------------------------------

    def _begin(self, name: str, offset: int | None) -> int:
        spool: BinaryIO = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # type: ignore[assignment]  # noqa: SIM115
        with self._lock:
            if self._closed or len(self._pushes) >= PUSHES_MAX:
                spool.close()
                raise InvalidArgument(f"a call has at most {PUSHES_MAX} pushes at once, and none after it has ended")
            number = next(self._push_numbers)
            self._pushes[number] = _Push(name, offset, spool)
        return number

    def _add(self, number: int, data: memoryview) -> None:
        with self._lock:  # held throughout: two threads must not write parts of one push at once
            push = self._begun(number)
            if self._held_bytes + len(data) > self._disk_bytes:
                raise InvalidArgument(
                    f"a call may push {self._disk_bytes:,} bytes at once, by its limit disk; "
                    "`deploy --limits disk=...` allows more"
                )
            self._held_bytes += len(data)
            push.spool.write(data)

    def _end(self, number: int) -> dict[str, object]:
        with self._lock:
            push = self._begun(number)
            del self._pushes[number]
        with push.spool as spool:
            size = spool.tell()
            try:
                spool.seek(0)
                if push.offset is None:
                    return _told(self._files.push(spool, push.name))
                return _told(self._files.write(push.name, spool, push.offset))
            finally:
                with self._lock:
                    self._held_bytes -= size

    def _begun(self, number: int) -> _Push:
        push = self._pushes.get(number)
        if push is None:
            raise InvalidArgument("no such push has begun")
        return push


def _parsed(question: bytes) -> tuple[_Question, memoryview]:
    if len(question) < _LENGTH.size:
        raise InvalidArgument("the question has no header")
    (length,) = _LENGTH.unpack_from(question)
    view = memoryview(question)[_LENGTH.size :]
    if length > min(len(view), _HEADER_BYTES_MAX):
        raise InvalidArgument("the header of the question is cut off")
    try:
        return _decoder.decode(view[:length]), view[length:]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"the worker cannot read the question: {error}") from None


def _texts(data: memoryview) -> list[str]:
    texts: list[str] = []
    at = 0
    while at < len(data):
        if len(texts) == _TEXTS_MAX:
            raise InvalidArgument(f"a call with more than {ARGUMENTS_MAX:,} arguments: pass a list")
        begin = at + _LENGTH.size
        at = begin + (_LENGTH.unpack_from(data, at)[0] if begin <= len(data) else 1)
        if at > len(data):
            raise InvalidArgument("the arguments are cut off")
        try:
            texts.append(str(data[begin:at], "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"an argument is not text: {error}") from None
    return texts


def _arguments(count: int, texts: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    by_name = len(texts) - count
    if count < 0 or by_name < 0 or by_name % 2:
        raise InvalidArgument(f"{len(texts)} texts for {count} arguments and others by name")
    return tuple(texts[:count]), dict(zip(texts[count::2], texts[count + 1 :: 2], strict=True))


def _told(version: Version) -> dict[str, object]:
    return {
        "file_id": version.file_id,
        "version_id": version.version_id,
        "filename": version.filename,
        "size": version.size,
    }
