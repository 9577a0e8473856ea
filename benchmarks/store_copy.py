"""Copies of a closed store, complete or without some volumes.

Measurements that change the store (a repair, or a get that heals what it finds missing) work on a copy, so that every
round starts with the same store.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from benchmarks.session import settle
from storage import FileStorage

VOLUMES = "volumes"


@dataclass(frozen=True, slots=True)
class StoreCopy:
    """Copies the store at ``original`` to ``path`` and opens the copy. There is one copy at a time."""

    original: Path
    path: Path

    def make(self, lost: Collection[int] = ()) -> None:
        """Replace the copy by a fresh one without the volumes ``lost``."""
        self.remove()
        shutil.copytree(self.original, self.path, ignore=lambda folder, names: self._gone(folder, names, lost))
        settle()

    def lose_catalog(self) -> None:
        """Remove the copy's catalog."""
        shutil.rmtree(self.path / "catalog")

    def open(self) -> FileStorage:
        """Open the copy on its own volumes, not on those of the original."""
        slots = sorted(int(entry.name) for entry in (self.original / VOLUMES).iterdir())
        return FileStorage.open(self.path, volumes=[self.path / VOLUMES / str(slot) for slot in slots])

    def remove(self) -> None:
        """Remove the copy, if there is one."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _gone(self, folder: str, names: list[str], lost: Collection[int]) -> list[str]:
        if Path(folder) != self.original / VOLUMES:
            return []
        return [name for name in names if int(name) in lost]
