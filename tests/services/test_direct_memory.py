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
