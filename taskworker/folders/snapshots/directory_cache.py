"""What directories contained when their snapshot was taken; kept on this machine, so that unchanged ones are known.

The cache is not needed: without it, the former snapshot is read, and each file's entry in it is compared.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta

from storage.system.private_files import read_private, write_private
from storage.system.private_paths import NotPrivate
from taskworker.folders.rules import Exclusions
from taskworker.folders.scanning import Seen

DIRECTORIES_MAX = 1 << 18
"""Larger trees have no cache, as it is held in memory as a whole: about 500 bytes for each directory."""
_BYTES_MAX = 1 << 30
_HASH_BYTES = 32

log = logging.getLogger(__name__)


class _Cached(msgspec.Struct, frozen=True, array_like=True):
    """The cache as it is stored.

    Attributes:
        format: number of this form.
        options: hash of what was left out, and of what was noted.
        root: id of what the folder contained as a whole: all that is below is stored as long as a snapshot has it.
        directories: by path.
    """

    format: Annotated[int, Meta(ge=1, le=1)]
    options: bytes
    root: bytes
    directories: dict[bytes, Seen]


_decoder = msgspec.msgpack.Decoder(_Cached)


class DirectoryCache:
    """The cache of one directory and one folder: a file, which only its owner may read.

    Args:
        path: the file.
        exclusions: what is left out of the folder now.
        xattrs: whether extended attributes are noted now.
    """

    def __init__(self, path: Path, exclusions: Exclusions, *, xattrs: bool) -> None:
        self._path = path
        options = (
            exclusions.patterns,
            exclusions.caches,
            exclusions.other_file_systems,
            sorted(exclusions.paths),
            xattrs,
        )
        self._options = blake3(repr(options).encode("utf-8", "surrogateescape")).digest()

    def load(self, roots: Collection[bytes]) -> dict[bytes, Seen]:
        """What is known of directories, by path; nothing if the cache is absent, unusable, or of another folder.

        Args:
            roots: ids of what the folder contained at its snapshots.
        """
        try:
            data = read_private(self._path, _BYTES_MAX)
            if data is None:
                return {}
            if blake3(data[_HASH_BYTES:]).digest() != data[:_HASH_BYTES]:
                raise ValueError("it is not as it was written")
            cached = _decoder.decode(memoryview(data)[_HASH_BYTES:])
        except (NotPrivate, OSError, ValueError, RecursionError) as error:
            log.warning("%s is of no use, so all files are looked at: %s", self._path, error)
            return {}
        if cached.options != self._options or cached.root not in roots:
            return {}
        return cached.directories

    def save(self, root: bytes, directories: Mapping[bytes, Seen]) -> None:
        """Keep what is known for the next time. If that is impossible, the next snapshot takes longer."""
        data = msgspec.msgpack.encode(_Cached(1, self._options, root, dict(directories)))
        try:
            write_private(self._path, blake3(data).digest() + data, durable=False)
        except (NotPrivate, OSError) as error:
            log.warning("%s cannot be written, so the next snapshot takes longer: %s", self._path, error)


def cache_path(directory: Path, place: str, user: str, folder: str) -> Path | None:
    """Where the cache of a directory is: below ``taskworker/folders`` in ``$XDG_CACHE_HOME``.

    None if there is no such place, as this login has no home.

    Args:
        directory: the directory.
        place: which store.
        user: whose files in it.
        folder: name of the folder.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(named) if named.startswith("/") else Path.home() / ".cache"
    except RuntimeError:  # such as in containers with any user's number
        return None
    pair = blake3(msgspec.msgpack.encode((os.fsencode(directory.resolve()), place, user, folder))).hexdigest()[:32]
    return home / "taskworker" / "folders" / pair
