"""Encoding of a catalog's records: their keys in the tables, and their bytes."""

from __future__ import annotations

import logging
import struct
from typing import TypeVar

import msgspec

from storage.catalog.port import (
    LEASES_BEFORE,
    USER_KEY_BYTES,
    Counters,
    DamagedSettings,
    FileEntry,
    Holding,
    StoreSettings,
    StoreTime,
    UploadRecord,
    Usage,
)
from storage.errors import FormatError
from storage.keys import SHARD_HASH_BYTES, stripe_of

T = TypeVar("T")

log = logging.getLogger(__name__)

SETTINGS = b"settings"
COUNTERS = b"counters"
PROFILES = b"profiles"
TIME = b"time"
_USAGE = b"usage:"
USAGE_RANGE = (_USAGE, b"usage;")
NO_UPLOAD = b""  # value of a claim for a version
_DOCUMENT = b"document:"
_LEASE_BEFORE = struct.Struct("<q")  # value of a claim in the former format: a time, or 0
_CLAIM_FORMAT = b"\x01"
_NAMED_CLAIM_FORMAT = b"\x02"  # with the name of a sealed chunk
_UNVERIFIED_CLAIM_FORMAT = b"\x03"  # likewise, and with the hashes of all shards
_NAME_BYTES = 32
_NO_NAME = bytes(_NAME_BYTES)
_NUMBER_BYTES = 8

encode = msgspec.msgpack.Encoder().encode
encode_settings = msgspec.json.Encoder().encode
_settings = msgspec.json.Decoder(StoreSettings)
_entries = msgspec.msgpack.Decoder(FileEntry)
_counters = msgspec.msgpack.Decoder(Counters)
_uploads = msgspec.msgpack.Decoder(UploadRecord)
_usages = msgspec.msgpack.Decoder(Usage)
_times = msgspec.msgpack.Decoder(StoreTime)


def document_key(name: str) -> bytes:
    """Return the key of a document."""
    return _DOCUMENT + name.encode()


def usage_key(user: bytes) -> bytes:
    """Return the key of what a user's files take."""
    return _USAGE + user


def decode_usage(raw: bytes | None) -> Usage:
    """Decode what a user's files take; nothing, if there is no record, or none that can be read."""
    try:
        return Usage() if raw is None else _usages.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("what a user's files take cannot be read, and counts as nothing: %s", error)
        return Usage()


def number_key(number: int) -> bytes:
    """Return the key of an upload."""
    return number.to_bytes(_NUMBER_BYTES, "big")


def decode_settings(raw: bytes) -> StoreSettings:
    """Decode settings.

    Raises:
        DamagedSettings: they cannot be read.
    """
    try:
        return _settings.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedSettings(
            f"the catalog's settings are damaged ({error}); move the catalog away and rebuild"
        ) from error


def decode_counters(raw: bytes) -> Counters:
    """Decode totals.

    Raises:
        FormatError: they cannot be read.
    """
    return _decoded(_counters, raw, "totals")


def decode_time(raw: bytes) -> StoreTime:
    """Decode the store's time.

    Raises:
        FormatError: it cannot be read.
    """
    return _decoded(_times, raw, "record of time")


def _decoded(decoder: msgspec.msgpack.Decoder[T], raw: bytes, what: str) -> T:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(
            f"the catalog's {what} cannot be read ({error}); close the store and open it again"
        ) from error


def decode_upload(raw: bytes) -> UploadRecord:
    """Decode an upload. If it cannot be read, it counts as under way."""
    try:
        return _uploads.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("the record of an upload cannot be read, so that it counts as one that goes on: %s", error)
        return UploadRecord()


def decode_entry(raw: bytes) -> FileEntry:
    """Decode a file's entry.

    Raises:
        FormatError: it cannot be read.
    """
    try:
        return _entries.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"the catalog's entry of a file cannot be read ({error})") from error


def entry_or_problem(raw: bytes) -> tuple[FileEntry | None, str]:
    """Decode a file's entry; return it, or None and why it cannot be read."""
    try:
        return decode_entry(raw), ""
    except FormatError as error:
        return None, str(error)


def holding_of(key: bytes, value: bytes) -> Holding:
    """Decode a claim from its key and value."""
    stripe, user = stripe_of(key), key[-USER_KEY_BYTES:]
    try:
        uploads, name, hashes = _claimants(value)
        return Holding(stripe, user, uploads, name=name, hashes=hashes)
    except FormatError as error:
        return Holding(stripe, user, (), str(error))


def claim(uploads: tuple[int, ...], name: bytes = b"", hashes: bytes = b"") -> bytes:
    """Return the value of a claim for uploads, or for a version if there are none.

    Args:
        uploads: numbers of the uploads.
        name: the catalog's name of a sealed chunk, 32 bytes; empty for other chunks.
        hashes: see :class:`Holding`; of at most 256 shards.
    """
    if hashes:
        head = _UNVERIFIED_CLAIM_FORMAT + (name or _NO_NAME) + bytes([len(hashes) // SHARD_HASH_BYTES - 1]) + hashes
        return head + b"".join(map(number_key, uploads))
    if not uploads and not name:
        return NO_UPLOAD
    return (_NAMED_CLAIM_FORMAT + name if name else _CLAIM_FORMAT) + b"".join(map(number_key, uploads))


def _claimants(value: bytes) -> tuple[tuple[int, ...], bytes, bytes]:
    """Decode the uploads in a claim's value, the name, and the hashes of shards."""
    if value == NO_UPLOAD:
        return (), b"", b""
    if len(value) == _LEASE_BEFORE.size:
        return ((LEASES_BEFORE,) if _LEASE_BEFORE.unpack(value)[0] else ()), b"", b""
    named = begin = 1 if value[:1] == _CLAIM_FORMAT else 1 + _NAME_BYTES
    if value[:1] == _UNVERIFIED_CLAIM_FORMAT and len(value) > named:
        begin = named + 1 + (value[named] + 1) * SHARD_HASH_BYTES
    is_known = value[:1] in (_CLAIM_FORMAT, _NAMED_CLAIM_FORMAT) or begin > named
    if not is_known or len(value) < begin or (len(value) - begin) % _NUMBER_BYTES:
        raise FormatError("a claim in the catalog is damaged or of a newer format; upgrade, or run rebuild")
    starts = range(begin, len(value), _NUMBER_BYTES)
    numbers = tuple(int.from_bytes(value[at : at + _NUMBER_BYTES], "big") for at in starts)
    name = value[1:named]
    return numbers, b"" if name == _NO_NAME else name, value[named + 1 : begin]
