"""AES-256-GCM with keys that encrypt one message each, so that the nonce can be constant.

BLAKE3 in its mode for deriving keys makes a key for each purpose, and its keyed hash makes the key of each message.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from blake3 import blake3

from storage.errors import SealBroken
from storage.limits import BytesLike

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
SALT_BYTES = 32
TAG_BYTES = 16
_NONCE = bytes(12)


@functools.cache
def _aes_gcm() -> type[AESGCM]:
    """The cipher, loaded late: it takes 8 MB, for which stores that are not encrypted have no use."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM


@functools.cache
def _refusals() -> tuple[type[Exception], ...]:
    """What the cipher raises if it does not decrypt."""
    from cryptography.exceptions import InvalidTag

    return InvalidTag, ValueError


def derived(secret: bytes, purpose: str, length: int = KEY_BYTES) -> bytes:
    """Return a key, or other bytes, made from a secret for one purpose."""
    return blake3(secret, derive_key_context=purpose).digest(length)


def message_key(key: bytes, unique: bytes) -> bytes:
    """Return the key of one message. ``unique`` must never be used for another message with the same ``key``."""
    return blake3(unique, key=key).digest()


def encrypt(key: bytes, plain: BytesLike, bound: bytes) -> bytes:
    """Encrypt the only message of a key; ``bound`` is authenticated as well."""
    return _aes_gcm()(key).encrypt(_NONCE, plain, bound)


def encrypt_into(key: bytes, plain: BytesLike, bound: bytes, out: memoryview) -> None:
    """Like :func:`encrypt`, into memory of exactly :data:`TAG_BYTES` more than ``plain``."""
    _aes_gcm()(key).encrypt_into(_NONCE, plain, bound, out)


def decrypt(key: bytes, sealed: BytesLike, bound: bytes) -> bytes:
    """Inverse of :func:`encrypt`.

    Raises:
        SealBroken: the key is another one, or a byte was changed.
    """
    try:
        return _aes_gcm()(key).decrypt(_NONCE, sealed, bound)
    except _refusals():
        raise SealBroken("encrypted data was changed, or belongs to another key") from None


def decrypt_into(key: bytes, sealed: BytesLike, bound: bytes, out: memoryview) -> None:
    """Like :func:`decrypt`, into memory of exactly the size of the message.

    Raises:
        SealBroken: the key is another one, or a byte was changed. Then ``out`` may have wrong bytes.
    """
    try:
        _aes_gcm()(key).decrypt_into(_NONCE, sealed, bound, out)
    except _refusals():
        raise SealBroken("encrypted data was changed, or belongs to another key") from None
