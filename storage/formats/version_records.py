"""The records of versions that are not sealed, and what is stored of every version."""

from __future__ import annotations

from typing import Annotated

import msgspec

from storage.errors import FormatError
from storage.formats.attributes import Pairs, require_canonical
from storage.formats.authenticity import MAC_BYTES
from storage.limits import FILE_SIZE_MAX

RECORD_FORMAT = 1  # without a MAC, as in stores from before MACs were introduced
SIGNED_FORMAT = 2
ATTRIBUTED_FORMAT = 4  # signed, with attributes; 3 and 5 are those of sealed versions
NO_MAC = bytes(MAC_BYTES)
FILE_ID_BYTES = 16

ObjectId = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
FileId = Annotated[bytes, msgspec.Meta(min_length=FILE_ID_BYTES, max_length=FILE_ID_BYTES)]
FormatNumber = Annotated[int, msgspec.Meta(ge=RECORD_FORMAT, le=SIGNED_FORMAT)]
Mac = Annotated[bytes, msgspec.Meta(min_length=MAC_BYTES, max_length=MAC_BYTES)]
_Time = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Sequence = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class VersionRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A version, as a MessagePack array in this order; ``version_id`` is the BLAKE3 of these bytes.

    Attributes:
        format: 1; 2 in a :class:`SignedRecord`, 4 in an :class:`AttributedRecord`.
        file_id: 16 bytes.
        parent: version id this one follows, None for the first.
        root_id: BLAKE3 of the manifest root's bytes.
        size: bytes of content.
        user_id: the owner.
        filename: the file's name.
        time_ms: the author's clock; never used for ordering.
        sequence: the store's commit order, always growing; microseconds of its clock unless that goes back.
        sha256: SHA-256 of the content if the author gave it.
        note: free text.
    """

    format: Annotated[int, msgspec.Meta(ge=RECORD_FORMAT, le=ATTRIBUTED_FORMAT)]
    file_id: FileId
    parent: ObjectId | None
    root_id: ObjectId
    size: Annotated[int, msgspec.Meta(ge=0, le=FILE_SIZE_MAX)]
    user_id: str
    filename: str
    time_ms: _Time
    sequence: Sequence
    sha256: ObjectId | None
    note: str


class SignedRecord(VersionRecord, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A version's record with a MAC, which distinguishes it from one that a volume made up.

    The record of a sealed version is made from its encrypted fields, and has format 3.

    Attributes:
        committed: the sequence up to which the catalog had committed everything when this record was made. A catalog
            that has not reached it is older than this record.
        mac: MAC, with the store's secret, of the record's bytes before these 32.
    """

    committed: Sequence
    mac: Mac


class AttributedRecord(VersionRecord, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A signed record of a version with attributes; of a sealed one, it has format 5.

    Attributes:
        attributes: one or more, in the order of their names.
        committed: as in a :class:`SignedRecord`.
        mac: likewise.
    """

    attributes: Pairs
    committed: Sequence
    mac: Mac


Signed = SignedRecord | AttributedRecord


def attributes_of(record: VersionRecord) -> Pairs:
    """The attributes in a record."""
    return record.attributes if isinstance(record, AttributedRecord) else ()


class VersionObject(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The object stored under a version's id: its record, and the manifest root that the record names."""

    record: bytes
    root: bytes


# By the first byte: how many elements the array has.
_record_decoders: dict[bytes, msgspec.msgpack.Decoder[VersionRecord]] = {
    b"\x9b": msgspec.msgpack.Decoder(VersionRecord),
    b"\x9d": msgspec.msgpack.Decoder(SignedRecord),
    b"\x9e": msgspec.msgpack.Decoder(AttributedRecord),
}
_FORMATS_OF: dict[type[VersionRecord], int] = {
    VersionRecord: RECORD_FORMAT,
    SignedRecord: SIGNED_FORMAT,
    AttributedRecord: ATTRIBUTED_FORMAT,
}


def decode_record(raw: bytes) -> VersionRecord:
    """Decode a record that is not sealed, checking every bound.

    Raises:
        msgspec.DecodeError: it is malformed.
        FormatError: it is of a newer format, or contradicts itself.
    """
    decoder = _record_decoders.get(raw[:1])
    if decoder is None:
        raise FormatError("version record has a number of elements that no known format has; upgrade if it is newer")
    record = decoder.decode(raw)
    if record.format != _FORMATS_OF[type(record)]:
        raise FormatError(f"version record of format {record.format} has the elements of another one")
    if isinstance(record, AttributedRecord):
        require_canonical(record.attributes)
    return record
