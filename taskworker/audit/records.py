"""Records of the audit trail, and the chain of hashes that connects them.

A line of the trail is the hash of its record in hexadecimal digits, a space, and the record as JSON. The hash is the
SHA-256 of the hash before it (32 bytes) and the JSON. A file begins with the line ``after HASH``: the hash before its
first record.
"""

from __future__ import annotations

from collections.abc import Generator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

HASH_BYTES = 32
NO_HASH = bytes(HASH_BYTES)
"""The hash before the first record of all."""
TEXT_CHARACTERS_MAX = 512
"""Of each text in a record."""
_HEADER = b"after "


class Entry(NamedTuple):
    """Something that happened.

    Attributes:
        who: the user, or the member by its certificate (``worker/ID``); empty: unknown.
        token: id of the token that was shown, which is no secret.
        call: the call, such as ``AuthService.AddUser``.
        on: what it was about, without any value: ids, names of users, functions, secrets and workers.
        peer: where it came from.
        outcome: ``OK``, or the status code.
    """

    who: str
    token: str
    call: str
    on: str
    peer: str
    outcome: str


class Record(msgspec.Struct, frozen=True):
    """An entry as it is kept.

    Attributes:
        n: its number; each is one more than the one before.
        ms: when it was written, milliseconds since 1970.
        count: how many times it happened since the last record of the same; 1 unless it is repeated often.
        others: see :class:`Entry`.
    """

    n: int
    ms: int
    who: str = ""
    token: str = ""
    call: str = ""
    on: str = ""
    peer: str = ""
    outcome: str = ""
    count: int = 1

    @classmethod
    def of(cls, entry: Entry, n: int, ms: int, count: int = 1) -> Record:
        """Return an entry as a record."""
        who, token, call, on, peer, outcome = (text[:TEXT_CHARACTERS_MAX] for text in entry)
        return cls(n, ms, who, token, call, on, peer, outcome, count)


class Read(NamedTuple):
    """A record that was read.

    Attributes:
        record: the record.
        digest: its hash.
        is_sound: whether the hash is right, with the hash before it.
    """

    record: Record
    digest: bytes
    is_sound: bool


class Torn(ValueError):
    """A line of a file of the trail is not what was written."""


_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


def header(before: bytes) -> bytes:
    """The first line of a file whose first record comes after the record with this hash."""
    return _HEADER + before.hex().encode() + b"\n"


def line_of(record: Record, before: bytes) -> tuple[bytes, bytes]:
    """The line of a record that comes after the record with a hash, and the hash of this one."""
    body = _encoder.encode(record)
    digest = sha256(before + body).digest()
    return digest.hex().encode() + b" " + body + b"\n", digest


def read_header(line: bytes) -> bytes:
    """Inverse of :func:`header`.

    Raises:
        Torn: it is no such line.
    """
    if not line.startswith(_HEADER) or not line.endswith(b"\n"):
        raise Torn("the first line is not one of the audit trail")
    return _hash(line[len(_HEADER) : -1])


def read_line(line: bytes, before: bytes) -> Read:
    """Inverse of :func:`line_of`.

    Raises:
        Torn: it is no such line.
    """
    digest, separator, body = line[:-1].partition(b" ")
    if not separator or not line.endswith(b"\n"):
        raise Torn("a line is incomplete")
    try:
        record = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Torn("a line has no record") from error
    return Read(record, _hash(digest), sha256(before + body).digest() == _hash(digest))


def _hash(text: bytes) -> bytes:
    try:
        found = bytes.fromhex(text.decode("ascii"))
    except ValueError as error:
        raise Torn("a line has no hash") from error
    if len(found) != HASH_BYTES:
        raise Torn("a line has no hash")
    return found


def lines_of(path: Path) -> Generator[bytes, None, None]:
    """The lines of a file, with their ends."""
    with path.open("rb") as file:
        yield from file
