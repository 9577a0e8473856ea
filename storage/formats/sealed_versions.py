"""Sealed versions: a record in which only what volumes need is readable, and a sealed manifest root.

Whoever has no key can still tell that an object is whole, who signed it, to which file it belongs and in which order
versions were committed. Everything else is encrypted: names, owners, notes, sizes, and which chunks the file has.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from storage.errors import FormatError, SealBroken
from storage.formats.attributes import Pairs
from storage.limits import FILE_SIZE_MAX
from storage.sealing.aead import SALT_BYTES, TAG_BYTES, decrypt, encrypt, message_key
from storage.sealing.secret_trees import LEAF_MAX
from storage.sealing.user_keys import KEY_ID_BYTES, UserKey

SEALED_FORMAT = 3
SEALED_ATTRIBUTED_FORMAT = 5
SHREDDABLE_FORMAT = 6
SHREDDABLE_ATTRIBUTED_FORMAT = 7
SEALED_FORMATS = (SEALED_FORMAT, SEALED_ATTRIBUTED_FORMAT, SHREDDABLE_FORMAT, SHREDDABLE_ATTRIBUTED_FORMAT)
_BEGINNINGS = (b"\x9b\x03", b"\x9b\x05", b"\x9d\x06", b"\x9d\x07")
"""The first bytes of sealed records: an array of 11 or 13, and the format."""
_SHREDDABLE = b"\x9d"

_FIELDS = b"fields"
_ROOT = b"root"
_BOUND = b"TaskWorker version "

_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Sequence = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Shards = Annotated[int, msgspec.Meta(ge=1, le=256)]


class SecretName(NamedTuple):
    """Names the secret of a version, which is not in its record.

    Attributes:
        key_id: names the shredding key.
        leaf: which secret of that key.
    """

    key_id: bytes
    leaf: int


class VersionSecret(NamedTuple):
    """The secret of a version: its name, and 32 bytes."""

    name: SecretName
    raw: bytes


class _Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What everybody can read of a sealed version. The fields that volumes read are where other versions have them.

    Attributes:
        format: 3 or 6; 5 or 7 if the version has attributes.
        file_id: 16 bytes.
        key_id: names the user's key.
        root_id: BLAKE3 of the sealed root.
        k: shards needed for a chunk.
        n: shards of a chunk.
        salt: random bytes from which the keys of fields and root are made.
        fields: :class:`SealedFields`, encrypted; of a version with attributes, :class:`AttributedFields`.
        sequence: as in other versions.
        committed: as in other versions.
    """

    format: Annotated[int, msgspec.Meta(ge=SEALED_FORMAT, le=SHREDDABLE_ATTRIBUTED_FORMAT)]
    file_id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    key_id: Annotated[bytes, msgspec.Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
    root_id: _Id
    k: _Shards
    n: _Shards
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    fields: Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=40960)]
    sequence: _Sequence
    committed: _Sequence


class SealedRecord(_Sealed, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A sealed version that whoever has its user's key can open: one that an earlier release wrote.

    Attributes:
        mac: as in other versions.
    """

    mac: _Id


class ShreddableRecord(_Sealed, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A sealed version that also needs a secret of its own, which can be destroyed.

    Attributes:
        secret_key_id: names the shredding key that gives the secret.
        leaf: which secret of that key.
        mac: as in other versions.
    """

    secret_key_id: Annotated[bytes, msgspec.Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
    leaf: Annotated[int, msgspec.Meta(ge=0, le=LEAF_MAX)]
    mac: _Id


AnySealedRecord = SealedRecord | ShreddableRecord


class SealedFields(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The fields of a version that only its key shows."""

    parent: _Id | None
    root_id: _Id
    size: Annotated[int, msgspec.Meta(ge=0, le=FILE_SIZE_MAX)]
    user_id: str
    filename: str
    time_ms: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    sha256: _Id | None
    note: str


class AttributedFields(SealedFields, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The fields of a version with attributes."""

    attributes: Pairs


_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(SealedRecord).decode
_decode_shreddable = msgspec.msgpack.Decoder(ShreddableRecord).decode
_plain_fields: msgspec.msgpack.Decoder[SealedFields] = msgspec.msgpack.Decoder(SealedFields)
_attributed_fields: msgspec.msgpack.Decoder[SealedFields] = msgspec.msgpack.Decoder(AttributedFields)
_fields_decoders: dict[int, msgspec.msgpack.Decoder[SealedFields]] = {
    SEALED_FORMAT: _plain_fields,
    SEALED_ATTRIBUTED_FORMAT: _attributed_fields,
    SHREDDABLE_FORMAT: _plain_fields,
    SHREDDABLE_ATTRIBUTED_FORMAT: _attributed_fields,
}


def is_sealed_record(raw: bytes) -> bool:
    """Whether the bytes of a version's record begin like a sealed one."""
    return raw[:2] in _BEGINNINGS


def decode_sealed_record(raw: bytes) -> AnySealedRecord:
    """Decode a sealed record, checking every bound and the canonical form.

    Raises:
        msgspec.DecodeError: it is malformed.
        FormatError: it is not in canonical form.
    """
    record = _decode_shreddable(raw) if raw[:1] == _SHREDDABLE else _decode_record(raw)
    if (record.format >= SHREDDABLE_FORMAT) is not isinstance(
        record, ShreddableRecord
    ) or record.format not in SEALED_FORMATS:
        raise FormatError("version record has the elements of another format")
    if record.k > record.n:
        raise FormatError("version record contradicts itself (code)")
    if _encode(record) != raw:
        raise FormatError("version record is not in canonical form")
    return record


def secret_name_of(record: AnySealedRecord) -> SecretName | None:
    """Return the name of the secret that a version needs; None if it needs none."""
    return SecretName(record.secret_key_id, record.leaf) if isinstance(record, ShreddableRecord) else None


def seal_root(key: UserKey, unique: bytes, file_id: bytes, root_raw: bytes) -> bytes:
    """Encrypt a manifest root.

    Args:
        key: the owner's key.
        unique: the salt, followed by the version's secret if it has one.
        file_id: id of the file.
        root_raw: bytes of the root.
    """
    return encrypt(_key(key, unique, _ROOT), root_raw, _BOUND + _ROOT + file_id)


def seal_fields(key: UserKey, unique: bytes, fields: SealedFields, file_id: bytes, stored_root_id: bytes) -> bytes:
    """Encrypt the fields of a version; they are bound to its file and to its sealed root. See :func:`seal_root`."""
    return encrypt(_key(key, unique, _FIELDS), _encode(fields), _BOUND + _FIELDS + file_id + stored_root_id)


def open_fields(key: UserKey, record: AnySealedRecord, secret: bytes = b"") -> SealedFields:
    """Inverse of :func:`seal_fields`; ``secret`` is the version's, empty if it has none.

    Raises:
        SealBroken: they were changed, or the key is another one.
    """
    bound = _BOUND + _FIELDS + record.file_id + record.root_id
    raw = decrypt(_key(key, record.salt + secret, _FIELDS), record.fields, bound)
    try:
        return _fields_decoders[record.format].decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SealBroken(f"the encrypted fields of a version are malformed: {error}") from error


def open_root(key: UserKey, record: AnySealedRecord, sealed_root: bytes, secret: bytes = b"") -> bytes:
    """Inverse of :func:`seal_root`; ``secret`` is the version's, empty if it has none.

    Raises:
        SealBroken: it was changed, or the key is another one.
    """
    return decrypt(_key(key, record.salt + secret, _ROOT), sealed_root, _BOUND + _ROOT + record.file_id)


def encode_sealed_record(record: AnySealedRecord) -> bytes:
    """Canonical bytes of a sealed record."""
    return _encode(record)


def _key(key: UserKey, unique: bytes, part: bytes) -> bytes:
    return message_key(key.versions, unique + part)
