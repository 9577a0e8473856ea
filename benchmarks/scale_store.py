"""Stores with very many tiny files. They are made in batches, so that an interrupted run can continue."""

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
"""Concurrent pushes share an fsync, so many threads make the build much faster."""


@dataclass(frozen=True, slots=True)
class ScaleStore:
    """A store at ``path`` that is built to hold ``files`` files. A file beside it notes how many it has so far."""

    path: Path
    files: int

    @property
    def built(self) -> int:
        """How many files are certainly in the store."""
        try:
            return int(self._note.read_text())
        except FileNotFoundError:
            return 0

    def build(self, on_progress: Callable[[int], None]) -> None:
        """Push the missing files. Files of an interrupted batch are pushed again, which changes nothing."""
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
    """Name of the file ``index``. Names sort like the indices."""
    return f"{index:09d}"


def push_one(store: FileStorage, index: int) -> None:
    """Push the file ``index``."""
    store.push(small_content("scale", index, FILE_BYTES), filename=name_of(index), user_id=USER)


def _push_share(store: FileStorage, first: int, stop: int) -> None:
    for index in range(first, stop, THREADS):
        push_one(store, index)
