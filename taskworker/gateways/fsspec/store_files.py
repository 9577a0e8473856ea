"""The files of an embedded store."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from storage import DeleteOutcome, FileStorage, GetOutcome, InvalidArgument, PushOutcome, Version
from taskworker.gateways.fsspec.files import STREAMED_BYTES_MIN, Content, Progress
from taskworker.gateways.fsspec.problems import with_os_errors

_BLOCK_BYTES = 1024 * 1024
_CHUNKS_TOGETHER = 4096


class _Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


class StoreFiles:
    """The files of one user in an embedded store.

    Args:
        store: the open store; it is not closed.
        user_id: the owner.
    """

    def __init__(self, store: FileStorage, user_id: str) -> None:
        self._store = store
        self._user = user_id

    @with_os_errors
    def find(self, name: str) -> Version | None:
        """See :class:`~taskworker.gateways.fsspec.files.Files`, as for all methods."""
        return self._store.find(name, user_id=self._user)

    @with_os_errors
    def stat(self, version: Version, version_id: str) -> Version:
        """Another version."""
        return self._store.stat(version.file_id, user_id=self._user, version_id=version_id)

    @with_os_errors
    def history(self, version: Version) -> list[Version]:
        """All versions."""
        return self._store.history(version.file_id, user_id=self._user)

    @with_os_errors
    def page(self, prefix: str, after: str | None, limit: int) -> list[Version]:
        """Some heads."""
        return self._store.list_files(user_id=self._user, prefix=prefix, after=after, limit=limit)

    @with_os_errors
    def read(self, version: Version, offset: int, length: int) -> bytes:
        """Some bytes."""
        if offset == 0 and length >= version.size:
            return self._store.get(version.file_id, user_id=self._user, version_id=version.version_id)
        with self._opened(version) as reader:
            reader.seek(offset)
            return reader.read(length)

    @with_os_errors
    def download(self, version: Version, target: Path | BinaryIO, progress: Progress | None) -> None:
        """All bytes."""
        with self._opened(version) as reader:
            if not isinstance(target, Path):
                _copy(reader, target, version.size, progress)
                return
            partial = target.with_name(f".{target.name}.{version.version_id[:16]}.part")
            try:
                with partial.open("wb") as file:
                    _copy(reader, file, version.size, progress)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    @with_os_errors
    def push(self, name: str, content: Content, progress: Progress | None = None) -> Version:
        """A new version."""
        return self._store.push(content, filename=name, user_id=self._user, progress=progress)

    @with_os_errors
    def append(self, version: Version, more: BinaryIO) -> Version:
        """A longer version."""
        whole = version.size // version.chunk_size
        with self._store.upload(
            filename=version.filename, user_id=self._user, profile=version.profile, chunk_size=version.chunk_size
        ) as upload:
            if version.size > STREAMED_BYTES_MIN:
                upload.reuse(self._chunk_ids(version, 0, whole))
            else:
                whole = 0
            with self._opened(version) as reader:
                reader.seek(whole * version.chunk_size)
                shutil.copyfileobj(reader, upload, _BLOCK_BYTES)
            shutil.copyfileobj(more, upload, _BLOCK_BYTES)
            return upload.commit(file_id=bytes.fromhex(version.file_id), base=bytes.fromhex(version.version_id))

    @with_os_errors
    def copy(self, version: Version, name: str) -> Version:
        """A file of the same chunks."""
        if version.size > STREAMED_BYTES_MIN:
            try:
                return self._same_chunks(version, name)
            except InvalidArgument:  # a chunk is damaged, so it is read, decoded and stored again
                pass
        with self._opened(version) as reader:
            return self._store.push(reader, filename=name, user_id=self._user)

    @with_os_errors
    def push_many(self, files: Iterable[tuple[str, Content]]) -> list[PushOutcome]:
        """New versions."""
        return list(self._store.push_many(files, user_id=self._user))

    @with_os_errors
    def get_many(self, names: Sequence[str], bytes_max: int | None = None) -> list[GetOutcome]:
        """Contents."""
        return list(self._store.get_many(names, user_id=self._user, by_name=True, bytes_max=bytes_max))

    @with_os_errors
    def delete_many(self, file_ids: Sequence[str]) -> list[DeleteOutcome]:
        """Files that go."""
        return list(self._store.delete_many(file_ids, user_id=self._user))

    def _opened(self, version: Version) -> BinaryIO:
        return self._store.open_file(version.file_id, user_id=self._user, version_id=version.version_id)

    def _chunk_ids(self, version: Version, start: int, stop: int) -> list[bytes]:
        return self._store.chunk_ids(
            version.file_id, user_id=self._user, version_id=version.version_id, start=start, stop=stop
        )

    def _same_chunks(self, version: Version, name: str) -> Version:
        with self._store.upload(
            filename=name, user_id=self._user, profile=version.profile, chunk_size=version.chunk_size
        ) as upload:
            for start in range(0, version.chunk_count, _CHUNKS_TOGETHER):
                upload.reuse(self._chunk_ids(version, start, min(start + _CHUNKS_TOGETHER, version.chunk_count)))
            return upload.commit(version.size)


def _copy(source: BinaryIO, target: _Writable, size: int, progress: Progress | None) -> None:
    done = 0
    while data := source.read(_BLOCK_BYTES):
        target.write(data)
        done += len(data)
        if progress is not None:
            progress(done, size)
