"""What the page shows, and what can be done on it: a module for each section."""

from __future__ import annotations

from taskworker.gateways.page.viewing import Action, View
from taskworker.gateways.page.views import file, files, overview, worker

VIEWS: tuple[View, ...] = (*overview.VIEWS, *worker.VIEWS, *files.VIEWS, *file.VIEWS)
ACTIONS: tuple[Action, ...] = (*worker.ACTIONS, *files.ACTIONS, *file.ACTIONS)
