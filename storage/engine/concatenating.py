"""Making one file of several stored ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from storage.arguments import checked
from storage.engine.many import ManyFiles
from storage.erasure import ErasureProfile
from storage.errors import InvalidArgument
from storage.formats.versions import Version
from storage.limits import MIB, PARTS_MAX
from storage.options import PushOptions
from storage.progress import Progress
from storage.read.reader import FileReader
from storage.write.upload import Upload

_IDS_TOGETHER = 1024
_READ_BYTES = MIB


class ConcatenatingStore(ManyFiles):
    """The half of a store that makes files of others."""

    @checked
    def concatenate(
        self,
        parts: Sequence[tuple[str, str | None]],
        *,
        filename: str,
        user_id: str,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        time_ms: int | None = None,
        note: str = "",
        sha256: str | None = None,
        attributes: Mapping[str, bytes] | None = None,
        if_absent: bool = False,
        if_head: str | None = None,
        progress: Progress | None = None,
    ) -> Version:
        """Store the contents of several stored versions, one after the other, as one file of the same user.

        Where a part begins at a multiple of the chunk size, its chunks become those of the new file; otherwise it is
        read and stored again, in bounded memory. The parts stay as they are, and may be deleted afterwards.

        Args:
            parts: pairs of a file id and a version id, None for the head; 1 to 10,000.
            filename: as for :meth:`FileStorage.push`, like all that follow.
            user_id: the owner of all.
            profile: erasure profile; default: the store's.
            chunk_size: bytes of a chunk; default: the store's. Chunks of parts with another one are not used.
            time_ms: the author's clock; default: now.
            note: free text kept in the version.
            sha256: hex SHA-256 of the whole content, checked; with it, everything is read.
            attributes: kept with the version.
            if_absent: store nothing if there is a file of this name when it would be committed.
            if_head: store nothing unless this version is the head then.
            progress: called with (bytes done, total bytes); if it raises, nothing is stored.

        Raises:
            FileNotFound: a part does not exist, or is another user's; or ``if_head`` is given for a new name.
            VersionNotFound: a part has no such version.
            InvalidArgument: an argument is malformed or out of bounds.
            ConflictError: there is a file, or another head, other than ``if_absent`` or ``if_head`` says.
            DataLossError: a part that has to be read cannot be.
            StoreFull: a disk or quota is full; nothing was stored.
            InsufficientWorkers: too few volumes or workers are available to store it safely.
            CatalogBehind: see :attr:`FileStorage.behind`.
        """
        options = PushOptions(
            filename, user_id, profile, chunk_size, time_ms, note, sha256, attributes, if_absent, if_head
        )  # fmt: skip
        target = self._parts.push_target(options)
        chosen = [self.stat(file_id, user_id=user_id, version_id=version_id) for file_id, version_id in parts]
        if not 1 <= len(chosen) <= PARTS_MAX:
            raise InvalidArgument(f"a file is made of 1 to {PARTS_MAX:,} parts, not of {len(chosen):,}")
        total = sum(one.size for one in chosen)
        with Upload(self._parts.pushing, target, None, total) as upload:
            joined = _Concatenation(upload, total, progress)
            for at, part in enumerate(chosen):
                with self.open_file(part.file_id, user_id=user_id, version_id=part.version_id) as reader:
                    joined.add(reader, self._ids(part), is_last=at == len(chosen) - 1)
            return upload.commit(total)

    def _ids(self, version: Version) -> Iterator[bytes]:
        for start in range(0, version.chunk_count, _IDS_TOGETHER):
            yield from self.chunk_ids(
                version.file_id,
                user_id=version.user_id,
                version_id=version.version_id,
                start=start,
                stop=min(start + _IDS_TOGETHER, version.chunk_count),
            )


class _Concatenation:
    """Adds stored versions to an upload, one after the other.

    Args:
        upload: what they are added to.
        total: bytes of all of them.
        progress: called with (bytes done, total bytes) while they are added.
    """

    def __init__(self, upload: Upload, total: int, progress: Progress | None) -> None:
        self._upload = upload
        self._total = total
        self._progress = progress

    def add(self, reader: FileReader, ids: Iterator[bytes], *, is_last: bool) -> None:
        """Add a version.

        Args:
            reader: reads it; its position is moved.
            ids: ids of its chunks.
            is_last: whether none follows, so that its last chunk may be short.
        """
        chunk_size, size = reader.version.chunk_size, reader.size
        fits = chunk_size == self._upload.chunk_size and self._upload.size % chunk_size == 0
        whole = (size if is_last else size - size % chunk_size) if fits else 0
        at = 0
        while at < whole:
            length = min(chunk_size, whole - at)
            if not self._reused(next(ids)):
                self._write(reader, at, at + length)
            at += length
            self._tell()
        self._write(reader, whole, size)

    def _reused(self, chunk_id: bytes) -> bool:
        """Add a chunk by its id; return whether that was possible: it may be damaged."""
        before = self._upload.size
        try:
            self._upload.reuse([chunk_id])
        except InvalidArgument:
            if self._upload.size != before:
                raise
            return False
        return True

    def _write(self, reader: FileReader, start: int, stop: int) -> None:
        reader.seek(start)
        while start < stop:
            data = reader.read(min(_READ_BYTES, stop - start))
            self._upload.write(data)
            start += len(data)
            self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._upload.size, self._total)
