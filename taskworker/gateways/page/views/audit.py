"""The audit trail: who did what, and who was refused."""

from __future__ import annotations

from collections import deque
from typing import Any

from taskworker.auth.rights import Right
from taskworker.client.audit import TrailRecord
from taskworker.gateways.page.sessions import Notice
from taskworker.gateways.page.viewing import Action, Asked, Done, View

_RECORDS = 200
_EVERY_S = 5.0
_SINCE: dict[str, tuple[str, int]] = {
    "hour": ("the last hour", 3600),
    "day": ("the last day", 86400),
    "week": ("the last week", 7 * 86400),
}
_LIVE = "hour"
"""Longer times are read once: they may have very many records."""
_PROBLEMS_SHOWN = 20


def load(asked: Asked) -> dict[str, Any]:
    """What the page of the audit trail shows."""
    since, text = asked.field("since"), asked.field("text").lower()
    if since not in _SINCE:
        since = _LIVE
    since_ms = asked.now_ms - _SINCE[since][1] * 1000
    found: deque[TrailRecord] = deque(maxlen=_RECORDS)
    count = 0
    for record in asked.acting.trail().records(since_ms=since_ms):
        if not text or any(text in part.lower() for part in (record.who, record.call, record.on, record.outcome)):
            found.append(record)
            count += 1
    return {
        "records": list(reversed(found)),
        "count": count,
        "since": since,
        "choices": _SINCE,
        "text": asked.field("text"),
        "records_max": _RECORDS,
    }


def verify(asked: Asked) -> Done:
    """Check that the trail is what was written."""
    found = asked.acting.trail().verify()
    if found.problems:
        text = "the audit trail is not what was written"
        return Done("/audit", Notice(text, is_problem=True, detail="\n".join(found.problems[:_PROBLEMS_SHOWN])))
    return Done("/audit", Notice(f"all {found.records:,} records are as they were written"))


VIEWS = (
    View(
        "/audit",
        "Audit",
        "audit.html",
        ("audit",),
        load,
        "audit",
        Right.AUDIT,
        every_s=_EVERY_S,
        is_live=lambda asked: asked.field("since") in ("", _LIVE),
    ),
)
ACTIONS = (Action("/audit/verify", verify, is_long=True),)
