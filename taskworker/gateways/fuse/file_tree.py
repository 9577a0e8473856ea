"""A user's files as a tree: a slash in a name is a directory. As they are now, or as they were at a time."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from storage import FileNotFound, Version
from taskworker.folders.entries import NAME_BYTES_MAX, Kind
from taskworker.folders.problems import text_of
from taskworker.folders.snapshots.records import RECORDS
from taskworker.gateways.fuse.blocks import BlockCache, Source
from taskworker.gateways.fuse.nodes import Node, Path, inode_of
from taskworker.gateways.fuse.stored import HIDDEN, Stored

FRESH_S = 1.0
"""Seconds for which a listing of files that may change is used again."""
_ENTRIES_KEPT_MAX = 200_000
_TOLD_MAX = 20
_SNAPSHOT_DATA = RECORDS.partition("/")[0] + "/"  # what snapshots of folders consist of; they are mounted by themselves


@dataclass(frozen=True, slots=True)
class _Listing:
    names: dict[bytes, Node]
    until_s: float


class FileTree:
    """The files of a user.

    Files whose names are no paths are left out: those with an empty part (``a//b``, ``/a``, ``a/``), or more than 255
    bytes between slashes; and a file of the same name as a directory.

    Args:
        files: the files.
        at_ms: show the versions of this time, ms since 1970; None: the newest ones.
        blocks: reads their content.
        told: told of some of the names that are left out.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        files: Stored,
        at_ms: int | None,
        blocks: BlockCache,
        told: Callable[[str], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.immutable = at_ms is not None
        self._files = files
        self._at_ms = at_ms
        self._blocks = blocks
        self._told = told
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._listings: OrderedDict[str, _Listing] = OrderedDict()
        self._entries = 0
        self._left_out: set[str] = set()

    def node(self, path: Path) -> Node:
        """See :class:`~taskworker.gateways.fuse.nodes.Tree`, as for all methods."""
        if not path:
            return _directory("")
        name = _name(path)
        parent = "".join(f"{part}/" for part in name.split("/")[:-1])
        listing = self._kept(parent)
        found = listing.get(path[-1]) if listing is not None else self._looked_up(name)
        if found is None:
            raise FileNotFound(f"there is no {name[:200]!r}")
        return found

    def children(self, path: Path) -> Iterable[tuple[bytes, Node]]:
        """The names in a directory."""
        prefix = _name(path) + "/" if path else ""
        listing = self._kept(prefix)
        if listing is None:
            listing = self._listed(prefix)
            if path and not listing:
                self.node(path)
            self._keep(prefix, listing)
        return listing.items()

    def read(self, node: Node, start: int, stop: int) -> bytes:
        """Bytes of a file."""
        version = node.source
        assert isinstance(version, Version), "directories are not read"
        source = Source(version.version_id, version.size, lambda first, last: self._files.read(version, first, last))
        return self._blocks.read(source, start, stop)

    def content_key(self, node: Node) -> object:
        """Names its version."""
        return node.source.version_id if isinstance(node.source, Version) else None

    # -- names -----------------------------------------------------------------------------------

    def _looked_up(self, name: str) -> Node | None:
        if f"{name}/".startswith(_SNAPSHOT_DATA):
            return None
        inside = self._files.page(f"{name}/", None, "", 1)
        if inside.files or inside.next_after is not None:
            return _directory(f"{name}/")
        head = self._files.find(name)
        version = None if head is None else self._of_time(head)
        return None if version is None else _file(version)

    def _listed(self, prefix: str) -> dict[bytes, Node]:
        found: dict[bytes, Node] = {}
        files: list[Version] = []
        after: str | None = None
        while True:
            page = self._files.page(prefix, after, "/")
            for directory in page.prefixes:
                if self._is_shown(directory, directory[len(prefix) : -1]):
                    found[directory[len(prefix) : -1].encode()] = _directory(directory)
            files += page.files
            after = page.next_after
            if after is None:
                break
        for head in files:
            name = head.filename[len(prefix) :]
            if not self._is_shown(head.filename, name):
                continue
            if name.encode() in found:
                self._leave_out(head.filename, "it is also the name of a directory")
                continue
            version = self._of_time(head)
            if version is not None:
                found[name.encode()] = _file(version)
        return dict(sorted(found.items()))

    def _is_shown(self, name: str, part: str) -> bool:
        if name.startswith(_SNAPSHOT_DATA):
            return False
        if _is_path_part(part):
            return True
        self._leave_out(name, "it is not a path")
        return False

    def _leave_out(self, name: str, why: str) -> None:
        with self._lock:
            if name in self._left_out or len(self._left_out) >= _TOLD_MAX:
                return
            self._left_out.add(name)
            last = len(self._left_out) == _TOLD_MAX
        self._told(f"{name[:200]} is left out: {why}" + ("; no more of these are told" if last else ""))

    # -- versions --------------------------------------------------------------------------------

    def _of_time(self, head: Version) -> Version | None:
        """The version of the time that is shown; None: there was none."""
        if self._at_ms is None or head.time_ms <= self._at_ms:
            return head
        for version in self._history(head):
            if version.time_ms <= self._at_ms:
                return None if HIDDEN in version.attributes else version
        return None

    def _history(self, head: Version) -> Iterator[Version]:
        before: str | None = None
        while page := self._files.versions(head, before):
            yield from page
            before = page[-1].version_id

    # -- listings --------------------------------------------------------------------------------

    def _kept(self, prefix: str) -> dict[bytes, Node] | None:
        with self._lock:
            listing = self._listings.get(prefix)
            return None if listing is None or listing.until_s < self._clock_s() else listing.names

    def _keep(self, prefix: str, names: dict[bytes, Node]) -> None:
        until_s = float("inf") if self.immutable else self._clock_s() + FRESH_S
        with self._lock:
            former = self._listings.pop(prefix, None)
            self._entries += len(names) - (0 if former is None else len(former.names))
            self._listings[prefix] = _Listing(names, until_s)
            while self._entries > _ENTRIES_KEPT_MAX and len(self._listings) > 1:
                _, gone = self._listings.popitem(last=False)
                self._entries -= len(gone.names)


def _is_path_part(part: str) -> bool:
    return part not in ("", ".", "..") and "\0" not in part and len(part.encode()) <= NAME_BYTES_MAX


def _name(path: Path) -> str:
    try:
        return b"/".join(path).decode()
    except UnicodeDecodeError:
        raise FileNotFound(f"there is no {text_of(b'/'.join(path))[:200]!r}: names of files are UTF-8") from None


def _file(version: Version) -> Node:
    time_ns = version.time_ms * 1_000_000
    inode = inode_of(version.file_id.encode())
    return Node(Kind.FILE, 0o444, os.getuid(), os.getgid(), time_ns, time_ns, inode, version.size, source=version)


def _directory(prefix: str) -> Node:
    return Node(Kind.DIRECTORY, 0o555, os.getuid(), os.getgid(), 0, 0, inode_of(b"/", prefix.encode()))
