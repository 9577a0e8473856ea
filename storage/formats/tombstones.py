"""Tombstones: the ends of files' chains, and of single versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from storage.errors import FormatError
from storage.formats.authenticity import MAC_BYTES, Authority
from storage.formats.version_records import (
    FILE_ID_BYTES,
    NO_MAC,
    SIGNED_FORMAT,
    FileId,
    FormatNumber,
    Mac,
    ObjectId,
    Sequence,
)

VERSION_TOMBSTONE_FORMAT = 3


class Tombstone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The end of a file's chain, kept so that a rebuild does not bring deleted files back."""

    format: FormatNumber
    file_id: FileId
    sequence: Sequence

    @property
    def key(self) -> bytes:
        """What it ends, as the catalog names it."""
        return self.file_id


class SignedTombstone(Tombstone, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A tombstone with a MAC, like a :class:`SignedRecord`. It is written after the catalog has committed it."""

    mac: Mac


class VersionTombstone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The end of a single version, which leads to the version before it, as its record does not any more.

    Attributes:
        format: 3.
        file_id: id of the file.
        sequence: the store's order of commits.
        version_id: the version.
        parent: the version before it, as in its record; that one may have ended as well.
        mac: like that of a :class:`SignedTombstone`.
    """

    format: Annotated[int, msgspec.Meta(ge=VERSION_TOMBSTONE_FORMAT, le=VERSION_TOMBSTONE_FORMAT)]
    file_id: FileId
    sequence: Sequence
    version_id: ObjectId
    parent: ObjectId | None
    mac: Mac

    @property
    def key(self) -> bytes:
        """What it ends, as the catalog names it."""
        return version_key(self.file_id, self.version_id)


def version_key(file_id: bytes, version_id: bytes) -> bytes:
    """The catalog's name of a version that has ended: after that of its file, and before those of later files."""
    return file_id + version_id


def file_of(key: bytes) -> tuple[bytes, bytes]:
    """The ids of the file and of the version that have ended; the latter is empty if all of the file has."""
    return key[:FILE_ID_BYTES], key[FILE_ID_BYTES:]


_encoder = msgspec.msgpack.Encoder()
AnyTombstone = Tombstone | VersionTombstone

_tombstone_decoders: dict[bytes, Callable[[bytes], AnyTombstone]] = {
    b"\x93": msgspec.msgpack.Decoder(Tombstone).decode,
    b"\x94": msgspec.msgpack.Decoder(SignedTombstone).decode,
    b"\x96": msgspec.msgpack.Decoder(VersionTombstone).decode,
}


def encode_tombstone(tombstone: AnyTombstone) -> bytes:
    """Canonical bytes of a tombstone."""
    return _encoder.encode(tombstone)


def sign_tombstone(file_id: bytes, sequence: int, authority: Authority) -> bytes:
    """A tombstone's bytes, with the store's MAC."""
    body = _encoder.encode(SignedTombstone(SIGNED_FORMAT, file_id, sequence, NO_MAC))[:-MAC_BYTES]
    return body + authority.sign(body)


def sign_version_tombstone(
    file_id: bytes, version_id: bytes, parent: bytes | None, sequence: int, authority: Authority
) -> bytes:
    """Like :func:`sign_tombstone`, for a single version; ``parent`` is the one before it by its record."""
    unsigned = VersionTombstone(VERSION_TOMBSTONE_FORMAT, file_id, sequence, version_id, parent, NO_MAC)
    body = _encoder.encode(unsigned)[:-MAC_BYTES]
    return body + authority.sign(body)


def decode_tombstone(raw: bytes) -> AnyTombstone:
    """Inverse of :func:`encode_tombstone` and the functions that sign; does not check who made it.

    Raises:
        FormatError: malformed.
    """
    decoder = _tombstone_decoders.get(raw[:1])
    if decoder is None:
        raise FormatError("tombstone has a number of elements that no known format has; upgrade if it is newer")
    try:
        tombstone = decoder(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"tombstone is malformed: {error}") from error
    if (tombstone.format == SIGNED_FORMAT) is not isinstance(tombstone, SignedTombstone):
        raise FormatError(f"tombstone of format {tombstone.format} has the elements of another one")
    if _encoder.encode(tombstone) != raw:
        raise FormatError("tombstone is not in canonical form")
    return tombstone


def is_signed_tombstone(raw: bytes, tombstone: AnyTombstone, authority: Authority) -> bool:
    """Whether the MAC shows that the store itself made this tombstone."""
    return isinstance(tombstone, SignedTombstone | VersionTombstone) and authority.vouches(
        raw[:-MAC_BYTES], tombstone.mac
    )
