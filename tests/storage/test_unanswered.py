"""A store that does not answer may still have its shards, so they are not written to it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from storage import FileStorage
from storage.keys import STRIPE_KEY_BYTES, Kind, ShardKey, StripeKey
from storage.shards import VolumeUnavailable
from tests.storage.helpers import CHUNK, content, lose, open_store, push, records, volume_dir

SILENT, LOST = 2, 0
DATA = content(1, 3 * CHUNK)


@pytest.fixture
def filled(root: Path) -> Iterator[FileStorage]:
    with open_store(root) as store:
        push(store, DATA)
        yield store


def fall_silent(store: FileStorage, patch: pytest.MonkeyPatch) -> None:
    """Let one volume refuse to say which shards it has, while it still takes writes."""

    def refuse(*_: object) -> NoReturn:
        raise VolumeUnavailable("too many open files")

    for question in ("missing", "locate", "locate_all"):
        patch.setattr(store._parts.stripes.volumes.volume(SILENT), question, refuse)


def written(root: Path, slot: int = SILENT) -> list[ShardKey]:
    return [record.key for record in records(volume_dir(root, slot))]


def test_a_repair_gives_it_nothing_and_says_why(
    root: Path, filled: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(root)
    with monkeypatch.context() as patch:
        fall_silent(filled, patch)
        report = filled.repair()
        assert (report.shards_rebuilt, report.lost_count, report.complete) == (0, 0, False)
        assert report.unavailable == report.objects_examined
        assert "too many open files" in report.unavailable_why
    assert filled.repair().complete
    assert written(root) == before


def test_a_volume_that_waits_for_repair_goes_on_waiting(filled: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    filled._parts.stripes.volumes.incomplete.add(SILENT)
    with monkeypatch.context() as patch:
        fall_silent(filled, patch)
        filled.repair()
        assert filled._parts.stripes.volumes.state(SILENT) == "incomplete"
    assert filled.repair().complete
    assert filled._parts.stripes.volumes.state(SILENT) == "ok"


def test_a_reader_s_report_makes_nothing_of_it(
    root: Path, filled: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(root)
    stripes = list({StripeKey(key[:STRIPE_KEY_BYTES]) for key in before if key[32] != Kind.MARK})
    fall_silent(filled, monkeypatch)
    assert filled._parts.stripes.heal_all(stripes) == [(0, 0)] * len(stripes)
    assert written(root) == before


def test_what_is_in_danger_does_not_wait(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of six shards are known to exist, just enough; of metadata, one copy would be enough."""
    with open_store(root) as store:
        push(store, DATA)
    lose(root, LOST)
    with open_store(root) as store:
        before = written(root)
        fall_silent(store, monkeypatch)
        assert not store.repair().complete
        again = written(root)[len(before) :]
        assert {key for key in again if key[32] != Kind.MARK} == {key for key in before if key[32] == Kind.CHUNK}


def test_a_push_of_known_content_writes_to_nobody_else(
    root: Path, filled: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [key for slot in range(6) for key in written(root, slot) if key[32] == Kind.CHUNK]
    fall_silent(filled, monkeypatch)
    push(filled, DATA, "again")
    now = [key for slot in range(6) if slot != SILENT for key in written(root, slot) if key[32] == Kind.CHUNK]
    assert len(now) == len(set(now))
    assert set(now) <= set(chunks)
