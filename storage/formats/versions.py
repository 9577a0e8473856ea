"""Version records: one immutable state of a file each, chained by hash to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from storage.erasure import ErasureProfile
from storage.errors import FormatError, InvalidArgument, KeyRequired
from storage.formats.authenticity import MAC_BYTES, Authority
from storage.formats.manifest import RootNode, decode_root, encode_root, object_id, read_root
from storage.formats.sealed_versions import (
    SEALED_FORMAT,
    SealedFields,
    SealedRecord,
    decode_sealed_record,
    encode_sealed_record,
    is_sealed_record,
    open_fields,
    open_root,
    seal_fields,
    seal_root,
)
from storage.limits import FILE_SIZE_MAX
from storage.sealing.aead import SALT_BYTES
from storage.sealing.user_keys import KeyFinder, UserKey, UserKeys

RECORD_FORMAT = 1  # without a MAC, as in stores from before MACs were introduced
SIGNED_FORMAT = 2
NO_MAC = bytes(MAC_BYTES)
FILE_ID_BYTES = 16

_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
FileId = Annotated[bytes, msgspec.Meta(min_length=FILE_ID_BYTES, max_length=FILE_ID_BYTES)]
FormatNumber = Annotated[int, msgspec.Meta(ge=RECORD_FORMAT, le=SIGNED_FORMAT)]
Mac = Annotated[bytes, msgspec.Meta(min_length=MAC_BYTES, max_length=MAC_BYTES)]
_Time = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Sequence = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


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

    format: FormatNumber
    file_id: FileId
    parent: _Id | None
    root_id: _Id
    size: Annotated[int, msgspec.Meta(ge=0, le=FILE_SIZE_MAX)]
    user_id: str
    filename: str
    time_ms: _Time
    sequence: Sequence
    sha256: _Id | None
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


class VersionObject(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The object stored under a version's id: its record, and the manifest root that the record names."""

    record: bytes
    root: bytes


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


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version with the manifest root it names, as stored; ``raw`` is the whole object's bytes.

    ``unchanged``: it was already the head before the commit that returned it. ``keys``: the owner's keys, which open
    the nodes and chunks of a sealed version; None if it is not sealed.
    """

    version_id: bytes
    record: VersionRecord
    root: RootNode
    raw: bytes
    unchanged: bool = False
    keys: UserKeys | None = field(default=None, compare=False, repr=False)

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


def seal_encrypted(
    unsigned: SignedRecord,
    root: RootNode,
    root_raw: bytes,
    authority: Authority,
    key: UserKey,
    token_bytes: Callable[[int], bytes],
) -> StoredVersion:
    """Like :func:`seal_signed`, with everything encrypted that volumes need not know.

    Args:
        unsigned: the record; its format does not matter.
        root: the manifest root.
        root_raw: its bytes.
        authority: signs the record.
        key: the owner's key.
        token_bytes: source of random bytes.
    """
    with _keepable():
        salt = token_bytes(SALT_BYTES)
        sealed_root = seal_root(key, salt, unsigned.file_id, root_raw)
        stored_root_id = object_id(sealed_root)
        fields = SealedFields(
            unsigned.parent,
            unsigned.root_id,
            unsigned.size,
            unsigned.user_id,
            unsigned.filename,
            unsigned.time_ms,
            unsigned.sha256,
            unsigned.note,
        )
        record = SealedRecord(
            SEALED_FORMAT,
            unsigned.file_id,
            key.key_id,
            stored_root_id,
            root.k,
            root.n,
            salt,
            seal_fields(key, salt, fields, unsigned.file_id, stored_root_id),
            unsigned.sequence,
            unsigned.committed,
            NO_MAC,
        )
        body = encode_sealed_record(record)[:-MAC_BYTES]
        raw_record = body + authority.sign(body)
        shown = msgspec.structs.replace(unsigned, format=SEALED_FORMAT, mac=raw_record[-MAC_BYTES:])
        raw = _encoder.encode(VersionObject(raw_record, sealed_root))
        decode_sealed_record(raw_record)  # an unreadable record must not get into a store
        return StoredVersion(object_id(raw_record), shown, root, raw, keys=UserKeys(key.user_id, key))


@contextmanager
def _keepable() -> Iterator[None]:
    try:
        yield
    except (TypeError, OverflowError, UnicodeEncodeError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"this cannot be stored in a version's record: {error}") from error


def _named(raw_record: bytes, root: RootNode, root_raw: bytes) -> StoredVersion:
    record = _decode_record(raw_record)  # an unreadable record must not get into a store; takes 2 µs
    return StoredVersion(object_id(raw_record), record, root, _encoder.encode(VersionObject(raw_record, root_raw)))


def read_version(raw: bytes, version_id: bytes, keys: KeyFinder | None = None) -> StoredVersion:
    """Read a version from bytes that were checked when they were stored in the catalog.

    Args:
        raw: bytes of the version object.
        version_id: id of the version.
        keys: finds the keys of sealed versions.

    Raises:
        KeyRequired: it is sealed, and its key is not here.
        FormatError: they are malformed, through older software or damage.
    """
    try:
        stored = _object_decoder.decode(raw)
        if is_sealed_record(stored.record):
            return _opened(decode_sealed_record(stored.record), stored.root, version_id, raw, keys)
        return StoredVersion(version_id, _decode_record(stored.record), _plain(read_root(stored.root)), raw)
    except KeyRequired:
        raise
    except (msgspec.MsgspecError, UnicodeDecodeError, FormatError) as error:
        raise FormatError(f"the record of version {version_id.hex()} cannot be read ({error})") from error


def _plain(root: RootNode) -> RootNode:
    if root.is_sealed:
        raise FormatError("the manifest of a version that is not sealed is")
    return root


def _opened(
    record: SealedRecord, sealed_root: bytes, version_id: bytes, raw: bytes, keys: KeyFinder | None
) -> StoredVersion:
    if keys is None:
        raise KeyRequired(f"version {version_id.hex()} is encrypted, and no key was given: give the store's key")
    key = keys.find(record.key_id)
    fields = open_fields(key, record)
    if fields.user_id != key.user_id:
        raise FormatError("version record is encrypted with another user's key")
    root = read_root(open_root(key, record, sealed_root))
    shown = SignedRecord(
        SEALED_FORMAT,
        record.file_id,
        fields.parent,
        fields.root_id,
        fields.size,
        fields.user_id,
        fields.filename,
        fields.time_ms,
        record.sequence,
        fields.sha256,
        fields.note,
        record.committed,
        record.mac,
    )
    if (root.size, root.k, root.n) != (fields.size, record.k, record.n):
        raise FormatError("version record does not match its manifest root")
    return StoredVersion(version_id, shown, root, raw, keys=keys.keys_of(key.user_id))


@dataclass(frozen=True, slots=True)
class Outline:
    """What can be known of a version without any key.

    Attributes:
        version_id: its id.
        file_id: id of its file.
        format: format of its record.
        sequence: the store's order of commits.
        committed: see :class:`SignedRecord`; 0 if it has no MAC.
        k: shards needed for a chunk.
        n: shards of a chunk.
        key_id: names the key that opens it; empty if it is not sealed.
        signed: the bytes that its MAC is of.
        mac: its MAC; empty if it has none.
        record: the whole record; None if it is sealed.
    """

    version_id: bytes
    file_id: bytes
    format: int
    sequence: int
    committed: int
    k: int
    n: int
    key_id: bytes
    signed: bytes
    mac: bytes
    record: VersionRecord | None


def outline(raw: bytes, version_id: bytes) -> Outline:
    """Read what needs no key, from bytes that were checked when they were stored in the catalog.

    Raises:
        FormatError: they are malformed.
    """
    try:
        stored = _object_decoder.decode(raw)
        if is_sealed_record(stored.record):
            return _sealed_outline(stored.record, version_id)
        return _plain_outline(_decode_record(stored.record), stored.record, read_root(stored.root), version_id)
    except (msgspec.MsgspecError, UnicodeDecodeError, FormatError) as error:
        raise FormatError(f"the record of version {version_id.hex()} cannot be read ({error})") from error


def _sealed_outline(raw_record: bytes, version_id: bytes) -> Outline:
    sealed = decode_sealed_record(raw_record)
    return Outline(
        version_id,
        sealed.file_id,
        sealed.format,
        sealed.sequence,
        sealed.committed,
        sealed.k,
        sealed.n,
        sealed.key_id,
        raw_record[:-MAC_BYTES],
        sealed.mac,
        None,
    )


def _plain_outline(record: VersionRecord, raw_record: bytes, root: RootNode, version_id: bytes) -> Outline:
    committed, mac = (record.committed, record.mac) if isinstance(record, SignedRecord) else (0, b"")
    return Outline(
        version_id,
        record.file_id,
        record.format,
        record.sequence,
        committed,
        root.k,
        root.n,
        b"",
        raw_record[:-MAC_BYTES],
        mac,
        record,
    )


def _decode_record(raw: bytes) -> VersionRecord:
    decoder = _record_decoders.get(raw[:1])
    if decoder is None:
        raise FormatError("version record has a number of elements that no known format has; upgrade if it is newer")
    record = decoder.decode(raw)
    if (record.format == SIGNED_FORMAT) is not isinstance(record, SignedRecord):
        raise FormatError(f"version record of format {record.format} has the elements of another one")
    return record


def checked_outline(raw: bytes, version_id: bytes | None = None) -> Outline:
    """Like :func:`outline`; checks all that can be checked without a key: bounds, hashes and the canonical form.

    It does not check who made the version; see :func:`is_signed`.

    Raises:
        FormatError: it is malformed, or not the requested version.
    """
    try:
        stored = _object_decoder.decode(raw)
        if not is_sealed_record(stored.record):
            plain = _decoded(stored, raw, version_id)
            return _plain_outline(plain.record, stored.record, plain.root, plain.version_id)
        identifier = _matching_id(stored, version_id)
        found = _sealed_outline(stored.record, identifier)
        root_id_ = decode_sealed_record(stored.record).root_id
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"version record is malformed: {error}") from error
    if object_id(stored.root) != root_id_:
        raise FormatError("version record does not match its manifest root")
    if _encoder.encode(stored) != raw:
        raise FormatError("version record is not in canonical form")
    return found


def decode_version(raw: bytes, version_id: bytes | None = None, keys: KeyFinder | None = None) -> StoredVersion:
    """Inverse of the functions that seal; checks every bound, all hashes and the canonical form.

    It does not check who made it; see :func:`is_signed_version`.

    Raises:
        KeyRequired: it is sealed, and its key is not here.
        FormatError: it is malformed, or not the requested version.
    """
    try:
        stored = _object_decoder.decode(raw)
        if not is_sealed_record(stored.record):
            return _decoded(stored, raw, version_id)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"version record is malformed: {error}") from error
    found = read_version(raw, checked_outline(raw, version_id).version_id, keys)
    if object_id(encode_root(found.root)) != found.record.root_id:
        raise FormatError("version record does not match its manifest root")
    return found


def _matching_id(stored: VersionObject, version_id: bytes | None) -> bytes:
    identifier = object_id(stored.record)
    if version_id is not None and identifier != version_id:
        raise FormatError("version record does not match its id")
    return identifier


def _decoded(stored: VersionObject, raw: bytes, version_id: bytes | None) -> StoredVersion:
    record = _decode_record(stored.record)
    identifier = _matching_id(stored, version_id)
    root = _plain(decode_root(stored.root))
    if object_id(stored.root) != record.root_id or root.size != record.size:
        raise FormatError("version record does not match its manifest root")
    if _encoder.encode(record) != stored.record or _encoder.encode(stored) != raw:
        raise FormatError("version record is not in canonical form")
    return StoredVersion(identifier, record, root, raw)


def is_signed(found: Outline, authority: Authority) -> bool:
    """Whether the MAC shows that the store itself made this version."""
    return bool(found.mac) and authority.vouches(found.signed, found.mac)


def is_signed_version(stored: StoredVersion, authority: Authority) -> bool:
    """Whether the MAC shows that the store itself made this version."""
    if not isinstance(stored.record, SignedRecord):
        return False
    raw_record = _object_decoder.decode(stored.raw).record
    return authority.vouches(raw_record[:-MAC_BYTES], stored.record.mac)


def root_id(root: RootNode) -> tuple[bytes, bytes]:
    """(id, canonical bytes) of a root."""
    raw = encode_root(root)
    return object_id(raw), raw
