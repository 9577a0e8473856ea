"""Changes of the key file of a user's own keys: a new key above the others, and former keys removed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import KeyRequired
from storage.sealing.master_keys import MasterKeys, new_master_key, read_key_file, write_key_file


def with_new_key(path: Path) -> MasterKeys:
    """Put a new key above the one of a key file, and return all; a file that has several is left as it is.

    Raises:
        KeyRequired: there is no such file, or it has no key, or it cannot be read or written.
        NotPrivate: others may read it.
    """
    with _locked(path):
        keys = read_key_file(path)
        if keys.former:
            return keys
        return _written(path, MasterKeys(new_master_key(), (keys.current,)))


def without_former(path: Path, dropped: Collection[bytes]) -> MasterKeys:
    """Remove keys from a key file, by their ids, unless one is the current key; return what is left.

    Raises: as :func:`with_new_key`.
    """
    with _locked(path):
        keys = read_key_file(path)
        return _written(path, MasterKeys(keys.current, tuple(key for key in keys.former if key.id not in dropped)))


def _written(path: Path, keys: MasterKeys) -> MasterKeys:
    """Write a key file, and return what is read from it: nothing is to be sealed with a key that is not there."""
    try:
        write_key_file(path, keys)
    except OSError as error:
        raise KeyRequired(f"the key file {path} cannot be written: {error.strerror}; it is unchanged") from error
    return read_key_file(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the directory of a file that is to be replaced, as the file itself is another one then."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KeyRequired(f"the key file {path} cannot be locked: {error.strerror}") from error
