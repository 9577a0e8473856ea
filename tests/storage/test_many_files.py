"""Calls on many files: one outcome for each, shared flushes, and nothing lost that was reported as durable."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import DataLossError, FileNotFound, FileStorage, InvalidArgument, StoreClosed, Version, VersionNotFound
from storage.fleet.volumes import VolumeSet
from tests.storage.helpers import CHUNK, USER, content, get, lose, lose_catalog, open_store, push, rot_shards

NAMES = ["a", "häuser/日本語.txt", "x" * 1024, " ", "/", "a\nb", "-rf", "\u202egnp.exe", "file with spaces"]
SIZES = [0, 1, 5, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, (1 << 20) + 1, 3 << 20]


def pushed(store: FileStorage, files: Any, user: str = USER) -> list[Version]:
    """Push files, none of which may fail."""
    return [outcome.result() for outcome in store.push_many(files, user_id=user)]


def contents(store: FileStorage, names: list[str], user: str = USER) -> list[bytes]:
    """The contents of files by name."""
    return [outcome.result() for outcome in store.get_many(names, user_id=user, by_name=True)]


def test_files_of_all_sizes_and_names_come_back_in_order(store: FileStorage) -> None:
    files = [(f"s{size}", content(size, size)) for size in SIZES] + [(name, name.encode()) for name in NAMES]
    outcomes = list(store.push_many(files, user_id=USER, note="n", time_ms=5))
    assert [outcome.position for outcome in outcomes] == list(range(len(files)))
    assert [outcome.filename for outcome in outcomes] == [name for name, _ in files]
    versions = [outcome.result() for outcome in outcomes]
    assert {(version.user_id, version.note, version.time_ms) for version in versions} == {(USER, "n", 5)}
    assert [version.sequence for version in versions] == sorted(version.sequence for version in versions)
    for by_name, asked in (False, [version.file_id for version in versions]), (True, [name for name, _ in files]):
        found = list(store.get_many(asked, user_id=USER, by_name=by_name))
        assert [each.position for each in found] == list(range(len(files)))
        assert [each.file for each in found] == asked
        assert [each.result() for each in found] == [data for _, data in files]
        assert [each.version for each in found] == versions


def test_the_same_as_single_pushes(store: FileStorage) -> None:
    for size in SIZES:
        data = content(size, size)
        (version,) = pushed(store, [(f"many{size}", data)])
        alone = push(store, data, f"alone{size}")
        assert store.chunk_ids(version.file_id, user_id=USER) == store.chunk_ids(alone.file_id, user_id=USER)
        assert get(store, version) == get(store, alone) == data


def test_all_kinds_of_sources(store: FileStorage, tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"small")
    large.write_bytes(content(1, 2 << 20))
    files: list[Any] = [
        small,
        str(large),
        ("bytearray", bytearray(b"abc")),
        ("view", memoryview(b"abcdef")[::2]),
        ("open", io.BytesIO(b"open")),
        ("large open", io.BytesIO(large.read_bytes())),
        ("pieces", iter([b"pi", b"eces"])),
        ("proc", "/proc/self/status"),
    ]
    versions = pushed(store, files)
    assert [version.filename for version in versions[:2]] == ["small", "large"]
    read = contents(store, [version.filename for version in versions])
    assert read[:7] == [b"small", large.read_bytes(), b"abc", b"ace", b"open", large.read_bytes(), b"pieces"]
    assert b"Name:" in read[7]


def test_errors_of_single_files_do_not_end_the_call(store: FileStorage, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * (2 << 20)
        raise OSError("broken pipe")

    files: list[Any] = [
        ("first", b"1"),
        ("", b"no name"),
        ("x" * 1025, b"long name"),
        ("lone \ud800", b"surrogate"),
        (7, b"no text"),
        tmp_path / "missing",
        tmp_path,
        ("text", "no such path"),
        tmp_path / "nul\0" / "name",
        tmp_path / "lone \ud800" / "name",
        ("number", 5),
        ("text file", io.StringIO("text")),
        ("broken", broken()),
        ("last", b"2"),
    ]
    outcomes = list(store.push_many(files, user_id=USER))
    assert [outcome.position for outcome in outcomes] == list(range(len(files)))
    assert [outcome.error is None for outcome in outcomes] == [True, *[False] * (len(files) - 2), True]
    kinds = [type(outcome.error) for outcome in outcomes[1:-1]]
    assert kinds[:4] == [InvalidArgument] * 4
    assert kinds[4:7] == [FileNotFoundError, IsADirectoryError, FileNotFoundError]
    assert kinds[7:] == [*[InvalidArgument] * 4, OSError]
    with pytest.raises(InvalidArgument):
        outcomes[1].result()
    assert [version.filename for version in store.list_files(user_id=USER)] == ["first", "last"]


def test_a_name_that_comes_again_gets_versions_in_order(store: FileStorage) -> None:
    files = [("same", b"1"), ("same", content(1, 2 << 20)), ("other", b"x"), ("same", b"3"), ("same", b"3")]
    versions = pushed(store, files)
    same = [versions[0], versions[1], versions[3]]
    assert versions[4].unchanged
    assert versions[4] == versions[3]
    assert store.history(versions[0].file_id, user_id=USER) == same[::-1]
    assert [get(store, version) for version in same] == [b"1", files[1][1], b"3"]


def test_a_repeated_call_stores_nothing_again(store: FileStorage) -> None:
    files = [(f"f{number}", content(number, 100 * number)) for number in range(50)] + [("large", content(1, 2 << 20))]
    first = pushed(store, files)
    shards = [volume.shards for volume in store.stats().volumes]
    second = pushed(store, files)
    assert second == first
    assert all(version.unchanged for version in second)
    assert [volume.shards for volume in store.stats().volumes] == shards
    assert store.counts().versions == len(files)


def test_many_files_share_flushes(store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    push(store, b"first", "first")
    added, flushes = threading.Event(), 0
    flush = VolumeSet.append_and_sync

    def counting(self: VolumeSet, batches: Any) -> None:
        nonlocal flushes
        flushes += 1
        added.wait()
        flush(self, batches)

    monkeypatch.setattr(VolumeSet, "append_and_sync", counting)
    with store.pushing_many(user_id=USER) as many:
        for number in range(500):
            many.add(f"f{number}", b"%d" % number)
        added.set()
        many.end()
        outcomes = []
        while taken := many.take():
            outcomes += taken
    assert len([outcome.result() for outcome in outcomes]) == 500
    assert flushes <= 3  # one file that came first, then 256 at a time


def test_outcomes_come_while_the_iterator_goes_on(store: FileStorage) -> None:
    taken: list[str] = []

    def files() -> Iterator[tuple[str, bytes]]:
        yield "first", b"1"
        while not taken:
            yield "next", b"2"
        yield "last", b"3"

    for outcome in store.push_many(files(), user_id=USER):
        outcome.result()
        taken.append(outcome.filename)
    assert (taken[0], taken[-1]) == ("first", "last")


def test_the_error_of_the_iterator_is_raised_and_files_before_it_may_be_stored(store: FileStorage) -> None:
    def files() -> Iterator[tuple[str, bytes]]:
        yield "first", b"1"
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        list(store.push_many(files(), user_id=USER))
    with pytest.raises(InvalidArgument, match="pairs"):
        list(store.push_many([("first", b"1"), 5], user_id=USER))  # type: ignore[list-item]
    wrongs: list[Any] = [5, "text", b"bytes", None]
    for wrong in wrongs:
        for call in (store.push_many, store.get_many, store.delete_many):
            with pytest.raises(InvalidArgument, match="files"):
                call(wrong, user_id=USER)
    with pytest.raises(InvalidArgument, match="user_id"):
        store.push_many([], user_id="")
    assert not list(store.push_many([], user_id=USER))
    assert not list(store.get_many([], user_id=USER))
    assert pushed(store, [("first", b"1")])[0].filename == "first"


def test_a_caller_that_leaves_keeps_nothing_busy(store: FileStorage) -> None:
    outcomes = store.push_many(((f"f{number}", b"%d" % number) for number in range(100_000)), user_id=USER)
    first = next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert get(store, first.result()) == b"0"
    reading = store.get_many([first.result().file_id] * 1000, user_id=USER)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    store.delete(first.result().file_id, user_id=USER)
    store.collect(grace_s=0)
    assert store.scrub().clean


def test_files_of_a_read_that_was_left_can_be_collected(store: FileStorage) -> None:
    ids = [version.file_id for version in pushed(store, [(f"f{number}", b"%d" % number) for number in range(300)])]
    reading = store.get_many([*ids, ids[0], "no id", *ids], user_id=USER)
    assert [next(reading).result() for _ in range(3)] == [b"0", b"1", b"2"]
    reading.close()  # type: ignore[attr-defined]
    assert not [outcome for outcome in store.delete_many(ids, user_id=USER) if outcome.error]
    assert store.collect(grace_s=0).objects_removed == 2 * len(ids)  # a chunk and a version of each
    assert [type(outcome.error) for outcome in store.get_many(ids, user_id=USER)] == [FileNotFound] * len(ids)


@pytest.mark.parametrize("count", [1, 200])
def test_files_of_a_read_whose_iterator_fails_come_before_its_error_and_can_be_collected(
    store: FileStorage, count: int
) -> None:
    ids = [version.file_id for version in pushed(store, [(f"f{number}", b"%d" % number) for number in range(250)])]

    def asked() -> Iterator[str]:
        yield from ids[:count]
        raise KeyError("of the caller")

    reading = store.get_many(asked(), user_id=USER)
    assert [next(reading).result() for _ in range(count)] == [b"%d" % number for number in range(count)]
    with pytest.raises(KeyError, match="of the caller"):
        next(reading)
    assert not [outcome for outcome in store.delete_many(ids, user_id=USER) if outcome.error]
    assert store.collect(grace_s=0).objects_removed == 2 * len(ids)  # a chunk and a version of each


def test_files_before_the_error_of_an_iterator_are_deleted(store: FileStorage) -> None:
    ids = [version.file_id for version in pushed(store, [("a", b"1"), ("b", b"2")])]

    def asked() -> Iterator[str]:
        yield ids[0]
        raise KeyError("of the caller")

    deleting = store.delete_many(asked(), user_id=USER)
    assert next(deleting).error is None
    with pytest.raises(KeyError, match="of the caller"):
        next(deleting)
    assert [each.filename for each in store.list_files(user_id=USER)] == ["b"]


def test_a_store_that_is_closed_meanwhile(root: Path) -> None:
    store = open_store(root)

    def files() -> Iterator[tuple[str, bytes]]:
        yield "first", b"1"
        store.close()
        yield "second", b"2"

    first, second = store.push_many(files(), user_id=USER)
    assert first.result().filename == "first"
    assert isinstance(second.error, StoreClosed)
    with pytest.raises(StoreClosed):
        store.push_many([], user_id=USER)
    with open_store(root) as again:
        assert contents(again, ["first"]) == [b"1"]


def test_many_callers_at_once(store: FileStorage) -> None:
    def work(user: str) -> None:
        files = [(f"f{number}", f"{user}{number}".encode()) for number in range(300)]
        versions = pushed(store, files, user)
        push(store, b"alone", "alone", user)
        read = [outcome.result() for outcome in store.get_many([each.file_id for each in versions], user_id=user)]
        if read != [data for _, data in files]:
            raise AssertionError(user)
        done.append(user)

    done: list[str] = []
    threads = [threading.Thread(target=work, args=(f"user{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 6
    assert store.counts().files == 6 * 301


def test_everything_reported_survives_the_loss_of_catalog_and_volumes(root: Path) -> None:
    files = [(f"f{number}", content(number, number * 37 % 9000)) for number in range(400)]
    with open_store(root) as store:
        pushed(store, files)
    lose(root, 1, 4)
    lose_catalog(root)
    with open_store(root) as store:
        assert store.rebuild().files == 400
        assert contents(store, [name for name, _ in files]) == [data for _, data in files]


def test_damaged_files_are_read_from_parity_or_reported_one_by_one(root: Path, store: FileStorage) -> None:
    files = [(f"f{number}", content(number, 5000)) for number in range(20)]
    versions = pushed(store, files)
    chunks = [store.chunk_ids(version.file_id, user_id=USER)[0] for version in versions]
    rot_shards(root, chunks[3], 4, 6, [0, 5])
    rot_shards(root, chunks[7], 4, 6, [0, 1, 2])
    outcomes = list(store.get_many([version.file_id for version in versions], user_id=USER))
    assert isinstance(outcomes[7].error, DataLossError)
    assert outcomes[7].error.filename == "f7"
    assert [outcome.data for outcome in outcomes] == [
        None if number == 7 else data for number, (_, data) in enumerate(files)
    ]


def test_what_is_not_there_or_too_large_is_an_outcome(store: FileStorage) -> None:
    mine = pushed(store, [("small", b"small"), ("large", content(1, 2 << 20)), ("empty", b"")])
    theirs = push(store, b"secret", "theirs", "eve")
    asked: list[Any] = [mine[0].file_id, "0" * 32, "no id", theirs.file_id, 5, mine[1].file_id, mine[2].file_id]
    outcomes = list(store.get_many(asked, user_id=USER, bytes_max=100))
    assert [type(outcome.error) for outcome in outcomes[1:5]] == [FileNotFound] * 3 + [InvalidArgument]
    assert [outcome.data for outcome in outcomes] == [b"small", None, None, None, None, None, b""]
    assert outcomes[5].version == mine[1]
    assert outcomes[5].error is None
    with pytest.raises(Exception, match="larger"):
        outcomes[5].result()
    named = list(store.get_many(["small", "theirs", "", "x" * 2000], user_id=USER, by_name=True))
    assert [type(outcome.error) for outcome in named] == [type(None), FileNotFound, InvalidArgument, InvalidArgument]


def test_one_small_file_is_got_with_its_version(store: FileStorage) -> None:
    first, large, empty = pushed(store, [("f", b"1"), ("large", content(1, 3 * CHUNK)), ("empty", b"")])
    second = push(store, b"22", "f")
    assert store.get_small(first.file_id, user_id=USER, bytes_max=9) == (second, b"22")
    assert store.get_small(first.file_id, user_id=USER, version_id=first.version_id, bytes_max=9) == (first, b"1")
    assert store.get_small("f", user_id=USER, by_name=True, bytes_max=1) == (second, None)
    assert store.get_small("empty", user_id=USER, by_name=True, bytes_max=0) == (empty, b"")
    assert store.get_small(large.file_id, user_id=USER, bytes_max=1 << 20) == (large, content(1, 3 * CHUNK))
    with pytest.raises(FileNotFound):
        store.get_small(first.file_id, user_id="eve", bytes_max=9)
    with pytest.raises(FileNotFound):
        store.get_small("g", user_id=USER, by_name=True, bytes_max=9)
    with pytest.raises(VersionNotFound):
        store.get_small(first.file_id, user_id=USER, version_id=large.version_id, bytes_max=9)


def test_deletes_report_each_file(store: FileStorage) -> None:
    versions = pushed(store, [(f"f{number}", b"%d" % number) for number in range(600)])
    theirs = push(store, b"theirs", "theirs", "eve")
    doomed = [version.file_id for version in versions]
    asked: list[Any] = [*doomed[:300], "0" * 32, theirs.file_id, doomed[0], 5, *doomed[300:599]]
    outcomes = list(store.delete_many(asked, user_id=USER))
    assert [outcome.file for outcome in outcomes] == asked
    assert [type(outcome.error) for outcome in outcomes[300:304]] == [FileNotFound] * 3 + [InvalidArgument]
    assert sum(outcome.error is None for outcome in outcomes) == 599
    with pytest.raises(FileNotFound):
        outcomes[300].result()
    assert [version.filename for version in store.list_files(user_id=USER)] == ["f599"]
    assert store.counts().files == 2


PAIRS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ç", "", "x" * 1025]),
        st.integers(0, 3).flatmap(
            lambda seed: st.sampled_from([0, 1, 4096, CHUNK + 1]).map(lambda n: content(seed, n))
        ),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(PAIRS, max_size=3))
def test_like_single_pushes_one_after_another(
    tmp_path_factory: pytest.TempPathFactory, calls: list[list[tuple[str, bytes]]]
) -> None:
    root = tmp_path_factory.mktemp("pair")
    with open_store(root / "many") as many, open_store(root / "single") as single:
        for files in calls:
            for outcome, (name, data) in zip(many.push_many(files, user_id=USER), files, strict=True):
                if outcome.error is not None:
                    with pytest.raises(InvalidArgument, match=re.escape(str(outcome.error))):
                        push(single, data, name)
                    continue
                expected = push(single, data, name)
                assert outcome.result().unchanged == expected.unchanged
                assert outcome.result().size == expected.size
        listed = [
            [(each.filename, [get(store, version) for version in store.history(each.file_id, user_id=USER)])
             for each in store.list_files(user_id=USER)]
            for store in (many, single)
        ]  # fmt: skip
        assert listed[0] == listed[1]
