"""Pages of a user's files by name, in which names that go on after a delimiter count as one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from storage.catalog import NAME_PLAIN_MAX, USER_KEY_BYTES, Catalog, user_key
from storage.errors import FileNotFound, FormatError
from storage.files import Files, name_of
from storage.formats.versions import Version

log = logging.getLogger(__name__)

_TOGETHER_MIN = 8
_TOGETHER_MAX = 512
_EXAMINED_MAX = 20_000
"""Files that are looked at for one page, so that one call is short even if nearly all of them are hidden."""
_PAST = b"\xff"  # greater than any byte of UTF-8


@dataclass(frozen=True, slots=True)
class FilePage:
    """A page of files.

    Attributes:
        files: heads, by name.
        prefixes: the beginnings, up to the first delimiter after the prefix, of names that have one; each once.
        next_after: ``after`` of the next page; None: this is the last one.
    """

    files: list[Version]
    prefixes: list[str]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class VersionPage:
    """A page of versions of several files.

    Attributes:
        versions: by name, those of each file from newest to oldest.
        latest: ids of those that are heads.
        prefixes: see :class:`FilePage`.
        next_after: ``after`` of the next page; None: this is the last one.
        next_before: ``before`` of the next page; None: it begins with the next file.
    """

    versions: list[Version]
    latest: frozenset[str]
    prefixes: list[str]
    next_after: str | None
    next_before: str | None


@dataclass(frozen=True, slots=True)
class PageRange:
    """Which names a page is of.

    Attributes:
        user_id: the owner.
        prefix: only names that begin with this.
        delimiter: names that have this after the prefix count as one; empty: none do.
        after: continue after this name; or, if it is what several names count as, after all of these.
        limit: at most so many files or versions, and prefixes, together.
    """

    user_id: str
    prefix: str
    delimiter: str
    after: str | None
    limit: int

    def common(self, filename: str) -> str | None:
        """What a name counts as, together with others; None if it is listed itself."""
        at = filename.find(self.delimiter, len(self.prefix)) if self.delimiter else -1
        return None if at < 0 else filename[: at + len(self.delimiter)]


class Listing:
    """Lists a store's files.

    Args:
        catalog: the store's catalog.
        files: looks up files.
    """

    def __init__(self, catalog: Catalog, files: Files) -> None:
        self._catalog = catalog
        self._files = files

    def files(self, wanted: PageRange, hidden: str) -> FilePage:
        """A page of files. Those whose heads have an attribute named ``hidden`` are left out, unless it is empty."""
        found: list[Version] = []
        prefixes: list[str] = []
        walk = _Walk(self._catalog, self._files, wanted, hidden)
        last: str | None = None
        for name, file_id in walk:
            if len(found) + len(prefixes) >= wanted.limit:
                return FilePage(found, prefixes, last)
            head = None if file_id is None else self._files.head(file_id)
            if head is not None and not _is_hidden(head, hidden):
                found.append(head)
                last = name
            elif file_id is None:
                prefixes.append(name)
                last = name
        return FilePage(found, prefixes, walk.stopped_at)

    def versions(self, wanted: PageRange, before: str | None) -> VersionPage:
        """A page of versions. It begins with those of the file ``wanted.after`` that come after its version ``before``.

        Raises:
            VersionNotFound: there is such a file, without such a version.
        """
        page = _VersionsFound(self._files, wanted)
        if wanted.limit <= 0:
            return page.ended(None)
        last = wanted.after
        # Names without the prefix are not looked up: a caller may have a right to names with it only.
        if before is not None and last is not None and last.startswith(wanted.prefix) and wanted.common(last) is None:
            head = self._files.find(last, wanted.user_id)
            if head is not None and page.take(head.record.file_id, before):
                return page.ended(last, page.versions[-1].version_id)
        walk = _Walk(self._catalog, self._files, wanted)
        for name, file_id in walk:
            if page.room <= 0:
                return page.ended(last)
            last = name
            if file_id is None:
                page.prefixes.append(name)
            elif page.take(file_id):
                return page.ended(last, page.versions[-1].version_id)
        return page.ended(walk.stopped_at)


class _VersionsFound:
    """A page of versions that is being gathered."""

    def __init__(self, files: Files, wanted: PageRange) -> None:
        self._files = files
        self._wanted = wanted
        self._latest: set[str] = set()
        self.versions: list[Version] = []
        self.prefixes: list[str] = []

    @property
    def room(self) -> int:
        """How many more entries there may be."""
        return self._wanted.limit - len(self.versions) - len(self.prefixes)

    def take(self, file_id: bytes, before: str | None = None) -> bool:
        """Add the versions of a file, or those after ``before``; return whether it has more than there is room for."""
        room = self.room
        try:
            chain = list(islice(self._files.history(file_id.hex(), self._wanted.user_id, before), room + 1))
        except (FileNotFound, FormatError) as error:  # it was deleted meanwhile, or must not hide the others
            log.warning("a file is left out of a listing: %s", error)
            return False
        if chain and before is None:
            self._latest.add(chain[0].version_id)
        self.versions += chain[:room]
        return len(chain) > room

    def ended(self, after: str | None, before: str | None = None) -> VersionPage:
        """The page; the arguments are those for the next one."""
        return VersionPage(self.versions, frozenset(self._latest), self.prefixes, after, before)


def _is_hidden(head: Version, hidden: str) -> bool:
    return hidden != "" and hidden in head.attributes


class _Walk:
    """Walks over names: yields each with the id of its file, or what several names count as, with None.

    Args:
        catalog: the store's catalog.
        files: looks up files.
        wanted: which names.
        hidden: files whose heads have this attribute do not count for what several names count as; empty: all do.

    Attributes:
        stopped_at: the name after which the walk was given up, as it had taken long; None: it came to the end.
    """

    def __init__(self, catalog: Catalog, files: Files, wanted: PageRange, hidden: str = "") -> None:
        self._files = files
        self._wanted = wanted
        self._hidden = hidden
        self._names = _Names(catalog, wanted)
        self.stopped_at: str | None = None

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        wanted = self._wanted
        passed: set[str] = set()  # also those that cannot be skipped, as they are long
        if wanted.after is not None and wanted.common(wanted.after) == wanted.after:
            passed.add(wanted.after)
            self._names.skip(wanted.after)
        examined, last = 0, wanted.after
        while (entry := self._names.next()) is not None:
            if examined >= _EXAMINED_MAX and last is not None:
                self.stopped_at = last
                return
            examined += 1
            name, file_id = self._whole(*entry), entry[1]
            if name is None or not name.startswith(wanted.prefix):
                continue
            common = wanted.common(name)
            if common is None:
                yield name, file_id
                last = name
            elif common not in passed and self._is_shown(file_id):
                passed.add(common)
                self._names.skip(common)
                yield common, None
                last = common
            elif common != name:  # otherwise the next page would pass what is hidden by now
                last = name

    def _whole(self, name: str | None, file_id: bytes) -> str | None:
        """The whole name; None if it is long, and the file was deleted meanwhile."""
        if name is not None:
            return name
        head = self._files.head(file_id)
        return None if head is None else head.filename

    def _is_shown(self, file_id: bytes) -> bool:
        if not self._hidden:
            return True
        head = self._files.head(file_id)
        return head is not None and not _is_hidden(head, self._hidden)


class _Names:
    """A user's names in the catalog's order, from which those with a common beginning can be skipped."""

    def __init__(self, catalog: Catalog, wanted: PageRange) -> None:
        self._catalog = catalog
        self._user = user_key(wanted.user_id.encode())
        self._prefix = wanted.prefix.encode()
        self._start = None if wanted.after is None else name_of(self._user, wanted.after)
        self._page: deque[tuple[bytes, bytes]] = deque()
        self._together = _TOGETHER_MIN
        self._ended = False

    def next(self) -> tuple[str | None, bytes] | None:
        """The next name, None for one of which the key has only a part, and the file's id; None after the last one."""
        if not self._page and not self._ended:
            found = self._catalog.names(self._user, self._prefix, self._start, self._together)
            self._ended = len(found) < self._together
            self._together = min(2 * self._together, _TOGETHER_MAX)
            self._page.extend(found)
            if found:
                self._start = found[-1][0]
        if not self._page:
            return None
        key, file_id = self._page.popleft()
        name = key[USER_KEY_BYTES:]
        return (name.decode() if len(name) <= NAME_PLAIN_MAX else None), file_id

    def skip(self, beginning: str) -> None:
        """Go on after all names that begin like this, if they can be told by their keys."""
        raw = beginning.encode()
        if len(raw) >= NAME_PLAIN_MAX:
            return
        past = self._user + raw + _PAST
        while self._page and self._page[0][0] < past:
            self._page.popleft()
        if not self._page and not self._ended:
            self._start = past if self._start is None else max(self._start, past)
            self._together = _TOGETHER_MIN
