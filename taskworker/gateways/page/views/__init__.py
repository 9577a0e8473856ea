"""What the page shows, and what can be done on it: a module for each section."""

from __future__ import annotations

from taskworker.gateways.page.viewing import Action, View
from taskworker.gateways.page.views import audit, file, files, functions, overview, secrets, users, worker

VIEWS: tuple[View, ...] = (
    *overview.VIEWS,
    *worker.VIEWS,
    *files.VIEWS,
    *file.VIEWS,
    *functions.VIEWS,
    *secrets.VIEWS,
    *users.VIEWS,
    *audit.VIEWS,
)
ACTIONS: tuple[Action, ...] = (
    *worker.ACTIONS,
    *files.ACTIONS,
    *file.ACTIONS,
    *functions.ACTIONS,
    *users.ACTIONS,
    *audit.ACTIONS,
)
