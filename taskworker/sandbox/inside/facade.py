"""What a function sees as ``worker``: files on behalf of the caller, other functions, secrets, its caller."""

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

if TYPE_CHECKING:  # large; who awaits has imported it
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
        """As `ask`, from a coroutine; cancelling it withdraws the ask."""


class WorkerError(Exception):
    """The pool refused what a function asked for.

    Attributes:
        kind: name of the error, as ``FileNotFound`` or ``PermissionDenied``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class StoredFile:
    """One version of a file of the pool; sizes in bytes."""

    file_id: str
    version_id: str
    filename: str
    size: int


@dataclass(frozen=True)
class FunctionCaller:
    """Whom this call is for.

    Attributes:
        user_id: the user on whose behalf the function was called.
        call_id: names the call, and those it leads to, in logs.
        ends_at: when it is ended, on the clock of ``time.monotonic``.
    """

    user_id: str
    call_id: str
    ends_at: float

    @property
    def deadline_left(self) -> float:
        """Seconds until the call is ended: of its limit ``wall``, or the caller's deadline if that is sooner."""
        return max(0.0, self.ends_at - time.monotonic())


class _Connection:
    """Questions to the worker: a JSON header, then bytes as they are."""

    def __init__(self) -> None:
        self.asker: Asker | None = None

    def ask(self, operation: str, data: bytes | memoryview = b"", **header: object) -> tuple[dict[str, Any], bytes]:
        """One question and its answer.

        Raises:
            WorkerError: refused.
        """
        return _told(self._reached().ask(_question(operation, data, header)))

    async def aask(
        self, operation: str, data: bytes | memoryview = b"", **header: object
    ) -> tuple[dict[str, Any], bytes]:
        """As `ask`, from a coroutine.

        Raises:
            WorkerError: refused.
        """
        return _told(await self._reached().aask(_question(operation, data, header)))

    def _reached(self) -> Asker:
        if self.asker is None:
            raise RuntimeError("the worker can be asked while a call runs, not while the module is being imported")
        return self.asker


def _question(operation: str, data: bytes | memoryview, header: Mapping[str, object]) -> bytes:
    document = json.dumps({"op": operation, **header}).encode()
    question = b"".join((_LENGTH.pack(len(document)), document, data))
    if len(question) > QUESTION_BYTES_MAX:
        raise WorkerError(
            "InvalidArgument",
            f"what is asked of the worker has {len(question):,} bytes, at most {QUESTION_BYTES_MAX:,} are taken; "
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
    """Says of a key that is not there how it is set."""

    def __missing__(self, key: object) -> NoReturn:
        raise KeyError(
            f"worker.config has no {key!r}: `deploy --set {key}=VALUE` sets it, each time; it has {sorted(self)}"
        )


def _value_of(result: bytes) -> Any:
    """What another function gave, from JSON."""
    try:
        return json.loads(result)
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError:  # the pool has seen that it is JSON
        fault = "it holds a number of too many digits; let the function return it as a text"
    raise WorkerError("FunctionFailed", f"the result cannot be read by Python: {fault}")


class Storage:
    """The files of the user on whose behalf the function runs."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def stat(self, name: str, version_id: str | None = None) -> StoredFile:
        """The head, or one version, of the file with this id or name."""
        told, _ = self._connection.ask("stat", name=name, version_id=version_id)
        return StoredFile(**told)

    def get(self, name: str, version_id: str | None = None) -> bytes:
        """All bytes of the file with this id or name."""
        with self.open(name, version_id) as file:
            return file.read()

    def open(self, name: str, version_id: str | None = None) -> BinaryIO:
        """A seekable reader; only what is read is fetched."""
        return io.BufferedReader(_RangedReader(self._connection, self.stat(name, version_id)))

    def push(self, data: bytes | BinaryIO, filename: str) -> StoredFile:
        """Store bytes, or all that a binary file holds, under a name: a new file or a new version of it."""
        source = _source(data)
        begun, _ = self._connection.ask("push-begin", filename=filename)
        return self._sent(begun["push"], source)

    def write(self, name: str, data: bytes | BinaryIO, offset: int) -> StoredFile:
        """Put bytes, or all that a binary file holds, into the file with this id or name: a new version of it.

        What is before ``offset`` and behind the bytes stays; a file may grow, from its end on.

        Args:
            name: the file's id or name.
            data: what to write.
            offset: where the first byte goes: at most the file's size.
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
        """End the file with this id or name, with all its versions."""
        self._connection.ask("delete", name=name)

    def history(self, name: str) -> Iterator[StoredFile]:
        """The versions of the file with this id or name, newest first."""
        before: str | None = None
        more = True
        while more:
            told, _ = self._connection.ask("history", name=name, before=before)
            for one in told["files"]:
                yield StoredFile(**one)
            before = told["before"]
            more = before is not None

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """The user's files whose names begin with ``prefix``, by name."""
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
            f"what is stored is bytes or a file opened with 'rb', not {type(data).__name__}: encode a text, and store "
            "a file of the scratch directory by worker.result_file(path)"
        )
    return data  # type: ignore[no-any-return]


class _Block(NamedTuple):
    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class _RangedReader(io.RawIOBase):
    """Fetches large blocks and keeps the last few: libraries read small pieces, backwards and at both ends, too."""

    def __init__(self, connection: _Connection, file: StoredFile) -> None:
        self._connection = connection
        self._file = file
        self._position = 0
        self._blocks: list[_Block] = []  # the one used last comes first

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
        """The range to fetch that has the position: from there on, or up to a block that follows it closely."""
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
    """``worker`` inside a function. Declaring functions with it has no further effect here."""

    def __init__(self) -> None:
        self._connection = _Connection()
        self._called_by: tuple[str, str, float] | None = None
        self._config: Mapping[str, str] = MappingProxyType({})
        self._turns: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self.storage = Storage(self._connection)

    @property
    def caller(self) -> FunctionCaller:
        """Whom the call that runs now is for, and how much time it has left."""
        if self._called_by is None:
            raise RuntimeError("there is a caller while a call runs, not while the module is being imported")
        return FunctionCaller(*self._called_by)

    @property
    def config(self) -> Mapping[str, str]:
        """What the function was deployed with: `taskworker deploy --set KEY=VALUE`; not for secrets."""
        return self._config

    def call(self, function_name: str, *args: object, **kwargs: object) -> Any:
        """Call another function of the pool, for the same user and within the same deadline; its result.

        Raises:
            WorkerError: it failed, or could not be called.
            ValueError: an argument has no JSON form.
        """
        _, result = self._connection.ask("call", _packed(args, kwargs), name=function_name, args=len(args))
        return _value_of(result)

    async def acall(self, function_name: str, *args: object, **kwargs: object) -> Any:
        """As :meth:`call`, for ``async def`` functions: what is gathered runs at the same time, up to 16 calls.

        It takes no thread. Cancelling it, as a timeout of ``asyncio`` does, ends the call.

        Raises:
            WorkerError: it failed, or could not be called.
            ValueError: an argument has no JSON form.
        """
        import asyncio  # who awaits has imported it

        packed = _packed(args, kwargs)
        async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(ASKS_MAX)):
            _, result = await self._connection.aask("call", packed, name=function_name, args=len(args))
        return _value_of(result)

    def result_file(self, path: str | Path, filename: str | None = None) -> StoredFile:
        """Store a file of the scratch directory for the caller; to be returned in place of its bytes.

        The caller gets its ``file_id``, ``version_id``, ``filename`` and ``size``, and downloads what it wants of it.

        Args:
            path: of the file.
            filename: under which it is stored; by default the path's last part.
        """
        with Path(path).open("rb") as file:
            return self.storage.push(file, Path(path).name if filename is None else filename)

    def get_secret(self, name: str) -> str:
        """A secret of the pool that is granted to this function: `taskworker secret grant NAME FUNCTION`.

        Raises:
            WorkerError: it is not granted, whether or not there is one (``kind`` is ``PermissionDenied``).
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
        """Call an outside API, through the pool, if an operator allows this function to.

        ``{{secret:NAME}}`` in the query, in header values and in the body stands for a secret granted to the
        function; the pool fills it in.

        Args:
            url: of http or https.
            method: of HTTP.
            headers: by name, or pairs.
            params: added to the URL's query; a list is several values.
            json: sent as the body.
            data: sent as the body: bytes or a text as they are, names and values as a form.
            timeout: seconds for all of it, redirects included: more than 0; None: as long as is allowed.
            cache: whether an answer from before will do, by HTTP's rules.
            follow_redirects: to hosts that the function may call, too.

        Returns:
            The response, whatever its status; see ``raise_for_status``.

        Raises:
            WorkerError: refused, or there is no answer; ``kind`` and text say why.
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
        """Records of a name as texts: of the pool's own names, and of hosts that this function may call.

        Args:
            name: as ``worker_001.worker.hive`` or ``api.example.com``.
            type: A, AAAA, CNAME, MX, TXT, SRV, NS or PTR.

        Raises:
            WorkerError: it does not exist, has no such records, or this function may not resolve it.
        """
        told, _ = self._connection.ask("resolve", name=name, type=type)
        return list(told["answers"])

    def function(self, name: str | None = None, **_options: object) -> Callable[[FunctionT], FunctionT]:
        """The decorator that declares functions; they are declared already."""
        return lambda function: function

    def register_function(self, name: str, function: Callable[..., Any], **_options: object) -> None:
        """Declares a function; it is declared already."""

    def __reduce__(self) -> tuple[Callable[..., FunctionWorker], tuple[()]]:
        """A function that refers to it finds the one of its sandbox."""
        return inert_worker, ()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"worker.{name} is not to be had inside a function; there are worker.storage, call, acall, caller, config, "
            "result_file, get_secret, call_external_api and resolve"
        )


def _packed(args: Sequence[object], kwargs: Mapping[str, object]) -> bytes:
    """Each text behind its length: within another JSON document they would be escaped once more."""
    texts = [json_of(value, f"argument {number}") for number, value in enumerate(args, start=1)]
    for key, value in kwargs.items():
        texts += (key, json_of(value, f"argument {key}"))
    parts: list[bytes] = []
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


worker = FunctionWorker()
"""The one worker that code in a sandbox sees."""


def inert_worker(*_args: object, **_kwargs: object) -> FunctionWorker:
    """Stands for the class ``TaskWorker`` in the module of a function: there is but one worker here."""
    return worker


def connect(asker: Asker | None, called_by: tuple[str, str, float] | None = None) -> None:
    """Let ``worker`` reach the one that runs this call.

    Args:
        asker: the channel to it.
        called_by: what a `FunctionCaller` is made of.
    """
    worker._connection.asker = asker
    worker._called_by = called_by


def configure(config: Mapping[str, str]) -> None:
    """Set what ``worker.config`` gives."""
    worker._config = MappingProxyType(_Config(config))


def finish() -> None:
    """The call is over: forget its event loops."""
    if worker._turns:
        worker._turns = {}
