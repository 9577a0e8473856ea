"""A user's files, as directories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.errors import InvalidArgument, StorageError
from taskworker.auth.rights import Right
from taskworker.client.sharing_calls import Share
from taskworker.gateways.page.rendering import url
from taskworker.gateways.page.sessions import Notice
from taskworker.gateways.page.viewing import Action, Asked, Done, View
from taskworker.readable import one_line

PAGE = 200
EXPIRIES: dict[str, tuple[str, float | None]] = {
    "hour": ("for an hour", 3600.0),
    "day": ("for a day", 86400.0),
    "week": ("for a week", 7 * 86400.0),
    "month": ("for 30 days", 30 * 86400.0),
    "ever": ("until you take it back", None),
}
"""How long something may be shared: for forms, in words, and in seconds."""


def load(asked: Asked) -> dict[str, Any]:
    """What the list of files shows."""
    prefix, after = asked.fields.get("prefix", ""), asked.fields.get("after", "")
    page = asked.acting.files().list_page(
        user_id=asked.owner, prefix=prefix, delimiter="/", after=after or None, limit=PAGE
    )
    is_own = asked.owner == asked.principal.user
    directory = prefix[: prefix.rfind("/") + 1]
    return {
        "prefix": prefix,
        "directory": directory,
        "crumbs": crumbs(directory),
        "files": page.files,
        "directories": page.prefixes,
        "next_after": page.next_after,
        "is_first": not after,
        "is_own": is_own,
        "may_write": asked.principal.has(Right.WRITE_FILES),
        "may_share": may_share(asked),
        "received": _received(asked) if is_own and not prefix else [],
        "given": given(asked, directory) if directory else [],
        "expiries": EXPIRIES,
    }


def crumbs(directory: str) -> list[tuple[str, str]]:
    """The directories above one, and itself, each with its prefix."""
    found: list[tuple[str, str]] = []
    at = 0
    while (slash := directory.find("/", at)) >= 0:
        found.append((directory[at:slash], directory[: slash + 1]))
        at = slash + 1
    return found


def may_share(asked: Asked) -> bool:
    """Whether somebody may share files of this owner."""
    return asked.principal.may(Right.WRITE_FILES, "") and asked.principal.may_act_for(asked.owner)


def given(asked: Asked, name: str) -> Sequence[Share]:
    """With whom what has this name is shared."""
    if not may_share(asked):
        return []
    return [one for one in asked.acting.files().shares(user_id=asked.owner).given if one.name == name]


def _received(asked: Asked) -> list[Share]:
    try:
        return asked.acting.files().shares().received
    except StorageError:  # servers may have no sharing, and tokens no right to see it
        return []


def share(asked: Asked) -> Done:
    """Let another user read, or change, a file or all files of a directory."""
    name, user = asked.fields.get("name", ""), asked.field("with_user")
    if not user:
        raise InvalidArgument("say with whom to share: give a user's name")
    words, ttl_s = expiry(asked)
    write = asked.field("write") == "yes"
    asked.acting.files().share(name, with_user=user, user_id=asked.owner, write=write, ttl_s=ttl_s)
    return Done(back(asked), Notice(one_line(f"{user} may {'read and change' if write else 'read'} {name} {words}")))


def unshare(asked: Asked) -> Done:
    """Take back what was shared."""
    name, user = asked.fields.get("name", ""), asked.field("with_user")
    asked.acting.files().unshare(name, with_user=user, user_id=asked.owner)
    return Done(back(asked), Notice(one_line(f"{name} is no longer shared with {user}")))


def expiry(asked: Asked) -> tuple[str, float | None]:
    """How long something is to be shared, in words and in seconds."""
    try:
        return EXPIRIES[asked.field("expires")]
    except KeyError:
        raise InvalidArgument("say for how long to share it") from None


def back(asked: Asked) -> str:
    """The page of the file, or of the directory, that a form is about."""
    if asked.field("file_id"):
        return url("/file", owner=asked.owner, id=asked.field("file_id"))
    return url("/files", owner=asked.owner, prefix=asked.fields.get("name", ""))


VIEWS = (View("/files", "Files", "files.html", ("listing",), load, "files", Right.READ_FILES),)
ACTIONS = (Action("/share", share), Action("/unshare", unshare))
