"""Tombstones: the ends of files' chains."""

from __future__ import annotations

import msgspec

from storage.errors import FormatError
from storage.formats.authenticity import MAC_BYTES, Authority
from storage.formats.version_records import NO_MAC, SIGNED_FORMAT, FileId, FormatNumber, Mac, Sequence


class Tombstone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The end of a file's chain, kept so that a rebuild does not bring deleted files back."""

    format: FormatNumber
    file_id: FileId
    sequence: Sequence


class SignedTombstone(Tombstone, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A tombstone with a MAC, like a :class:`SignedRecord`. It is written after the catalog has committed it."""

    mac: Mac


_encoder = msgspec.msgpack.Encoder()
_tombstone_decoders: dict[bytes, msgspec.msgpack.Decoder[Tombstone]] = {
    b"\x93": msgspec.msgpack.Decoder(Tombstone),
    b"\x94": msgspec.msgpack.Decoder(SignedTombstone),
}


def encode_tombstone(tombstone: Tombstone) -> bytes:
    """Canonical bytes of a tombstone."""
    return _encoder.encode(tombstone)


def sign_tombstone(file_id: bytes, sequence: int, authority: Authority) -> bytes:
    """A tombstone's bytes, with the store's MAC."""
    body = _encoder.encode(SignedTombstone(SIGNED_FORMAT, file_id, sequence, NO_MAC))[:-MAC_BYTES]
    return body + authority.sign(body)


def decode_tombstone(raw: bytes) -> Tombstone:
    """Inverse of :func:`encode_tombstone` and :func:`sign_tombstone`; does not check who made it.

    Raises:
        FormatError: malformed.
    """
    decoder = _tombstone_decoders.get(raw[:1])
    if decoder is None:
        raise FormatError("tombstone has a number of elements that no known format has; upgrade if it is newer")
    try:
        tombstone = decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"tombstone is malformed: {error}") from error
    if (tombstone.format == SIGNED_FORMAT) is not isinstance(tombstone, SignedTombstone):
        raise FormatError(f"tombstone of format {tombstone.format} has the elements of another one")
    if _encoder.encode(tombstone) != raw:
        raise FormatError("tombstone is not in canonical form")
    return tombstone


def is_signed_tombstone(raw: bytes, tombstone: Tombstone, authority: Authority) -> bool:
    """Whether the MAC shows that the store itself made this tombstone."""
    return isinstance(tombstone, SignedTombstone) and authority.vouches(raw[:-MAC_BYTES], tombstone.mac)
