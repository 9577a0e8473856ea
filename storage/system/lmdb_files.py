"""Operations on the files of an LMDB environment: syncing their names, dropping their cache, sizing the map."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from storage.system.lmdb_errors import unavailable
from storage.system.lmdb_origin import DATA_FILE
from storage.system.private_paths import make_own_directory, narrow_path

log = logging.getLogger(__name__)

LOCK_FILE = "lock.mdb"
SPARE_FILE = "spare"
_MAP_BYTES_START = 64 << 20


def prepare_directory(path: Path) -> None:
    """Make the directory of an environment, and what is in it, private. LMDB itself would follow symbolic links.

    Raises:
        NotPrivate: a file is a symbolic link.
        OSError: the directory cannot be made.
    """
    make_own_directory(path)
    for name in (DATA_FILE, LOCK_FILE, SPARE_FILE):
        # Not by opening it: closing a descriptor of a locked file would end this process's locks on it.
        narrow_path(path / name)


def drop_cache(file: Path) -> None:
    """Make later reads come from the disk; pages not written yet stay cached, see posix_fadvise(2)."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        log.warning("the cache of %s could not be dropped: %s", file, error)
    finally:
        os.close(descriptor)


def initial_map(path: Path) -> int:
    """Return how many bytes to map when opening an environment: at least twice its size, and at least 64 MiB."""
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
