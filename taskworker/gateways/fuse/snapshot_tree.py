"""A folder's snapshots as a tree: all of them, each in a directory named by its time, or only one."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from storage import FileNotFound, VersionNotFound
from taskworker.folders.entries import Entry, Kind
from taskworker.folders.problems import FolderDamaged, text_of
from taskworker.folders.snapshots import Repository, Snapshot
from taskworker.folders.snapshots.blobs import Place, blob_id
from taskworker.folders.snapshots.directories import DIRECTORY_BYTES_MAX, read_directory
from taskworker.gateways.fuse.blocks import BlockCache, Source
from taskworker.gateways.fuse.nodes import Node, Path, inode_of
from taskworker.gateways.fuse.stored import Stored

LATEST = b"latest"
_RELOAD_S = 2.0  # the record is read again at most this often
_ENTRIES_KEPT_MAX = 200_000  # of directories; about 100 MB if all have extended attributes
_CONTAINERS_KEPT_MAX = 10_000


def directory_name(snapshot: Snapshot) -> bytes:
    """The name of a snapshot's directory: its time in UTC, and the first digits of its id."""
    # A time that no calendar has comes from a machine with a broken clock; the id alone is a name, too.
    try:
        taken = datetime.fromtimestamp(snapshot.time_ms / 1000, UTC).strftime("%Y-%m-%dT%H-%M-%SZ_")
    except (ValueError, OverflowError, OSError):
        taken = ""
    return f"{taken}{snapshot.id[:12]}".encode()


@dataclass(frozen=True, slots=True)
class _Found:
    """What a node is in which snapshot."""

    snapshot: str
    entry: Entry


class SnapshotTree:
    """Snapshots of a folder.

    Args:
        files: where it is kept.
        folder: its name.
        reference: the snapshot; None: all of them.
        blocks: reads their content.
        clock_s: monotonic seconds.

    Raises:
        FileNotFound: there are no snapshots of it, or not this one.
        InvalidArgument: this is no name of a folder, or of a snapshot.
        FolderDamaged: its record or an index cannot be read.
    """

    immutable = True

    def __init__(
        self,
        files: Stored,
        folder: str,
        reference: str | None,
        blocks: BlockCache,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._folder = folder
        self._blocks = blocks
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._repository = Repository(files, folder)
        self._loaded_s = clock_s()
        self._only = None if reference is None else self._repository.snapshot(reference)
        self._directories: OrderedDict[bytes, dict[bytes, Entry]] = OrderedDict()
        self._entries = 0
        self._containers: OrderedDict[bytes, Source] = OrderedDict()

    # -- the tree --------------------------------------------------------------------------------

    def node(self, path: Path) -> Node:
        """See :class:`~taskworker.gateways.fuse.nodes.Tree`, as for all methods."""
        if self._only is not None:
            return self._inside(self._only, path)
        if not path:
            return _top(self._snapshots())
        if list(path) == [LATEST]:
            return self._latest()
        return self._inside(self._named(path[0]), path[1:])

    def children(self, path: Path) -> Iterable[tuple[bytes, Node]]:
        """The names in a directory."""
        if self._only is None and not path:
            return self._all()
        found = self.node(path)
        if found.kind is not Kind.DIRECTORY:
            raise FileNotFound(f"{text_of(b'/'.join(path))[:200]!r} is not a directory")
        where = found.source
        assert isinstance(where, _Found), "it is in a snapshot"
        inside = self._directory(where.entry.content[0])
        return ((name, _node(where.snapshot, entry, found.inode)) for name, entry in inside.items())

    def read(self, node: Node, start: int, stop: int) -> bytes:
        """Bytes of a file."""
        where = node.source
        assert isinstance(where, _Found), "directories are not read"
        return self._retried(lambda: b"".join(self._pieces(where.entry, start, stop)))

    def content_key(self, node: Node) -> object:
        """Content never changes."""
        return node.inode

    def _inside(self, snapshot: Snapshot, path: Path) -> Node:
        node = _node(snapshot.id, snapshot.root, inode_of(snapshot.id.encode()))
        entry = snapshot.root
        for name in path:
            inside = self._directory(entry.content[0]) if entry.kind is Kind.DIRECTORY else {}
            found = inside.get(name)
            if found is None:
                raise FileNotFound(f"snapshot {snapshot.id[:12]} has no {text_of(b'/'.join(path))[:200]!r}")
            entry = found
            node = _node(snapshot.id, entry, node.inode)
        return node

    # -- snapshots -------------------------------------------------------------------------------

    def _snapshots(self) -> tuple[Snapshot, ...]:
        self._reload()
        return self._repository.record.snapshots

    def _all(self) -> Iterator[tuple[bytes, Node]]:
        snapshots = self._snapshots()
        for snapshot in snapshots:
            yield directory_name(snapshot), self._inside(snapshot, ())
        if snapshots:
            yield LATEST, self._latest()

    def _named(self, name: bytes) -> Snapshot:
        """The snapshot of a directory; the record is read again if it does not know it."""
        while True:
            for snapshot in reversed(self._repository.record.snapshots):
                if directory_name(snapshot) == name:
                    return snapshot
            if not self._reload():
                break
        raise FileNotFound(f"the folder has no snapshot {text_of(name)[:200]!r}")

    def _latest(self) -> Node:
        snapshots = self._snapshots()
        if not snapshots:
            raise FileNotFound("the folder has no snapshots")
        last = snapshots[-1]
        target = directory_name(last)
        time_ns = last.time_ms * 1_000_000
        return Node(
            Kind.SYMLINK,
            0o777,
            os.getuid(),
            os.getgid(),
            time_ns,
            time_ns,
            inode_of(LATEST, target),
            len(target),
            target=target,
        )

    def _reload(self) -> bool:
        """Read the record again, unless that was done just now; whether it was."""
        with self._lock:
            if self._clock_s() - self._loaded_s < _RELOAD_S:
                return False
            self._replace(Repository(self._files, self._folder))
            return True

    def _outdated(self, used: Repository) -> bool:
        """Whether the record is another one now than when ``used`` was read; if so, it is read again."""
        with self._lock:
            if self._repository is used:
                now = Repository(self._files, self._folder)
                if now.record.generation == used.record.generation:
                    return False
                self._replace(now)
            return True

    def _replace(self, repository: Repository) -> None:
        self._repository = repository
        self._loaded_s = self._clock_s()
        self._containers.clear()

    # -- content ---------------------------------------------------------------------------------

    def _retried(self, read: Callable[[], bytes]) -> bytes:
        """Read; again if what was forgotten meanwhile has moved other things to new containers."""
        while True:
            used = self._repository
            try:
                return read()
            except (FileNotFound, VersionNotFound, FolderDamaged):
                if not self._outdated(used):
                    raise

    def _pieces(self, entry: Entry, start: int, stop: int) -> Iterator[bytes]:
        at = 0
        for blob in entry.content:
            if at >= stop:
                return
            place = self._place(blob)
            first, last = max(start - at, 0), min(stop - at, place.length)
            if first < last:
                yield self._blocks.read(self._source(place.container), place.offset + first, place.offset + last)
            at += place.length

    def _place(self, blob: bytes) -> Place:
        place = self._repository.place_of(blob)
        if place is None:
            raise FolderDamaged(f"blob {blob.hex()[:16]} of the folder is not stored any more")
        return place

    def _source(self, container: bytes) -> Source:
        with self._lock:
            source = self._containers.get(container)
            if source is not None:
                self._containers.move_to_end(container)
                return source
        version = self._repository.head(container)
        source = Source(container, version.size, lambda start, stop: self._files.read(version, start, stop))
        with self._lock:
            self._containers[container] = source
            while len(self._containers) > _CONTAINERS_KEPT_MAX:
                self._containers.popitem(last=False)
        return source

    def _directory(self, blob: bytes) -> dict[bytes, Entry]:
        with self._lock:
            found = self._directories.get(blob)
            if found is not None:
                self._directories.move_to_end(blob)
                return found
        found = {entry.name: entry for entry in read_directory(blob, self._load)}
        with self._lock:
            if blob not in self._directories:
                self._directories[blob] = found
                self._entries += len(found)
            while self._entries > _ENTRIES_KEPT_MAX and len(self._directories) > 1:
                _, gone = self._directories.popitem(last=False)
                self._entries -= len(gone)
        return found

    def _load(self, blob: bytes) -> bytes:
        return self._retried(lambda: self._blob(blob))

    def _blob(self, blob: bytes) -> bytes:
        place = self._place(blob)
        if place.length > DIRECTORY_BYTES_MAX:
            raise FolderDamaged(f"a blob of {place.length:,} bytes is no directory")
        data = self._blocks.read(self._source(place.container), place.offset, place.offset + place.length)
        if blob_id(data) != blob:
            raise FolderDamaged(f"blob {blob.hex()[:16]} of the folder is not what its name says")
        return data


def _node(snapshot: str, entry: Entry, parent: int) -> Node:
    if entry.hard_links > 1:
        inode = inode_of(snapshot.encode(), entry.inode, entry.mtime_ns, *entry.content)
    else:
        inode = inode_of(parent, entry.name)
    return Node(
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.ctime_ns or entry.mtime_ns,
        inode,
        len(entry.target) if entry.kind is Kind.SYMLINK else entry.size,
        1 if entry.kind is Kind.DIRECTORY else entry.hard_links,  # 1 says that nobody counted the directories in it
        entry.sparse,
        entry.target,
        entry.xattrs,
        _Found(snapshot, entry),
    )


def _top(snapshots: tuple[Snapshot, ...]) -> Node:
    newest_ns = max(itertools.chain((each.time_ms for each in snapshots), (0,))) * 1_000_000
    return Node(Kind.DIRECTORY, 0o755, os.getuid(), os.getgid(), newest_ns, newest_ns, inode_of(b"snapshots"))
