"""The backend for a server, reached over gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from storage.errors import FileNotFound, VersionNotFound
from taskworker.cli.backend import BytesLike, Delta, Progress, Source
from taskworker.client import Client
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.client.differences import RemoteDiff, pieces_of
from taskworker.client.sources import SeekableSource
from taskworker.errors import MessageTooLarge

if TYPE_CHECKING:
    from storage import (
        CollectReport,
        DeleteOutcome,
        ErasureProfile,
        GetOutcome,
        ManifestDiff,
        PushOutcome,
        RebuildReport,
        RepairReport,
        ScrubReport,
        StoreStats,
        Version,
    )
    from taskworker.folders.ports import Files

_READ_BYTES = 4 << 20
_VERSIONS_PAGE = 500


class RemoteBackend:
    """One user's files on the server at ``address``."""

    def __init__(self, address: str, user: str, *, token: str | None = None, key: Path | None = None) -> None:
        self._address = address
        self._client = Client(address, token=token, key=key)
        self._user = user

    def close(self) -> None:
        self._client.close()

    def linked(self) -> Version:
        """The version that a link shows, which was given as the token."""
        found = self._client.linked()
        self._user = found.user_id
        return found

    def push(
        self,
        source: Source,
        *,
        filename: str,
        profile: ErasureProfile | None = None,
        note: str = "",
        progress: Progress | None = None,
    ) -> Version:
        return self._client.push(
            source, filename=filename, user_id=self._user, profile=profile, note=note, progress=progress
        )

    def find(self, filename: str) -> Version | None:
        return self._client.find(filename, user_id=self._user)

    def stat(self, file_id: str, version_id: str | None = None) -> Version:
        return self._client.stat(file_id, user_id=self._user, version_id=version_id)

    def write_to(
        self, target: BinaryIO, version: Version, start: int, stop: int, *, progress: Progress | None = None
    ) -> None:
        self._client.download(
            version.file_id,
            target,
            user_id=self._user,
            version_id=version.version_id,
            offset=start,
            length=stop - start,
            progress=progress,
        )

    def same_content(self, version: Version, path: Path) -> bool:
        channel = Channel(self._address)
        try:
            with path.open("rb") as file:
                local = RemoteDiff(channel, version, SeekableSource(file), changed=None, deadline=Deadline(None))
                return local.is_empty()
        finally:
            channel.close()

    def revise(
        self,
        base: Version,
        path: Path,
        *,
        note: str = "",
        progress: Progress | None = None,
    ) -> Version:
        with path.open("rb") as file:
            return self._client.revise(
                base.file_id,
                file,
                user_id=self._user,
                base_version_id=base.version_id,
                note=note,
                progress=progress,
            )

    def changes_since(self, file_id: str, version_id: str) -> Delta:
        try:
            answer = self._client.synchronize(file_id, user_id=self._user, have_version_id=version_id)
        except (MessageTooLarge, VersionNotFound):
            head = self.stat(file_id)
            return Delta(head, self._all_of(head))
        head = self.stat(file_id, answer.version_id)
        return Delta(head, self._pieces(head, answer.diff) if answer.diff is not None else iter(()))

    def _pieces(self, head: Version, diff: ManifestDiff) -> Iterator[tuple[int, BytesLike]]:
        return pieces_of(diff, lambda offset, length: [memoryview(self._range(head, offset, length))])

    def _all_of(self, head: Version) -> Iterator[tuple[int, BytesLike]]:
        for offset in range(0, head.size, _READ_BYTES):
            yield offset, self._range(head, offset, _READ_BYTES)

    def _range(self, head: Version, offset: int, length: int) -> bytes:
        return self._client.get(
            head.file_id, user_id=self._user, version_id=head.version_id, offset=offset, length=length
        )

    def history(self, file_id: str) -> Iterator[Version]:
        before: str | None = None
        while page := self._client.history(file_id, user_id=self._user, limit=_VERSIONS_PAGE, before=before):
            yield from page
            before = page[-1].version_id

    def list_files(self, prefix: str = "") -> Iterator[Version]:
        return self._client.iter_files(user_id=self._user, prefix=prefix)

    def push_many(
        self, files: Sequence[tuple[str, Path]], *, profile: ErasureProfile | None = None, note: str = ""
    ) -> Iterator[PushOutcome]:
        return self._client.push_many(files, user_id=self._user, profile=profile, note=note)

    def get_many(self, files: Sequence[str], *, by_name: bool = False, bytes_max: int) -> Iterator[GetOutcome]:
        return self._client.get_many(files, user_id=self._user, by_name=by_name, bytes_max=bytes_max)

    def delete_version(self, file_id: str, version_id: str) -> Version | None:
        return self._client.delete_version(file_id, version_id, user_id=self._user)

    def delete_many(self, file_ids: Sequence[str]) -> Iterator[DeleteOutcome]:
        return self._client.delete_many(file_ids, user_id=self._user)

    def folders(self) -> Files:
        from taskworker.client.folders import ClientFiles

        return ClientFiles(self._client, self._user)

    def require_key(self) -> None:
        """Do nothing, as this has no key of the user's own."""

    def stats(self) -> StoreStats:
        return self._client.stats()

    def scrub(self, *, progress: Progress | None = None) -> ScrubReport:
        return self._client.scrub(progress=progress)

    def repair(self, *, progress: Progress | None = None) -> RepairReport:
        return self._client.repair(progress=progress)

    def collect(self, *, grace_s: float | None = None, progress: Progress | None = None) -> CollectReport:
        return self._client.collect(grace_s=grace_s, progress=progress)

    def rebuild(self, *, progress: Progress | None = None) -> RebuildReport:
        """See :meth:`Backend.rebuild`."""
        return self._client.rebuild(progress=progress)


class SealedBackend(RemoteBackend):
    """One user's files on the server, sealed with a key of the user's own."""

    def __init__(self, address: str, user: str, *, token: str | None = None, key: Path) -> None:
        super().__init__(address, user, token=token, key=key)
        files = self._client.sealed_files
        assert files is not None, "a key was given"
        self._files = files

    def same_content(self, version: Version, path: Path) -> bool:
        from taskworker.client.sealed.revising import is_same

        with path.open("rb") as file:
            return is_same(self._files, version, SeekableSource(file), Deadline(None))

    def require_key(self) -> None:
        self._files.require_used(self._user, Deadline(None))
        if others := self._files.other_keys(self._user, Deadline(None)):
            given = " and ".join(key.id for key in self._files.keys)
            raise FileNotFound(
                f"there is no such file that is sealed with {given}; others are sealed with {' and '.join(others)}: a "
                "key that was replaced belongs on a line below the new one"
            )

    def changes_since(self, file_id: str, version_id: str) -> Delta:
        from taskworker.client.sealed.revising import changes_since

        try:
            base = self.stat(file_id, version_id)
        except VersionNotFound:
            head = self.stat(file_id)
            return Delta(head, self._all_of(head))
        return Delta(*changes_since(self._files, base, Deadline(None)))


def remote_backend(address: str, user: str, *, token: str | None = None, key: Path | None = None) -> RemoteBackend:
    """One user's files on the server; with a key, those that are sealed with it."""
    if key is None:
        return RemoteBackend(address, user, token=token)
    return SealedBackend(address, user, token=token, key=key)
