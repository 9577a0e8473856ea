"""Blocks of content: right bytes, bounded memory, and no wait without end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import StorageError
from taskworker.errors import DeadlineExceeded
from taskworker.gateways.fuse.blocks import BLOCK_BYTES, BlockCache, Source

CONTENT = bytes(range(251)) * (33 * BLOCK_BYTES // 251)


@contextlib.contextmanager
def cache(blocks: int = 8, timeout_s: float = 60) -> Iterator[BlockCache]:
    made = BlockCache(blocks * BLOCK_BYTES, timeout_s)
    try:
        yield made
    finally:
        made.close()


def source(fetched: list[int], content: bytes = CONTENT) -> Source:
    def fetch(start: int, stop: int) -> bytes:
        fetched.append(start // BLOCK_BYTES)
        return content[start:stop]

    return Source("it", len(content), fetch)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, len(CONTENT)), st.integers(0, 3 * BLOCK_BYTES)), max_size=20))
def test_ranges_are_those_of_the_content(ranges: list[tuple[int, int]]) -> None:
    with cache(3) as blocks:
        for start, count in ranges:
            stop = min(start + count, len(CONTENT))
            assert blocks.read(source([]), start, stop) == CONTENT[start:stop]


def test_who_reads_in_order_finds_the_next_blocks_there() -> None:
    fetched: list[int] = []
    with cache(32) as blocks:
        content = source(fetched)
        for number in range(4):
            blocks.read(content, number * BLOCK_BYTES, number * BLOCK_BYTES + 10)
        while max(fetched) < 5:  # read by nobody yet
            threading.Event().wait(0.01)
    assert len(set(fetched)) == len(fetched), "none was read twice"


def test_who_jumps_reads_only_what_is_asked_for() -> None:
    fetched: list[int] = []
    with cache() as blocks:
        for number in (3, 17, 5, 30, 11):
            blocks.read(source(fetched), number * BLOCK_BYTES, number * BLOCK_BYTES + 1)
    assert fetched == [3, 17, 5, 30, 11]


def test_blocks_that_are_not_used_any_more_are_dropped() -> None:
    fetched: list[int] = []
    with cache(2) as blocks:
        for number in (30, 20, 10, 30, 10):
            blocks.read(source(fetched), number * BLOCK_BYTES, number * BLOCK_BYTES + 1)
    assert fetched == [30, 20, 10, 30]


def test_a_block_that_failed_is_read_again() -> None:
    errors = [StorageError("away")]

    def fetch(_start: int, _stop: int) -> bytes:
        if errors:
            raise errors.pop()
        return b"here"

    flaky = Source("flaky", 4, fetch)
    with cache() as blocks:
        with pytest.raises(StorageError, match="away"):
            blocks.read(flaky, 0, 4)
        assert blocks.read(flaky, 0, 4) == b"here"


def test_a_block_that_never_comes_is_an_error_and_may_come_later() -> None:
    hangs = threading.Event()
    asked: list[int] = []

    def fetch(_start: int, _stop: int) -> bytes:
        asked.append(1)
        if len(asked) == 1:
            hangs.wait()
        return b"here"

    slow = Source("slow", 4, fetch)
    with cache(timeout_s=0.05) as blocks, contextlib.closing(_Setting(hangs)):
        with pytest.raises(DeadlineExceeded):
            blocks.read(slow, 0, 4)
        assert blocks.read(slow, 0, 4) == b"here"


class _Setting:
    def __init__(self, event: threading.Event) -> None:
        self.close = event.set
