"""Version records: one immutable state of a file each, chained by hash to the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from storage.erasure import ErasureProfile
from storage.errors import FormatError, InvalidArgument, KeyRequired
from storage.formats.attributes import require_canonical
from storage.formats.authenticity import MAC_BYTES, Authority
from storage.formats.manifest import RootNode, decode_root, encode_root, object_id, read_root
from storage.formats.sealed_versions import (
    SHREDDABLE_ATTRIBUTED_FORMAT,
    SHREDDABLE_FORMAT,
    AnySealedRecord,
    AttributedFields,
    SealedFields,
    SecretName,
    ShreddableRecord,
    VersionSecret,
    decode_sealed_record,
    encode_sealed_record,
    is_sealed_record,
    open_fields,
    open_root,
    seal_fields,
    seal_root,
    secret_name_of,
)
from storage.formats.version_records import (
    NO_MAC,
    AttributedRecord,
    Signed,
    SignedRecord,
    VersionObject,
    VersionRecord,
    attributes_of,
    decode_record,
)
from storage.sealing.aead import SALT_BYTES
from storage.sealing.user_keys import KeyFinder, UserKey, UserKeys


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
        attributes: what programs keep with the version, by name. Do not change it.
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
    attributes: Mapping[str, bytes] = field(default_factory=dict, hash=False)

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        return -(-self.size // self.chunk_size)


_encoder = msgspec.msgpack.Encoder()
_object_decoder = msgspec.msgpack.Decoder(VersionObject)


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
            attributes=dict(attributes_of(record)),
        )


class _Keepable:
    """Where a record is made that may not be encodable."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Name what cannot be stored."""
        if isinstance(error, (TypeError, OverflowError, UnicodeEncodeError, msgspec.MsgspecError)):
            raise InvalidArgument(f"this cannot be stored in a version's record: {error}") from error


_KEEPABLE = _Keepable()


def seal(record: VersionRecord, root: RootNode, root_raw: bytes) -> StoredVersion:
    """Encode a record, and name it by its hash.

    Raises:
        InvalidArgument: the record could not be decoded again.
    """
    with _KEEPABLE:
        return _named(_encoder.encode(record), root, root_raw)


def seal_signed(unsigned: Signed, root: RootNode, root_raw: bytes, authority: Authority) -> StoredVersion:
    """Like :func:`seal`, with the store's MAC in place of :data:`NO_MAC`."""
    with _KEEPABLE:
        body = _encoder.encode(unsigned)[:-MAC_BYTES]
        return _named(body + authority.sign(body), root, root_raw)


def seal_encrypted(
    unsigned: Signed,
    root: RootNode,
    root_raw: bytes,
    authority: Authority,
    key: UserKey,
    secret: VersionSecret,
    token_bytes: Callable[[int], bytes],
) -> StoredVersion:
    """Like :func:`seal_signed`, with everything encrypted that volumes need not know.

    Args:
        unsigned: the record; its format does not matter.
        root: the manifest root.
        root_raw: its bytes.
        authority: signs the record.
        key: the owner's key.
        secret: the version's secret.
        token_bytes: source of random bytes.
    """
    with _KEEPABLE:
        salt = token_bytes(SALT_BYTES)
        unique = salt + secret.raw
        sealed_root = seal_root(key, unique, unsigned.file_id, root_raw)
        stored_root_id = object_id(sealed_root)
        attributes = attributes_of(unsigned)
        format_ = SHREDDABLE_ATTRIBUTED_FORMAT if attributes else SHREDDABLE_FORMAT
        fields = (
            unsigned.parent,
            unsigned.root_id,
            unsigned.size,
            unsigned.user_id,
            unsigned.filename,
            unsigned.time_ms,
            unsigned.sha256,
            unsigned.note,
        )
        record = ShreddableRecord(
            format_,
            unsigned.file_id,
            key.key_id,
            stored_root_id,
            root.k,
            root.n,
            salt,
            seal_fields(
                key,
                unique,
                AttributedFields(*fields, attributes) if attributes else SealedFields(*fields),
                unsigned.file_id,
                stored_root_id,
            ),
            unsigned.sequence,
            unsigned.committed,
            *secret.name,
            NO_MAC,
        )
        body = encode_sealed_record(record)[:-MAC_BYTES]
        raw_record = body + authority.sign(body)
        shown = msgspec.structs.replace(unsigned, format=format_, mac=raw_record[-MAC_BYTES:])
        raw = _encoder.encode(VersionObject(raw_record, sealed_root))
        decode_sealed_record(raw_record)  # an unreadable record must not get into a store
        return StoredVersion(object_id(raw_record), shown, root, raw, keys=UserKeys(key.user_id, key))


def _named(raw_record: bytes, root: RootNode, root_raw: bytes) -> StoredVersion:
    record = decode_record(raw_record)  # an unreadable record must not get into a store; takes 2 µs
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
        return StoredVersion(version_id, decode_record(stored.record), _plain(read_root(stored.root)), raw)
    except KeyRequired:
        raise
    except (msgspec.MsgspecError, UnicodeDecodeError, FormatError) as error:
        raise FormatError(f"the record of version {version_id.hex()} cannot be read ({error})") from error


def _plain(root: RootNode) -> RootNode:
    if root.is_sealed:
        raise FormatError("the manifest of a version that is not sealed is")
    return root


def _opened(
    record: AnySealedRecord, sealed_root: bytes, version_id: bytes, raw: bytes, keys: KeyFinder | None
) -> StoredVersion:
    if keys is None:
        raise KeyRequired(f"version {version_id.hex()} is encrypted, and no key was given: give the store's key")
    key = keys.find(record.key_id)
    name = secret_name_of(record)
    secret = keys.secret_of(*name) if name is not None else b""
    fields = open_fields(key, record, secret)
    if fields.user_id != key.user_id:
        raise FormatError("version record is encrypted with another user's key")
    root = read_root(open_root(key, record, sealed_root, secret))
    shown = (
        record.format,
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
    )
    signed: Signed
    if isinstance(fields, AttributedFields):
        require_canonical(fields.attributes)
        signed = AttributedRecord(*shown, fields.attributes, record.committed, record.mac)
    else:
        signed = SignedRecord(*shown, record.committed, record.mac)
    if (root.size, root.k, root.n) != (fields.size, record.k, record.n):
        raise FormatError("version record does not match its manifest root")
    return StoredVersion(version_id, signed, root, raw, keys=keys.keys_of(key.user_id))


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
        secret: names the secret that opens it as well; None if it needs none.
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
    secret: SecretName | None = None


def outline(raw: bytes, version_id: bytes) -> Outline:
    """Read what needs no key, from bytes that were checked when they were stored in the catalog.

    Raises:
        FormatError: they are malformed.
    """
    try:
        stored = _object_decoder.decode(raw)
        if is_sealed_record(stored.record):
            return _sealed_outline(stored.record, version_id)
        return _plain_outline(decode_record(stored.record), stored.record, read_root(stored.root), version_id)
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
        secret_name_of(sealed),
    )


def _plain_outline(record: VersionRecord, raw_record: bytes, root: RootNode, version_id: bytes) -> Outline:
    committed, mac = (record.committed, record.mac) if isinstance(record, Signed) else (0, b"")
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
    record = decode_record(stored.record)
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
    if not isinstance(stored.record, Signed):
        return False
    raw_record = _object_decoder.decode(stored.raw).record
    return authority.vouches(raw_record[:-MAC_BYTES], stored.record.mac)


def root_id(root: RootNode) -> tuple[bytes, bytes]:
    """(id, canonical bytes) of a root."""
    raw = encode_root(root)
    return object_id(raw), raw
