"""Keeps calls' output and statistics on disk, in an LMDB environment that is bounded by size and age.

The records are for people to look at. If a pool is killed, it loses what it had not written yet, about a second's worth
at most. A damaged environment is set aside and a new one started. Neither delays calls.

The lines of a call are kept together, in one or several *entries*, numbered in the order in which they arrived. An
entry's text is split into pieces that each fit into a page. So freed space can always be reused, and the file does not
grow beyond what is kept, whatever the lengths of lines.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from storage.clocks import wall_ms
from storage.errors import FormatError
from storage.system.lmdb_env import Environment
from storage.system.lmdb_errors import unavailable
from storage.system.lmdb_types import Transaction
from taskworker.functions.routing.record_formats import (
    _PIECE_BYTES,
    Entry,
    LineQuery,
    LoggedLine,
    Page,
    Position,
    RecordBounds,
)

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

T = TypeVar("T")

_FORMAT = b"1"
_FORMAT_KEY = b"format"
_BYTES_KEY = b"bytes"
_DATABASES = ("meta", "functions", "entries", "pieces", "of_functions", "of_calls", "figures")
_WRITE_BYTES = 1 << 20
_PRUNE_TO = 63 / 64
"""Pruning goes down to this part of a bound, so that it is not needed again at once."""
_DROP_AT_ONCE = 2_000
_SKEW_MS = 60_000
"""How far a worker's clock, from which lines have their times, may be ahead of the pool's."""
_INDEXED_CHARS = 6
"""A shorter beginning of a call id matches so many calls that all entries are scanned instead."""
_CALL_ID_BYTES_MAX = 256
_NUMBER_MAX = (1 << 64) - 1


class _Kept(msgspec.Struct, array_like=True):
    """An entry without its body."""

    function: int
    call_id: str
    lines: int
    kept_bytes: int
    pieces: int


class _Body(msgspec.Struct, array_like=True):
    worker: str
    lines: list[tuple[int, str, str]]


class _Function(msgspec.Struct, array_like=True):
    number: int
    kept_bytes: int


_entries = msgspec.msgpack.Decoder(_Kept)
_bodies = msgspec.msgpack.Decoder(_Body)
_functions = msgspec.msgpack.Decoder(_Function)
_counts = msgspec.msgpack.Decoder(int)


class CallRecords:
    """The records of calls. Thread-safe. Methods raise ``StorageError`` if the disk fails.

    Args:
        path: directory of the environment; None: a temporary one.
        bounds: limits on what is kept.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self, path: Path | None = None, bounds: RecordBounds | None = None, now_ms: Callable[[], int] = wall_ms
    ) -> None:
        self._now_ms = now_ms
        self._bounds = bounds or RecordBounds()
        self._temporary = None if path is not None else tempfile.TemporaryDirectory(prefix="taskworker-calls-")
        self._path = path if path is not None else Path(self._temporary.name)  # type: ignore[union-attr]
        self._lock = threading.Lock()
        self._is_aside = False  # a damaged environment, in whose place no new one could be opened yet
        try:
            self._env = _opened(self._path)
        except FormatError as error:
            _put_aside(self._path, error)
            self._env = _opened(self._path)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def add(self, entries: Iterable[Entry], time_ms: int | None = None) -> None:
        """Add entries that arrived at this time (default: now); older ones are removed to make room."""
        now_ms = self._now_ms() if time_ms is None else time_ms
        for some in _in_parts(entries):
            self._write(lambda env, txn, some=some: _Writing(env, txn, self._bounds).add(some, now_ms))  # type: ignore[misc]

    def drop_old(self, time_ms: int | None = None) -> None:
        """Remove entries that have reached the maximum age."""
        now_ms = self._now_ms() if time_ms is None else time_ms
        before = _first_number(now_ms - int(self._bounds.age_s * 1000))
        while self._write(lambda env, txn: _Writing(env, txn, self._bounds).drop_before(before)):
            pass

    def page(self, query: LineQuery, at: Position, limit: int) -> Page:
        """About ``limit`` lines, in order, from a position on."""
        return self._env.read(lambda txn: _Reading(self._env, txn, query).page(at, limit))

    def position_before(self, query: LineQuery, count: int, limit: int = 500) -> Position:
        """The position where the last ``count`` lines begin."""
        if not count:
            return self._env.read(lambda txn: _Reading(self._env, txn, query).end())
        left, before, more = count, _NUMBER_MAX, True
        while more:
            found, left, before, more = self._env.read(
                lambda txn, left=left, before=before: _Reading(self._env, txn, query).back(left, before, limit)  # type: ignore[misc]
            )
            if found is not None:
                return found
        return Position()

    def save_figures(self, documents: Sequence[tuple[str, bytes]], gone: Sequence[str] = ()) -> None:
        """Save the statistics of functions, one document each, replacing earlier ones; remove those of ``gone``."""

        def work(env: Environment, txn: Transaction) -> None:
            for function, document in documents:
                txn.put(function.encode(), document, db=env.databases["figures"])
            for function in gone:
                txn.delete(function.encode(), db=env.databases["figures"])

        self._write(work)

    def figures(self) -> list[tuple[str, bytes]]:
        """The statistics that were saved last."""
        return [
            (key.decode(errors="replace"), value) for page in self._env.pages("figures", b"") for key, value in page
        ]

    def _write(self, work: Callable[[Environment, Transaction], T]) -> T:
        with self._lock:
            if self._is_aside:
                self._open_anew()
            try:
                return self._env.write(lambda txn: work(self._env, txn))
            except FormatError as error:
                try:
                    _put_aside(self._path, error)
                except OSError as problem:
                    raise unavailable(problem, self._path) from error
                self._is_aside = True
                self._env.close()
                self._open_anew()
                return self._env.write(lambda txn: work(self._env, txn))

    def _open_anew(self) -> None:
        self._env = _opened(self._path)
        self._is_aside = False


class _Writing:
    """The changes of one transaction."""

    def __init__(self, env: Environment, txn: Transaction, bounds: RecordBounds) -> None:
        self._txn = txn
        self._databases = env.databases
        self._bounds = bounds

    def add(self, entries: Sequence[Entry], now_ms: int) -> None:
        """Add entries; older ones are removed to make room."""
        cursor = self._txn.cursor(self._databases["entries"])
        number = max(_first_number(now_ms), _number(cursor.key()) + 1 if cursor.last() else 0)
        functions: dict[str, _Function] = {}
        total = self._total()
        for entry in entries:
            function = functions.get(entry.function) or self._function(entry.function)
            functions[entry.function] = function
            self._put(number, function.number, entry)
            function.kept_bytes += entry.kept_bytes
            self._put_function(entry.function, function)
            total += entry.kept_bytes
            number += 1
        self._put_total(total)
        for name, function in functions.items():
            if function.kept_bytes > self._bounds.function_bytes:
                of = function.number.to_bytes(4, "big")
                self._make_room(function.kept_bytes - int(_PRUNE_TO * self._bounds.function_bytes), of, name)
        if self._total() > self._bounds.total_bytes:
            self._make_room(self._total() - int(_PRUNE_TO * self._bounds.total_bytes))

    def drop_before(self, number: int) -> bool:
        """Remove some entries with lower numbers; return whether there may be more."""
        cursor = self._txn.cursor(self._databases["entries"])
        some = []
        for key in _keys(cursor, b"", number.to_bytes(8, "big")):
            some.append(_number(key))
            if len(some) == _DROP_AT_ONCE:
                break
        self._forget(some)
        return len(some) == _DROP_AT_ONCE

    def _make_room(self, wanted: int, of: bytes = b"", name: str = "") -> None:
        """Remove the oldest entries, of a function or of all, until so many bytes are free."""
        database = "of_functions" if name else "entries"
        gone = []
        for key in _keys(self._txn.cursor(self._databases[database]), of, of + b"\xff" * 9):
            if wanted <= 0:
                break
            number = _number(key[len(of) :])
            gone.append(number)
            wanted -= self._kept(number).kept_bytes
        self._forget(gone)

    def _forget(self, numbers: Sequence[int]) -> None:
        freed: dict[int, int] = {}
        for number in numbers:
            key, kept = number.to_bytes(8, "big"), self._kept(number)
            for piece in range(kept.pieces):
                self._txn.delete(key + piece.to_bytes(2, "big"), db=self._databases["pieces"])
            self._txn.delete(kept.function.to_bytes(4, "big") + key, db=self._databases["of_functions"])
            self._txn.delete(_call_key(kept.call_id) + key, db=self._databases["of_calls"])
            self._txn.delete(key, db=self._databases["entries"])
            freed[kept.function] = freed.get(kept.function, 0) + kept.kept_bytes
        if not freed:
            return
        self._put_total(self._total() - sum(freed.values()))
        cursor = self._txn.cursor(self._databases["functions"])
        for name, document in list(cursor.iternext()):
            function = _read(_functions, document)
            if function.number in freed:
                function.kept_bytes -= freed[function.number]
                self._put_function(name.decode(), function)

    def _put(self, number: int, function: int, entry: Entry) -> None:
        key = number.to_bytes(8, "big")
        pieces = range(0, len(entry.body), _PIECE_BYTES)
        for index, at in enumerate(pieces):
            piece = entry.body[at : at + _PIECE_BYTES]
            self._txn.put(key + index.to_bytes(2, "big"), piece, db=self._databases["pieces"])
        kept = _Kept(function, entry.call_id, entry.lines, entry.kept_bytes, len(pieces))
        self._txn.put(key, msgspec.msgpack.encode(kept), db=self._databases["entries"])
        self._txn.put(function.to_bytes(4, "big") + key, b"", db=self._databases["of_functions"])
        self._txn.put(_call_key(entry.call_id) + key, b"", db=self._databases["of_calls"])

    def _kept(self, number: int) -> _Kept:
        return _read(_entries, self._txn.get(number.to_bytes(8, "big"), db=self._databases["entries"]))

    def _function(self, name: str) -> _Function:
        document = self._txn.get(name.encode(), db=self._databases["functions"])
        if document is not None:
            return _read(_functions, document)
        cursor = self._txn.cursor(self._databases["functions"])
        taken = {_read(_functions, value).number for _, value in cursor.iternext()}
        return _Function(next(number for number in range(len(taken) + 1) if number not in taken), 0)

    def _put_function(self, name: str, function: _Function) -> None:
        if function.kept_bytes > 0:
            self._txn.put(name.encode(), msgspec.msgpack.encode(function), db=self._databases["functions"])
        else:
            self._txn.delete(name.encode(), db=self._databases["functions"])

    def _total(self) -> int:
        return _read(_counts, self._txn.get(_BYTES_KEY, db=self._databases["meta"]) or b"\0")

    def _put_total(self, total: int) -> None:
        self._txn.put(_BYTES_KEY, msgspec.msgpack.encode(max(0, total)), db=self._databases["meta"])


class _Reading:
    """Reads the lines that a query selects, in one transaction."""

    def __init__(self, env: Environment, txn: Transaction, query: LineQuery) -> None:
        self._txn = txn
        self._databases = env.databases
        self._query = query
        self._function: int | None = None
        if query.function and "functions" in env.databases:
            document = txn.get(query.function.encode(), db=env.databases["functions"])
            self._function = _read(_functions, document).number if document is not None else None
        self._none = bool(query.function) and self._function is None

    def page(self, at: Position, limit: int) -> Page:
        """See ``CallRecords.page``."""
        lines: list[LoggedLine] = []
        following = at
        for looked_at, number in enumerate(self._numbers(at.number, _NUMBER_MAX, backwards=False)):
            if len(lines) >= limit or looked_at == limit:
                return Page(lines, Position(number), more=True)
            found = self._lines(number)
            lines += [line for index, line in found if number > at.number or index >= at.lines]
            following = Position(number + 1)
        return Page(lines, following, more=False)

    def end(self) -> Position:
        """The position after the last line."""
        if "entries" not in self._databases:
            return Position()
        cursor = self._txn.cursor(self._databases["entries"])
        return Position(_number(cursor.key()) + 1 if cursor.last() else 0)

    def back(self, wanted: int, before: int, limit: int) -> tuple[Position | None, int, int, bool]:
        """Search back for the start of the last lines; if not found, return how many are left and where to look."""
        for looked_at, number in enumerate(self._numbers(0, before, backwards=True)):
            if looked_at == limit:
                return None, wanted, number + 1, True
            found = self._lines(number)
            if len(found) >= wanted:
                return Position(number, found[-wanted][0]), 0, number, False
            wanted -= len(found)
        return None, wanted, 0, False

    def _lines(self, number: int) -> list[tuple[int, LoggedLine]]:
        """The selected lines of an entry, each with the number of lines before it."""
        kept = _read(_entries, self._txn.get(number.to_bytes(8, "big"), db=self._databases["entries"]))
        if self._function is not None and kept.function != self._function:
            return []
        if not kept.call_id.startswith(self._query.call_id):
            return []
        body = _read(_bodies, self._body(number, kept.pieces))
        return [
            (index, LoggedLine(time_ms, kept.call_id, body.worker, stream, text))
            for index, (time_ms, stream, text) in enumerate(body.lines)
            if time_ms >= self._query.since_ms
        ]

    def _body(self, number: int, pieces: int) -> bytes:
        key = number.to_bytes(8, "big")
        return b"".join(
            self._txn.get(key + piece.to_bytes(2, "big"), b"", db=self._databases["pieces"]) for piece in range(pieces)
        )

    def _numbers(self, first: int, before: int, *, backwards: bool) -> Iterator[int]:
        """Numbers of entries that may have selected lines, in order."""
        if self._none or "entries" not in self._databases:
            return iter(())
        first = max(first, _first_number(self._query.since_ms - _SKEW_MS))
        if len(self._query.call_id) >= _INDEXED_CHARS:
            return iter(sorted(self._of_calls(first, before), reverse=backwards))
        if self._function is not None:
            of, database = self._function.to_bytes(4, "big"), "of_functions"
        else:
            of, database = b"", "entries"
        low, high = of + first.to_bytes(8, "big"), of + before.to_bytes(8, "big")
        keys = _keys(self._txn.cursor(self._databases[database]), low, high, backwards=backwards)
        return (_number(key[len(of) :]) for key in keys)

    def _of_calls(self, first: int, before: int) -> Iterator[int]:
        prefix = _call_key(self._query.call_id)[:-1]
        for key in _keys(self._txn.cursor(self._databases["of_calls"]), prefix, prefix + b"\xff"):
            if first <= (number := _number(key[-8:])) < before:
                yield number


def _keys(cursor: Any, low: bytes, high: bytes, *, backwards: bool = False) -> Iterator[bytes]:
    """Keys from ``low`` up to, but not including, ``high``."""
    if not backwards:
        if cursor.set_range(low) if low else cursor.first():
            for key in cursor.iternext(keys=True, values=False):
                if key >= high:
                    return
                yield key
        return
    if cursor.prev() if cursor.set_range(high) else cursor.last():
        for key in cursor.iterprev(keys=True, values=False):
            if key < low:
                return
            yield key


def _in_parts(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Split entries into batches for one write each, as a batch needs its space before older entries free theirs."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        part.append(entry)
        size += entry.kept_bytes
        if size >= _WRITE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _first_number(time_ms: int) -> int:
    """The lowest number of entries that arrived at this time."""
    return min(max(0, time_ms) << 20, _NUMBER_MAX - 1)


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")


def _call_key(call_id: str) -> bytes:
    return call_id.encode(errors="replace")[:_CALL_ID_BYTES_MAX] + b"\0"


def _read(decoder: msgspec.msgpack.Decoder[T], document: bytes | None) -> T:
    try:
        return decoder.decode(document or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"the records of calls are damaged: {error}") from None


def _opened(path: Path) -> Environment:
    env = Environment(path, _DATABASES)
    try:
        _check_format(env)
    except BaseException:
        env.close()
        raise
    return env


def _check_format(env: Environment) -> None:
    found = env.get("meta", _FORMAT_KEY)
    if found is None and not env.read_only:
        env.write(lambda txn: txn.put(_FORMAT_KEY, _FORMAT, db=env.databases["meta"]))
    elif found not in (None, _FORMAT):
        raise FormatError(f"it has format {found.decode(errors='replace')}, this software reads {_FORMAT.decode()}")


def _put_aside(path: Path, error: FormatError) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    log.warning("%s is damaged (%s): it is set aside as %s, and a new one is started", path.name, error, aside.name)
    if aside.is_dir():
        shutil.rmtree(aside)
    path.replace(aside)
