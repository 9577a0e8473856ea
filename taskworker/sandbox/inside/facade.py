"""The object ``worker`` of a function: the caller's files, other functions, secrets, outside APIs, the caller."""

from __future__ import annotations

import io
import json
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, Protocol, TypeVar

from taskworker.sandbox.frames import ASK_BYTES_MAX, ASKS_MAX, NUMBER
from taskworker.sandbox.inside import api
from taskworker.sandbox.inside.results import json_of

if TYPE_CHECKING:  # large; imported by code that awaits
    import asyncio

PART_BYTES = 512 << 10
_BLOCKS_KEPT = 4
QUESTION_BYTES_MAX = ASK_BYTES_MAX - NUMBER.size
_LENGTH = struct.Struct("<I")

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Asker(Protocol):
    """The channel to the worker that runs this call."""

    def ask(self, payload: bytes) -> bytes:
        """Ask, and wait for the answer."""

    async def aask(self, payload: bytes) -> bytes:
        """Like `ask`, for coroutines; cancelling it withdraws the ask."""


class WorkerError(Exception):
    """The pool refused a function's request.

    Attributes:
        kind: name of the error, such as ``FileNotFound`` or ``PermissionDenied``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class StoredFile:
    """One version of a file in the pool; ``size`` is in bytes."""

    file_id: str
    version_id: str
    filename: str
    size: int


@dataclass(frozen=True)
class FunctionCaller:
    """The caller of a function.

    Attributes:
        user_id: the user on whose behalf the function was called.
        call_id: identifies the call, and the calls that it makes, in logs.
        ends_at: deadline of the call, on the clock of ``time.monotonic``.
        traceparent: its span in W3C's form, if the call is traced; otherwise empty.
    """

    user_id: str
    call_id: str
    ends_at: float
    traceparent: str = ""

    @property
    def deadline_left(self) -> float:
        """Seconds until the call is ended by its limit ``wall`` or the caller's deadline, whichever is sooner."""
        return max(0.0, self.ends_at - time.monotonic())


class _Connection:
    """Sends questions to the worker: a JSON header, followed by raw bytes."""

    def __init__(self) -> None:
        self.asker: Asker | None = None

    def ask(self, operation: str, data: bytes | memoryview = b"", **header: object) -> tuple[dict[str, Any], bytes]:
        """Ask the worker; return the answer's header and its bytes.

        Raises:
            WorkerError: the question was refused.
        """
        return _told(self._reached().ask(_question(operation, data, header)))

    async def aask(
        self, operation: str, data: bytes | memoryview = b"", **header: object
    ) -> tuple[dict[str, Any], bytes]:
        """Like `ask`, for coroutines.

        Raises:
            WorkerError: the question was refused.
        """
        return _told(await self._reached().aask(_question(operation, data, header)))

    def _reached(self) -> Asker:
        if self.asker is None:
            raise RuntimeError("the worker is only available while a call runs, not while the module is being imported")
        return self.asker


def _question(operation: str, data: bytes | memoryview, header: Mapping[str, object]) -> bytes:
    document = json.dumps({"op": operation, **header}).encode()
    question = b"".join((_LENGTH.pack(len(document)), document, data))
    if len(question) > QUESTION_BYTES_MAX:
        raise WorkerError(
            "InvalidArgument",
            f"a request of {len(question):,} bytes to the worker: at most {QUESTION_BYTES_MAX:,} are allowed; "
            "push a file and pass its id",
        )
    return question


def _told(answer: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = _LENGTH.unpack_from(answer)
    told = json.loads(answer[_LENGTH.size : _LENGTH.size + length])
    if "error" in told:
        raise WorkerError(told["error"], told["text"])
    return told, answer[_LENGTH.size + length :]


class _Config(dict[str, str]):
    """A dictionary whose error for a missing key says how to set it."""

    def __missing__(self, key: object) -> NoReturn:
        raise KeyError(
            f"worker.config has no {key!r}: `deploy --set {key}=VALUE` sets it, every time; it has {sorted(self)}"
        )


def _value_of(result: bytes) -> Any:
    """Decode the result of another function from JSON."""
    try:
        return json.loads(result)
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError:  # the pool has checked that it is JSON
        fault = "it holds a number of too many digits; let the function return it as a text"
    raise WorkerError("FunctionFailed", f"the result cannot be read by Python: {fault}")


class Storage:
    """The files of the user on whose behalf the function runs."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def stat(self, name: str, version_id: str | None = None) -> StoredFile:
        """Look up the file with this id or name: its newest version or, if given, another one."""
        told, _ = self._connection.ask("stat", name=name, version_id=version_id)
        return StoredFile(**told)

    def get(self, name: str, version_id: str | None = None) -> bytes:
        """Return all bytes of the file with this id or name."""
        with self.open(name, version_id) as file:
            return file.read()

    def open(self, name: str, version_id: str | None = None) -> BinaryIO:
        """Open the file with this id or name as a seekable reader. Only the parts that are read are fetched."""
        return io.BufferedReader(_RangedReader(self._connection, self.stat(name, version_id)))

    def push(self, data: bytes | BinaryIO, filename: str) -> StoredFile:
        """Store bytes, or the content of a binary file, under a name, as a new file or a new version of it."""
        source = _source(data)
        begun, _ = self._connection.ask("push-begin", filename=filename)
        return self._sent(begun["push"], source)

    def write(self, name: str, data: bytes | BinaryIO, offset: int) -> StoredFile:
        """Write bytes, or the content of a binary file, into the file with this id or name, as a new version.

        The parts before ``offset`` and after the written bytes stay. Writing beyond the end makes the file larger.

        Args:
            name: the file's id or name.
            data: what to write.
            offset: position of the first byte; at most the file's size.
        """
        source = _source(data)
        begun, _ = self._connection.ask("write-begin", name=name, offset=offset)
        return self._sent(begun["push"], source)

    def _sent(self, push: int, source: BinaryIO) -> StoredFile:
        while part := source.read(PART_BYTES):
            self._connection.ask("push-part", part, push=push)
        told, _ = self._connection.ask("push-end", push=push)
        return StoredFile(**told)

    def delete(self, name: str) -> None:
        """Delete the file with this id or name, with all its versions."""
        self._connection.ask("delete", name=name)

    def history(self, name: str) -> Iterator[StoredFile]:
        """Yield the versions of the file with this id or name, newest first."""
        before: str | None = None
        more = True
        while more:
            told, _ = self._connection.ask("history", name=name, before=before)
            for one in told["files"]:
                yield StoredFile(**one)
            before = told["before"]
            more = before is not None

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """Yield the user's files whose names begin with ``prefix``, sorted by name."""
        after: str | None = ""
        while after is not None:
            told, _ = self._connection.ask("list", prefix=prefix, after=after)
            for one in told["files"]:
                yield StoredFile(**one)
            after = told["after"]


def _source(data: Any) -> BinaryIO:
    if isinstance(data, bytes | bytearray | memoryview):
        return io.BytesIO(data)
    if isinstance(data, io.TextIOBase) or not callable(getattr(data, "read", None)):
        raise TypeError(
            f"only bytes or a file opened with 'rb' can be stored, not {type(data).__name__}: encode a text, and store "
            "a file of the scratch directory with worker.result_file(path)"
        )
    return data  # type: ignore[no-any-return]


class _Block(NamedTuple):
    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class _RangedReader(io.RawIOBase):
    """Fetches large blocks and keeps the last few, as libraries read small pieces, also backwards and at both ends."""

    def __init__(self, connection: _Connection, file: StoredFile) -> None:
        self._connection = connection
        self._file = file
        self._position = 0
        self._blocks: list[_Block] = []  # most recently used first

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(PART_BYTES), b""))

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._file.size:
            return 0
        block = self._kept()
        if block is None:
            block = self._fetched(*self._next_range())
            if len(buffer) < PART_BYTES:
                self._blocks = [block, *self._blocks[: _BLOCKS_KEPT - 1]]
        at = self._position - block.start
        part = memoryview(block.data)[at : at + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _kept(self) -> _Block | None:
        for block in self._blocks:
            if block.start <= self._position < block.end:
                self._blocks.remove(block)
                self._blocks.insert(0, block)
                return block
        return None

    def _next_range(self) -> tuple[int, int]:
        """Return the range to fetch: from the position on, or, if a kept block follows closely, up to that block."""
        end = min(self._position + PART_BYTES, self._file.size)
        following = [block.start for block in self._blocks if self._position < block.start <= end]
        if not following:
            return self._position, end
        return max(0, min(following) - PART_BYTES), min(following)

    def _fetched(self, start: int, end: int) -> _Block:
        file = self._file
        _, data = self._connection.ask(
            "read", file_id=file.file_id, version_id=file.version_id, offset=start, length=end - start
        )
        return _Block(start, data)


class FunctionWorker:
    """The object ``worker`` inside a function. Declaring functions with it has no effect here."""

    def __init__(self) -> None:
        self._connection = _Connection()
        self._called_by: tuple[str, str, float, str] | None = None
        self._config: Mapping[str, str] = MappingProxyType({})
        self._turns: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self.storage = Storage(self._connection)

    @property
    def caller(self) -> FunctionCaller:
        """The caller of the running call, and how much time it has left."""
        if self._called_by is None:
            raise RuntimeError("the caller is only known while a call runs, not while the module is being imported")
        return FunctionCaller(*self._called_by)

    @property
    def config(self) -> Mapping[str, str]:
        """The settings that the function was deployed with: `taskworker deploy --set KEY=VALUE`. Not for secrets."""
        return self._config

    def call(self, function_name: str, *args: object, **kwargs: object) -> Any:
        """Call another function of the pool, for the same user and within the same deadline, and return its result.

        Raises:
            WorkerError: the function failed, or could not be called.
            ValueError: an argument has no JSON form.
        """
        _, result = self._connection.ask("call", _packed(args, kwargs), name=function_name, args=len(args))
        return _value_of(result)

    async def acall(self, function_name: str, *args: object, **kwargs: object) -> Any:
        """Like :meth:`call`, for ``async def`` functions. With ``asyncio.gather``, up to 16 calls run at the same time.

        It needs no thread. Cancelling it, for instance by a timeout of ``asyncio``, ends the call.

        Raises:
            WorkerError: the function failed, or could not be called.
            ValueError: an argument has no JSON form.
        """
        import asyncio  # already imported by code that awaits

        packed = _packed(args, kwargs)
        async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(ASKS_MAX)):
            _, result = await self._connection.aask("call", packed, name=function_name, args=len(args))
        return _value_of(result)

    def result_file(self, path: str | Path, filename: str | None = None) -> StoredFile:
        """Store a file of the scratch directory for the caller, and return it from the function instead of its bytes.

        The caller gets its ``file_id``, ``version_id``, ``filename`` and ``size``, and can download any part of it.

        Args:
            path: path of the file.
            filename: name under which to store it; by default the last part of the path.
        """
        with Path(path).open("rb") as file:
            return self.storage.push(file, Path(path).name if filename is None else filename)

    def get_secret(self, name: str) -> str:
        """Return a secret of the pool that is granted to this function: `taskworker secret grant NAME FUNCTION`.

        Raises:
            WorkerError: the secret is not granted or does not exist (``kind`` is ``PermissionDenied`` in both cases).
        """
        told, _ = self._connection.ask("secret", name=name)
        return str(told["value"])

    def call_external_api(
        self,
        url: str,
        method: str = "GET",
        headers: api.Pairs | None = None,
        params: api.Pairs | str | None = None,
        json: Any = None,
        data: bytes | str | api.Pairs | None = None,
        timeout: float | None = None,
        cache: bool = False,
        follow_redirects: bool = True,
    ) -> api.Response:
        """Call an outside API through the pool, if an operator allows it to this function.

        ``{{secret:NAME}}`` in the query, in header values and in the body stands for a secret granted to the
        function; the pool fills it in.

        Args:
            url: http or https URL.
            method: HTTP method.
            headers: headers, as a mapping or as pairs.
            params: parameters added to the URL's query; a list gives several values.
            json: value sent as a JSON body.
            data: body: bytes or a text are sent as they are, names and values as a form.
            timeout: seconds for the whole request, including redirects; must be more than 0. None: as long as allowed.
            cache: whether a cached response may be used, by the rules of HTTP.
            follow_redirects: whether to follow redirects, to hosts that the function may call.

        Returns:
            The response, whatever its status; see ``raise_for_status``.

        Raises:
            WorkerError: the request was refused, or got no response; ``kind`` and the text say why.
        """
        return api.call_external_api(
            self._connection,
            url,
            method,
            headers=headers,
            params=params,
            json_value=json,
            data=data,
            timeout=timeout,
            cache=cache,
            follow_redirects=follow_redirects,
        )

    def resolve(self, name: str, type: str = "A") -> list[str]:  # noqa: A002 - as users of DNS call it
        """Return DNS records as texts, for the pool's own names and for hosts that this function may call.

        Args:
            name: name such as ``worker_001.worker.hive`` or ``api.example.com``.
            type: record type: A, AAAA, CNAME, MX, TXT, SRV, NS or PTR.

        Raises:
            WorkerError: the name does not exist, has no such records, or this function may not resolve it.
        """
        told, _ = self._connection.ask("resolve", name=name, type=type)
        return list(told["answers"])

    def function(self, name: str | None = None, **_options: object) -> Callable[[FunctionT], FunctionT]:
        """Return a decorator that does nothing: outside, it declares a function."""
        return lambda function: function

    def register_function(self, name: str, function: Callable[..., Any], **_options: object) -> None:
        """Do nothing: outside, this declares a function."""

    def __reduce__(self) -> tuple[Callable[..., FunctionWorker], tuple[()]]:
        """Pickle as a reference, so that functions find the worker of their own sandbox."""
        return inert_worker, ()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"worker.{name} is not available inside a function; it has worker.storage, call, acall, caller, config, "
            "result_file, get_secret, call_external_api and resolve"
        )


def _packed(args: Sequence[object], kwargs: Mapping[str, object]) -> bytes:
    """Pack arguments as JSON texts, each after its length. In a JSON document, they would be escaped once more."""
    texts = [json_of(value, f"argument {number}") for number, value in enumerate(args, start=1)]
    for key, value in kwargs.items():
        texts += (key, json_of(value, f"argument {key}"))
    parts: list[bytes] = []
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


worker = FunctionWorker()
"""The only worker in a sandbox."""


def inert_worker(*_args: object, **_kwargs: object) -> FunctionWorker:
    """Replaces the class ``TaskWorker`` in functions' modules: returns the only worker there is."""
    return worker


def connect(asker: Asker | None, called_by: tuple[str, str, float, str] | None = None) -> None:
    """Connect ``worker`` to the worker process that runs this call.

    Args:
        asker: channel to that process; None: disconnect.
        called_by: the fields of the `FunctionCaller`.
    """
    worker._connection.asker = asker
    worker._called_by = called_by


def configure(config: Mapping[str, str]) -> None:
    """Set the content of ``worker.config``."""
    worker._config = MappingProxyType(_Config(config))


def finish() -> None:
    """Forget the event loops of a call that has ended."""
    if worker._turns:
        worker._turns = {}
