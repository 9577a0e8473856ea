"""Which files are left out: patterns as in .gitignore, caches, other file systems."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import InvalidArgument

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE = ".twignore"
_CACHE_TAG = "CACHEDIR.TAG"
_CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/
_IGNORE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Exclusions:
    """What is left out of a folder.

    Attributes:
        patterns: lines as in .gitignore, relative to the folder.
        caches: whether to leave out what is in directories with a CACHEDIR.TAG.
        other_file_systems: whether to leave out what is in directories on which other file systems are mounted.
        paths: (device, inode) of directories that are left out, such as the store itself.
    """

    patterns: tuple[str, ...] = ()
    caches: bool = False
    other_file_systems: bool = False
    paths: frozenset[tuple[int, int]] = frozenset()


def patterns_in(path: Path) -> list[str]:
    """The patterns in a file.

    Raises:
        InvalidArgument: the file is larger than 1 MiB.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _lines(file.read(_IGNORE_BYTES_MAX + 1), str(path))


def _lines(data: bytes, name: str) -> list[str]:
    if len(data) > _IGNORE_BYTES_MAX:
        raise InvalidArgument(f"{name} is larger than {_IGNORE_BYTES_MAX:,} bytes; this is no list of patterns")
    return os.fsdecode(data).splitlines()


class Rules:
    """The patterns that hold in a directory: those given, and those in the .twignore files down to it."""

    def __init__(self, specs: Sequence[tuple[str, GitIgnoreSpec]] = ()) -> None:
        self._specs = tuple(specs)

    def __bool__(self) -> bool:
        return bool(self._specs)

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Rules:
        """Rules with these patterns, relative to the folder.

        Raises:
            InvalidArgument: a pattern is malformed.
        """
        return cls().deeper("", list(patterns))

    def deeper(self, directory: str, patterns: Sequence[str]) -> Rules:
        """These rules, and those of a file in a directory, which go before.

        Args:
            directory: path in the folder; with a slash at the end unless it is empty.
            patterns: the lines of the file.

        Raises:
            InvalidArgument: a pattern is malformed.
        """
        if not patterns:
            return self
        from pathspec import GitIgnoreSpec  # here, as most folders have no patterns

        try:
            spec = GitIgnoreSpec.from_lines(patterns)
        except (ValueError, re.error) as error:
            raise InvalidArgument(f"a pattern of {directory or 'what to leave out'} is malformed: {error}") from None
        return Rules((*self._specs, (directory, spec)))

    def excludes(self, path: str, *, is_directory: bool) -> bool:
        """Whether a path in the folder is left out."""
        for directory, spec in reversed(self._specs):
            included = spec.check_file(path[len(directory) :] + ("/" if is_directory else "")).include
            if included is not None:
                return included
        return False


def ignored_in(descriptor: int) -> list[str]:
    """The lines of the .twignore in an open directory; none if there is no such file.

    Raises:
        InvalidArgument: it is too large.
        OSError: it cannot be read.
    """
    data = _beginning(descriptor, IGNORE_FILE, _IGNORE_BYTES_MAX + 1)
    return [] if data is None else _lines(data, IGNORE_FILE)


def is_cache(descriptor: int) -> bool:
    """Whether an open directory is tagged as a cache."""
    return _beginning(descriptor, _CACHE_TAG, len(_CACHE_SIGNATURE)) == _CACHE_SIGNATURE


def is_kept_in_cache(name: str) -> bool:
    """Whether a file of a cache is kept although the rest is not."""
    return name == _CACHE_TAG


def _beginning(directory: int, name: str, length: int) -> bytes | None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(length)
