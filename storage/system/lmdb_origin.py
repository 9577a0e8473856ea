"""Recognizes copies of an LMDB environment by the identity of its data file.

The environment's main tree has a note of its data file's identity, so a copy has the note of the original file. A copy
that was made while the original was in use may be torn (:mod:`storage.system.lmdb_pages`).
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
    """The identity of a data file, as noted in the environment.

    Attributes:
        inode: inode of the data file.
        born_ns: when that file was created, ns since 1970; 0 if the file system does not say. With the inode's number,
            it distinguishes files of different file systems; device numbers may change with each boot.
        closed_in: the transaction that closed the environment cleanly; 0 while it is in use.
    """

    inode: int
    born_ns: int
    closed_in: int = 0

    def encoded(self) -> bytes:
        """Return the note as stored in the environment."""
        return msgspec.msgpack.encode(self)

    def is_of(self, file: Origin) -> bool:
        """Whether the note was written in this file."""
        # A time may be missing: not every kernel reports it.
        return self.inode == file.inode and (self.born_ns == file.born_ns or 0 in (self.born_ns, file.born_ns))


_origin_of_note = msgspec.msgpack.Decoder(Origin)


class Past(Enum):
    """The earlier state of an environment."""

    NONE = "there is none yet"
    SAME = "it was written here"
    UNKNOWN = "it has no note of the file that it was written in; its pages are consistent"
    COPIED = "it is a copy of one that was closed cleanly"
    COPIED_IN_USE = "it is a copy of one that was in use, or had crashed; its pages seem to be consistent"


def origin_of(path: Path) -> Origin:
    """Return the note to write into the environment in this directory.

    Raises:
        OSError: the file's status cannot be read.
    """
    descriptor = os.open(path / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _origin(descriptor)
    finally:
        os.close(descriptor)


def write_closing_note(txn: lmdb.Transaction[bytes], origin: Origin) -> None:
    """Note that this transaction closes the environment cleanly."""
    txn.put(ORIGIN_KEY, Origin(origin.inode, origin.born_ns, txn.id()).encoded())


def past_of(path: Path, *, thoroughly: bool = False) -> Past:
    """Return the earlier state of the environment in this directory; check all its pages if it was not written here.

    Args:
        path: directory of the environment, which must have no writer.
        thoroughly: check all pages in any case.

    Raises:
        FormatError: its pages are inconsistent.
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
            f"the database in {path} is damaged, as if it was copied while it was in use: its pages are inconsistent "
            f"({torn}). Nothing was written to it. Put back a copy that was made by snapshot, or after the store or "
            "pool was closed; or move it away and run rebuild, which makes it again (a pool is started with "
            "--rebuild first)"
        ) from torn


def _decoded(raw: bytes | None) -> Origin | None:
    try:
        return None if raw is None else _origin_of_note.decode(raw)
    except msgspec.MsgspecError:
        return None  # as if there were no note: everything is checked, and a new note written


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
    """Return the C library's statx, which Python does not offer; None if the library lacks it."""
    return getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
