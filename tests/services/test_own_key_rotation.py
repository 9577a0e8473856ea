"""Replacing a user's own key: former keys open what they sealed, until all of it is stored anew."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from storage import ErasureProfile, FileStorage, Version
from storage.errors import InvalidArgument, KeyRequired, SealBroken, StorageError
from storage.sealing.master_keys import MasterKey, MasterKeys, new_key_file, read_key_file
from taskworker import Client
from taskworker.client.folders import ClientFiles
from taskworker.client.sealed.key_files import with_new_key, without_former
from taskworker.client.sealed.keys import OwnKey
from taskworker.client.sealed.rotating import OwnKeyRotation, Rotated
from taskworker.folders.fetching import get_tree
from taskworker.folders.snapshots.repository import Repository
from taskworker.folders.snapshots.restoring import restore
from taskworker.folders.snapshots.taking import take_snapshot
from tests.services.conftest import CHUNK
from tests.services.test_sharing import Served

USER = "ann"
FORMER, CURRENT, OLDEST = (MasterKey(letter * 32) for letter in (b"f", b"c", b"o"))
RING = MasterKeys(CURRENT, (FORMER,))
STRIDE = 4  # of the calls before which something happens; 1 takes a minute
SIZES = (0, 10, CHUNK - 16, 3 * CHUNK + 9)


def content(size: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(size)


@pytest.fixture
def former(address: str) -> Iterator[Client]:
    with Client(address, key=FORMER.raw) as connected:
        yield connected


@pytest.fixture
def current(address: str) -> Iterator[Client]:
    with Client(address, key=CURRENT.raw) as connected:
        yield connected


@pytest.fixture
def both(address: str) -> Iterator[Client]:
    with Client(address, key=RING) as connected:
        yield connected


def rotated(address: str, keys: MasterKeys = RING) -> Rotated:
    with Client(address, key=keys) as client:
        return OwnKeyRotation(client, USER).run()


def described(client: Client, name: str) -> list[tuple[bytes, str, int, str | None, int]]:
    """All that a user knows of a file's versions, oldest first."""
    head = client.find(name, user_id=USER)
    assert head is not None
    return [
        (
            client.get(head.file_id, user_id=USER, version_id=one.version_id),
            one.note,
            one.time_ms,
            one.sha256,
            one.chunk_size,
        )
        for one in reversed(client.history(head.file_id, user_id=USER))
    ]


# -- with several keys ---------------------------------------------------------------------------------


def test_new_files_have_the_current_key_and_others_keep_theirs(
    former: Client, current: Client, both: Client, address: str
) -> None:
    old = former.push(b"old", filename="old", user_id=USER, note="by the former")
    new = both.push(b"new", filename="new", user_id=USER)
    assert current.get(new.file_id, user_id=USER) == b"new"
    with pytest.raises(KeyRequired, match=r"sealed with the key \S+, and \S+ was given"):
        current.get(old.file_id, user_id=USER)
    with pytest.raises(KeyRequired):
        former.get(new.file_id, user_id=USER)
    assert both.get(old.file_id, user_id=USER) == b"old"
    assert both.find("old", user_id=USER) == old
    assert [one.filename for one in both.list_files(user_id=USER)] == ["new", "old"]
    assert both.push(b"old 2", filename="old", user_id=USER, note="by both").file_id == old.file_id
    assert former.get(old.file_id, user_id=USER) == b"old 2"
    both.revise(old.file_id, b"old 3", user_id=USER)
    outcomes = list(both.push_many([("old", b"old 4"), ("more", b"more")], user_id=USER))
    assert outcomes[0].result().file_id == old.file_id
    assert former.get(old.file_id, user_id=USER) == b"old 4"
    got = both.get_many(["old", "new", "more"], user_id=USER, by_name=True)
    assert [one.result() for one in got] == [b"old 4", b"new", b"more"]
    noted = list(both.push_many([("old", b"old 5"), ("more", b"more 2")], user_id=USER, note="n"))
    assert isinstance(noted[0].error, InvalidArgument)
    assert noted[1].result().note == "n"
    others = MasterKeys(MasterKey(b"x" * 32), (OLDEST,))
    with Client(address, key=others) as other, pytest.raises(KeyRequired, match=r"and \S+ and \S+ was given"):
        other.list_files(user_id=USER)


# -- storing anew --------------------------------------------------------------------------------------


def filled(client: Client) -> dict[str, list[tuple[bytes, str, int, str | None, int]]]:
    """Files with histories; what is known of them."""
    for number, size in enumerate(SIZES):
        for version in range(number + 1):
            data = content(size, version) + bytes([version])
            client.push(
                data,
                filename=f"目录/{size}",
                user_id=USER,
                note=f"第 {version} 版" if version % 2 else "",
                sha256=hashlib.sha256(data).hexdigest() if version > 1 else None,
                time_ms=1000 + version,
                profile=ErasureProfile(1, 2) if number == 2 else None,
                chunk_size=2 * CHUNK if number == 3 else None,
            )
    client.push(b"n", filename="noted", user_id=USER, note="n" * 3016)
    client.push(b"m", filename="noted", user_id=USER, note="m" * 3016)
    return {one.filename: described(client, one.filename) for one in client.list_files(user_id=USER)}


def test_everything_is_stored_anew_with_its_history(former: Client, current: Client, address: str) -> None:
    before = filled(former)
    profiles = {one.filename: one.profile for one in former.list_files(user_id=USER)}
    report = rotated(address)
    assert (report.files, report.versions, report.left) == (5, 12, [])
    assert {one.filename: described(current, one.filename) for one in current.list_files(user_id=USER)} == before
    assert {one.filename: one.profile for one in current.list_files(user_id=USER)} == profiles
    assert former.sealed_files is not None
    assert former.find("noted", user_id=USER) is None
    with pytest.raises(KeyRequired):
        former.list_files(user_id=USER)
    again = rotated(address)
    assert (again.files, again.versions, again.left) == (0, 0, [])


class Stopped(Exception):
    """The command was killed."""


def at_call(client: Client, number: int, do: Callable[[], None]) -> None:
    """Do something before a call of a client; calls are counted from 0."""
    files = client.sealed_files
    assert files is not None
    channel, count = files.channel, 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == number:
                do()
            return call(*arguments)

        return made

    channel.unary = counted(channel.unary)  # type: ignore[method-assign]
    channel.push = counted(channel.push)  # type: ignore[method-assign]
    channel.get = counted(channel.get)  # type: ignore[method-assign]


def kill() -> None:
    raise Stopped


Run = Callable[[Callable[[], None]], Rotated | None]
"""Runs a rotation, with what to do before one of its calls; returns the report, or None if that has stopped it."""


def rotations(address: str, stride: int = STRIDE) -> Iterator[Run]:
    """Yield a rotation for one call after another, until one makes fewer calls.

    Args:
        address: of the server.
        stride: of how many calls it is one.
    """
    number = 0
    is_reached = True

    def run(do: Callable[[], None]) -> Rotated | None:
        def reach() -> None:
            nonlocal is_reached
            is_reached = True
            do()

        with Client(address, key=RING) as client:
            rotation = OwnKeyRotation(client, USER)
            at_call(client, number, reach)
            with suppress(Stopped):
                return rotation.run()
        return None

    while is_reached:
        is_reached = False
        yield run
        number += stride
    assert number > 2 * stride


def some_files(client: Client) -> None:
    for version in range(3):
        client.push(content(CHUNK + 100, version), filename="a", user_id=USER, note=str(version), time_ms=version)
    client.push(b"b", filename="b", user_id=USER)


def test_it_goes_on_wherever_it_was_stopped(
    former: Client, current: Client, both: Client, address: str, store: FileStorage
) -> None:
    for run in rotations(address):
        some_files(former)
        before = {name: described(former, name) for name in "ab"}
        run(kill)
        for name in "ab":  # whoever has both keys sees the newest version all the time
            found = both.find(name, user_id=USER)
            assert found is not None
            assert both.get(found.file_id, user_id=USER) == before[name][-1][0]
            assert found.note == before[name][-1][1]
        assert [one.filename for one in both.list_files(user_id=USER)] == ["a", "b"]
        assert [one.result() for one in both.get_many(["a", "b"], user_id=USER, by_name=True)] == [
            before[name][-1][0] for name in "ab"
        ]
        assert rotated(address).left == []
        assert {name: described(current, name) for name in "ab"} == before
        empty(store)


def empty(store: FileStorage) -> None:
    for one in store.list_files(user_id=USER):
        store.delete(one.file_id, user_id=USER)


@pytest.mark.parametrize("keys", [RING, MasterKeys(FORMER)])
def test_what_is_stored_meanwhile_is_not_lost(
    keys: MasterKeys, current: Client, former: Client, address: str, store: FileStorage
) -> None:
    """By somebody who has both keys, or only the former one yet."""
    for run in rotations(address):
        stored: list[Version] = []

        def interfere(stored: list[Version] = stored) -> None:
            with Client(address, key=keys) as other:
                stored.append(other.push(b"meanwhile", filename="a", user_id=USER, note="meanwhile"))

        some_files(former)
        report = run(interfere)
        assert report is not None
        left = [*report.left, *rotated(address).left]
        contents = [data for data, *_ in described(current, "a")]
        if stored and b"meanwhile" not in contents:
            # Whoever has the former key only does not see that the file has moved.
            assert keys is not RING
            assert {one.name for one in left} == {"a"}
            assert "there is another file of this name" in left[0].reason
            of_former = former.find("a", user_id=USER)
            assert of_former is not None
            assert former.get(of_former.file_id, user_id=USER) == b"meanwhile"
            former.delete(of_former.file_id, user_id=USER)
        elif stored:
            assert not left
            assert contents[-1] == b"meanwhile"
        assert contents[:3] == [content(CHUNK + 100, version) for version in range(3)]
        empty(store)


def test_no_key_is_without_need_while_a_file_that_is_stored_meanwhile_needs_it(
    current: Client, former: Client, address: str, store: FileStorage
) -> None:
    """By a program that has been running since before, and knows only the former key."""
    for run in rotations(address):
        stored: list[Version] = []

        def interfere(stored: list[Version] = stored) -> None:
            stored.append(former.push(b"meanwhile", filename="new", user_id=USER))

        some_files(former)
        report = run(interfere)
        assert report is not None
        found = current.find("new", user_id=USER)
        if stored and found is None:
            assert [(one.name, one.key) for one in report.left] == [("new", OwnKey(FORMER).id)]
        elif stored:
            assert found is not None
            assert current.get(found.file_id, user_id=USER) == b"meanwhile"
            assert (report.files, report.left) == (3, [])
        empty(store)


def test_files_that_are_stored_again_and_again_with_a_former_key_are_named(
    former: Client, address: str, store: FileStorage
) -> None:
    some_files(former)
    with Client(address, key=RING) as client:
        rotation = OwnKeyRotation(client, USER)
        channel = client._channel
        call, numbers = channel.unary, iter(range(10_000))

        def answered(*arguments: Any) -> Any:
            former.push(b"meanwhile", filename=f"new {next(numbers)}", user_id=USER)
            return call(*arguments)

        channel.unary = answered  # type: ignore[method-assign,assignment]
        report = rotation.run()
    of_former = {one.filename for one in former.list_files(user_id=USER)}
    assert of_former
    assert {one.name for one in report.left} <= of_former
    assert report.left


def test_a_file_that_is_deleted_meanwhile_stays_deleted(
    former: Client, both: Client, address: str, store: FileStorage
) -> None:
    for run in rotations(address):
        deleted: list[Version] = []

        def interfere(deleted: list[Version] = deleted) -> None:
            found = both.find("a", user_id=USER)
            assert found is not None
            both.delete(found.file_id, user_id=USER)
            deleted.append(found)

        some_files(former)
        report = run(interfere)
        assert report is not None
        assert report.left == []
        assert not deleted or both.find("a", user_id=USER) is None
        empty(store)


def test_what_is_stored_already_stays_if_the_versions_after_it_are_deleted(
    former: Client, current: Client, both: Client, address: str, store: FileStorage
) -> None:
    for run in rotations(address):
        some_files(former)
        before = described(former, "a")
        if run(kill) is None and (found := former.find("a", user_id=USER)) is not None:
            former.delete_version(found.file_id, found.version_id, user_id=USER)
            before = before[:-1]
        assert rotated(address).left == []
        assert described(current, "a")[: len(before)] == before
        empty(store)


def test_an_unfinished_rotation_is_taken_over_by_the_next_one(former: Client, both: Client, address: str) -> None:
    some_files(former)
    before = {name: described(former, name) for name in "ab"}
    with Client(address, key=RING) as client:
        rotation = OwnKeyRotation(client, USER)
        at_call(client, 6, kill)
        with pytest.raises(Stopped):
            rotation.run()
    newest = MasterKey(b"n" * 32)
    report = rotated(address, MasterKeys(newest, (CURRENT, FORMER)))
    assert report.left == []
    with Client(address, key=newest.raw) as client:
        assert {name: described(client, name) for name in "ab"} == before
    with pytest.raises(KeyRequired):
        both.list_files(user_id=USER)


def test_what_cannot_be_read_keeps_its_key(former: Client, current: Client, address: str, store: FileStorage) -> None:
    some_files(former)
    found = former.find("a", user_id=USER)
    assert found is not None
    stored = store.stat(found.file_id, user_id=USER)
    raw = bytearray(store.get(found.file_id, user_id=USER))
    raw[5] ^= 1
    store.push(bytes(raw), filename=stored.filename, user_id=USER, note=stored.note)
    former.push(b"c", filename="c", user_id=USER)
    own = OwnKey(FORMER)
    store.push(b"c", filename=own.sealed_name(USER, "c"), user_id=USER, note="made up")
    report = rotated(address)
    assert {(one.name, one.owner) for one in report.left} == {("a", USER), (own.sealed_name(USER, "c"), USER)}
    assert described(current, "b")[-1][0] == b"b"
    with pytest.raises(SealBroken):
        former.get(found.file_id, user_id=USER)


def test_what_a_former_key_sealed_is_not_taken_for_what_the_current_one_did(
    former: Client, address: str, store: FileStorage
) -> None:
    """So it helps nobody to have the former key, and nobody without it can read what was deleted before."""
    former.push(b"deleted", filename="deleted", user_id=USER)
    former.push(b"kept", filename="kept", user_id=USER)
    on_old_disks = [
        (one.filename, one.note, store.get(one.file_id, user_id=USER)) for one in store.list_files(user_id=USER)
    ]
    deleted = former.find("deleted", user_id=USER)
    assert deleted is not None
    former.delete(deleted.file_id, user_id=USER)
    assert rotated(address).left == []
    own = OwnKey(CURRENT)
    for number, (name, note, raw) in enumerate(on_old_disks):
        store.push(raw, filename=name, user_id=USER, note=note)
        for claimed in ("deleted", "kept"):
            store.push(raw, filename=own.sealed_name(USER, claimed), user_id=USER, note=note)
            with Client(address, key=CURRENT.raw) as client:
                found = client.find(claimed, user_id=USER)
                assert found is not None, number
                with pytest.raises(SealBroken):
                    client.get(found.file_id, user_id=USER)
    with Client(address, key=CURRENT.raw) as client:
        for one in store.list_files(user_id=USER):
            if not one.filename.startswith(own.prefix):
                with pytest.raises(KeyRequired):
                    client.get(one.file_id, user_id=USER)


# -- shares and folders --------------------------------------------------------------------------------


def test_shares_go_with_the_files(tmp_path: Path) -> None:
    with closing(Served(tmp_path / "served")) as served:

        def client(user: str, keys: MasterKeys | bytes) -> Client:
            return Client(served.address, token=served.tokens[user], key=keys)

        with client("ann", FORMER.raw) as ann, client("bob", FORMER.raw) as bob:
            version = ann.push(b"of ann", filename="shared", user_id="ann")
            ann.share("shared", with_user="bob", user_id="ann", write=True)
            ann.share("later", with_user="bob", user_id="ann", ttl_s=1000)
            assert bob.revise(version.file_id, b"of bob", user_id="ann", note="n").note == "n (by bob)"
            bob.push(b"of bob himself", filename="own", user_id="bob")
        with client("bob", RING) as bob:  # before ann has stored hers anew
            assert [(one.name, one.owner) for one in OwnKeyRotation(bob, "bob").run().left] == [
                ("shared", "ann"),
                ("later", "ann"),
            ]
        with client("ann", RING) as ann, client("bob", CURRENT.raw) as bob:
            assert OwnKeyRotation(ann, "ann").run().left == []
            found = bob.find("shared", user_id="ann")
            assert found is not None
            assert found.note == "n (by bob)"
            assert bob.get(found.file_id, user_id="ann") == b"of bob"
            assert bob.push(b"again", filename="shared", user_id="ann").note == "(by bob)"
            given = {one.name: one for one in ann.shares(user_id="ann").given}
            assert set(given) == {"shared", "later"}
            assert given["shared"].write
            assert given["shared"].expires_ms is None
            assert given["later"].expires_ms is not None
        with client("bob", RING) as bob:
            assert OwnKeyRotation(bob, "bob").run().left == []


def test_folders_keep_their_times(former: Client, current: Client, address: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "below").mkdir(parents=True)
    for name in ("a", "below/b"):
        (here / name).write_bytes(name.encode())
        (here / name).chmod(0o640)
    os.utime(here / "a", ns=(5, 1_234_567_891))
    former.push_tree(here, "tree/", user_id=USER)
    former.push(b"beside", filename="tree-beside", user_id=USER)
    assert rotated(address).left == []
    get_tree(ClientFiles(current, USER), "tree/", tmp_path / "there")
    assert (tmp_path / "there" / "a").stat().st_mtime_ns == 1_234_567_891
    assert (tmp_path / "there" / "below" / "b").read_bytes() == b"below/b"


def restored(client: Client, folder: str, target: Path) -> list[dict[str, bytes]]:
    """What each snapshot of a folder has, by name."""
    repository = Repository(ClientFiles(client, USER), folder)
    found = []
    for number, snapshot in enumerate(repository.record.snapshots):
        restore(repository, snapshot, target / str(number), problem=raised)
        found.append({one.name: one.read_bytes() for one in (target / str(number)).iterdir()})
    return found


def raised(_path: bytes, error: Exception) -> None:
    raise error


def test_snapshots_are_there_wherever_it_was_stopped(
    former: Client, current: Client, both: Client, address: str, store: FileStorage, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    files = ClientFiles(former, USER)
    for number, run in enumerate(rotations(address, 2 * STRIDE)):
        (tmp_path / "here" / "a").write_bytes(content(100_000, number))
        take_snapshot(files, tmp_path / "here", "x")
        (tmp_path / "here" / "b").write_bytes(content(5_000, number + 1))
        take_snapshot(files, tmp_path / "here", "x")
        before = restored(former, "x", tmp_path / "before" / str(number))
        report = run(kill)
        assert report is None or report.left == []
        assert restored(both, "x", tmp_path / "between" / str(number)) == before
        assert rotated(address).left == []
        assert restored(current, "x", tmp_path / "after" / str(number)) == before
        record = current.find(".folders/snapshots/x", user_id=USER)
        assert record is not None
        containers = [one.filename for one in current.list_files(user_id=USER, prefix=".folders/data/")]
        assert {name.split("/")[2] for name in containers} == {record.file_id}
        assert len(store.list_files(user_id=USER)) == len(containers) + 1
        empty(store)


# -- the key file --------------------------------------------------------------------------------------


def test_a_key_file_gets_one_new_key_and_loses_the_former_ones(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = new_key_file(path).current
    keys = with_new_key(path)
    assert [key.id for key in keys.former] == [first.id]
    assert with_new_key(path).current.id == keys.current.id
    assert [key.id for key in read_key_file(path).former] == [first.id]
    assert path.stat().st_mode & 0o777 == 0o600
    assert without_former(path, {b"another"}).former != ()
    assert without_former(path, {first.id, keys.current.id}).current.id == keys.current.id
    assert read_key_file(path).former == ()
    with pytest.raises(KeyRequired):
        with_new_key(tmp_path / "none")
    with pytest.raises(KeyRequired):
        with_new_key(tmp_path / "none" / "key")
    path.chmod(0o644)
    with pytest.raises(StorageError):
        with_new_key(path)
