"""Secrets without their values, the outside hosts that functions may call, and what they called lately."""

from __future__ import annotations

from collections import deque
from typing import Any

from storage.errors import StorageError
from taskworker.auth.rights import Right
from taskworker.gateways.page.viewing import Asked, View

_REQUESTS = 50
_EVERY_S = 5.0


def load(asked: Asked) -> dict[str, Any]:
    """What the page of secrets and rules shows."""
    egress = asked.acting.egress()
    try:
        secrets, problem = asked.acting.secrets().secrets(), ""
    except StorageError as error:  # the master key cannot be used; the rules can be shown all the same
        secrets, problem = [], str(error)
    return {
        "secrets": secrets,
        "problem": problem,
        "rules": egress.rules(),
        "requests": list(reversed(deque(egress.log(), _REQUESTS))),
    }


VIEWS = (
    View("/secrets", "Secrets", "secrets.html", ("secrets", "rules"), load, "secrets", Right.AUDIT, every_s=_EVERY_S),
)
