"""The menu: what somebody has the rights to see."""

from __future__ import annotations

from dataclasses import dataclass

from taskworker.auth.rights import Principal
from taskworker.gateways.page.views import VIEWS


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the menu."""

    path: str
    title: str
    is_current: bool


def entries(principal: Principal, section: str) -> list[Entry]:
    """The menu of somebody who looks at a section."""
    return [
        Entry(view.path, view.title, view.section == section)
        for view in VIEWS
        if view.right is not None and principal.has(view.right)
    ]


def first_path(principal: Principal) -> str:
    """Where somebody begins."""
    return next((entry.path for entry in entries(principal, "")), "/nothing")
