"""What can be wrong with a folder or a file in it, and how the caller is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from storage.errors import FormatError, StorageError

_KEPT_MAX = 100

Problem = Callable[[bytes, Exception], None]
"""Told of each file, by its path in the folder, that could not be taken or restored; the rest goes on."""


class FolderDamaged(FormatError):
    """The description of a folder is not one that this release wrote."""


class Unstorable(StorageError):
    """A file cannot be taken into a folder, or not be restored from it, because of what it is or how it is named."""


class ChangedWhileRead(StorageError):
    """A file was written to while it was read: what was stored may be neither its former nor its new content."""


class FolderIncomplete(StorageError):
    """Some files of a folder could not be stored or restored as they are; all others were.

    Attributes:
        problems: paths in the folder and what was wrong with them, of up to 100 files.
    """

    def __init__(self, text: str, problems: Sequence[tuple[bytes, Exception]] = ()) -> None:
        super().__init__(text)
        self.problems = tuple(problems)


class Problems:
    """Tells somebody of problems with files; if there is nobody to tell, keeps them for an error in the end.

    Args:
        told: who is told; None: nobody.
    """

    def __init__(self, told: Problem | None) -> None:
        self._told = told
        self._kept: list[tuple[bytes, Exception]] = []
        self._count = 0

    def __call__(self, path: bytes, error: Exception) -> None:
        """Tell of a problem."""
        if self._told is not None:
            self._told(path, error)
            return
        self._count += 1
        if len(self._kept) < _KEPT_MAX:
            self._kept.append((path, error))

    def raise_if_any(self, what: str) -> None:
        """Fail if there were problems that nobody was told of.

        Args:
            what: what was not done to the files, such as "stored".

        Raises:
            FolderIncomplete: there were.
        """
        if self._count:
            path, error = self._kept[0]
            more = f", and {self._count - 1:,} more" if self._count > 1 else ""
            raise FolderIncomplete(f"not all files could be {what}: {text_of(path)}: {error}{more}", self._kept)


def text_of(path: bytes) -> str:
    """A path for people: bytes that are not UTF-8 are shown as escapes."""
    return path.decode(errors="backslashreplace") or "."
