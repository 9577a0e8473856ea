"""Sealed versions: a record in which only what volumes need is readable, and a sealed manifest root.

Whoever has no key can still tell that an object is whole, who signed it, to which file it belongs and in which order
versions were committed. Everything else is encrypted: names, owners, notes, sizes, and which chunks the file has.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from storage.errors import FormatError, SealBroken
from storage.formats.attributes import Pairs
from storage.limits import FILE_SIZE_MAX
from storage.sealing.aead import SALT_BYTES, TAG_BYTES, decrypt, encrypt, message_key
from storage.sealing.user_keys import KEY_ID_BYTES, UserKey

SEALED_FORMAT = 3
SEALED_ATTRIBUTED_FORMAT = 5
SEALED_FORMATS = (SEALED_FORMAT, SEALED_ATTRIBUTED_FORMAT)
_BEGINNINGS = (b"\x9b\x03", b"\x9b\x05")
"""The first bytes of sealed records: an array of 11, and the format."""

_FIELDS = b"fields"
_ROOT = b"root"
_BOUND = b"TaskWorker version "

_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Sequence = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Shards = Annotated[int, msgspec.Meta(ge=1, le=256)]


class SealedRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What everybody can read of a sealed version. The fields that volumes read are where other versions have them.

    Attributes:
        format: 3; 5 if the version has attributes.
        file_id: 16 bytes.
        key_id: names the user's key.
        root_id: BLAKE3 of the sealed root.
        k: shards needed for a chunk.
        n: shards of a chunk.
        salt: random bytes from which the keys of fields and root are made.
        fields: :class:`SealedFields`, encrypted; of a version with attributes, :class:`AttributedFields`.
        sequence: as in other versions.
        committed: as in other versions.
        mac: as in other versions.
    """

    format: Annotated[int, msgspec.Meta(ge=SEALED_FORMAT, le=SEALED_ATTRIBUTED_FORMAT)]
    file_id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    key_id: Annotated[bytes, msgspec.Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
    root_id: _Id
    k: _Shards
    n: _Shards
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    fields: Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=40960)]
    sequence: _Sequence
    committed: _Sequence
    mac: _Id


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
_fields_decoders: dict[int, msgspec.msgpack.Decoder[SealedFields]] = {
    SEALED_FORMAT: msgspec.msgpack.Decoder(SealedFields),
    SEALED_ATTRIBUTED_FORMAT: msgspec.msgpack.Decoder(AttributedFields),
}


def is_sealed_record(raw: bytes) -> bool:
    """Whether the bytes of a version's record begin like a sealed one."""
    return raw[:2] in _BEGINNINGS


def decode_sealed_record(raw: bytes) -> SealedRecord:
    """Decode a sealed record, checking every bound and the canonical form.

    Raises:
        msgspec.DecodeError: it is malformed.
        FormatError: it is not in canonical form.
    """
    record = _decode_record(raw)
    if record.k > record.n:
        raise FormatError("version record contradicts itself (code)")
    if _encode(record) != raw:
        raise FormatError("version record is not in canonical form")
    return record


def seal_root(key: UserKey, salt: bytes, file_id: bytes, root_raw: bytes) -> bytes:
    """Encrypt a manifest root."""
    return encrypt(_key(key, salt, _ROOT), root_raw, _BOUND + _ROOT + file_id)


def seal_fields(key: UserKey, salt: bytes, fields: SealedFields, file_id: bytes, stored_root_id: bytes) -> bytes:
    """Encrypt the fields of a version; they are bound to its file and to its sealed root."""
    return encrypt(_key(key, salt, _FIELDS), _encode(fields), _BOUND + _FIELDS + file_id + stored_root_id)


def open_fields(key: UserKey, record: SealedRecord) -> SealedFields:
    """Inverse of :func:`seal_fields`.

    Raises:
        SealBroken: they were changed, or the key is another one.
    """
    bound = _BOUND + _FIELDS + record.file_id + record.root_id
    raw = decrypt(_key(key, record.salt, _FIELDS), record.fields, bound)
    try:
        return _fields_decoders[record.format].decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SealBroken(f"the encrypted fields of a version are malformed: {error}") from error


def open_root(key: UserKey, record: SealedRecord, sealed_root: bytes) -> bytes:
    """Inverse of :func:`seal_root`.

    Raises:
        SealBroken: it was changed, or the key is another one.
    """
    return decrypt(_key(key, record.salt, _ROOT), sealed_root, _BOUND + _ROOT + record.file_id)


def encode_sealed_record(record: SealedRecord) -> bytes:
    """Canonical bytes of a sealed record."""
    return _encode(record)


def _key(key: UserKey, salt: bytes, part: bytes) -> bytes:
    return message_key(key.versions, salt + part)
