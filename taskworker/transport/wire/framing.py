"""Frames: the fixed header before each message, and the greeting at the start of a connection.

All numbers are little-endian. A frame is a header of 16 bytes and a body:

=======  ======  ==========================================================================================
offset   bytes   field
=======  ======  ==========================================================================================
0        4       length of the body
4        4       number of the call, chosen by the caller, never 0
8        1       kind: 1 call, 2 answer, 3 failure, 4 cancel, 5 more
9        1       method of a call; 0 in other frames
10       2       flags: 1 = the last frame of an answer
12       4       call: milliseconds that the caller waits, 0 = no limit; more: messages allowed; otherwise 0
=======  ======  ==========================================================================================

A call has one frame. It is answered with any number of answer frames, of which the last one is flagged, or with a
failure, in any order with regard to other calls. ``cancel`` ends a call early; it is still answered, as the caller
reuses its number only then. An answer with many messages begins with ``STREAM_AHEAD`` of them, and goes on as ``more``
allows. ``cancel`` and ``more`` for a call that has been answered are ignored, as they may have crossed the answer.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from storage.errors import InvalidArgument
from storage.limits import CHUNK_SIZE_MAX, KIB, MIB

HEADER_BYTES = 16
VERSION = 1
# The largest shard (k = 1, the largest chunk) with its headers must fit into one frame.
BODY_BYTES_MAX = CHUNK_SIZE_MAX + 2 * MIB
FAILURE_BYTES_MAX = 8 * KIB
STREAM_AHEAD = 4
"""How many messages of an answer are sent before the caller asks for more."""
STREAM_AHEAD_MAX = 1024
LAST = 1

_HEADER = struct.Struct("<IIBBHI")
_MAGIC = b"TWSP"
_GREETING = struct.Struct("<4sBBBx")  # magic, oldest and newest version spoken, lane
_WELCOME = struct.Struct("<4sBxxxII")  # magic, version chosen (0: none), bytes and calls under way
GREETING_BYTES = _GREETING.size
WELCOME_BYTES = _WELCOME.size
_WINDOW_BYTES_MIN = BODY_BYTES_MAX
# What a caller keeps for a server that does not take it, whatever that server allows.
_WINDOW_BYTES_MAX = 4 * BODY_BYTES_MAX
CALLS_MIN = 16
_CALLS_MAX = 4096


class WireError(InvalidArgument):
    """The other end sent bytes that this protocol does not allow. The connection is of no further use."""


class Kind(IntEnum):
    """What a frame is."""

    CALL = 1
    ANSWER = 2
    FAILURE = 3
    CANCEL = 4
    MORE = 5


# Looking up a member of an enumeration takes several times as long, and each frame takes many comparisons.
_CALL, _FAILURE, _MORE = int(Kind.CALL), int(Kind.FAILURE), int(Kind.MORE)
_OF_CLIENTS = frozenset(map(int, (Kind.CALL, Kind.CANCEL, Kind.MORE)))
_OF_SERVERS = frozenset(map(int, (Kind.ANSWER, Kind.FAILURE)))


class Header(NamedTuple):
    """A frame's header. ``number`` is the call's; ``value`` depends on the kind."""

    length: int
    call: int
    kind: int
    method: int
    flags: int
    value: int


class Welcome(NamedTuple):
    """A server's answer to a greeting.

    Attributes:
        window: how many bytes of calls may be under way on the connection.
        calls: how many calls may be under way on it.
    """

    window: int
    calls: int


def pack_header(kind: Kind, call: int, length: int, method: int = 0, flags: int = 0, value: int = 0) -> bytes:
    """Serialize a header."""
    return _HEADER.pack(length, call, kind, method, flags, value)


def unpack_header(raw: bytes | bytearray | memoryview, offset: int = 0) -> Header:
    """Inverse of :func:`pack_header`. The reader of a connection judges the values."""
    return tuple.__new__(Header, _HEADER.unpack_from(raw, offset))  # half the time of a call of `Header`


def check_from_server(header: Header) -> None:
    """Check the parts of a header from a server that do not depend on the call.

    Raises:
        WireError: no server sends this.
    """
    length, _, kind, method, flags, value = header
    if kind not in _OF_SERVERS or method or value or flags & ~LAST:
        raise WireError(f"a frame of kind {kind} with flags {flags:#x} came from a server")
    if kind == _FAILURE and length > FAILURE_BYTES_MAX:
        raise WireError(f"a failure of {length:,} bytes")


def check_from_client(header: Header) -> None:
    """Check a header from a client.

    Raises:
        WireError: no client sends this.
    """
    length, call, kind, method, flags, value = header
    if kind not in _OF_CLIENTS or flags or not call:
        raise WireError(f"a frame of kind {kind} with flags {flags:#x} came from a client")
    if kind != _CALL and (length or method):
        raise WireError(f"a frame of kind {kind} with {length:,} bytes")
    if length > BODY_BYTES_MAX:
        raise WireError(f"a call of {length:,} bytes; at most {BODY_BYTES_MAX:,} are taken")
    if kind == _MORE and not 0 < value <= STREAM_AHEAD_MAX:
        raise WireError(f"{value} more messages; between 1 and {STREAM_AHEAD_MAX} can be asked for")


def pack_greeting(lane: int, oldest: int = VERSION, newest: int = VERSION) -> bytes:
    """Serialize what a client sends first. ``lane`` only helps to tell connections apart."""
    return _GREETING.pack(_MAGIC, oldest, newest, lane)


def choose_version(raw: bytes | bytearray | memoryview) -> int:
    """Read a greeting, and return the newest version that both ends speak; 0 if there is none.

    Raises:
        WireError: it is no greeting.
    """
    magic, oldest, newest, _ = _GREETING.unpack(raw)
    if magic != _MAGIC or oldest > newest:
        raise WireError("the greeting is none of this protocol")
    return VERSION if oldest <= VERSION <= newest else 0


def pack_welcome(version: int, window: int, calls: int) -> bytes:
    """Serialize a server's answer to a greeting; ``version`` 0 refuses the connection."""
    return _WELCOME.pack(_MAGIC, version, window, calls)


def parse_welcome(raw: bytes | bytearray | memoryview) -> Welcome:
    """Inverse of :func:`pack_welcome`, but with no more allowed than a caller makes use of.

    Raises:
        WireError: it is none, or the server speaks other versions only, or allows too little for any work.
    """
    magic, version, window, calls = _WELCOME.unpack(raw)
    if magic != _MAGIC:
        raise WireError("the answer to the greeting is none of this protocol")
    if version != VERSION:
        raise WireError(f"the worker does not speak version {VERSION}; install the same version of taskworker on both")
    if window < _WINDOW_BYTES_MIN or calls < CALLS_MIN:
        raise WireError(f"the worker allows {window:,} bytes and {calls} calls under way, which is too little")
    return Welcome(min(window, _WINDOW_BYTES_MAX), min(calls, _CALLS_MAX))
