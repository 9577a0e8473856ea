"""Memory for what arrives from workers."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskworker.client.direct.memory import SharedMemory, new_memory


@pytest.mark.parametrize("size", [0, 1, (2 << 20) - 1, 2 << 20, (5 << 20) + 1])
def test_new_memory_is_empty_and_all_of_it_can_be_written_to(size: int) -> None:
    memory = new_memory(size)
    assert bytes(memory) == bytes(size)
    content = os.urandom(size)
    memory[:] = content
    assert bytes(memory) == content


CHUNK, TOTAL, PIECES = 100, 12_000, 3


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20), st.booleans()), max_size=200))
def test_gets_have_one_chunk_each_and_the_rest_is_shared(steps: list[tuple[int, int, bool]]) -> None:
    shared = SharedMemory(TOTAL)
    lent: list[list[memoryview]] = [[] for _ in range(10)]
    with ExitStack() as stack:
        gets = [stack.enter_context(shared.used()) for _ in range(10)]
        for number, chunks, takes_back in steps:
            get, mine = gets[number], lent[number]
            if takes_back and mine:
                mine.pop(0)[:] = b"\0" * CHUNK
                get.take_back()
                continue
            if len(mine) == PIECES:
                continue
            room = get.room(chunks * CHUNK, CHUNK) // CHUNK
            assert room <= chunks
            assert room or mine, "a get without memory has room for a chunk"
            if room:
                mine.append(get.lend(room * CHUNK)[:CHUNK])
            assert sum(memoryview(one.obj).nbytes for pieces in lent for one in pieces) <= TOTAL + 10 * CHUNK
    with shared.used() as alone:
        assert alone.room(TOTAL, CHUNK) == TOTAL // PIECES, "all was given back"


def test_a_get_that_is_alone_uses_the_same_memory_again() -> None:
    with SharedMemory(TOTAL).used() as get:
        places = []
        for _ in range(5):
            assert get.room(10 * CHUNK, CHUNK) == 10 * CHUNK
            piece = get.lend(10 * CHUNK)
            places.append(id(piece.obj))
            get.take_back()
        assert len(set(places)) == 1


LARGE = 4 << 20


def test_the_next_get_uses_the_memory_of_an_earlier_one() -> None:
    shared = SharedMemory(6 * LARGE)
    places = []
    for _ in range(3):
        with shared.used() as get:
            assert get.room(LARGE, LARGE) == LARGE
            piece = get.lend(LARGE)
            places.append(id(piece.obj))
            piece[:] = os.urandom(LARGE)
            piece.release()
    assert len(set(places)) == 1


@pytest.mark.parametrize("takes_back", [True, False])
def test_memory_of_which_somebody_has_a_view_is_left_alone(takes_back: bool) -> None:
    shared = SharedMemory(6 * LARGE)
    content = os.urandom(LARGE // 2)
    with shared.used() as get:
        get.room(LARGE, LARGE)
        piece = get.lend(LARGE)
        seen = piece[LARGE // 2 :]
        seen[:] = content
        piece.release()
        if takes_back:
            get.take_back()
    for _ in range(3):
        with shared.used() as get:
            get.room(LARGE, LARGE)
            other = get.lend(LARGE)
            assert other.obj is not seen.obj
            other[:] = bytes(LARGE)
    assert seen == content


def test_a_get_does_not_use_a_larger_piece_than_it_has_room_for() -> None:
    shared = SharedMemory(12 * LARGE)
    with shared.used() as get:
        get.room(2 * LARGE, LARGE)
        get.lend(2 * LARGE).release()
    with shared.used() as get:
        assert get.room(LARGE, LARGE) == LARGE
        assert len(memoryview(get.lend(LARGE).obj)) == LARGE
    with shared.used() as get:
        assert get.room(2 * LARGE, LARGE) == 2 * LARGE
        assert len(memoryview(get.lend(LARGE + 1).obj)) == 2 * LARGE


def test_what_is_kept_gives_way_to_what_is_used() -> None:
    shared = SharedMemory(3 * LARGE)
    with shared.used() as get:
        for _ in range(PIECES):
            assert get.room(LARGE, LARGE) == LARGE
            get.lend(LARGE).release()
    assert _kept_by(shared) == 3 * LARGE
    with shared.used() as one, shared.used() as other:
        assert one.room(LARGE // 2, LARGE // 2) == LARGE // 2
        one.lend(LARGE // 2)
        assert other.room(LARGE // 2, LARGE // 2) == LARGE // 2
        other.lend(LARGE // 2)
        assert _kept_by(shared) == 2 * LARGE


def test_no_more_is_kept_than_one_get_has() -> None:
    shared = SharedMemory(100 * LARGE)
    with ExitStack() as stack:
        for _ in range(20):
            get = stack.enter_context(shared.used())
            assert get.room(LARGE, LARGE)
            get.lend(LARGE).release()
    assert _kept_by(shared) == 24 << 20


def _kept_by(shared: SharedMemory) -> int:
    """How many bytes are kept."""
    found: list[memoryview] = []
    while (piece := shared.kept(1, 100 * LARGE)) is not None:
        found.append(piece)
    size = sum(map(len, found))
    for piece in found:
        shared.keep(piece)
    return size
