"""Generates the tables of limits of files, messages and functions."""

from __future__ import annotations

from docs_build.markdown import code, table
from storage import limits
from taskworker import Limits
from taskworker.calls.spec import LIMIT_NAMES, LIMITS_MAX
from taskworker.rpc import limits as wire
from taskworker.rpc.admission import ServerLimits
from taskworker.services import node_writes

_KIB, _MIB = 1 << 10, 1 << 20


def size_text(size: int) -> str:
    """A size for readers: 256 MiB."""
    for unit, factor in (("EiB", 1 << 60), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", _MIB), ("KiB", _KIB)):
        if size >= factor and size % factor == 0:
            return f"{size // factor:,} {unit}"
    return f"{size:,} B"


def storage_table() -> str:
    """The limits of the engine."""
    rows = [
        ["size of a file", size_text(limits.FILE_SIZE_MAX)],
        ["name of a file, in UTF-8", size_text(limits.FILENAME_BYTES_MAX)],
        ["name of a user, in UTF-8", size_text(limits.USER_ID_BYTES_MAX)],
        ["note of a version, in UTF-8", size_text(limits.NOTE_BYTES_MAX)],
        ["size of a chunk, at least", size_text(limits.CHUNK_SIZE_MIN)],
        ["size of a chunk, unless a push says otherwise", size_text(limits.CHUNK_SIZE_DEFAULT)],
        ["size of a chunk, at most", size_text(limits.CHUNK_SIZE_MAX)],
        ["changed chunks in one revision", f"{limits.DIFF_PATCHES_MAX:,}"],
        ["size of a segment file of a volume", size_text(limits.SEGMENT_BYTES_MAX)],
    ]
    return table(["what", "limit"], rows)


def message_table() -> str:
    """The limits of one message to a server."""
    rows = [
        [
            "a message of a call that is no stream, such as `Push` or `Get`, and its answer",
            size_text(wire.UNARY_BYTES_MAX),
        ],
        ["a call of a function, with its arguments", size_text(wire.CALL_BYTES_MAX)],
        ["a message of a stream, such as `PushStream`", size_text(wire.PART_BYTES_MAX)],
        ["chunk ids in one question about what the store has already", f"{wire.CHUNK_IDS_MAX:,}"],
        ["files deleted by one call", f"{wire.DELETE_MAX:,}"],
        ["entries on one page of a listing", f"{wire.PAGE_MAX:,}"],
    ]
    return table(["what", "limit"], rows)


def call_table() -> str:
    """The limits of the calls to a server."""
    default = ServerLimits()
    rows = [
        ["calls at once, files' services", f"{default.calls:,}"],
        ["transfers at once: pushes, gets and revisions by stream", f"{default.streams:,}"],
        ["time until the message of a call, or the first one of a stream, has come", f"{default.message_s:g} s"],
        ["pause between messages of a stream, and until a caller reads an answer", f"{default.idle_s:g} s"],
        ["users who have a revision checked against a SHA-256 at once, one each", f"{default.checks:,}"],
        [
            "while other users call: what revisions of a user make the store write of hash trees, beyond what is sent",
            f"{size_text(node_writes.RATE)} a second, {size_text(node_writes.BURST)} at once",
        ],
        [
            "connections at once, if the process may open four times as many files; from one address, half as many",
            f"{default.connections:,}",
        ],
        ["calls at once on one connection; more wait at the client", f"{default.streams_each:,}"],
        ["time until a connection on which no call is made is closed", "5 min"],
        ["calls of one caller that wait for a message", f"{default.unfinished:,}"],
        ["refusals of one user in a second that come at once; more come later", f"{default.refusals:g}"],
    ]
    return table(["what", "limit"], rows)


def function_table() -> str:
    """The limits of one call of a function."""
    default = Limits()
    rows = [
        [code(name), code(field), _amount(field, getattr(default, field)), _amount(field, getattr(LIMITS_MAX, field))]
        for name, field in LIMIT_NAMES.items()
    ]
    return table(["`--limits`", "`taskworker.Limits`", "default", "at most"], rows)


def _amount(field: str, value: float) -> str:
    if field.endswith("_bytes"):
        return size_text(int(value))
    return f"{value:,.0f} s" if field.endswith("_s") else f"{value:,}"
