"""Sealing of chunks and manifest nodes.

A sealed object is the ciphertext, the tag, and a trailer that says which of the user's keys opens it. Its key follows
from that key and the hash of the content. So equal content of one user is sealed to equal bytes, and no two contents
share a key.
"""

from __future__ import annotations

from typing import Protocol

from storage.errors import SealBroken
from storage.keys import Kind
from storage.limits import BytesLike
from storage.sealing.aead import TAG_BYTES, decrypt_into, encrypt, encrypt_into
from storage.sealing.user_keys import ObjectKeys

_FORMAT = b"\1"
_TRAILER_BYTES = 4
_EPOCH_BYTES = 3
_BOUND = b"TaskWorker object "
OVERHEAD_BYTES = TAG_BYTES + _TRAILER_BYTES
"""How many bytes a sealed object is longer than its content."""


class SealingKey(Protocol):
    """Seals objects: a user's key, or that of one object."""

    @property
    def epoch(self) -> int:
        """Epoch of the user's key."""

    def opener(self, kind: int, plain_id: bytes, /) -> bytes:
        """The key of the object of a kind whose content has this hash."""


def sealed(key: SealingKey, kind: Kind, plain_id: bytes, plain: BytesLike) -> bytes:
    """Seal an object.

    Args:
        key: the owner's key.
        kind: kind of the object.
        plain_id: BLAKE3 hash of ``plain``.
        plain: the object, 1 byte or more.
    """
    trailer = _trailer(key)
    return encrypt(key.opener(kind, plain_id), plain, _bound(kind, trailer)) + trailer


def seal_into(key: SealingKey, kind: Kind, plain_id: bytes, plain: BytesLike, out: memoryview) -> None:
    """Like :func:`sealed`, into memory of exactly :data:`OVERHEAD_BYTES` more than ``plain``."""
    trailer = _trailer(key)
    encrypt_into(key.opener(kind, plain_id), plain, _bound(kind, trailer), out[:-_TRAILER_BYTES])
    out[-_TRAILER_BYTES:] = trailer


def open_into(keys: ObjectKeys, kind: Kind, plain_id: bytes, raw: memoryview, out: memoryview) -> None:
    """Open a sealed object into memory of exactly the size of its content.

    Args:
        keys: the owner's keys.
        kind: kind of the object.
        plain_id: BLAKE3 hash of its content.
        raw: the sealed object.
        out: memory for the content.

    Raises:
        SealBroken: a byte was changed, or it is another object.
        KeyRequired: the key is not here.
    """
    if len(raw) != len(out) + OVERHEAD_BYTES:
        raise SealBroken(f"an encrypted object has {len(raw)} bytes, not {len(out) + OVERHEAD_BYTES}")
    trailer = bytes(raw[-_TRAILER_BYTES:])
    if trailer[:1] != _FORMAT:
        raise SealBroken("an encrypted object was changed, or has a format that this release does not know")
    for key in keys.openers(int.from_bytes(trailer[1:], "little"), kind, plain_id):
        try:
            decrypt_into(key, raw[:-_TRAILER_BYTES], _bound(kind, trailer), out)
        except SealBroken as error:
            broken = error
        else:
            return
    raise broken


def opened(keys: ObjectKeys, kind: Kind, plain_id: bytes, raw: BytesLike) -> bytearray:
    """Like :func:`open_into`, in new memory."""
    if len(raw) < OVERHEAD_BYTES:
        raise SealBroken(f"an encrypted object has only {len(raw)} bytes")
    out = bytearray(len(raw) - OVERHEAD_BYTES)
    open_into(keys, kind, plain_id, memoryview(raw), memoryview(out))
    return out


def _trailer(key: SealingKey) -> bytes:
    return _FORMAT + key.epoch.to_bytes(_EPOCH_BYTES, "little")


def _bound(kind: Kind, trailer: bytes) -> bytes:
    return _BOUND + bytes([kind]) + trailer
