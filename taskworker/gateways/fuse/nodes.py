"""What is mounted: a tree of nodes, and the port to whatever has one."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from blake3 import blake3

from taskworker.folders.entries import Kind

_FORMATS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
}
_SECTOR_BYTES = 512  # st_blocks counts these, whatever the file system

Path = Sequence[bytes]
"""The names that lead to a node from the root of what is mounted."""


@dataclass(frozen=True, slots=True)
class Node:
    """A file, directory, symbolic link or FIFO.

    Attributes:
        kind: what it is.
        mode: permission bits.
        uid: number of the owner.
        gid: number of the group.
        mtime_ns: last change of the content, ns since 1970.
        ctime_ns: last change of anything, ns since 1970.
        inode: number that the names of one file have in common, and no others.
        size: bytes of the content.
        links: number of names that the file has.
        sparse: whether it has holes.
        target: what a symbolic link says.
        xattrs: names and values of extended attributes.
        source: what the tree finds its content by.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    size: int = 0
    links: int = 1
    sparse: bool = False
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    source: object = field(default=None, repr=False)

    @property
    def st_mode(self) -> int:
        """Kind and permission bits as in stat(2)."""
        return _FORMATS[self.kind] | self.mode

    @property
    def st_blocks(self) -> int:
        """Sectors as in stat(2): of a sparse file fewer than it has bytes for, since programs look for holes then.

        They are never 0, which programs take for a file without any data.
        """
        count = -(-self.size // _SECTOR_BYTES)
        return max(1, count - 1) if self.sparse and count else count


class Tree(Protocol):
    """Something to mount. Methods are called from many threads.

    They raise errors of ``storage``: FileNotFound for what is not there.

    Attributes:
        immutable: whether what was found once stays as it is, so that the kernel may keep it.
    """

    immutable: bool

    def node(self, path: Path) -> Node:
        """The node at a path."""

    def children(self, path: Path) -> Iterable[tuple[bytes, Node]]:
        """The names in a directory, with nodes of which only kind and inode count."""

    def read(self, node: Node, start: int, stop: int) -> bytes:
        """The bytes of a file from ``start`` up to ``stop``, which is not beyond its end."""

    def content_key(self, node: Node) -> object:
        """Equal for equal content at one path, so that what the kernel keeps of a file is not another version's."""


def inode_of(*what: bytes | int) -> int:
    """An inode's number made from what identifies a file; never 0 or 1, which have meanings of their own."""
    digest = blake3()
    for each in what:
        data = each if isinstance(each, bytes) else each.to_bytes(16, "big", signed=True)
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
    return int.from_bytes(digest.digest(8), "big") | 2
