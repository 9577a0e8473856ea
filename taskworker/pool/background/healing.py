"""Healing: the engine mends what users' reads find damaged; here is what it tells of that."""

from __future__ import annotations

from storage import FileStorage
from storage.reports import HealingState
from taskworker.reports import WorkStatus

HEAL = "heal"


class Healing:
    """The engine's healing, as a piece of background work that is shown (a ``ShownWork``).

    Args:
        store: the engine.
    """

    def __init__(self, store: FileStorage) -> None:
        self._store = store

    def views(self) -> list[WorkStatus]:
        """What reads have found damaged. Its counts begin with the pool's process."""
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
    made = f"{state.healed_shards:,} shards that reads found missing or rotten were made anew since the pool started"
    if not state.failed_stripes:
        return made
    return f"{made}; {state.failed_stripes:,} stripes could not be healed then, and are left to repair"
