"""What is read ahead comes in order, within bounds, and ends with whoever uses it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from taskworker.folders.snapshots.reading_ahead import Item, ReadAhead


def items(count: int, size: int, read: list[int]) -> Iterator[Item]:
    for number in range(count):
        read.append(number)
        yield Item((b"%d" % number,), None, bytes(size))


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_all_comes_in_order(size: int) -> None:
    with ReadAhead(items(3000, size, []), 1000) as found:
        assert [item.path for item in found] == [(b"%d" % number,) for number in range(3000)]


def test_what_nobody_takes_is_not_read() -> None:
    read: list[int] = []
    with ReadAhead(items(1000, 100, read), 1000) as found:
        next(found)
    assert len(read) <= 22, "ten that were taken, ten that wait, and two on their way"
    assert "read-ahead" not in {thread.name for thread in threading.enumerate()}


def test_a_failure_comes_after_what_was_read_before() -> None:
    def failing() -> Iterator[Item]:
        yield from items(3, 10, [])
        raise OSError("the disk is gone")

    found: list[Item] = []
    with pytest.raises(OSError, match="gone"), ReadAhead(failing(), 1000) as read:
        found.extend(read)
    assert len(found) == 3
