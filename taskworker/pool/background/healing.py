"""Healing: the engine repairs what users' reads find damaged; this module reports on it."""

from __future__ import annotations

from storage import FileStorage
from storage.reports import HealingState
from taskworker.reports import WorkStatus

HEAL = "heal"


class Healing:
    """Shows the engine's healing as background work (a ``ShownWork``).

    Args:
        store: the engine.
    """

    def __init__(self, store: FileStorage) -> None:
        self._store = store

    def views(self) -> list[WorkStatus]:
        """The status of healing. Its counts start from 0 with the pool's process."""
        state = self._store.healing()
        return [
            WorkStatus(
                HEAL,
                "running" if state.waiting else "idle",
                note=_note(state),
                queue=state.waiting,
                ended_ms=state.ended_ms,
            )
        ]


def _note(state: HealingState) -> str:
    if not state.ended_ms:
        return ""
    made = f"{state.healed_shards:,} shards that reads found missing or rotten were rebuilt since the pool started"
    if not state.failed_stripes:
        return made
    return f"{made}; {state.failed_stripes:,} stripes could not be healed, and are left to repair"
