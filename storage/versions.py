"""Version records: one immutable state of a file each, chained by hash to the first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from storage.erasure import ErasureProfile
from storage.errors import FormatError, InvalidArgument
from storage.limits import FILE_SIZE_MAX
from storage.manifest import RootNode, decode_root, encode_root, object_id, read_root

RECORD_FORMAT = 1
FILE_ID_BYTES = 16

_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_FileId = Annotated[bytes, msgspec.Meta(min_length=FILE_ID_BYTES, max_length=FILE_ID_BYTES)]
_Format = Annotated[int, msgspec.Meta(ge=RECORD_FORMAT, le=RECORD_FORMAT)]
_Time = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Sequence = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class VersionRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A version, as a MessagePack array in this order; ``version_id`` is the BLAKE3 of these bytes.

    Attributes:
        format: 1.
        file_id: 16 bytes.
        parent: version id this one follows, None for the first.
        root_id: BLAKE3 of the manifest root's bytes.
        size: bytes of content.
        user_id: the owner.
        filename: the file's name.
        time_ms: the author's clock; never used for ordering.
        sequence: the store's commit order, growing, microseconds of its clock where that grows.
        sha256: SHA-256 of the content if the author gave it.
        note: free text.
    """

    format: _Format
    file_id: _FileId
    parent: _Id | None
    root_id: _Id
    size: Annotated[int, msgspec.Meta(ge=0, le=FILE_SIZE_MAX)]
    user_id: str
    filename: str
    time_ms: _Time
    sequence: _Sequence
    sha256: _Id | None
    note: str


class VersionObject(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is stored under a version's id: its record and, beside it, the manifest root it names."""

    record: bytes
    root: bytes


class Tombstone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The end of a file's chain, kept so that a rebuild does not bring deleted files back."""

    format: _Format
    file_id: _FileId
    sequence: _Sequence


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable state of a file.

    Attributes:
        file_id: opaque id of the file (32 hex digits).
        version_id: hex id of this version; verifiable, see docs/format.md.
        parent_id: hex id of the version before, None for the first.
        user_id: the owner.
        filename: the file's name.
        size: bytes.
        chunk_size: bytes of each chunk but the last.
        profile: erasure profile.
        time_ms: the author's clock, ms since the epoch.
        sequence: the store's commit order.
        sha256: hex SHA-256 of the content, if the author gave it.
        note: free text.
        unchanged: in what a push or revise returns, that there was nothing to store: this was the head already.
    """

    file_id: str
    version_id: str
    parent_id: str | None
    user_id: str
    filename: str
    size: int
    chunk_size: int
    profile: ErasureProfile
    time_ms: int
    sequence: int
    sha256: str | None
    note: str
    unchanged: bool = field(default=False, compare=False)

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        return -(-self.size // self.chunk_size)


_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(VersionRecord)
_object_decoder = msgspec.msgpack.Decoder(VersionObject)
_tombstone_decoder = msgspec.msgpack.Decoder(Tombstone)


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version with the manifest root it names, as stored; ``raw`` is the whole object's bytes.

    ``unchanged``: it was the head before the commit that returned it.
    """

    version_id: bytes
    record: VersionRecord
    root: RootNode
    raw: bytes
    unchanged: bool = False

    def public(self) -> Version:
        """The form users see."""
        record, root = self.record, self.root
        return Version(
            file_id=record.file_id.hex(),
            version_id=self.version_id.hex(),
            parent_id=record.parent.hex() if record.parent else None,
            user_id=record.user_id,
            filename=record.filename,
            size=record.size,
            chunk_size=root.chunk_size,
            profile=root.profile,
            time_ms=record.time_ms,
            sequence=record.sequence,
            sha256=record.sha256.hex() if record.sha256 else None,
            note=record.note,
            unchanged=self.unchanged,
        )


def seal(record: VersionRecord, root: RootNode, root_raw: bytes) -> StoredVersion:
    """Encode a record and name it by its hash.

    Raises:
        InvalidArgument: the record could not be read again.
    """
    try:
        raw_record = _encoder.encode(record)
        _record_decoder.decode(raw_record)  # one that cannot be read must not get into a store; this takes 2 µs
    except (TypeError, OverflowError, UnicodeEncodeError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"this cannot be kept in a version's record: {error}") from error
    raw = _encoder.encode(VersionObject(raw_record, root_raw))
    return StoredVersion(object_id(raw_record), record, root, raw)


def read_version(raw: bytes, version_id: bytes) -> StoredVersion:
    """The version in bytes that were checked when they were stored (the catalog's).

    Raises:
        FormatError: they are malformed, as older software or damage may have left them.
    """
    try:
        stored = _object_decoder.decode(raw)
        return StoredVersion(version_id, _record_decoder.decode(stored.record), read_root(stored.root), raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, FormatError) as error:
        raise FormatError(f"the record of version {version_id.hex()} cannot be read ({error})") from error


def decode_version(raw: bytes, version_id: bytes | None = None) -> StoredVersion:
    """Inverse of :func:`seal`, every bound, hash and the canonical form checked.

    Raises:
        FormatError: malformed, or not the version asked for.
    """
    try:
        stored = _object_decoder.decode(raw)
        record = _record_decoder.decode(stored.record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"version record is malformed: {error}") from error
    identifier = object_id(stored.record)
    if version_id is not None and identifier != version_id:
        raise FormatError("version record does not match its id")
    root = decode_root(stored.root)
    if object_id(stored.root) != record.root_id or root.size != record.size:
        raise FormatError("version record does not match its manifest root")
    if _encoder.encode(record) != stored.record or _encoder.encode(stored) != raw:
        raise FormatError("version record is not in canonical form")
    return StoredVersion(identifier, record, root, raw)


def encode_tombstone(tombstone: Tombstone) -> bytes:
    """Canonical bytes of a tombstone."""
    return _encoder.encode(tombstone)


def decode_tombstone(raw: bytes) -> Tombstone:
    """Inverse of :func:`encode_tombstone`.

    Raises:
        FormatError: malformed.
    """
    try:
        return _tombstone_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"tombstone is malformed: {error}") from error


def root_id(root: RootNode) -> tuple[bytes, bytes]:
    """(id, canonical bytes) of a root."""
    raw = encode_root(root)
    return object_id(raw), raw
