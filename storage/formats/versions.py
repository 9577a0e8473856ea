"""Version records: one immutable state of a file each, chained by hash to the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from storage.erasure import ErasureProfile
from storage.errors import FormatError, InvalidArgument
from storage.formats.authenticity import MAC_BYTES, Authority
from storage.formats.manifest import RootNode, decode_root, encode_root, object_id, read_root
from storage.limits import FILE_SIZE_MAX

RECORD_FORMAT = 1  # without a MAC, as in stores from before MACs were introduced
SIGNED_FORMAT = 2
NO_MAC = bytes(MAC_BYTES)
FILE_ID_BYTES = 16

_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_FileId = Annotated[bytes, msgspec.Meta(min_length=FILE_ID_BYTES, max_length=FILE_ID_BYTES)]
_Format = Annotated[int, msgspec.Meta(ge=RECORD_FORMAT, le=SIGNED_FORMAT)]
_Mac = Annotated[bytes, msgspec.Meta(min_length=MAC_BYTES, max_length=MAC_BYTES)]
_Time = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Sequence = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class VersionRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A version, as a MessagePack array in this order; ``version_id`` is the BLAKE3 of these bytes.

    Attributes:
        format: 1; 2 in a :class:`SignedRecord`.
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


class SignedRecord(VersionRecord, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A version's record with a MAC, which distinguishes it from one that a volume made up.

    Attributes:
        committed: the sequence up to which the catalog had committed everything when this record was made. A catalog
            that has not reached it is older than this record.
        mac: MAC, with the store's secret, of the record's bytes before these 32.
    """

    committed: _Sequence
    mac: _Mac


class VersionObject(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The object stored under a version's id: its record, and the manifest root that the record names."""

    record: bytes
    root: bytes


class Tombstone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The end of a file's chain, kept so that a rebuild does not bring deleted files back."""

    format: _Format
    file_id: _FileId
    sequence: _Sequence


class SignedTombstone(Tombstone, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A tombstone with a MAC, like a :class:`SignedRecord`. It is written after the catalog has committed it."""

    mac: _Mac


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
        unchanged: in the result of a push or revise: there was nothing to store, as this was already the head.
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
_object_decoder = msgspec.msgpack.Decoder(VersionObject)
# By the first byte: how many elements the array has.
_record_decoders: dict[bytes, msgspec.msgpack.Decoder[VersionRecord]] = {
    b"\x9b": msgspec.msgpack.Decoder(VersionRecord),
    b"\x9d": msgspec.msgpack.Decoder(SignedRecord),
}
_tombstone_decoders: dict[bytes, msgspec.msgpack.Decoder[Tombstone]] = {
    b"\x93": msgspec.msgpack.Decoder(Tombstone),
    b"\x94": msgspec.msgpack.Decoder(SignedTombstone),
}


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version with the manifest root it names, as stored; ``raw`` is the whole object's bytes.

    ``unchanged``: it was already the head before the commit that returned it.
    """

    version_id: bytes
    record: VersionRecord
    root: RootNode
    raw: bytes
    unchanged: bool = False

    def public(self) -> Version:
        """The form that users see."""
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
    """Encode a record, and name it by its hash.

    Raises:
        InvalidArgument: the record could not be decoded again.
    """
    with _keepable():
        return _named(_encoder.encode(record), root, root_raw)


def seal_signed(unsigned: SignedRecord, root: RootNode, root_raw: bytes, authority: Authority) -> StoredVersion:
    """Like :func:`seal`, with the store's MAC in place of :data:`NO_MAC`."""
    with _keepable():
        body = _encoder.encode(unsigned)[:-MAC_BYTES]
        return _named(body + authority.sign(body), root, root_raw)


@contextmanager
def _keepable() -> Iterator[None]:
    try:
        yield
    except (TypeError, OverflowError, UnicodeEncodeError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"this cannot be stored in a version's record: {error}") from error


def _named(raw_record: bytes, root: RootNode, root_raw: bytes) -> StoredVersion:
    record = _decode_record(raw_record)  # an unreadable record must not get into a store; takes 2 µs
    return StoredVersion(object_id(raw_record), record, root, _encoder.encode(VersionObject(raw_record, root_raw)))


def read_version(raw: bytes, version_id: bytes) -> StoredVersion:
    """Read a version from bytes that were checked when they were stored in the catalog.

    Raises:
        FormatError: they are malformed, through older software or damage.
    """
    try:
        stored = _object_decoder.decode(raw)
        return StoredVersion(version_id, _decode_record(stored.record), read_root(stored.root), raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, FormatError) as error:
        raise FormatError(f"the record of version {version_id.hex()} cannot be read ({error})") from error


def _decode_record(raw: bytes) -> VersionRecord:
    decoder = _record_decoders.get(raw[:1])
    if decoder is None:
        raise FormatError("version record has a number of elements that no known format has; upgrade if it is newer")
    record = decoder.decode(raw)
    if (record.format == SIGNED_FORMAT) is not isinstance(record, SignedRecord):
        raise FormatError(f"version record of format {record.format} has the elements of another one")
    return record


def decode_version(raw: bytes, version_id: bytes | None = None) -> StoredVersion:
    """Inverse of :func:`seal` and :func:`seal_signed`; checks every bound, all hashes and the canonical form.

    It does not check who made it; see :func:`is_signed_version`.

    Raises:
        FormatError: it is malformed, or not the requested version.
    """
    try:
        stored = _object_decoder.decode(raw)
        record = _decode_record(stored.record)
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


def is_signed_version(stored: StoredVersion, authority: Authority) -> bool:
    """Whether the MAC shows that the store itself made this version."""
    if not isinstance(stored.record, SignedRecord):
        return False
    raw_record = _object_decoder.decode(stored.raw).record
    return authority.vouches(raw_record[:-MAC_BYTES], stored.record.mac)


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


def root_id(root: RootNode) -> tuple[bytes, bytes]:
    """(id, canonical bytes) of a root."""
    raw = encode_root(root)
    return object_id(raw), raw
