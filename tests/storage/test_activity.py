"""Whether users are active, also those who read from the stores themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import FileStorage
from storage.activity import Activity
from storage.limits import MIB
from storage.runtime import Runtime
from tests.storage.helpers import content

SIZE = 20 * MIB
LINK_BYTES_PER_S = 125_000_000


class Standing(Runtime):
    """The machine with a clock that the test sets."""

    now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s


@pytest.fixture
def runtime() -> Standing:
    return Standing()


@pytest.fixture
def store(tmp_path: Path, runtime: Standing) -> Iterator[FileStorage]:
    with FileStorage.open(tmp_path / "store", runtime=runtime) as opened:
        yield opened


def test_users_count_as_active_as_long_as_reading_from_the_stores_takes(store: FileStorage, runtime: Standing) -> None:
    """Nobody tells the engine when they have read what it said the places of."""
    file_id = store.push(content(SIZE, SIZE), filename="file", user_id="u").file_id
    runtime.now_s += 100
    assert not store.is_busy()
    with store.open_file(file_id, user_id="u") as reader:
        reader.places(0, reader.version.chunk_count)
        runtime.now_s += SIZE / LINK_BYTES_PER_S
        assert store.is_busy(0.0)
        runtime.now_s += 100
        assert not store.is_busy()
        reader.places(0, 1)
        runtime.now_s += SIZE / LINK_BYTES_PER_S
        assert not store.is_busy(0.0)


def test_what_lasts_for_longer_is_not_shortened_by_what_ends_at_once() -> None:
    runtime = Standing()
    activity = Activity(runtime.monotonic_s)
    activity.note(5.0)
    activity.note()
    runtime.now_s += 5.1
    assert activity.is_busy(0.25)
    assert not activity.is_busy(0.05)
