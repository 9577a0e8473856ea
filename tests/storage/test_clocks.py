"""Wrong and jumping clocks must not affect versions, their order, or freed space."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage
from storage.runtime import Runtime
from tests.storage.helpers import CHUNK, USER, content, get, lose_catalog, push

YEAR_S = 31_556_952
TODAY_S = 1_790_000_000
WRONG_S = [-68 * YEAR_S, 2**32 + 7, TODAY_S + 100 * YEAR_S, TODAY_S - 25 * 3600]


class Clocks(Runtime):
    """A wall clock that tests set, and a monotonic clock that they advance."""

    def __init__(self) -> None:
        self.wall_s: float = TODAY_S
        self.elapsed_s = 0.0

    def wall_ns(self) -> int:
        return int(self.wall_s * 1e9)

    def monotonic_s(self) -> float:
        return self.elapsed_s


def open_at(root: Path, clocks: Clocks) -> FileStorage:
    return FileStorage.open(root, profile=ErasureProfile(2, 3), chunk_size=CHUNK, runtime=clocks)


@pytest.mark.parametrize("wrong_s", WRONG_S)
def test_a_store_used_under_a_wrong_clock(root: Path, wrong_s: float) -> None:
    """Versions keep their order, also in a rebuild; everything can be read, listed and collected."""
    clocks = Clocks()
    moments = [TODAY_S, wrong_s, TODAY_S + 60.0]
    for number, clocks.wall_s in enumerate(moments):
        with open_at(root, clocks) as store:
            push(store, content(number, 2 * CHUNK), "f")
            push(store, content(9 + number, 100), f"new {number}")
            store.collect()
            assert store.scrub().clean
    for rebuilt in (False, True):
        if rebuilt:
            lose_catalog(root)
        with open_at(root, clocks) as store:
            if rebuilt:
                store.rebuild()
            head = store.find("f", user_id=USER)
            assert head is not None
            history = store.history(head.file_id, user_id=USER)
            assert [get(store, version) for version in history] == [content(n, 2 * CHUNK) for n in (2, 1, 0)]
            assert [version.time_ms for version in history] == [int(moment * 1000) for moment in reversed(moments)]
            assert len(store.list_files(user_id=USER)) == 4
