"""All sealed secrets in one document of the catalog: a record for each, and a table of records.

The table says which record is the newest of each secret, and carries a tag that only the master key can make. So a
record that was replaced with an older one, moved to another name, or left out, is detected, and a damaged record does
not prevent reading the others.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from storage.sealing.master_keys import MasterKey, MasterKeys
from taskworker.errors import SecretDamaged, SecretsUnavailable
from taskworker.outbound.secrets.sealing import Grant, Terms, claimed_terms, rewrapped, unseal

_FORMAT = 1
_DAMAGED = (
    "the pool's sealed secrets were changed in its catalog, or are damaged: none of them is used or overwritten; "
    "restore the catalog from a copy, or give them up with `taskworker secret rm --all`"
)


class _Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str
    version: int
    serial: bytes


class _Document(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    key_id: str
    table: tuple[_Entry, ...]
    tag: bytes
    records: tuple[bytes, ...]


_encode = msgspec.msgpack.Encoder().encode
_documents = msgspec.msgpack.Decoder(_Document)


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret in the document.

    Attributes:
        name: its name, by the table.
        version: version of its value, by the table.
        serial: serial of its record, by the table.
        record: its sealed record.
        key: the master key that wraps its data key.
        terms: the terms in the record; None if they cannot be read.
        damaged: whether the record cannot be opened, or differs from the table.
    """

    name: str
    version: int
    serial: bytes
    record: bytes
    key: MasterKey
    terms: Terms | None
    damaged: bool = False

    def value(self) -> str:
        """The value.

        Raises:
            SecretDamaged: it was changed.
        """
        if self.damaged:
            raise SecretDamaged(
                f"secret {self.name} was changed in the pool's catalog, or is damaged, and is not used: restore the "
                f"catalog from a copy, or remove it (`taskworker secret rm {self.name}`) and set it again"
            )
        return unseal(self.record, self.key)[1]


@dataclass(frozen=True, slots=True)
class SealedSecrets:
    """The contents of a document: secrets by name, and grants by the names of secret and function."""

    key: MasterKey
    by_name: Mapping[str, SealedSecret]
    grants: Mapping[tuple[str, str], tuple[SealedSecret, Grant]]


def key_id_of(raw: bytes) -> str:
    """The id of the master key that a document is sealed under.

    Raises:
        SecretDamaged: it cannot be read.
    """
    return _read(raw).key_id


def opened(raw: bytes, ring: MasterKeys, source: str) -> SealedSecrets:
    """Open a document, and check everything in it.

    Args:
        raw: the document; empty: no secrets.
        ring: the available keys.
        source: where the keys are kept, for error texts.

    Raises:
        SecretsUnavailable: the key that it is sealed under is not available.
        SecretDamaged: the table was changed.
    """
    if not raw:
        return SealedSecrets(ring.current, {}, {})
    document = _read(raw)
    key = ring.find_for_secrets(document.key_id)
    if key is None:
        raise SecretsUnavailable(
            f"the pool's secrets are sealed under master key {document.key_id}, but {source} holds "
            f"{ring.current.secrets_id}: put the right key there; if it is lost, so are the values, and `taskworker "
            "secret rm --all` makes room for new ones"
        )
    tag = _tag(document.key_id, document.table, key)
    if not hmac.compare_digest(tag, document.tag) or len(document.table) != len(document.records):
        raise SecretDamaged(_DAMAGED)
    found = [_checked(entry, record, key) for entry, record in zip(document.table, document.records, strict=True)]
    return SealedSecrets(key, {one.name: one for one in found}, _grants(found))


def sealed(secrets: Iterable[SealedSecret], key: MasterKey) -> bytes:
    """The document of secrets whose records are all wrapped by ``key``; empty without secrets."""
    kept = sorted(secrets, key=lambda one: one.name)
    if not kept:
        return b""
    table = tuple(_Entry(one.name, one.version, one.serial) for one in kept)
    return _encode(
        _Document(_FORMAT, key.secrets_id, table, _tag(key.secrets_id, table, key), tuple(one.record for one in kept)),
    )


def rewrapped_all(found: SealedSecrets, new: MasterKey) -> bytes:
    """The document re-wrapped with another master key.

    Raises:
        SecretDamaged: a record cannot be opened; the text names it.
    """
    damaged = [one.name for one in found.by_name.values() if one.damaged]
    if damaged:
        raise SecretDamaged(
            f"the master key cannot be changed while there are damaged secrets ({', '.join(damaged)}): restore the "
            "catalog from a copy, or remove them with `taskworker secret rm NAME`"
        )
    return sealed(
        (
            SealedSecret(one.name, one.version, one.serial, rewrapped(one.record, found.key, new), new, one.terms)
            for one in found.by_name.values()
        ),
        new,
    )


def _read(raw: bytes) -> _Document:
    try:
        document = _documents.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise SecretDamaged(_DAMAGED) from None
    if document.format > _FORMAT:
        raise SecretsUnavailable(
            f"the pool's secrets have format {document.format}; this version reads format {_FORMAT}: upgrade"
        )
    if document.format != _FORMAT or _encode(document) != raw:
        raise SecretDamaged(_DAMAGED)
    return document


def _tag(key_id: str, table: tuple[_Entry, ...], key: MasterKey) -> bytes:
    return hmac.digest(key.secrets_table, _encode((_FORMAT, key_id, table)), "sha256")


def _checked(entry: _Entry, record: bytes, key: MasterKey) -> SealedSecret:
    terms: Terms | None = None
    try:
        terms = claimed_terms(record)
        unseal(record, key)
        damaged = (terms.name, terms.version, terms.serial) != (entry.name, entry.version, entry.serial)
    except SecretDamaged:
        damaged = True
    return SealedSecret(entry.name, entry.version, entry.serial, record, key, terms, damaged)


def _grants(found: Iterable[SealedSecret]) -> dict[tuple[str, str], tuple[SealedSecret, Grant]]:
    return {
        (one.name, grant.function): (one, grant) for one in found if one.terms is not None for grant in one.terms.grants
    }
