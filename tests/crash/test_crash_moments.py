"""Particular crashes, at every moment of one operation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import lmdb
import pytest

from storage import DataLossError, ErasureProfile, FileStorage
from storage.shards.identity import SEGMENT_SUFFIX
from storage.shards.record import SEGMENT_HEADER_BYTES
from storage.system.lmdb_env import Environment
from tests.crash.determinism import Clock, deterministic
from tests.crash.disk import Disk, PowerLoss
from tests.crash.ledger import Key, Ledger, check
from tests.crash.session import Session, fresh, killed
from tests.crash.stores import (
    CHUNK_BYTES,
    DATABASE,
    SETTINGS,
    Setting,
    databases,
    open_store,
    pending_max,
    plain_flushing,
    write_state,
)
from tests.crash.users import Generation, World
from tests.same_disk import as_the_same_disk

SETTING = Setting(ErasureProfile(1, 2), 256 * 1024, 8192)
KEY = Key("ann", "file-0")
SMALL = b"some content"
CHUNKS = Random(0).randbytes(6 * CHUNK_BYTES)
NOTHING_SURVIVES = PowerLoss(survive=0.0)


@pytest.fixture(autouse=True)
def quick_flushing() -> Iterator[None]:
    with plain_flushing():
        yield


def push(store: FileStorage, content: bytes, key: Key = KEY) -> str:
    return store.push(content, filename=key.name, user_id=key.user).file_id


def get(store: FileStorage, key: Key = KEY) -> bytes:
    head = store.find(key.name, user_id=key.user)
    assert head is not None
    return store.get(head.file_id, user_id=key.user)


# -- killed, used again, and then the power goes -------------------------------------------------


@pytest.mark.parametrize("content", [SMALL, CHUNKS], ids=["small", "chunks"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_what_a_killed_push_left_in_the_cache_is_made_durable_by_the_next(
    fast_directory: Path, content: bytes, used: bool
) -> None:
    """The second push finds shards that the first never flushed, and counts on them."""
    session = Session(fresh(fast_directory / "first"), SETTING)
    if used:
        with session.open() as store:
            push(store, b"from before", Key("bob", "file-1"))
    with session.noting(), session.open() as store:
        push(store, content)
    moments = len(session.moments)
    assert moments > 10
    for moment, disk in session.disks():
        again_then_without_power(killed(fast_directory / "killed", moment, disk), content)


def again_then_without_power(world: World, content: bytes) -> None:
    session = Session(world, SETTING)
    with session.open() as store:
        push(store, content)
        moment, disk = session.now()
        image = disk.after_power_loss(NOTHING_SURVIVES, Random(0))
    crashed = world.root.with_name("crashed")
    write_state(image, moment.databases, crashed)
    with open_store(crashed, SETTING) as store:
        assert get(store) == content
        assert store.scrub().clean
    shutil.rmtree(crashed)
    shutil.rmtree(world.root)


@pytest.mark.parametrize("entries", [2, 6, 8])
def test_power_goes_while_a_killed_store_is_being_recovered(fast_directory: Path, entries: int) -> None:
    """An index must not know of shards that only the cache has, however much there is to read in."""
    session = Session(fresh(fast_directory / "first"), SETTING)
    with session.open() as store:
        push(store, SMALL)
        with session.noting():
            push(store, CHUNKS, Key("bob", "file-1"))
    # The last moment before anything of the push was flushed.
    unflushed = [moment for moment in session.moments if moment.at <= first_flush(session)][-1]
    moment, disk = next((moment, disk) for moment, disk in session.disks() if moment is unflushed)
    world = killed(fast_directory / "killed", moment, disk)
    recovery = Session(world, SETTING)
    with pending_max(entries), recovery.noting(), recovery.open() as store:
        assert get(store) == SMALL
    assert len(recovery.moments) > 3
    for moment, disk in recovery.disks():
        image = disk.after_power_loss(NOTHING_SURVIVES, Random(0))
        crashed = fast_directory / "crashed"
        write_state(image, moment.databases, crashed)
        with open_store(crashed, SETTING) as store:
            assert get(store) == SMALL
            push(store, CHUNKS)
            assert get(store) == CHUNKS
            assert store.scrub().clean
        shutil.rmtree(crashed)


def first_flush(session: Session) -> int:
    """Where in the log the first flush begins that has noted moments before it."""
    first = session.moments[0].at
    return next(
        at for at in range(first, len(session.recorder.log)) if type(session.recorder.log[at]).__name__ == "SyncBegun"
    )


# -- numbers, names and marks that must not be taken for others ----------------------------------


@pytest.mark.parametrize("reopened", [False, True], ids=["at once", "reopened"])
def test_a_segment_that_was_emptied_lends_nothing_to_its_successor(fast_directory: Path, reopened: bool) -> None:
    root = fast_directory / "store"
    store = open_store(root, SETTING)
    with store.upload(filename=KEY.name, user_id=KEY.user) as upload:
        upload.write(CHUNKS[: 2 * CHUNK_BYTES])  # and that is all: not even a tombstone will be left of it
    store.collect(grace_s=0)
    assert not list(root.glob(f"volumes/*/*{SEGMENT_SUFFIX}"))
    if reopened:
        store.close()
        store = open_store(root, SETTING)
    push(store, CHUNKS[::-1])
    shutil.copytree(root, fast_directory / "killed")
    as_the_same_disk(fast_directory / "killed")
    store.close()
    with open_store(fast_directory / "killed", SETTING) as store:
        assert get(store) == CHUNKS[::-1]
        assert store.scrub().clean


def test_a_delete_that_a_crash_undid_stays_undone(fast_directory: Path) -> None:
    """Whatever of it had reached the volumes, and though the catalog is lost later on."""
    session = Session(fresh(fast_directory / "first"), SETTING)
    ledger = Ledger()
    with session.open() as store:
        ledger.saved(KEY, store.push(SMALL, filename=KEY.name, user_id=KEY.user), SMALL)
        with session.noting():
            store.delete(ledger.files[KEY].file_id, user_id=KEY.user)
    for moment, disk in session.disks():
        root = fast_directory / "killed"
        killed(root, moment, disk)
        with open_store(root, SETTING) as store:
            deleted = store.find(KEY.name, user_id=KEY.user) is None
        shutil.rmtree(root / "catalog")
        with open_store(root, SETTING) as store:
            store.rebuild()
            assert (store.find(KEY.name, user_id=KEY.user) is None) == deleted
            if not deleted:
                check(store, ledger)
        shutil.rmtree(root)


@pytest.mark.parametrize("undone", [SMALL, b"", CHUNKS[:CHUNK_BYTES]], ids=["small", "empty", "shared"])
def test_a_version_that_was_collected_does_not_come_back(fast_directory: Path, undone: bytes) -> None:
    """A push was cut off after all of it had reached the volumes; a collect has cleared it away."""
    session = Session(fresh(fast_directory / "first"), SETTING)
    acknowledged = CHUNKS[:CHUNK_BYTES]  # enough to spare its segment from being rewritten
    with session.open() as store:
        push(store, acknowledged)
        with session.noting():
            push(store, undone, Key("bob", "file-1"))
    *_, (moment, disk) = session.disks()
    before = {**moment.databases, "catalog": session.moments[0].databases["catalog"]}
    root = fast_directory / "killed"
    write_state(disk.cached(), before, root)
    with open_store(root, SETTING) as store:
        assert store.find("file-1", user_id="bob") is None
        assert store.collect(grace_s=0).objects_removed
    shutil.rmtree(root / "catalog")
    with open_store(root, SETTING) as store:
        store.rebuild()
        assert get(store) == acknowledged
        assert store.find("file-1", user_id="bob") is None
        assert store.scrub().clean


def test_a_clock_set_back_by_the_crash_does_not_bring_an_undone_version_to_the_head(
    fast_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boards without a battery start in the past; what is stored then is later nevertheless."""
    session = Session(fresh(fast_directory / "first"), SETTING)
    with session.open() as store:
        push(store, b"the first")
        with session.noting():
            push(store, b"the undone")
    *_, (moment, disk) = session.disks()
    root = fast_directory / "killed"
    write_state(disk.cached(), {**moment.databases, "catalog": session.moments[0].databases["catalog"]}, root)
    monkeypatch.setattr("storage.runtime.time", Clock(1000))
    with open_store(root, SETTING) as store:
        assert get(store) == b"the first"
        file_id = push(store, b"the second")
    shutil.rmtree(root / "catalog")
    with open_store(root, SETTING) as store:
        store.rebuild()
        assert get(store) == b"the second"
        assert len(store.history(file_id, user_id=KEY.user)) == 2


@pytest.mark.parametrize("away", range(SETTING.profile.n))
def test_an_undone_version_on_a_volume_that_was_away_is_no_later_than_what_was_stored_since(
    fast_directory: Path, monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    """The volume cannot tell what it has, and the clock was set back: only the catalog knows."""
    session = Session(fresh(fast_directory / "first"), SETTING)
    with session.open() as store:
        push(store, b"another", Key("bob", "file-1"))
        with session.noting():
            push(store, b"the undone")
    root, later = fast_directory / "killed", fast_directory / "later"
    disks = session.disks()
    before, disk = next(disks)
    write_state(disk.cached(), before.databases, root)
    *_, (moment, disk) = disks
    write_state(disk.cached(), moment.databases, later)
    volume = sorted(root.glob("volumes/*"))[away]
    shutil.rmtree(volume)
    monkeypatch.setattr("storage.runtime.time", Clock(1000))
    with open_store(root, SETTING) as store:
        assert store.find(KEY.name, user_id=KEY.user) is None
        push(store, b"the acknowledged")
    shutil.rmtree(root / "catalog")
    shutil.rmtree(volume, ignore_errors=True)
    shutil.copytree(later / "volumes" / volume.name, volume)
    with open_store(root, SETTING) as store:
        store.rebuild()
        assert get(store) == b"the acknowledged"


@pytest.mark.parametrize("content", [SMALL, CHUNKS], ids=["small", "chunks"])
@pytest.mark.parametrize("cut", [None, 0, SEGMENT_HEADER_BYTES])
@pytest.mark.parametrize("missed", [False, True])
def test_what_was_lost_with_its_segments_can_be_pushed_again(
    fast_directory: Path, content: bytes, cut: int | None, missed: bool
) -> None:
    """Indexes tell of shards that are not there: segments are gone, or were cut."""
    root = fast_directory / "store"
    with open_store(root, SETTING) as store:
        file_id = push(store, content)
    for segment in root.glob(f"volumes/*/*{SEGMENT_SUFFIX}"):
        if cut is None:
            segment.unlink()
        else:
            os.truncate(segment, cut)
    with open_store(root, SETTING) as store:
        if missed:
            with pytest.raises(DataLossError):
                store.get(file_id, user_id=KEY.user)
        push(store, content)
        assert get(store) == content
    with open_store(root, SETTING) as store:
        assert get(store) == content


# -- the simulation itself -----------------------------------------------------------------------


def test_a_database_copied_in_a_transaction_is_as_before_it(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "store" / "catalog", ("table",))
    table = environment.databases["table"]
    copies = tmp_path / "copies"

    def value(generation: int) -> dict[str, bytes]:
        return {f"key-{number}": bytes([generation]) * 2000 for number in range(300)}

    for generation in range(1, 6):

        def work(txn: lmdb.Transaction[bytes], generation: int = generation) -> None:
            for key, content in value(generation).items():
                txn.put(key.encode(), content, db=table)
            write_state({}, databases(tmp_path / "store"), copies / str(generation))

        environment.write(work)
    environment.close()
    for generation in range(2, 6):
        copy = Environment(copies / str(generation) / "catalog", ("table",))
        found = {key.decode(): content for page in copy.pages("table", b"") for key, content in page}
        copy.close()
        assert found == value(generation - 1)
    assert (copies / "1" / "catalog" / DATABASE).exists()


def test_a_seed_brings_about_the_same_run(fast_directory: Path) -> None:
    logs = []
    for run in ("one", "two"):
        rng, clock = Random(7), Clock(1000)
        (fast_directory / run).mkdir()
        world = World(fast_directory / run, Disk(), Ledger())
        generation = Generation(world, SETTINGS[0], rng, clock, steps=12, points_max=5)
        with deterministic(rng, clock):
            generation.run()
        logs.append((generation.recorder.log, [point.at for point in generation.points]))
    assert logs[0] == logs[1]
