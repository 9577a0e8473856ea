"""Seals one secret's record: its value is sealed with a data key of its own, which the master key wraps.

Both use AES-256-GCM with random nonces, and the record's terms, which include name and version, as associated data. So
a record whose terms, key or value were changed, or combined from several records, cannot be opened. Every sealing uses
a fresh data key, so that no data key is used with a second nonce.
"""

from __future__ import annotations

import secrets
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage.sealing.master_keys import MasterKey
from taskworker.errors import SecretDamaged

_T = TypeVar("_T")

SERIAL_BYTES = 16
_NONCE_BYTES = 12
_DATA_KEY_BITS = 256
_KEY_CONTEXT = b"taskworker secret key 1\0"
_VALUE_CONTEXT = b"taskworker secret value 1\0"


class Grant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A function's grant for a secret; with ``hosts``, only in requests to these hosts, without seeing the value."""

    function: str
    hosts: tuple[str, ...] = ()


class Terms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The metadata of a secret.

    Attributes:
        name: its name.
        version: version of its value, from 1.
        serial: 16 random bytes, new at each sealing.
        created_ms: when its first version was made, ms since 1970.
        changed_ms: when this version was made.
        grants: the functions that may use it.
    """

    name: str
    version: int
    serial: bytes
    created_ms: int
    changed_ms: int
    grants: tuple[Grant, ...] = ()

    def grant(self, function: str) -> Grant | None:
        """The grant of a function, if it has one."""
        return next((one for one in self.grants if one.function == function), None)


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    terms: bytes
    wrapped_key: bytes
    sealed: bytes


_encode = msgspec.msgpack.Encoder().encode
_records = msgspec.msgpack.Decoder(_Record)
_terms = msgspec.msgpack.Decoder(Terms)


def seal(value: str, terms: Terms, key: MasterKey) -> tuple[Terms, bytes]:
    """Seal a value; returns the record, and its terms with their new serial."""
    terms = msgspec.structs.replace(terms, serial=secrets.token_bytes(SERIAL_BYTES))
    encoded = _encode(terms)
    data_key = AESGCM.generate_key(_DATA_KEY_BITS)
    record = _Record(
        terms=encoded,
        wrapped_key=_sealed(key.secrets_wrap, data_key, _KEY_CONTEXT + encoded),
        sealed=_sealed(data_key, value.encode("utf-8", "surrogatepass"), _VALUE_CONTEXT + encoded),
    )
    return terms, _encode(record)


def claimed_terms(record: bytes) -> Terms:
    """The unverified terms in a record.

    Raises:
        SecretDamaged: they cannot be read.
    """
    return _read_terms(_read(record))


def unseal(record: bytes, key: MasterKey) -> tuple[Terms, str]:
    """The terms and the value of a record.

    Raises:
        SecretDamaged: the record was changed, or another key wrapped it.
    """
    found = _read(record)
    terms = _read_terms(found)
    data_key = _opened(key.secrets_wrap, found.wrapped_key, _KEY_CONTEXT + found.terms)
    value = _opened(data_key, found.sealed, _VALUE_CONTEXT + found.terms)
    return terms, value.decode("utf-8", "surrogatepass")


def rewrapped(record: bytes, old: MasterKey, new: MasterKey) -> bytes:
    """The record with its data key wrapped by another master key.

    Raises:
        SecretDamaged: the record was changed, or ``old`` did not wrap it.
    """
    found = _read(record)
    context = _KEY_CONTEXT + found.terms
    data_key = _opened(old.secrets_wrap, found.wrapped_key, context)
    return _encode(msgspec.structs.replace(found, wrapped_key=_sealed(new.secrets_wrap, data_key, context)))


def _sealed(key: bytes, content: bytes, context: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, context)


def _opened(key: bytes, sealed: bytes, context: bytes) -> bytes:
    nonce, content = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, content, context)
    except (InvalidTag, ValueError):
        raise SecretDamaged("a sealed secret was changed since it was sealed, or belongs to another name") from None


def _read(record: bytes) -> _Record:
    found = _decoded(_records, record)
    # Only the canonical form is accepted: otherwise a byte could be changed without being noticed.
    if _encode(found) != record:
        raise SecretDamaged("a sealed secret is not in its proper form")
    return found


def _read_terms(record: _Record) -> Terms:
    return _decoded(_terms, record.terms)


def _decoded(decoder: msgspec.msgpack.Decoder[_T], raw: bytes) -> _T:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise SecretDamaged("a sealed secret cannot be read: its bytes are not a valid record") from None
