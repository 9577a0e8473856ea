"""What a folder keeps about each of its files, and the form in which that is stored."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from taskworker.folders.problems import FolderDamaged

NAME_BYTES_MAX = 255  # Linux's NAME_MAX
PATH_BYTES_MAX = 4096  # its PATH_MAX
XATTRS_MAX = 256
XATTR_BYTES_MAX = 65536  # Linux's XATTR_SIZE_MAX
CONTENT_IDS_MAX = 1 << 20
ENTRIES_MAX = 1 << 24

_Word = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
_Size = Annotated[int, Meta(ge=0, le=(1 << 60))]
_Id = Annotated[bytes, Meta(min_length=16, max_length=64)]
_Path = Annotated[bytes, Meta(max_length=PATH_BYTES_MAX)]


class Kind(IntEnum):
    """What an entry is."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    FIFO = 3


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file, directory or link of a folder.

    Attributes:
        name: its name in its directory, or its path in a listing; bytes, as Linux has them.
        kind: what it is.
        mode: permission bits, with set-user-ID and the like.
        uid: number of the owner.
        gid: number of the group.
        mtime_ns: last change of the content, ns since 1970.
        ctime_ns: last change of anything, ns since 1970: with ``inode``, it shows that a file is unchanged.
        inode: number in the file system.
        size: bytes of the content.
        target: what a symbolic link says.
        hard_links: number of names that the file has.
        sparse: whether the file takes less space on disk than its size.
        content: ids of what it contains; what they name is up to who keeps them.
        xattrs: names and values of extended attributes, by name.
    """

    name: _Path
    kind: Kind
    mode: Annotated[int, Meta(ge=0, le=0o7777)]
    uid: _Word
    gid: _Word
    mtime_ns: int
    ctime_ns: int
    inode: Annotated[int, Meta(ge=0)]  # msgpack has no more than 64 bits
    size: _Size = 0
    target: _Path = b""
    hard_links: Annotated[int, Meta(ge=1, le=(1 << 32) - 1)] = 1
    sparse: bool = False
    content: Annotated[tuple[_Id, ...], Meta(max_length=CONTENT_IDS_MAX)] = ()
    xattrs: Annotated[
        tuple[
            tuple[
                Annotated[bytes, Meta(max_length=NAME_BYTES_MAX)], Annotated[bytes, Meta(max_length=XATTR_BYTES_MAX)]
            ],
            ...,
        ],
        Meta(max_length=XATTRS_MAX),
    ] = ()

    def same_on_disk(self, other: Entry) -> bool:
        """Whether nothing shows that the content has changed since ``other`` was noted."""
        return (
            self.kind == other.kind
            and self.size == other.size
            and self.mtime_ns == other.mtime_ns
            and self.ctime_ns == other.ctime_ns
            and self.inode == other.inode
        )


class Listing(msgspec.Struct, frozen=True, array_like=True):
    """All entries of a tree by path, each with the version of its file as its content.

    Attributes:
        format: number of this form.
        entries: by path, the root first.
    """

    format: Annotated[int, Meta(ge=1, le=1)]
    entries: Annotated[tuple[Entry, ...], Meta(max_length=ENTRIES_MAX)]


_NO_NAMES = (b".", b"..")
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
}
_listings = msgspec.msgpack.Decoder(Listing)
_encoder = msgspec.msgpack.Encoder()


def encode_listing(entries: Sequence[Entry]) -> bytes:
    """A listing as bytes; equal listings have equal bytes."""
    return _encoder.encode(Listing(1, tuple(sorted(entries, key=lambda entry: entry.name))))


def decode_listing(data: bytes) -> tuple[Entry, ...]:
    """The entries of a listing.

    Raises:
        FolderDamaged: this is not a listing, or one of its paths leads out of the folder.
    """
    try:
        entries = _listings.decode(data).entries
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FolderDamaged(f"the folder's listing is not one that this release wrote: {error}") from None
    before: bytes | None = None
    for entry in entries:
        if before is not None and entry.name <= before:
            raise FolderDamaged("the folder's listing is out of order")
        before = entry.name
        if entry.name or entry.kind != Kind.DIRECTORY:
            parts_of(entry.name)
    return entries


def parts_of(path: bytes) -> tuple[bytes, ...]:
    """The names that a path consists of.

    Raises:
        FolderDamaged: one of them is no name of a file in a folder, such as ``..``.
    """
    parts = tuple(path.split(b"/"))
    for part in parts:
        require_name(part)
    return parts


def require_name(name: bytes) -> None:
    """Refuse what is not the name of a file in a directory.

    Raises:
        FolderDamaged: it is not.
    """
    if not name or len(name) > NAME_BYTES_MAX or name in _NO_NAMES or b"/" in name or b"\0" in name:
        raise FolderDamaged(
            f"{name[:80]!r} cannot be the name of a file; the folder's description is damaged or hostile"
        )


def kind_of(mode: int) -> Kind | None:
    """What a mode of stat says that a file is; None: a socket or a device."""
    return _KINDS.get(stat.S_IFMT(mode))
