"""What is kept of calls on disk: lines of their output, and figures. One SQLite file, bounded by size and age.

It is kept for people to look at: what a pool that is killed has not written yet, a fraction of a second's lines,
is lost, and a file that is damaged is put aside, and a new one begun. Neither holds up calls.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_FORMAT = 1
_PRUNE_TO = 0.9
"""Of a bound: room is made for some time at once."""
_SCHEMA = """
create table if not exists lines (
    id integer primary key, function text not null, call_id text not null, worker text not null,
    time_ms integer not null, stream text not null, text text not null
);
create index if not exists lines_of_functions on lines (function, id);
create index if not exists lines_of_calls on lines (call_id, id);
create table if not exists figures (function text primary key, document blob not null);
"""
_OVERHEAD = 100
"""Bytes of a line beside its text: its other columns, and the indexes."""


@dataclass(frozen=True, slots=True)
class RecordBounds:
    """How much is kept.

    Attributes:
        function_bytes: of each function.
        total_bytes: of all together.
        age_s: how old a line may become.
    """

    function_bytes: int = 16 << 20
    total_bytes: int = 256 << 20
    age_s: float = 14 * 86_400.0


@dataclass(frozen=True, slots=True)
class LoggedLine:
    """A line of a call's output, or how it ended (stream ``event``)."""

    time_ms: int
    call_id: str
    worker: str
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class LineQuery:
    """Which lines are wanted.

    Attributes:
        function: of this one; empty: of all.
        call_id: of calls whose id begins so; empty: of all.
        since_ms: not older than that.
    """

    function: str = ""
    call_id: str = ""
    since_ms: int = 0

    def condition(self) -> tuple[str, list[object]]:
        """As SQL, with its values."""
        terms, values = ["time_ms >= ?"], list[object]([self.since_ms])
        if self.function:
            terms.append("function = ?")
            values.append(self.function)
        if self.call_id:
            terms.append("call_id >= ? and call_id < ?")
            values += [self.call_id, self.call_id + "\U0010ffff"]
        return " and ".join(terms), values


class CallRecords:
    """Thread-safe. Methods raise ``sqlite3.Error`` where the disk fails.

    Args:
        path: of the file; None: in memory, for as long as this object lives.
        bounds: how much is kept.
    """

    def __init__(self, path: Path | None = None, bounds: RecordBounds | None = None) -> None:
        self._bounds = bounds or RecordBounds()
        self._lock = threading.Lock()
        self._database = _opened(path)
        rows = self._database.execute(
            "select function, sum(length(text) + ?) from lines group by function", (_OVERHEAD,)
        )
        self._bytes: Counter[str] = Counter(dict(rows))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def add(self, lines: Iterable[tuple[str, LoggedLine]]) -> None:
        """Keep lines, each of a function; older ones make room for them."""
        rows = [(function, one.call_id, one.worker, one.time_ms, one.stream, one.text) for function, one in lines]
        with self._lock, self._database:
            self._database.executemany(
                "insert into lines (function, call_id, worker, time_ms, stream, text) values (?, ?, ?, ?, ?, ?)", rows
            )
            for function, *_, text in rows:
                self._bytes[function] += len(text) + _OVERHEAD
            for function in {row[0] for row in rows}:
                if self._bytes[function] > self._bounds.function_bytes:
                    self._make_room(function, self._bytes[function] - int(_PRUNE_TO * self._bounds.function_bytes))
            if self._bytes.total() > self._bounds.total_bytes:
                self._make_room("", self._bytes.total() - int(_PRUNE_TO * self._bounds.total_bytes))

    def drop_old(self) -> None:
        """Forget what is older than it may become."""
        oldest_ms = int((time.time() - self._bounds.age_s) * 1000)
        with self._lock, self._database:
            rows = self._database.execute(
                "select id, function, length(text) from lines where time_ms < ?", (oldest_ms,)
            )
            self._forget(rows.fetchall())

    def lines(self, query: LineQuery, after: int, limit: int) -> list[tuple[int, LoggedLine]]:
        """At most ``limit`` lines, in order, each with its number, of those with higher numbers than ``after``."""
        condition, values = query.condition()
        with self._lock:
            rows = self._database.execute(
                f"select id, time_ms, call_id, worker, stream, text from lines where {condition} and id > ? "
                "order by id limit ?",
                [*values, after, limit],
            ).fetchall()
        return [(number, LoggedLine(*columns)) for number, *columns in rows]

    def number_before(self, query: LineQuery, count: int) -> int:
        """The number after which the last ``count`` lines come."""
        condition, values = query.condition()
        with self._lock:
            found = self._database.execute(
                f"select id from lines where {condition} order by id desc limit 1 offset ?",
                [*values, count],
            ).fetchone()
        return found[0] if found is not None else 0

    def save_figures(self, documents: Sequence[tuple[str, bytes]]) -> None:
        """Keep the figures of functions in place of all that were kept, each as a document."""
        with self._lock, self._database:
            self._database.execute("delete from figures")
            self._database.executemany("insert into figures values (?, ?)", documents)

    def figures(self) -> list[tuple[str, bytes]]:
        """What was kept last."""
        with self._lock:
            return self._database.execute("select function, document from figures").fetchall()

    def _make_room(self, function: str, wanted: int) -> None:
        """Forget the oldest lines, of a function or of all, until so many bytes are free."""
        of = "where function = ?" if function else ""
        rows = self._database.execute(
            f"select id, function, length(text) from lines {of} order by id",
            [function] if function else [],
        )
        gone = []
        for row in rows:
            if wanted <= 0:
                break
            gone.append(row)
            wanted -= row[2] + _OVERHEAD
        self._forget(gone)

    def _forget(self, rows: Sequence[tuple[int, str, int]]) -> None:
        self._database.executemany("delete from lines where id = ?", [(row[0],) for row in rows])
        for _, function, chars in rows:
            self._bytes[function] -= chars + _OVERHEAD
        self._bytes += Counter()  # without functions that have none


def _opened(path: Path | None) -> sqlite3.Connection:
    if path is None:
        return _connected(":memory:")
    try:
        return _connected(str(path))
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # the disk, not what is on it
        aside = path.with_name(f"{path.name}.damaged")
        log.warning("%s is damaged (%s): it is put aside as %s, and a new one is begun", path.name, error, aside.name)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).unlink()
        path.replace(aside)
        return _connected(str(path))


def _connected(name: str) -> sqlite3.Connection:
    if name != ":memory:":
        os.close(os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # what functions print is nobody else's
    database = sqlite3.connect(name, check_same_thread=False)
    try:
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = normal")
        (version,) = database.execute("pragma user_version").fetchone()
        if version not in (0, _FORMAT):
            raise sqlite3.DatabaseError(f"it has format {version}, this software reads {_FORMAT}")
        database.executescript(_SCHEMA)
        database.execute(f"pragma user_version = {_FORMAT}")
    except BaseException:
        database.close()
        raise
    return database
