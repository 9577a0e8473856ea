"""The files of an LMDB environment: their names made durable, their cache dropped, how large a map they need."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from storage.system.lmdb_errors import unavailable
from storage.system.lmdb_origin import DATA_FILE

log = logging.getLogger(__name__)

_MAP_BYTES_START = 64 << 20


def sync_names(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_cache(file: Path) -> None:
    """Have reads give what is on the disk; pages that are still to be written stay, see posix_fadvise(2)."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        log.warning("the cache of %s could not be dropped: %s", file, error)
    finally:
        os.close(descriptor)


def initial_map(path: Path) -> int:
    """How many bytes to map of an environment that is opened: twice what it has, and 64 MiB at least."""
    try:
        used = (path / DATA_FILE).stat().st_size
    except FileNotFoundError:
        used = 0
    except OSError as error:
        raise unavailable(error, path) from error
    size = _MAP_BYTES_START
    while size < 2 * used:
        size *= 2
    return size
