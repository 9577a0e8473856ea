"""What can be wrong with a folder or a file in it, and how the caller is told."""

from __future__ import annotations

from collections.abc import Callable

from storage.errors import FormatError, StorageError

Problem = Callable[[bytes, Exception], None]
"""Told of each file, by its path in the folder, that could not be taken or restored; the rest goes on."""


class FolderDamaged(FormatError):
    """The description of a folder is not one that this release wrote."""


class Unstorable(StorageError):
    """A file cannot be taken into a folder, or not be restored from it, because of what it is or how it is named."""


class ChangedWhileRead(StorageError):
    """A file was written to while it was read: what was stored may be neither its former nor its new content."""


def text_of(path: bytes) -> str:
    """A path for people: bytes that are not UTF-8 are shown as escapes."""
    return path.decode(errors="backslashreplace") or "."
