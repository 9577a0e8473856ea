"""Reads in a thread what is to be restored next, while what came before is written."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from taskworker.folders.entries import Entry


class Item(NamedTuple):
    """Something to restore.

    Attributes:
        path: the names on its path.
        entry: what it is; None: only ``error`` is told of the path.
        data: its content; None if it has none, or if that is too large to be held in memory.
        error: why it could not be read.
    """

    path: tuple[bytes, ...]
    entry: Entry | None
    data: bytes | None = None
    error: Exception | None = None


class ReadAhead:
    """Items that a thread takes from an iterator, so far ahead as their content fits into some memory.

    Iterate over it once, as a context manager: its end stops the thread, and waits for that.

    Args:
        items: is used by the thread only.
        bytes_max: of the content of items that wait; one item may be larger.
    """

    def __init__(self, items: Iterable[Item], bytes_max: int) -> None:
        self._items = items
        self._bytes_max = bytes_max
        self._count_max = 1000
        self._waiting: deque[Item] = deque()
        self._bytes = 0
        self._is_stopped = False
        self._is_done = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)

    def __enter__(self) -> Iterator[Item]:
        self._thread.start()
        return self._taken()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _read(self) -> None:
        failure: BaseException | None = None
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as error:  # it is raised where the items are used
            failure = error
        with self._changed:
            self._failure, self._is_done = failure, True
            self._changed.notify_all()

    def _put(self, item: Item) -> bool:
        size = len(item.data or b"")
        with self._changed:
            while self._waiting and not self._is_stopped and not self._has_room(size):
                self._changed.wait()
            self._waiting.append(item)
            self._bytes += size
            self._changed.notify_all()
            return not self._is_stopped

    def _has_room(self, size: int) -> bool:
        return self._bytes + size <= self._bytes_max and len(self._waiting) < self._count_max

    def _taken(self) -> Iterator[Item]:
        while True:
            with self._changed:
                while not self._waiting and not self._is_done:
                    self._changed.wait()
                if not self._waiting:
                    if self._failure is not None:
                        raise self._failure
                    return
                taken, self._waiting, self._bytes = self._waiting, deque(), 0
                self._changed.notify_all()
            yield from taken
