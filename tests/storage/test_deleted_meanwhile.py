"""Files that are deleted and collected during maintenance are not reported as damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import FileStorage
from storage.maintenance.live import LiveObject, live_objects
from tests.storage.helpers import CHUNK, USER, check_all, content, get, lose, open_store, push, push_many, volume_dir


def once(action: Callable[[], None]) -> Callable[..., None]:
    """Return a callback that does something only the first time."""
    done: list[bool] = []

    def callback(*_: object) -> None:
        if not done:
            done.append(True)
            action()

    return callback


def delete_and_collect(store: FileStorage, names: list[str]) -> None:
    for name in names:
        version = store.find(name, user_id=USER)
        assert version is not None
        store.delete(version.file_id, user_id=USER)
    store.collect(grace_s=0)


def test_repair_calls_nothing_lost_that_was_deleted_while_it_ran(root: Path) -> None:
    with open_store(root) as store:
        pushed = push_many(store, [3 * CHUNK] * 12)
    lose(root, 3)
    with open_store(root) as store:
        doomed = [name for name in pushed if name not in ("f0", "f1")]
        report = store.repair(pace=once(lambda: delete_and_collect(store, doomed)))
        assert report.lost == []
        assert report.complete
        check_all(store, {name: pushed[name] for name in ("f0", "f1")})
        assert store.scrub().clean


def test_repair_still_tells_what_is_lost_of_files_that_are_there(root: Path) -> None:
    with open_store(root) as store:
        pushed = push_many(store, [3 * CHUNK] * 4)
    lose(root, 0, 1, 2)
    with open_store(root) as store:
        # Everything has been found, and nothing made yet: shards made before the delete may be reported.
        report = store.repair(watch=once(lambda: delete_and_collect(store, ["f1", "f2", "f3"])))
        assert report.lost_count == 3
        assert all("'f0'" in damage.text for damage in report.lost)
        assert pushed["f0"][0].file_id in report.lost[0].text


def test_scrub_misses_nothing_that_was_deleted_while_it_ran(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(root) as store:
        pushed = push_many(store, [3 * CHUNK] * 6)

        def walk_then_delete(*arguments: Any) -> Iterator[LiveObject]:
            yield from live_objects(*arguments)
            delete_and_collect(store, ["f1", "f2", "f3", "f4"])  # everything has been found, and nothing examined yet

        monkeypatch.setattr("storage.maintenance.scrub.live_objects", walk_then_delete)
        assert store.scrub().clean
        check_all(store, {name: pushed[name] for name in ("f0", "f5")})


def test_a_walk_goes_past_a_large_file_that_is_deleted_under_it(root: Path) -> None:
    """A collect removes the nodes of its manifest just before the walk loads them."""
    data = b"".join(number.to_bytes(4, "big") * (CHUNK // 4) for number in range(1030))
    with open_store(root, k=1, n=2) as store:
        push(store, data, "large")
        kept = [push(store, content(seed, CHUNK), f"kept {seed}") for seed in range(3)]
    shutil.rmtree(volume_dir(root, 1))
    with open_store(root) as store:
        report = store.repair(watch=once(lambda: delete_and_collect(store, ["large"])))
        assert report.lost == []
        assert [get(store, version) for version in kept] == [content(seed, CHUNK) for seed in range(3)]
