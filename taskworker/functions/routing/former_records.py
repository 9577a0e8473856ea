"""Migrates the records of calls that earlier releases kept in an SQLite file."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from itertools import groupby
from pathlib import Path

from taskworker.functions.routing.record_formats import Entry
from taskworker.functions.routing.records import CallRecords

log = logging.getLogger(__name__)

_FORMAT = 1
_SUFFIXES = ("", "-wal", "-shm")
_ROWS = 5_000


def take_over(path: Path, records: CallRecords) -> None:
    """Copy the file's contents to ``records``, and remove the file; a file that cannot be read is left alone.

    Raises:
        StorageError: the records cannot be written.
        OSError: the file cannot be removed.
    """
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            (version,) = database.execute("pragma user_version").fetchone()
            if version != _FORMAT:
                raise sqlite3.DatabaseError(f"it has format {version}, this software reads {_FORMAT}")
            _copy(database, records)
    except sqlite3.Error as error:
        log.warning("%s cannot be read, and is left as it is: %s", path, error)
        return
    for suffix in _SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _copy(database: sqlite3.Connection, records: CallRecords) -> None:
    rows = database.execute("select function, call_id, worker, time_ms, stream, text from lines order by id")
    while some := rows.fetchmany(_ROWS):
        for (function, call_id, worker), lines in groupby(some, lambda row: row[:3]):
            of_call = [(time_ms, stream, text) for *_, time_ms, stream, text in lines]
            records.add(Entry.all_of(function, call_id, worker, of_call), of_call[-1][0])
    records.save_figures(database.execute("select function, document from figures").fetchall())
