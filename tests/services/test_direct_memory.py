"""Memory for what arrives from workers."""

from __future__ import annotations

import os

import pytest

from taskworker.client.direct.memory import new_memory


@pytest.mark.parametrize("size", [0, 1, (2 << 20) - 1, 2 << 20, (5 << 20) + 1])
def test_new_memory_is_empty_and_all_of_it_can_be_written_to(size: int) -> None:
    memory = new_memory(size)
    assert bytes(memory) == bytes(size)
    content = os.urandom(size)
    memory[:] = content
    assert bytes(memory) == content
