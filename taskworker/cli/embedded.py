"""The backend for a store in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from storage import (
    CollectReport,
    DeleteOutcome,
    ErasureProfile,
    FileStorage,
    GetOutcome,
    InvalidArgument,
    ManifestDiff,
    Patch,
    PushOutcome,
    RebuildReport,
    RepairReport,
    ScrubReport,
    StoreStats,
    Version,
    VersionNotFound,
)
from storage.diff.local_diff import LocalDiff
from taskworker.cli.backend import BytesLike, Delta, Progress, Source
from taskworker.cli.exits import ExitCode, Failure
from taskworker.client.local_files import write_all
from taskworker.client.sources import SeekableSource

if TYPE_CHECKING:
    from storage.reports import ShredReport
    from taskworker.folders.ports import Files

_READ_BYTES = 4 << 20
_CHUNK_IDS_PAGE = 4096
_VERSIONS_PAGE = 500


def open_store(
    path: Path, key: Path | None, *, create: bool = False, profile: ErasureProfile | None = None
) -> FileStorage:
    """Open the store in a directory.

    Raises:
        Failure: there is none, and none is to be made.
        StorageError: it cannot be opened.
    """
    try:
        return FileStorage.open(path, profile=profile or ErasureProfile(), create=create, key=key)
    except InvalidArgument as error:
        if create:
            raise
        raise Failure(str(error), ExitCode.NOT_FOUND) from error


class EmbeddedBackend:
    """One user's files in the store at ``path``; no other process may have it open."""

    def __init__(
        self, path: Path, user: str, key: Path | None = None, *, create: bool, profile: ErasureProfile | None
    ) -> None:
        self._store = open_store(path, key, create=create, profile=profile)
        self._user = user

    def close(self) -> None:
        self._store.close()

    def rotate_key(self) -> int:
        """Give the user a new key, and return its epoch."""
        return self._store.rotate_key(user_id=self._user)

    def shred(self) -> ShredReport:
        """Destroy the secrets of all versions that were deleted."""
        return self._store.shred()

    def push(
        self,
        source: Source,
        *,
        filename: str,
        profile: ErasureProfile | None = None,
        note: str = "",
        progress: Progress | None = None,
    ) -> Version:
        return self._store.push(
            source, filename=filename, user_id=self._user, profile=profile, note=note, progress=progress
        )

    def find(self, filename: str) -> Version | None:
        return self._store.find(filename, user_id=self._user)

    def stat(self, file_id: str, version_id: str | None = None) -> Version:
        return self._store.stat(file_id, user_id=self._user, version_id=version_id)

    def write_to(
        self, target: BinaryIO, version: Version, start: int, stop: int, *, progress: Progress | None = None
    ) -> None:
        with self._store.open_file(version.file_id, user_id=self._user, version_id=version.version_id) as reader:
            reader.seek(start)
            buffer = memoryview(bytearray(min(_READ_BYTES, stop - start)))
            position = start
            while position < stop:
                count = reader.readinto(buffer[: stop - position])
                write_all(target, buffer[:count])
                position += count
                if progress is not None:
                    progress(position - start, stop - start)

    def same_content(self, version: Version, path: Path) -> bool:
        with path.open("rb", buffering=0) as file:
            return self._diff(version, SeekableSource(file)).is_empty()

    def _diff(self, base: Version, content: SeekableSource, progress: Progress | None = None) -> LocalDiff:
        return LocalDiff(base.size, base.chunk_size, lambda: self._chunk_ids(base), content, progress=progress)

    def _chunk_ids(self, version: Version) -> Iterator[bytes]:
        for start in range(0, version.chunk_count, _CHUNK_IDS_PAGE):
            yield from self._store.chunk_ids(
                version.file_id,
                user_id=self._user,
                version_id=version.version_id,
                start=start,
                stop=start + _CHUNK_IDS_PAGE,
            )

    def revise(
        self,
        base: Version,
        path: Path,
        *,
        note: str = "",
        progress: Progress | None = None,
    ) -> Version:
        size, patches = self._stage_changes(base, path, progress)
        diff = ManifestDiff(
            base_version_id=base.version_id, new_size=size, chunk_size=base.chunk_size, patches=tuple(patches)
        )
        return self._store.revise(base.file_id, diff, user_id=self._user, note=note)

    def _stage_changes(self, base: Version, path: Path, progress: Progress | None) -> tuple[int, list[Patch]]:
        """The changes from ``base``, as patches without data, so that memory stays bounded.

        An upload that is never committed writes the changed chunks to the store. The engine keeps such chunks for a
        day, so that this user's patches can name them.
        """
        patches: list[Patch] = []
        profile = self._store.profile_after(base, path.stat().st_size)
        with (
            path.open("rb", buffering=0) as file,
            self._store.upload(
                filename=base.filename, user_id=self._user, chunk_size=base.chunk_size, profile=profile
            ) as staging,
        ):
            content = SeekableSource(file)
            for patch, chunk in self._diff(base, content, progress).changes():
                whole = len(chunk) == base.chunk_size
                if whole:
                    staging.write(chunk)
                patches.append(patch if whole else Patch(patch.index, patch.chunk_id, bytes(chunk)))
        return content.size, patches

    def changes_since(self, file_id: str, version_id: str) -> Delta:
        try:
            diff = self._store.synchronize(file_id, have_version_id=version_id, user_id=self._user)
        except VersionNotFound:
            head = self.stat(file_id)
            return Delta(head, self._all_of(head))
        head = self.stat(file_id, diff.target_version_id)
        return Delta(head, self._pieces(head, diff))

    def _pieces(self, head: Version, diff: ManifestDiff) -> Iterator[tuple[int, BytesLike]]:
        with self._store.open_file(head.file_id, user_id=self._user, version_id=head.version_id) as reader:
            for patch in diff.patches:
                offset = patch.index * diff.chunk_size
                if patch.data is not None:
                    yield offset, patch.data
                else:
                    reader.seek(offset)
                    yield offset, reader.read(min(diff.chunk_size, head.size - offset))

    def _all_of(self, head: Version) -> Iterator[tuple[int, BytesLike]]:
        with self._store.open_file(head.file_id, user_id=self._user, version_id=head.version_id) as reader:
            offset = 0
            while data := reader.read(_READ_BYTES):
                yield offset, data
                offset += len(data)

    def history(self, file_id: str) -> Iterator[Version]:
        before: str | None = None
        while page := self._store.history(file_id, user_id=self._user, limit=_VERSIONS_PAGE, before=before):
            yield from page
            before = page[-1].version_id

    def list_files(self, prefix: str = "") -> Iterator[Version]:
        after: str | None = None
        while page := self._store.list_files(user_id=self._user, prefix=prefix, after=after, limit=_VERSIONS_PAGE):
            yield from page
            after = page[-1].filename

    def push_many(
        self, files: Sequence[tuple[str, Path]], *, profile: ErasureProfile | None = None, note: str = ""
    ) -> Iterator[PushOutcome]:
        return self._store.push_many(files, user_id=self._user, profile=profile, note=note)

    def get_many(self, files: Sequence[str], *, by_name: bool = False, bytes_max: int) -> Iterator[GetOutcome]:
        return self._store.get_many(files, user_id=self._user, by_name=by_name, bytes_max=bytes_max)

    def delete_version(self, file_id: str, version_id: str) -> Version | None:
        return self._store.delete_version(file_id, version_id, user_id=self._user)

    def delete_many(self, file_ids: Sequence[str]) -> Iterator[DeleteOutcome]:
        return self._store.delete_many(file_ids, user_id=self._user)

    def folders(self) -> Files:
        from taskworker.folders.embedded import StoreFiles

        return StoreFiles(self._store, self._user)

    def require_key(self) -> None:
        """Do nothing, as this has no key of the user's own."""

    def stats(self) -> StoreStats:
        return self._store.stats()

    def scrub(self, *, progress: Progress | None = None) -> ScrubReport:
        return self._store.scrub(progress=progress)

    def repair(self, *, progress: Progress | None = None) -> RepairReport:
        return self._store.repair(progress=progress)

    def collect(self, *, grace_s: float | None = None, progress: Progress | None = None) -> CollectReport:
        if grace_s is None:
            return self._store.collect(progress=progress)
        return self._store.collect(progress=progress, grace_s=grace_s)

    def rebuild(self, *, progress: Progress | None = None) -> RebuildReport:
        """Recreate the catalog from the volumes."""
        return self._store.rebuild(progress=progress)
