"""A file: its versions, what differs between two of them, with whom it is shared."""

from __future__ import annotations

import difflib
from itertools import islice
from typing import Any

from storage import Version
from storage.errors import InvalidArgument
from taskworker.auth.rights import Right
from taskworker.gateways.page.rendering import url
from taskworker.gateways.page.sessions import Notice
from taskworker.gateways.page.viewing import Action, Asked, Done, View
from taskworker.gateways.page.views.files import EXPIRIES, back, crumbs, expiry, given, may_share
from taskworker.readable import one_line

_VERSIONS = 50
_COMPARED_BYTES_MAX = 256 * 1024
_COMPARED_LINES_MAX = 2000
"""The time that a comparison takes may grow with the square of it."""
_SHOWN_LINES_MAX = 2000


def load(asked: Asked) -> dict[str, Any]:
    """What the page of a file shows."""
    files = asked.acting.files()
    file_id, before = asked.field("id"), asked.field("before")
    head = files.stat(file_id, user_id=asked.owner)
    versions = files.history(file_id, user_id=asked.owner, limit=_VERSIONS + 1, before=before or None)
    sharing = may_share(asked)
    links = files.links(user_id=asked.owner) if sharing else []
    directory = head.filename[: head.filename.rfind("/") + 1]
    return {
        "head": head,
        "directory": directory,
        "crumbs": crumbs(directory),
        "versions": versions[:_VERSIONS],
        "next_before": versions[_VERSIONS - 1].version_id if len(versions) > _VERSIONS else "",
        "is_own": asked.owner == asked.principal.user,
        "may_write": asked.principal.has(Right.WRITE_FILES),
        "may_share": sharing,
        "given": given(asked, head.filename),
        "links": [one for one in links if one.file_id == file_id],
        "expiries": EXPIRIES,
    }


def compare(asked: Asked) -> dict[str, Any]:
    """What differs between two versions."""
    files = asked.acting.files()
    file_id = asked.field("id")
    before, after = (
        files.stat(file_id, user_id=asked.owner, version_id=asked.field(name) or None) for name in ("before", "after")
    )
    texts = [_text(asked, version) for version in (before, after)]
    lines: list[tuple[str, str]] | None = None
    if texts[0] is not None and texts[1] is not None:
        found = difflib.unified_diff(texts[0], texts[1], "before", "after", lineterm="", n=3)
        lines = [(_KINDS.get(line[:1], "same"), line) for line in islice(found, 2, _SHOWN_LINES_MAX + 3)]
    return {
        "before": before,
        "after": after,
        "lines": lines[:_SHOWN_LINES_MAX] if lines is not None else None,
        "is_cut": lines is not None and len(lines) > _SHOWN_LINES_MAX,
        "compared_bytes_max": _COMPARED_BYTES_MAX,
    }


_KINDS = {"+": "added", "-": "removed", "@": "place"}


def _text(asked: Asked, version: Version) -> list[str] | None:
    """The lines of a version; None: it is too long to compare, or no text."""
    if version.size > _COMPARED_BYTES_MAX:
        return None
    content = asked.acting.files().get(version.file_id, user_id=asked.owner, version_id=version.version_id)
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        return None
    return lines if len(lines) <= _COMPARED_LINES_MAX and "\0" not in content.decode() else None


def restore(asked: Asked) -> Done:
    """Make a former version's content the newest version."""
    files = asked.acting.files()
    file_id = asked.field("id")
    head = files.stat(file_id, user_id=asked.owner)
    made = files.copy(
        file_id,
        head.filename,
        user_id=asked.owner,
        version_id=asked.field("version"),
        if_head=asked.field("head") or head.version_id,
    )
    what = "has this content already" if made.unchanged else f"has the content of {asked.field('version')[:8]} again"
    return Done(_page(asked, file_id), Notice(one_line(f"{head.filename} {what}")))


def delete(asked: Asked) -> Done:
    """Delete a file with all of its versions."""
    files = asked.acting.files()
    head = files.stat(asked.field("id"), user_id=asked.owner)
    files.delete(head.file_id, user_id=asked.owner)
    directory = head.filename[: head.filename.rfind("/") + 1]
    to = url("/files", owner=asked.owner, prefix=directory)
    return Done(to, Notice(one_line(f"{head.filename} and all of its versions are deleted")))


def link(asked: Asked) -> Done:
    """Make a link with which anybody can read the file."""
    words, ttl_s = expiry(asked)
    made = asked.acting.files().create_link(asked.field("file_id"), user_id=asked.owner, ttl_s=ttl_s)
    text = f"whoever has this link can read the file {words}, with `taskworker get`; it is not shown again"
    return Done(back(asked), Notice(text, secret=made.text))


def unlink(asked: Asked) -> Done:
    """End a link."""
    asked.acting.files().revoke_link(asked.field("link_id"), user_id=asked.owner)
    return Done(back(asked), Notice("the link is valid no more"))


def _page(asked: Asked, file_id: str) -> str:
    if not file_id:
        raise InvalidArgument("say which file")
    return url("/file", owner=asked.owner, id=file_id)


VIEWS = (
    View("/file", "File", "file.html", ("versions", "sharing"), load, "files"),
    View("/file/compare", "Compare versions", "compare.html", (), compare, "files"),
)
ACTIONS = (
    Action("/file/restore", restore),
    Action("/file/delete", delete),
    Action("/file/link", link),
    Action("/file/unlink", unlink),
)
