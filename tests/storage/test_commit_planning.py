"""Commits are planned, made durable, and entered if the catalog has not changed since they were planned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from storage import ConflictError, FileNotFound, FileStorage, Version
from storage.catalog import CatalogTransaction
from storage.errors import InvalidArgument, StoreUnavailable
from tests.storage.helpers import USER, check_all, content, push

Patch = pytest.MonkeyPatch


def during_flushes(store: FileStorage, patch: Patch, what: Callable[[int], None]) -> list[int]:
    """Call a function while the shards of each commit are flushed; return a count of the flushes."""
    flushes: list[int] = []
    append_and_sync = store._volumes.append_and_sync

    def flush(*arguments: Any) -> None:
        flushes.append(len(flushes))
        what(flushes[-1])
        append_and_sync(*arguments)

    patch.setattr(store._volumes, "append_and_sync", flush)
    return flushes


def move_on(store: FileStorage) -> None:
    """Raise the catalog's sequence, as another process that commits would."""

    def work(txn: CatalogTransaction) -> None:
        counters = txn.counters()
        txn.set_counters(msgspec.structs.replace(counters, sequence=counters.sequence + 1_000_000_000))

    store._catalog.transact(work)


def change_head(store: FileStorage, version: Version, to: Version) -> None:
    """Change a file's head, as another process would."""
    file_id = bytes.fromhex(version.file_id)

    def work(txn: CatalogTransaction) -> None:
        entry = txn.file(file_id)
        assert entry is not None
        key = next(key for key, found in store._catalog.names(b"", b"", None, 99) if found == file_id)
        txn.set_file(file_id, msgspec.structs.replace(entry, head=bytes.fromhex(to.version_id)), key)

    store._catalog.transact(work)


def get(store: FileStorage, version: Version) -> bytes:
    """Return the newest content of a file."""
    return store.get(version.file_id, user_id=USER)


def test_no_transaction_is_open_while_the_disks_are_at_it(store: FileStorage, monkeypatch: Patch) -> None:
    """Other writers to the catalog do not wait for volumes."""
    written = []

    def write(_: int) -> None:
        thread = threading.Thread(target=lambda: store._catalog.save_document("other", b"1"))
        thread.start()
        thread.join(20)
        written.append(not thread.is_alive())

    during_flushes(store, monkeypatch, write)
    version = push(store, content(1, 100), "a")
    store.delete(version.file_id, user_id=USER)
    assert written
    assert all(written)


def test_a_commit_that_others_came_before_is_planned_anew(store: FileStorage, monkeypatch: Patch) -> None:
    flushes = during_flushes(store, monkeypatch, lambda at: move_on(store) if at < 2 else None)
    version = push(store, content(1, 100), "a")
    monkeypatch.undo()
    assert len(flushes) == 3
    assert store.stat(version.file_id, user_id=USER) == version
    assert version.sequence == store._catalog.counters().sequence
    assert version.sequence > 2_000_000_000
    assert store.stats().versions == 1
    assert get(store, version) == content(1, 100)


def test_a_revision_whose_base_is_no_longer_the_head_is_refused(store: FileStorage, monkeypatch: Patch) -> None:
    first = push(store, content(1, 100), "a")
    second = push(store, content(2, 100), "a")
    assert second.parent_id == first.version_id
    diff = store.diff(first.file_id, content(3, 100), user_id=USER)
    flushes = during_flushes(store, monkeypatch, lambda _: change_head(store, first, first))
    with pytest.raises(ConflictError):
        store.revise(first.file_id, diff, user_id=USER)
    assert len(flushes) == 1
    assert get(store, first) == content(1, 100)


def test_a_push_follows_whatever_the_head_is_by_then(store: FileStorage, monkeypatch: Patch) -> None:
    first = push(store, content(1, 100), "a")
    push(store, content(2, 100), "a")
    during_flushes(store, monkeypatch, lambda at: change_head(store, first, first) if at == 0 else None)
    third = push(store, content(3, 100), "a")
    assert third.parent_id == first.version_id
    assert get(store, first) == content(3, 100)


def test_content_that_is_the_head_no_longer_is_committed(store: FileStorage, monkeypatch: Patch) -> None:
    first = push(store, content(1, 100), "a")
    second = push(store, content(2, 100), "a")
    plan = store._context.commits._plan

    def planned(*arguments: Any) -> Any:
        monkeypatch.undo()
        found = plan(*arguments)
        change_head(store, first, first)
        return found

    monkeypatch.setattr(store._context.commits, "_plan", planned)
    again = push(store, content(2, 100), "a")
    assert not again.unchanged
    assert (again.parent_id, again.version_id == second.version_id) == (first.version_id, False)
    assert get(store, first) == content(2, 100)


def test_a_commit_that_others_always_come_before_is_given_up(store: FileStorage, monkeypatch: Patch) -> None:
    flushes = during_flushes(store, monkeypatch, lambda _: move_on(store))
    with pytest.raises(StoreUnavailable, match="try again"):
        push(store, content(1, 100), "a")
    monkeypatch.undo()
    assert 1 < len(flushes) < 100
    assert store.list_files(user_id=USER) == []
    assert store.stats().versions == 0
    assert get(store, push(store, content(1, 100), "a")) == content(1, 100)


def test_a_delete_that_others_came_before_is_planned_anew(store: FileStorage, monkeypatch: Patch) -> None:
    version = push(store, content(1, 100), "a")
    sign, signed = "storage.write.deleting.sign_tombstone", []

    from storage.formats.tombstones import sign_tombstone

    def overtaken(file_id: bytes, sequence: int, authority: Any) -> bytes:
        signed.append(sequence)
        if len(signed) == 1:
            move_on(store)
        return sign_tombstone(file_id, sequence, authority)

    monkeypatch.setattr(sign, overtaken)
    store.delete(version.file_id, user_id=USER)
    assert len(signed) == 2
    assert store._catalog.counters().sequence == signed[1] > signed[0] + 900_000_000
    assert store.stats().files == 0
    assert store.collect(grace_s=0).objects_removed > 0
    with pytest.raises(FileNotFound):
        store.get(version.file_id, user_id=USER)


def test_commits_and_deletes_beside_each_other(store: FileStorage) -> None:
    """Those of one process wait for each other, so that none is planned twice, and the totals are right."""
    kept: dict[str, tuple[Version, bytes]] = {}
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(12):
                data = content(100 * number + turn, 50)
                version = push(store, data, f"{number} {turn}")
                if turn % 2:
                    store.delete(version.file_id, user_id=USER)
                else:
                    kept[version.file_id] = version, data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.stats().files == len(kept) == 24
    check_all(store, kept)


def test_a_version_that_cannot_be_planned_fails_alone(store: FileStorage, monkeypatch: Patch) -> None:
    """Others in the same batch are committed."""
    first = push(store, content(1, 100), "a")
    flushing, go_on = threading.Event(), threading.Event()

    def wait(at: int) -> None:
        if at == 0:
            flushing.set()
            go_on.wait(20)

    during_flushes(store, monkeypatch, wait)
    failures: list[BaseException] = []

    def misnamed() -> None:
        with store.upload(filename="b", user_id=USER) as upload:
            upload.write(content(2, 100))
            try:
                upload.commit(file_id=bytes.fromhex(first.file_id))
            except InvalidArgument as error:
                failures.append(error)

    threads = [threading.Thread(target=push, args=(store, content(3, 100), "c"))]
    threads[0].start()
    assert flushing.wait(20)
    threads += [threading.Thread(target=misnamed), threading.Thread(target=push, args=(store, content(4, 100), "d"))]
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 20
    while len(store._context.commits._queue) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(store._context.commits._queue) == 2  # both in the next batch
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(failures) == 1
    assert {version.filename for version in store.list_files(user_id=USER)} == {"a", "c", "d"}


def test_content_that_is_the_head_already_commits_nothing_that_only_volumes_know(store: FileStorage) -> None:
    """A sequence that only volumes show has not been committed, whatever is pushed again."""
    push(store, content(1, 100), "a")
    reached = store.counts().reached
    store._context.commits.catch_up(reached + 1_000)
    assert push(store, content(1, 100), "a").unchanged
    assert (store.counts().sequence, store.counts().reached) == (reached + 1_000, reached)
    assert not push(store, content(2, 100), "a").unchanged
    assert store.counts().reached == store.counts().sequence > reached + 1_000
