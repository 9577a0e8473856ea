"""The outcomes of calls on many files: one for each file, so that the error of one does not end the call."""

from __future__ import annotations

from dataclasses import dataclass

from storage.errors import StorageError
from storage.formats.versions import Version


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """What became of one file of ``push_many``.

    Attributes:
        position: place of the file in the call, from 0.
        filename: name of the file.
        version: the version that is durable and visible; None if there is an error.
        error: why nothing was stored, usually a StorageError, or the OSError of reading the source; None if it was
            stored.
    """

    position: int
    filename: str
    version: Version | None = None
    error: Exception | None = None

    def result(self) -> Version:
        """Return the version, or raise the error."""
        if self.version is None:
            raise self.error or StorageError("there is no outcome")
        return self.version


@dataclass(frozen=True, slots=True)
class GetOutcome:
    """What became of one file of ``get_many``.

    Attributes:
        position: place of the file in the call, from 0.
        file: the id or name that was asked for.
        version: the version that was read; None if there is an error.
        data: the whole content, verified; None if there is an error, or the file is larger than was wanted.
        error: why the file cannot be read; None if it can.
    """

    position: int
    file: str
    version: Version | None = None
    data: bytes | None = None
    error: Exception | None = None

    def result(self) -> bytes:
        """Return the content, or raise the error."""
        if self.data is None:
            raise self.error or StorageError(f"{self.file!r} is larger than was asked for; get it on its own")
        return self.data


@dataclass(frozen=True, slots=True)
class DeleteOutcome:
    """What became of one file of ``delete_many``.

    Attributes:
        position: place of the file in the call, from 0.
        file: the id that was given.
        error: why the file was not deleted; None if it was.
    """

    position: int
    file: str
    error: Exception | None = None

    def result(self) -> None:
        """Raise the error, if there is one."""
        if self.error is not None:
            raise self.error
