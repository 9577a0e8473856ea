"""Bounds on everything the engine accepts, in one place, and the checks of names."""

from __future__ import annotations

import io
import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from storage.errors import InvalidArgument

KIB = 1024
MIB = 1024 * KIB

CHUNK_SIZE_MIN = 64 * KIB
CHUNK_SIZE_MAX = 16 * MIB
CHUNK_SIZE_DEFAULT = 1 * MIB
OBJECT_BYTES_MAX = CHUNK_SIZE_MAX + 64  # a chunk that is sealed is a little longer
SMALL_COPIES_BYTES_MAX = CHUNK_SIZE_MIN  # so that files kept as copies have one chunk

FILENAME_BYTES_MAX = 1024  # S3's limit for object keys
USER_ID_BYTES_MAX = 256
NOTE_BYTES_MAX = 4096
PARTS_MAX = 10_000  # of a file that is made of others, as in S3
ATTRIBUTES_MAX = 128
ATTRIBUTES_BYTES_MAX = 16 * KIB  # names and values of all attributes of a version together
ATTRIBUTE_NAME_BYTES_MAX = 128
FILE_SIZE_MAX = 1 << 60  # fits signed 64-bit fields with room to add
DIFF_PATCHES_MAX = 1 << 20
SEGMENT_BYTES_MAX = 256 * MIB
_SHOWN_MAX = 40  # characters of a wrong value in a message

BytesLike = bytes | bytearray | memoryview


def check_filename(name: str) -> bytes:
    """Return ``name`` as UTF-8, or raise InvalidArgument saying what is wrong with it.

    Names are opaque keys, compared byte for byte and never normalised. The path components ``.`` and ``..``
    are refused because clients write files under these names.
    """
    encoded = utf8(name, "filename")
    if not encoded:
        raise InvalidArgument("filename is empty; give the file a name")
    if len(encoded) > FILENAME_BYTES_MAX:
        raise InvalidArgument(
            f"filename has {len(encoded)} bytes of UTF-8, at most {FILENAME_BYTES_MAX} are allowed; shorten it"
        )
    if b"\0" in encoded:
        raise InvalidArgument("filename contains a NUL character; remove it")
    if b"." in encoded and any(part in (b".", b"..") for part in encoded.split(b"/")):
        raise InvalidArgument("filename has a '.' or '..' path component; use the plain path without it")
    return encoded


def check_user_id(user_id: str) -> bytes:
    """Return ``user_id`` as UTF-8 (1 to 256 bytes, no NUL), or raise InvalidArgument."""
    encoded = utf8(user_id, "user_id")
    if not encoded:
        raise InvalidArgument("user_id is empty; say whose file this is")
    if len(encoded) > USER_ID_BYTES_MAX:
        raise InvalidArgument(f"user_id has {len(encoded)} bytes, at most {USER_ID_BYTES_MAX} are allowed")
    if b"\0" in encoded:
        raise InvalidArgument("user_id contains a NUL character; remove it")
    return encoded


def check_note(note: str) -> None:
    """Raise InvalidArgument if the note of a version is too long or not encodable."""
    size = len(utf8(note, "note"))
    if size > NOTE_BYTES_MAX:
        raise InvalidArgument(f"note has {size} bytes, at most {NOTE_BYTES_MAX} are allowed")


def check_attributes(attributes: Any) -> dict[str, bytes]:
    """Return the attributes of a version as a new dictionary, sorted by name, or raise InvalidArgument."""
    if not isinstance(attributes, Mapping):
        raise InvalidArgument(f"attributes must be a mapping of names to bytes, not {type(attributes).__name__}")
    if len(attributes) > ATTRIBUTES_MAX:
        raise InvalidArgument(f"a version has at most {ATTRIBUTES_MAX} attributes, not {len(attributes)}")
    found: dict[str, bytes] = {}
    total = 0
    for name, value in attributes.items():
        size = len(utf8(name, "the name of an attribute"))
        if not 1 <= size <= ATTRIBUTE_NAME_BYTES_MAX:
            raise InvalidArgument(f"the name of an attribute has {size} bytes, of 1 to {ATTRIBUTE_NAME_BYTES_MAX}")
        if not isinstance(value, bytes | bytearray | memoryview):
            raise InvalidArgument(f"attribute {shown(name)!r} must be bytes, not {type(value).__name__}")
        found[str.__str__(name)] = bytes(value)
        total += size + len(found[str.__str__(name)])
    if total > ATTRIBUTES_BYTES_MAX:
        raise InvalidArgument(
            f"the attributes have {total:,} bytes, names included; at most {ATTRIBUTES_BYTES_MAX:,} are allowed"
        )
    return dict(sorted(found.items()))


def check_chunk_size(chunk_size: int) -> int:
    """Return ``chunk_size`` (bytes) if it lies in 64 KiB…16 MiB, else raise InvalidArgument."""
    chunk_size = as_int(chunk_size, "chunk size")
    if not CHUNK_SIZE_MIN <= chunk_size <= CHUNK_SIZE_MAX:
        raise InvalidArgument(f"chunk size {shown(chunk_size)} is outside {CHUNK_SIZE_MIN}…{CHUNK_SIZE_MAX} bytes")
    return chunk_size


def check_time_ms(time_ms: int) -> int:
    """Return an author's clock (ms since the epoch) if it fits a signed 64-bit field."""
    time_ms = as_int(time_ms, "time_ms")
    if not -(1 << 63) <= time_ms < 1 << 63:
        raise InvalidArgument(f"time {shown(time_ms)} does not fit a signed 64-bit number of milliseconds")
    return time_ms


def check_sha256(sha256: str | None) -> bytes | None:
    """Return the 32 bytes of a hex SHA-256, None for None or "", else raise InvalidArgument."""
    if sha256 is None:
        return None
    if not isinstance(sha256, str):
        raise InvalidArgument(f"sha256 must be text, 64 hexadecimal digits, not {type(sha256).__name__}")
    if sha256 == "":
        return None
    try:
        raw = bytes.fromhex(sha256)
    except ValueError:
        raw = b""
    if len(raw) != 32 or len(sha256) != 64:
        raise InvalidArgument("sha256 must be 64 hexadecimal digits, the SHA-256 of the whole content")
    return raw


def check_chunk_ids(value: Any) -> list[bytes]:
    """Return a sequence of chunk ids as a new list, or raise InvalidArgument."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidArgument(f"chunk_ids must be a list of ids, not {type(value).__name__}")
    for chunk_id in value:
        if not isinstance(chunk_id, bytes) or len(chunk_id) != 32:
            raise InvalidArgument("a chunk id has 32 bytes")
    return list(value)


def check_bytes(value: Any, length: int, what: str) -> None:
    """Raise InvalidArgument unless the value is None or bytes of this length."""
    if value is not None and not (isinstance(value, bytes) and len(value) == length):
        raise InvalidArgument(f"{what} must be {length} bytes, not {type(value).__name__}")


def as_int(value: Any, what: str) -> int:
    """The value as a plain int; raises InvalidArgument if it is no integer."""
    # In Python, a bool is an int and a float compares like one, but both are encoded differently in a record.
    if type(value) is int:
        return value
    if not isinstance(value, bool | float) and hasattr(value, "__index__"):  # numpy's integers, for example
        with suppress(Exception):  # the value's own code runs here; numpy's arrays, for example, refuse
            return int(operator.index(value))
    raise InvalidArgument(f"{what} must be a whole number (int), not {type(value).__name__}: {shown(value)}")


def shown(value: object) -> str:
    """The beginning of any value, as text for a message."""
    try:
        return str(value)[:_SHOWN_MAX]
    except Exception:  # a __str__ that fails, or an int with more digits than Python converts
        return f"a {type(value).__name__} that cannot be shown"


def utf8(text: str, what: str) -> bytes:
    """``text`` in UTF-8, or InvalidArgument."""
    if not isinstance(text, str):
        raise InvalidArgument(f"{what} must be text, not {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} has characters that UTF-8 cannot encode (lone surrogates)") from None


def sought(offset: int, whence: int, position: int, size: int) -> int:
    """The new position, in bytes, after a seek in a stream of ``size`` bytes at ``position``.

    Raises:
        ValueError: ``whence`` is not one of the three values of :mod:`io`, or the position would be negative.
    """
    if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
        raise ValueError(f"invalid whence ({whence!r}): give io.SEEK_SET, io.SEEK_CUR or io.SEEK_END")
    target = (0, position, size)[whence] + operator.index(offset)
    if target < 0:
        raise ValueError(f"negative seek position {target}")
    return target
