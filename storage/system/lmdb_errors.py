"""Translates errors of LMDB, and system errors about its files, to the engine's."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import lmdb

from storage.errors import FormatError, StorageError, StoreFull, StoreReadOnly, StoreUnavailable
from storage.system.faults import Fault, fault_of, numbers_of
from storage.system.lmdb_origin import DATA_FILE

_SHORT_WRITE_BYTES_MAX = 4 << 20  # LMDB writes up to 64 pages at a time, or one value of a few MiB
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.InvalidError,
    lmdb.IncompatibleError,
    lmdb.BadValsizeError,
    lmdb.InvalidParameterError,
)


def unavailable(error: OSError, path: Path) -> StorageError:
    """Return the engine's error for a system error about a database."""
    match fault_of(error):
        case Fault.FULL:
            return StoreFull(f"no space left for the database in {path}; delete files and run collect, or add room")
        case Fault.READ_ONLY:
            return StoreReadOnly(f"the database in {path} cannot be written: its file system is read-only")
        case _:
            return StoreUnavailable(f"the database in {path} cannot be used now: {error}")


def translated(error: lmdb.Error, path: Path) -> StorageError:
    """Return the engine's error for an error of LMDB. Only errors about LMDB's own pages mean damage."""
    if isinstance(error, _DAMAGE):
        return FormatError(f"the database in {path} cannot be used: {error}")
    text = str(error)  # py-lmdb's only report of the error number
    if isinstance(error, lmdb.DiskError) or _tells(text, Fault.FULL):
        return StoreFull(f"no space left for the database in {path}; delete files and run collect, or add room")
    if os.strerror(errno.EIO) in text and _is_full(path):
        return StoreFull(f"no space left for the database in {path}; delete files and run collect, or add room")
    if _tells(text, Fault.READ_ONLY):
        return StoreReadOnly(f"the database in {path} cannot be written: its file system is read-only")
    return StoreUnavailable(f"the database in {path} cannot be used now: {error}")


def _tells(text: str, fault: Fault) -> bool:
    return any(os.strerror(number) in text for number in numbers_of(fault))


def _is_full(path: Path) -> bool:
    """Whether a write may have been cut short by a full disk, which LMDB reports as an I/O error."""
    try:
        status = os.statvfs(path)
        size = (path / DATA_FILE).stat().st_size
    except OSError:
        return False  # unknown: report the original error
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    room = _SHORT_WRITE_BYTES_MAX
    limited = limit != resource.RLIM_INFINITY and size + room > limit
    return limited or status.f_bavail * status.f_frsize < room
