"""Reading files and their history from a store."""

from __future__ import annotations

from itertools import islice

from storage.arguments import checked
from storage.diff.manifest_diff import ManifestDiff
from storage.engine.parts import StoreParts
from storage.errors import InvalidArgument
from storage.files import parsed_id
from storage.formats.sealed_nodes import manifest_of
from storage.formats.versions import Version
from storage.limits import MIB
from storage.listing import FilePage, Listing, PageRange, VersionPage
from storage.read.reader import FileReader, VersionStream
from storage.write import revising
from storage.write.sources import Source

_SYNC_DATA_BYTES_MAX = 64 * MIB
_ALL = 1 << 62
PAGE_MAX = 1000
"""Entries of a page, unless the caller says otherwise."""


class ReadableStore:
    """The read-only half of a store: its files, their versions, and the differences between them.

    Args:
        parts: the parts of the store.

    Attributes:
        read_patience_s: if a chunk cannot be read because a shard store went away, reads wait this long for it.
    """

    def __init__(self, parts: StoreParts) -> None:
        self._parts = parts
        self.read_patience_s = 0.0

    @checked
    def get(self, file_id: str, *, user_id: str, version_id: str | None = None) -> bytes:
        """The whole content in memory; for large files use :meth:`open_file`.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            DataLossError: too few intact shards are left.
        """
        with self._stream(file_id, user_id, version_id) as stream:
            return stream.readall()

    @checked
    def open_file(self, file_id: str, *, user_id: str, version_id: str | None = None) -> FileReader:
        """A seekable, buffered binary stream over a version (default: the head), verified as it is read.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            DataLossError: too few intact shards are left; raised by reads of the stream.
        """
        return FileReader(self._stream(file_id, user_id, version_id))

    def _stream(self, file_id: str, user_id: str, version_id: str | None) -> VersionStream:
        parts = self._parts
        parts.check_open()
        parts.volumes.check_present()
        # The read is registered before the lookup, so a collect that missed it found the file alive.
        done = parts.readings.begin(parsed_id(file_id) or b"")
        try:
            stored = parts.files.version(file_id, user_id, version_id)
            return VersionStream(
                parts.contents,
                parts.readers,
                stored.public(),
                manifest_of(stored, parts.load_node),
                stored.keys,
                done,
                parts.activity,
                parts.ahead,
                self.read_patience_s,
                parts.runtime.monotonic_s,
            )
        except BaseException:
            done()
            raise

    @checked
    def find(self, filename: str, *, user_id: str) -> Version | None:
        """The head of the file with this name; None if there is none."""
        self._parts.check_open()
        found = self._parts.files.find(filename, user_id)
        return None if found is None else found.public()

    @checked
    def stat(self, file_id: str, *, user_id: str, version_id: str | None = None) -> Version:
        """The description of a version (default: the head)."""
        self._parts.check_open()
        return self._parts.files.version(file_id, user_id, version_id).public()

    @checked
    def chunk_ids(
        self,
        file_id: str,
        *,
        user_id: str,
        version_id: str | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> list[bytes]:
        """Ids of chunks start…stop-1 of a version."""
        self._parts.check_open()
        stored = self._parts.files.version(file_id, user_id, version_id)
        if start < 0 or (stop is not None and stop < start):
            raise InvalidArgument(f"chunk range {start}…{stop} is not a range")
        return list(manifest_of(stored, self._parts.load_node).chunk_ids(start, stop))

    @checked
    def diff(self, file_id: str, source: Source, *, user_id: str, base_version_id: str | None = None) -> ManifestDiff:
        """The diff from a stored version (default: the head) to the content of ``source``, for :meth:`revise`.

        The diff holds the changed chunks in memory.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            OSError: ``source`` cannot be read.
        """
        self._parts.check_open()
        base = self._parts.files.version(file_id, user_id, base_version_id)
        return revising.diff_source(base, self._parts.load_node, source)

    @checked
    def synchronize(
        self, file_id: str, *, have_version_id: str, user_id: str, data_bytes_max: int = _SYNC_DATA_BYTES_MAX
    ) -> ManifestDiff:
        """The diff from ``have_version_id`` to the head; the cost grows with the change.

        Args:
            file_id: the file.
            have_version_id: the version the caller has.
            user_id: the owner.
            data_bytes_max: patches beyond this many bytes of data come without data; read those ranges yourself.

        Raises:
            VersionNotFound: the file never had that version.
        """
        self._parts.check_open()
        identifier, entry = self._parts.files.entry(file_id, user_id)
        old = self._parts.files.stored(identifier, entry, have_version_id)
        new = self._parts.files.stored(identifier, entry, None)
        return revising.diff_versions(self._parts.pushing, old, new, self._parts.load_node, data_bytes_max)

    @checked
    def history(
        self, file_id: str, *, user_id: str, limit: int | None = None, before: str | None = None
    ) -> list[Version]:
        """Versions from newest to oldest.

        Args:
            file_id: the file.
            user_id: the owner.
            limit: at most this many.
            before: continue after this version.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no version ``before``.
        """
        self._parts.check_open()
        return list(islice(self._parts.files.history(file_id, user_id, before), limit))

    @checked
    def list_files(
        self, *, user_id: str, prefix: str = "", after: str | None = None, limit: int | None = None
    ) -> list[Version]:
        """Heads of a user's files, ordered by the UTF-8 bytes of their names (the first 440 of them).

        Args:
            user_id: the owner.
            prefix: only names that start with this.
            after: continue after this name.
            limit: at most this many.
        """
        self._parts.check_open()
        return self._parts.files.heads(user_id, prefix, after, _ALL if limit is None else limit)

    @checked
    def list_page(
        self,
        *,
        user_id: str,
        prefix: str = "",
        delimiter: str = "",
        after: str | None = None,
        limit: int = PAGE_MAX,
        hidden: str = "",
    ) -> FilePage:
        """A page of a user's files by name, as directories are listed; it takes about as long as it has entries.

        Args:
            user_id: the owner.
            prefix: only names that start with this.
            delimiter: names that have this text after the prefix are not listed: what they have in common up to it is,
                once, among the page's ``prefixes``. Empty: all names are listed.
            after: continue after this name; after all names that begin with it, if it is one of the ``prefixes``.
            limit: at most this many files and prefixes together; a page may have fewer though there are more.
            hidden: leave out files whose head has an attribute of this name. Empty: leave out none.
        """
        self._parts.check_open()
        wanted = PageRange(user_id, prefix, delimiter, after, limit)
        return Listing(self._parts.catalog, self._parts.files).files(wanted, hidden)

    @checked
    def list_versions(
        self,
        *,
        user_id: str,
        prefix: str = "",
        delimiter: str = "",
        after: str | None = None,
        before: str | None = None,
        limit: int = PAGE_MAX,
    ) -> VersionPage:
        """A page of all versions of a user's files: by name, and those of each file from newest to oldest.

        Args:
            user_id: the owner.
            prefix: see :meth:`list_page`.
            delimiter: likewise.
            after: likewise.
            before: begin with those versions of the file ``after`` that come after this one in its history.
            limit: at most this many versions and prefixes together.

        Raises:
            VersionNotFound: the file ``after`` has no version ``before``.
            InvalidArgument: ``before`` is given without ``after``.
        """
        self._parts.check_open()
        if before is not None and after is None:
            raise InvalidArgument("before is a version of the file `after`; give both")
        wanted = PageRange(user_id, prefix, delimiter, after, limit)
        return Listing(self._parts.catalog, self._parts.files).versions(wanted, before)
