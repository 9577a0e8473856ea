"""Stores of very many tiny files: made in batches, so that a run that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workload import USER, small_content
from storage import FileStorage

FILE_BYTES = 100
BATCH_FILES = 5_000
THREADS = 64
"""Pushes waiting for the same fsync share it, so many threads make the build bearable."""


@dataclass(frozen=True, slots=True)
class ScaleStore:
    """A store at ``path`` that is to hold ``files`` files. Beside it lies a note of how many it holds."""

    path: Path
    files: int

    @property
    def built(self) -> int:
        """Files that are certainly there."""
        try:
            return int(self._note.read_text())
        except FileNotFoundError:
            return 0

    def build(self, on_progress: Callable[[int], None]) -> None:
        """Push what is missing. Files of a batch that was cut short are pushed again, which changes nothing."""
        with FileStorage.open(self.path) as store, ThreadPoolExecutor(THREADS) as pool:
            for start in range(self.built, self.files, BATCH_FILES):
                stop = min(start + BATCH_FILES, self.files)
                list(pool.map(lambda first, stop=stop: _push_share(store, first, stop), range(start, start + THREADS)))
                self._note.write_text(str(stop))
                on_progress(stop)

    @property
    def _note(self) -> Path:
        return self.path.with_name(self.path.name + ".built")


def name_of(index: int) -> str:
    """Name of the file ``index``; names are ordered as the indices are."""
    return f"{index:09d}"


def push_one(store: FileStorage, index: int) -> None:
    """Push the file ``index``."""
    store.push(small_content("scale", index, FILE_BYTES), filename=name_of(index), user_id=USER)


def _push_share(store: FileStorage, first: int, stop: int) -> None:
    for index in range(first, stop, THREADS):
        push_one(store, index)
