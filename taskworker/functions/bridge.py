"""Answers what a function asks of its worker: the calling user's files, calls of other functions, what is outside.

What comes here was written by code in a sandbox, that is, by anyone: it is read strictly, within
bounds, and every question is answered for the user of the call, whatever it says.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Callable
from typing import BinaryIO, Protocol

import msgspec

from storage import Version
from storage.errors import InvalidArgument, StorageError
from taskworker.functions.calls import Call, RunningCall
from taskworker.functions.outside import REQUEST_BYTES_MAX, ApiRequest, Outside

READ_BYTES_MAX = 512 << 10
PAGE = 200
_LENGTH = struct.Struct("<I")
_HEADER_BYTES_MAX = 1 << 20
_SPOOL_BYTES = 1 << 20


class UserFiles(Protocol):
    """The files of one user, wherever they are. Methods raise the engine's errors."""

    def stat(self, name: str, version_id: str | None) -> Version:
        """The head, or one version, of the file with this id or name."""

    def read(self, file_id: str, version_id: str, offset: int, length: int) -> bytes:
        """Verified bytes of a version."""

    def push(self, source: BinaryIO, filename: str) -> Version:
        """Store all of ``source``."""

    def page(self, prefix: str, after: str, limit: int) -> list[Version]:
        """At most ``limit`` heads by name, of those after ``after``."""


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


class _PushPart(msgspec.Struct, tag="push-part", tag_field="op", forbid_unknown_fields=True):
    pass


class _PushEnd(msgspec.Struct, tag="push-end", tag_field="op", forbid_unknown_fields=True):
    pass


class _Nested(msgspec.Struct, tag="call", tag_field="op", forbid_unknown_fields=True):
    name: str
    args: list[str] = []
    kwargs: dict[str, str] = {}


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


_Question = _Stat | _Read | _List | _PushBegin | _PushPart | _PushEnd | _Nested | _Secret | _Http | _Resolve
_decoder = msgspec.json.Decoder(_Question)
_encode = msgspec.json.Encoder().encode

_NOTHING: dict[str, object] = {}


class Bridge:
    """Answers the questions of one call; to be closed with it.

    Args:
        call: whose questions they are.
        files: of the call's user.
        call_function: calls another function and returns its result as JSON, or raises.
        outside: secrets, outside APIs and names, as the call may use them.
        disk_bytes: how much a push may hold back here.
        asking: what is asked of the world outside and of other functions; ended with the call.
    """

    def __init__(
        self,
        call: Call,
        files: UserFiles,
        call_function: Callable[[Call], str],
        outside: Outside,
        *,
        disk_bytes: int,
        asking: RunningCall,
    ) -> None:
        self._call = call
        self._outside = outside
        self._files = files
        self._call_function = call_function
        self._disk_bytes = disk_bytes
        self._asking = asking
        self._pushed: tuple[str, BinaryIO] | None = None

    def stop(self) -> None:
        """Nobody waits for answers any more: end what is asked elsewhere for one."""
        self._asking.cancel()

    def close(self) -> None:
        """Forget what was sent of a push that came to no end."""
        if self._pushed is not None:
            self._pushed[1].close()
            self._pushed = None

    def __call__(self, question: bytes) -> bytes:
        """The answer; a refusal is one, too."""
        try:
            header, data = self._answer(question)
        except StorageError as error:
            header, data = {"error": type(error).__name__, "text": str(error)}, b""
        document = _encode(header)
        return b"".join((_LENGTH.pack(len(document)), document, data))

    def _answer(self, question: bytes) -> tuple[dict[str, object], bytes]:
        asked, data = _parsed(question)
        match asked:
            case _Stat():
                return _told(self._files.stat(asked.name, asked.version_id)), b""
            case _Read():
                return _NOTHING, self._read(asked)
            case _List():
                return self._list(asked), b""
            case _Nested():
                return {"result": self._nested(asked)}, b""
            case _Secret() | _Http() | _Resolve():
                return self._answer_from_outside(asked, data)
            case _PushBegin():
                self._begin(asked.filename)
            case _PushPart():
                self._add(data)
            case _PushEnd():
                return self._end(), b""
        return _NOTHING, b""

    def _read(self, asked: _Read) -> bytes:
        if asked.offset < 0 or not 0 <= asked.length <= READ_BYTES_MAX:
            raise InvalidArgument(f"a range of {asked.length} bytes at {asked.offset}: ask for up to {READ_BYTES_MAX}")
        return self._files.read(asked.file_id, asked.version_id, asked.offset, asked.length)

    def _list(self, asked: _List) -> dict[str, object]:
        page = self._files.page(asked.prefix, asked.after, PAGE)
        return {
            "files": [_told(version) for version in page],
            "after": page[-1].filename if len(page) == PAGE else None,
        }

    def _nested(self, asked: _Nested) -> str:
        chain = (*self._call.chain, self._call.function)
        nested = Call(asked.name, tuple(asked.args), asked.kwargs, self._call.user_id, self._call.call_id, chain)
        return self._call_function(nested.checked())

    def _answer_from_outside(
        self, asked: _Secret | _Http | _Resolve, data: memoryview
    ) -> tuple[dict[str, object], bytes]:
        if isinstance(asked, _Secret):
            return {"value": self._outside.secret(asked.name)}, b""
        if isinstance(asked, _Resolve):
            return {"answers": self._outside.resolve(asked.name, asked.type)}, b""
        if len(data) > REQUEST_BYTES_MAX:
            raise InvalidArgument(f"a request body of {len(data):,} bytes: at most {REQUEST_BYTES_MAX:,} are sent")
        headers = tuple(asked.headers)
        request = ApiRequest(
            asked.method, asked.url, headers, bytes(data), asked.timeout_s, asked.cache, asked.follow_redirects
        )
        response = self._outside.request(request)
        told = {
            "status": response.status,
            "headers": response.headers,
            "url": response.url,
            "from_cache": response.from_cache,
        }
        return told, response.body

    # -- a push in parts -------------------------------------------------------------------------

    def _begin(self, filename: str) -> None:
        self.close()
        self._pushed = (filename, tempfile.SpooledTemporaryFile(_SPOOL_BYTES))  # type: ignore[assignment]  # noqa: SIM115

    def _add(self, data: memoryview) -> None:
        _, spool = self._begun()
        if spool.tell() + len(data) > self._disk_bytes:
            raise InvalidArgument(
                f"a push of more than {self._disk_bytes:,} bytes from inside a function; its limit disk says how much"
            )
        spool.write(data)

    def _end(self) -> dict[str, object]:
        filename, spool = self._begun()
        with contextlib.closing(self):
            spool.seek(0)
            return _told(self._files.push(spool, filename))

    def _begun(self) -> tuple[str, BinaryIO]:
        if self._pushed is None:
            raise InvalidArgument("no push has begun")
        return self._pushed


def _parsed(question: bytes) -> tuple[_Question, memoryview]:
    if len(question) < _LENGTH.size:
        raise InvalidArgument("a question without its header")
    (length,) = _LENGTH.unpack_from(question)
    view = memoryview(question)[_LENGTH.size :]
    if length > min(len(view), _HEADER_BYTES_MAX):
        raise InvalidArgument("a question whose header is cut off")
    try:
        return _decoder.decode(view[:length]), view[length:]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"a question that cannot be read: {error}") from None


def _told(version: Version) -> dict[str, object]:
    return {
        "file_id": version.file_id,
        "version_id": version.version_id,
        "filename": version.filename,
        "size": version.size,
    }
