"""Calls on many files at once, which share transactions, flushes and reads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from storage.arguments import checked
from storage.batching import UpToError, batched
from storage.engine.deleting import DeletingStore
from storage.erasure import ErasureProfile
from storage.errors import FileNotFound, InvalidArgument, StorageError, StoreFull
from storage.files import parsed_id
from storage.formats.versions import StoredVersion, Version
from storage.limits import check_filename
from storage.options import PushOptions
from storage.outcomes import DeleteOutcome, GetOutcome, PushOutcome
from storage.read.many import ManyReader, Wanted, end_all
from storage.write.many import ManyPush, push_many
from storage.write.sources import Source
from storage.write.target import PushTarget

NamedSource = str | os.PathLike[str] | tuple[str, Source]
"""A file to push: a path, whose last component becomes the name, or a name with the content."""

_LOOKED_UP_TOGETHER = 128
"""Files looked up in one transaction: as many as are read together at most."""
_DELETED_TOGETHER = 250
"""Files deleted in one transaction, during which no push can commit."""


class ManyFiles(DeletingStore):
    """The half of a store that works on many files at once."""

    @checked
    def push_many(
        self,
        files: Iterable[NamedSource],
        *,
        user_id: str,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        time_ms: int | None = None,
        note: str = "",
        attributes: Mapping[str, bytes] | None = None,
    ) -> Iterator[PushOutcome]:
        """Push many files, and yield the outcome of each as soon as it is durable, in the order of ``files``.

        Small files share flushes and transactions, so that thousands of them take a fraction of the time of as many
        calls of :meth:`push`. An error of one file is its outcome, and does not end the call. After a crash, repeat the
        call: content that is stored already makes no new version.

        Args:
            files: paths, whose last components become the names, or pairs of a name and what :meth:`push` takes as its
                source. They are taken as needed: an iterator of a million files is no problem.
            user_id: the owner.
            profile: erasure profile; default: the store's.
            chunk_size: bytes of a chunk; default: the store's.
            time_ms: the author's clock; default: now.
            note: free text kept in each version.
            attributes: kept with each version; see :meth:`FileStorage.push`.

        Raises:
            InvalidArgument: an argument is malformed; ``files`` yields something else than paths and pairs.
            Exception: whatever the iterator of ``files`` raises; files before it may be stored.
        """
        many = self.pushing_many(
            user_id=user_id,
            profile=profile,
            chunk_size=chunk_size,
            time_ms=time_ms,
            note=note,
            attributes=attributes,
        )
        return push_many(many, map(_named, files))

    @checked
    def pushing_many(
        self,
        *,
        user_id: str,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        time_ms: int | None = None,
        note: str = "",
        attributes: Mapping[str, bytes] | None = None,
    ) -> ManyPush:
        """Begin a push of many files that are added one by one; the arguments are those of :meth:`push_many`."""
        self._parts.check_usable()
        options = PushOptions("", user_id, profile, chunk_size, time_ms, note, attributes=attributes)

        def target_of(filename: str) -> PushTarget:
            check_filename(filename)
            # msgspec cannot encode subclasses of str, such as numpy's.
            return self._parts.push_target(replace(options, filename=str.__str__(filename)))

        return ManyPush(self._parts.pushing, target_of)

    @checked
    def get_many(
        self, files: Iterable[str], *, user_id: str, by_name: bool = False, bytes_max: int | None = None
    ) -> Iterator[GetOutcome]:
        """Read many files, and yield the outcome of each, in the order of ``files``.

        Small files are read together, several batches ahead. An error of one file is its outcome.

        Args:
            files: ids of the files.
            user_id: the owner.
            by_name: whether ``files`` has names instead of ids.
            bytes_max: larger files come without data; read these with :meth:`open_file`. Default: no limit.

        Raises:
            InvalidArgument: an argument is malformed.
            Exception: whatever the iterator of ``files`` raises, after the outcomes of those before.
        """
        self._parts.check_open()
        self._parts.volumes.check_present()
        return self._got(files, user_id, by_name, bytes_max)

    @checked
    def get_small(
        self, file: str, *, user_id: str, version_id: str | None = None, by_name: bool = False, bytes_max: int
    ) -> tuple[Version, bytes | None]:
        """A version of a file and, if it has at most ``bytes_max`` bytes, its content.

        Args:
            file: id of the file.
            user_id: the owner.
            version_id: the version; default: the head.
            by_name: whether ``file`` is a name instead of an id.
            bytes_max: larger content is not read.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            DataLossError: too few intact shards are left.
        """
        self._parts.check_open()
        self._parts.volumes.check_present()
        file_id = self._id_of(file, user_id) if by_name else file
        # Registered before it is looked up, so a collect that missed it found the file alive.
        done = self._parts.readings.begin(parsed_id(file_id) or b"")
        try:
            stored = self._parts.files.version(file_id, user_id, version_id)
            return stored.public(), self._reader().content(stored, bytes_max)
        finally:
            done()

    def _reader(self) -> ManyReader:
        parts = self._parts
        return ManyReader(parts.contents, parts.load_node, parts.activity, parts.readers, self._stream)

    def _got(self, files: Iterable[str], user_id: str, by_name: bool, bytes_max: int | None) -> Iterator[GetOutcome]:
        given = UpToError(files)
        yield from self._reader().read(self._each_wanted(given, user_id, by_name, bytes_max))
        given.raise_error()

    def _each_wanted(
        self, files: Iterable[str], user_id: str, by_name: bool, bytes_max: int | None
    ) -> Iterator[Wanted]:
        for batch in batched(enumerate(files), _LOOKED_UP_TOGETHER):
            left = deque(self._wanted(batch, user_id, by_name, bytes_max))
            try:
                while left:
                    yield left.popleft()
            finally:
                end_all(left)

    def _wanted(
        self,
        files: Sequence[tuple[int, str]],
        user_id: str,
        by_name: bool,
        bytes_max: int | None,
    ) -> list[Wanted]:
        """Look up files by their positions, and register the reads."""
        wanted: list[Wanted] = []
        try:
            for position, file in files:
                wanted.append(self._registered(position, file, user_id, by_name, bytes_max))
            self._look_up([each for each in wanted if each.error is None], user_id)
        except BaseException:
            end_all(wanted)
            raise
        return wanted

    def _registered(self, position: int, file: str, user_id: str, by_name: bool, bytes_max: int | None) -> Wanted:
        """Register the read of a file before it is looked up, so a collect that missed it found the file alive."""
        try:
            file_id = self._id_of(file, user_id) if by_name else _text(file)
        except StorageError as error:
            return Wanted(position, file, _nothing, error=error)
        done = self._parts.readings.begin(parsed_id(file_id) or b"")
        return Wanted(position, file, done, file_id, bytes_max=bytes_max)

    def _look_up(self, wanted: Sequence[Wanted], user_id: str) -> None:
        found: Sequence[StoredVersion | StorageError]
        try:
            found = self._parts.files.newest([each.file_id for each in wanted], user_id)
        except StorageError as error:
            found = [error] * len(wanted)
        for each, version in zip(wanted, found, strict=True):
            if isinstance(version, StorageError):
                each.error = version
            else:
                each.stored = version

    def _id_of(self, filename: str, user_id: str) -> str:
        check_filename(filename)
        found = self._parts.files.named(filename, user_id)
        if found is None:
            raise FileNotFound(f"there is no file named {filename[:80]!r}; list the files to see what there is")
        return found.hex()

    @checked
    def delete_many(self, files: Iterable[str], *, user_id: str) -> Iterator[DeleteOutcome]:
        """Delete many files, and yield the outcome of each, in order. The error of one does not keep the others.

        Args:
            files: ids of the files; an id that comes again is not found any more.
            user_id: the owner.

        Raises:
            InvalidArgument: an argument is malformed.
            CatalogBehind: see :attr:`FileStorage.behind`.
            Exception: whatever the iterator of ``files`` raises, after the outcomes of those before.
        """
        self._parts.check_writable()
        return self._delete_many(files, user_id)

    def _delete_many(self, file_ids: Iterable[str], user_id: str) -> Iterator[DeleteOutcome]:
        given = UpToError(file_ids)
        for batch in batched(enumerate(given), _DELETED_TOGETHER):
            yield from self._delete_batch(batch, user_id)
        given.raise_error()

    def _delete_batch(self, batch: list[tuple[int, str]], user_id: str) -> Iterator[DeleteOutcome]:
        outcomes: list[DeleteOutcome] = []
        found: dict[bytes, int] = {}
        for position, file_id in batch:
            error: StorageError | None = None
            try:
                identifier = self._parts.files.entry(_text(file_id), user_id)[0]
                if identifier in found:
                    raise FileNotFound(f"file {file_id[:80]!r} was deleted just now; give each file once")
                found[identifier] = len(outcomes)
            except StorageError as problem:
                error = problem
            outcomes.append(DeleteOutcome(position, file_id, error))
        for identifier, error in self._deleted(list(found), user_id).items():
            outcomes[found[identifier]] = replace(outcomes[found[identifier]], error=error)
        yield from outcomes

    def _deleted(self, identifiers: list[bytes], user_id: str) -> dict[bytes, StorageError]:
        """Delete files, and return the errors of those that could not be deleted."""
        try:
            self._delete(identifiers, user_id)
        except (FileNotFound, StoreFull) as error:  # another caller deleted one just now, or one by one, they may fit
            if len(identifiers) == 1:
                return {identifiers[0]: error}
            errors: dict[bytes, StorageError] = {}
            for identifier in identifiers:
                errors |= self._deleted([identifier], user_id)
            return errors
        except StorageError as error:
            return dict.fromkeys(identifiers, error)
        return {}


def _named(file: Any) -> tuple[str, Source]:
    """Return the name and the source of a file to push."""
    if isinstance(file, str | os.PathLike):
        return Path(file).name, file
    if isinstance(file, tuple) and len(file) == 2:
        return file
    raise InvalidArgument(f"files are paths, or pairs of a name and content, not {type(file).__name__}")


def _nothing() -> None:
    """Do nothing."""


def _text(file_id: object) -> str:
    if not isinstance(file_id, str):
        raise InvalidArgument(f"a file id is text, not {type(file_id).__name__}")
    return file_id
