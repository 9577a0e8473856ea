"""One secret's record: its value sealed by a data key of its own, which the master key wraps.

Both are AES-256-GCM with random nonces, and both have the record's terms, name and version among them, as
associated data: a record whose terms, key or value were changed, or put together from several, does not open.
Every sealing takes a fresh data key, so that no data key ever meets a second nonce.
"""

from __future__ import annotations

import secrets
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from taskworker.errors import SecretDamaged
from taskworker.outbound.secrets.master_key import MasterKey

_T = TypeVar("_T")

SERIAL_BYTES = 16
_NONCE_BYTES = 12
_DATA_KEY_BITS = 256
_KEY_CONTEXT = b"taskworker secret key 1\0"
_VALUE_CONTEXT = b"taskworker secret value 1\0"


class Grant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A function that may use a secret; with ``hosts``, only in requests to these, and without seeing it."""

    function: str
    hosts: tuple[str, ...] = ()


class Terms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is known of a secret besides its value.

    Attributes:
        name: its name.
        version: of its value, from 1.
        serial: 16 bytes, random, other ones at each sealing.
        created_ms: when its first version came, ms since 1970.
        changed_ms: when this version came.
        grants: who may use it.
    """

    name: str
    version: int
    serial: bytes
    created_ms: int
    changed_ms: int
    grants: tuple[Grant, ...] = ()

    def grant(self, function: str) -> Grant | None:
        """A function's grant, if it has one."""
        return next((one for one in self.grants if one.function == function), None)


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    terms: bytes
    wrapped_key: bytes
    sealed: bytes


_encode = msgspec.msgpack.Encoder().encode
_records = msgspec.msgpack.Decoder(_Record)
_terms = msgspec.msgpack.Decoder(Terms)


def seal(value: str, terms: Terms, key: MasterKey) -> tuple[Terms, bytes]:
    """The record of a value, and its terms with the serial that it got."""
    terms = msgspec.structs.replace(terms, serial=secrets.token_bytes(SERIAL_BYTES))
    encoded = _encode(terms)
    data_key = AESGCM.generate_key(_DATA_KEY_BITS)
    record = _Record(
        terms=encoded,
        wrapped_key=_sealed(key.wrap, data_key, _KEY_CONTEXT + encoded),
        sealed=_sealed(data_key, value.encode("utf-8", "surrogatepass"), _VALUE_CONTEXT + encoded),
    )
    return terms, _encode(record)


def claimed_terms(record: bytes) -> Terms:
    """The terms as written in a record, which anyone may have written.

    Raises:
        SecretDamaged: none can be read.
    """
    return _read_terms(_read(record))


def unseal(record: bytes, key: MasterKey) -> tuple[Terms, str]:
    """The terms and the value of a record.

    Raises:
        SecretDamaged: it was changed, or another key wrapped it.
    """
    found = _read(record)
    terms = _read_terms(found)
    data_key = _opened(key.wrap, found.wrapped_key, _KEY_CONTEXT + found.terms)
    value = _opened(data_key, found.sealed, _VALUE_CONTEXT + found.terms)
    return terms, value.decode("utf-8", "surrogatepass")


def rewrapped(record: bytes, old: MasterKey, new: MasterKey) -> bytes:
    """The record with its data key wrapped by another master key.

    Raises:
        SecretDamaged: it was changed, or ``old`` did not wrap it.
    """
    found = _read(record)
    context = _KEY_CONTEXT + found.terms
    data_key = _opened(old.wrap, found.wrapped_key, context)
    return _encode(msgspec.structs.replace(found, wrapped_key=_sealed(new.wrap, data_key, context)))


def _sealed(key: bytes, content: bytes, context: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, context)


def _opened(key: bytes, sealed: bytes, context: bytes) -> bytes:
    nonce, content = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, content, context)
    except (InvalidTag, ValueError):
        raise SecretDamaged("a sealed secret was changed since it was sealed, or is not what its name says") from None


def _read(record: bytes) -> _Record:
    found = _decoded(_records, record)
    # One form for one content: else a byte could change that nobody would miss.
    if _encode(found) != record:
        raise SecretDamaged("a sealed secret is not in its proper form")
    return found


def _read_terms(record: _Record) -> Terms:
    return _decoded(_terms, record.terms)


def _decoded(decoder: msgspec.msgpack.Decoder[_T], raw: bytes) -> _T:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise SecretDamaged("a sealed secret cannot be read: its bytes are no such record") from None
