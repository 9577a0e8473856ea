"""Who has access to a server, as a document: for the case that its directory is lost.

It has users, hashes of tokens, what users share, hashes of links, and the workers that joined with tokens. Nobody can
log in with it, but whoever can change it before it is imported can add users and share files.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from storage.errors import InvalidArgument
from taskworker.auth.enrollment import Enrollment
from taskworker.auth.join_tokens import Admission
from taskworker.auth.sharing import Grant, Link, Sharing
from taskworker.auth.users import Token, User, Users

DOCUMENT_BYTES_MAX = 16 << 20
_VERSION = 1


class _Backup(msgspec.Struct, frozen=True):
    version: int
    users: tuple[User, ...] = ()
    tokens: tuple[Token, ...] = ()
    admitted: dict[str, Admission] = {}
    denied: tuple[str, ...] = ()
    grants: tuple[Grant, ...] = ()
    links: tuple[Link, ...] = ()


class Restored(NamedTuple):
    """How many of each were added."""

    users: int
    tokens: int
    workers: int
    grants: int
    links: int


_decoder = msgspec.json.Decoder(_Backup)


def exported(users: Users, enrollment: Enrollment | None, sharing: Sharing) -> bytes:
    """Return the document for a server.

    Args:
        users: its users.
        enrollment: its workers; None: they join without tokens.
        sharing: what its users share.
    """
    admitted, denied = ({}, frozenset()) if enrollment is None else enrollment.members()
    grants, links = sharing.everything()
    backup = _Backup(
        _VERSION, tuple(users.users()), tuple(users.tokens()), admitted, tuple(sorted(denied)), grants, links
    )
    return msgspec.json.format(msgspec.json.encode(backup), indent=1) + b"\n"


def restored(raw: bytes, users: Users, enrollment: Enrollment | None, sharing: Sharing) -> Restored:
    """Add what is in a document, except what is there already.

    Raises:
        InvalidArgument: it is no such document, or something in it cannot be used.
        StoreFull: there would be too many users, tokens, grants or links.
    """
    if len(raw) > DOCUMENT_BYTES_MAX:
        raise InvalidArgument(f"a backup of users has at most {DOCUMENT_BYTES_MAX >> 20} MiB")
    try:
        backup = _decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"this is no backup of users, as `taskworker user export` writes it: {error}") from None
    if backup.version != _VERSION:
        raise InvalidArgument("the backup of users is of another release")
    added = users.restore(backup.users, backup.tokens)
    workers = 0 if enrollment is None else enrollment.restore(backup.admitted, backup.denied)
    return Restored(*added, workers, *sharing.restore(backup.grants, backup.links))
