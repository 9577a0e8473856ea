"""Compact copies of LMDB environments, with nothing of what was removed or replaced."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import closing
from pathlib import Path

import lmdb

from storage.errors import StorageError
from storage.system.directories import sync_directory
from storage.system.lmdb_errors import translated, unavailable
from storage.system.lmdb_files import LOCK_FILE
from storage.system.lmdb_origin import DATA_FILE, origin_of, write_closing_note
from storage.system.private_paths import FILE_MODE, make_private_directory, open_private

log = logging.getLogger(__name__)

_ROOM_BYTES = 16 << 20
_UNFINISHED = "compact.new"


def copy_environment(source: Path, target: Path) -> None:
    """Copy what one read transaction of an environment sees to a new directory, durably.

    Raises:
        FormatError: it is damaged.
        StoreFull, StoreUnavailable: it cannot be read or written now.
        OSError: the directory cannot be made.
    """
    make_private_directory(target)
    try:
        with closing(
            lmdb.open(str(source), map_size=_map_bytes(source), readonly=True, create=False, mode=FILE_MODE)
        ) as environment:
            environment.reader_check()  # otherwise, a copy that was killed would keep pages from being reused
            descriptor = open_private(target / DATA_FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                environment.copyfd(descriptor, compact=True)
            finally:
                os.close(descriptor)
    except lmdb.Error as error:
        raise translated(error, source) from error
    note_closed(target)


def note_closed(path: Path) -> None:
    """Make a copied environment durable, and mark it as written here and closed properly."""
    try:
        with closing(lmdb.open(str(path), map_size=_map_bytes(path), mode=FILE_MODE)) as environment:
            origin = origin_of(path)
            with environment.begin(write=True) as txn:
                write_closing_note(txn, origin)
    except lmdb.Error as error:
        raise translated(error, path) from error


def replaced_by_copy(path: Path) -> bool:
    """Replace the file of an environment that nobody has open by a compact copy; return whether that succeeded."""
    unfinished = path / _UNFINISHED
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        copy_environment(path, unfinished)
        (unfinished / DATA_FILE).replace(path / DATA_FILE)
        (path / LOCK_FILE).unlink(missing_ok=True)  # it is about the former file
        sync_directory(path)
        shutil.rmtree(unfinished)
    except (StorageError, OSError) as error:
        failure = unavailable(error, path) if isinstance(error, OSError) else error
        log.warning(
            "the database in %s could not be compacted, which is tried again at the next start: %s", path, failure
        )
        shutil.rmtree(unfinished, ignore_errors=True)
        return False
    return True


def _map_bytes(path: Path) -> int:
    return 2 * (path / DATA_FILE).stat().st_size + _ROOM_BYTES
