"""Open files: readers of one version, and writers whose content becomes visible as a whole."""

from __future__ import annotations

import io
import os
import tempfile
from typing import Any, BinaryIO, Protocol, cast

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from storage import Version
from taskworker.gateways.fsspec import read_ahead
from taskworker.gateways.fsspec.files import Files
from taskworker.gateways.fsspec.listing import file_info

_IN_MEMORY_BYTES_MAX = 8 * 1024 * 1024
_AS_BYTES_MAX = 1024 * 1024


class Writable(Protocol):
    """The filesystem, as files that are being written need it."""

    def size_now(self, path: str) -> int:
        """Size of a file; 0 if there is none."""

    def store_written(self, written: NewContent) -> None:
        """Store what was written to a file."""


class StoredFile(AbstractBufferedFile):
    """A version that is read, even if the file gets newer ones meanwhile. Not thread-safe.

    Args:
        fs: the filesystem.
        files: the files of its user.
        version: what is read.
        block_size: how much other ways of caching read at once.
        cache_type: how to read ahead, by fsspec's names.
        cache_options: of that.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        files: Files,
        version: Version,
        *,
        block_size: int | str | None = None,
        cache_type: str | None = None,
        cache_options: dict[str, Any] | None = None,
    ) -> None:
        self.version = version
        self._files = files
        super().__init__(
            fs,
            version.filename,
            "rb",
            block_size,
            cache_type=cache_type or read_ahead.GrowingReadAhead.name,
            cache_options=cache_options,
            size=version.size,
        )
        self._details = file_info(version)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._files.read(self.version, start, end - start)


class NewContent(io.RawIOBase):
    """Content that is being written, and stored when the file is closed. Not thread-safe.

    It is kept in memory, and in a temporary file once it is large. If a ``with`` block ends with an error, nothing is
    stored.

    Args:
        fs: the filesystem.
        path: where it goes.
        mode: ``wb``, ``xb`` or ``ab``.
        autocommit: whether closing stores it; otherwise :meth:`commit` does, at the end of a transaction.
    """

    def __init__(self, fs: Writable, path: str, mode: str, *, autocommit: bool) -> None:
        super().__init__()
        self.fs = fs
        self.path = path
        self.mode = mode
        self.autocommit = autocommit
        self._before = fs.size_now(path) if mode == "ab" else 0
        self._content = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES_MAX)  # noqa: SIM115 - close() closes it
        self._is_done = False

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    @property
    def content(self) -> bytes | BinaryIO:
        """What was written; if that is little, as bytes, which are stored in one call."""
        size = self._content.seek(0, os.SEEK_END)
        file = self.file
        return file.read() if size <= _AS_BYTES_MAX else file

    @property
    def file(self) -> BinaryIO:
        """What was written, from its start."""
        self._content.seek(0)
        return cast(BinaryIO, self._content)

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Whether other places than the end can be written to."""
        return self.mode != "ab"

    def tell(self) -> int:
        """The position in the whole file."""
        return self._before + self._content.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to another place."""
        if not self.seekable():
            raise io.UnsupportedOperation("files that are open for appending cannot be sought in")
        return self._content.seek(offset, whence)

    def write(self, data: Any, /) -> int:
        """Write all of ``data``."""
        if self.closed:
            raise ValueError("the file is closed")
        view = memoryview(data).cast("B")
        self._content.write(view)
        return view.nbytes

    def commit(self) -> None:
        """Store what was written."""
        if not self._is_done:
            self._is_done = True
            try:
                self.fs.store_written(self)
            finally:
                self._content.close()

    def discard(self) -> None:
        """Forget what was written."""
        self._is_done = True
        self._content.close()

    def close(self) -> None:
        """Store what was written, unless a transaction does that later."""
        if self.closed:
            return
        try:
            if self.autocommit:
                self.commit()
        finally:
            super().close()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None:
            self.discard()
        self.close()


class TextFile(io.TextIOWrapper):
    """A file of text; if a ``with`` block ends with an error, nothing is stored."""

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None and isinstance(self.buffer, NewContent):
            self.buffer.discard()
            self.buffer.close()
            return
        self.close()
