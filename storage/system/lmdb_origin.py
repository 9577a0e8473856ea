"""Which file an LMDB environment was written in: by that, a copy of it is known.

The environment keeps a note of its data file's identity in its main tree, so that a copy has the note of the file it
was made from. A copy may have been made while the other was in use, and be torn (:mod:`storage.system.lmdb_pages`).
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import lmdb
import msgspec

from storage.errors import FormatError
from storage.system.lmdb_pages import DataFile, TornPages

ORIGIN_KEY = b"origin"
DATA_FILE = "data.mdb"
_STATX_BYTES = 256
_STATX_BTIME = 0x800
_AT_EMPTY_PATH = 0x1000
_STATX_MASK = struct.Struct("<I")
_STATX_BORN = struct.Struct("<qI")
_STATX_BORN_AT = 80


class Origin(msgspec.Struct, array_like=True, frozen=True):
    """The note.

    Attributes:
        inode: of the data file.
        born_ns: when that file was made, in ns since 1970; 0 where the file system does not tell. With the inode's
            number it tells files of different file systems apart; a device's number may be another after each start.
        closed_in: the transaction that closed the environment in good order; 0 while it is in use.
    """

    inode: int
    born_ns: int
    closed_in: int = 0

    def encoded(self) -> bytes:
        """As it is kept."""
        return msgspec.msgpack.encode(self)

    def is_of(self, file: Origin) -> bool:
        """Whether it was written in this file."""
        # Another kernel may tell what this one does not.
        return self.inode == file.inode and (self.born_ns == file.born_ns or 0 in (self.born_ns, file.born_ns))


_origin_of_note = msgspec.msgpack.Decoder(Origin)


class Past(Enum):
    """What an environment was before."""

    NONE = "there is none yet"
    SAME = "it was written here"
    UNKNOWN = "nothing tells where it was written; its pages belong together"
    COPIED = "it is a copy of one that was closed in good order"
    COPIED_IN_USE = (
        "it is a copy of one that was in use, or had crashed; its pages belong together, as far as they tell"
    )


def origin_of(path: Path) -> Origin:
    """What the note of an environment in this directory is to say.

    Raises:
        OSError: the file cannot be asked.
    """
    descriptor = os.open(path / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _origin(descriptor)
    finally:
        os.close(descriptor)


def write_closing_note(txn: lmdb.Transaction[bytes], origin: Origin) -> None:
    """Note that the environment is closed in good order with this transaction."""
    txn.put(ORIGIN_KEY, Origin(origin.inode, origin.born_ns, txn.id()).encoded())


def past_of(path: Path, *, thoroughly: bool = False) -> Past:
    """What the environment in this directory was before. All of it is read once, if it was not written here.

    Args:
        path: of the environment; nobody writes to it.
        thoroughly: read all of it in any case.

    Raises:
        FormatError: its pages do not belong together.
        OSError: it cannot be read.
    """
    try:
        with DataFile.opened(path / DATA_FILE) as file:
            if file is None:
                return Past.NONE
            noted = _decoded(file.get(ORIGIN_KEY))
            same = noted is not None and noted.is_of(_origin(file.descriptor))
            if thoroughly or not same:
                file.check()
            if same:
                return Past.SAME
            if noted is None:
                return Past.UNKNOWN
            return Past.COPIED if noted.closed_in == file.transaction else Past.COPIED_IN_USE
    except TornPages as torn:
        raise FormatError(
            f"the database in {path} is damaged, as if it was copied while it was in use: its pages do not belong "
            f"together ({torn}). Nothing was written to it. Put back a copy that was made by snapshot, or after the "
            "store or pool was closed; or move it away and run rebuild, which makes it again (a pool is started with "
            "--rebuild first)"
        ) from torn


def _decoded(raw: bytes | None) -> Origin | None:
    try:
        return None if raw is None else _origin_of_note.decode(raw)
    except msgspec.MsgspecError:
        return None  # as if there were none: all is looked at, and it is written anew


def _origin(descriptor: int) -> Origin:
    return Origin(os.fstat(descriptor).st_ino, _born_ns(descriptor))


def _born_ns(descriptor: int) -> int:
    statx = _statx()
    status = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_BTIME, status) != 0:
        return 0
    if not _STATX_MASK.unpack_from(status)[0] & _STATX_BTIME:
        return 0
    seconds, nanoseconds = _STATX_BORN.unpack_from(status, _STATX_BORN_AT)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


@functools.cache
def _statx() -> Callable[..., int] | None:
    """The call of the C library, which Python does not offer; None if the library has none."""
    return getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
