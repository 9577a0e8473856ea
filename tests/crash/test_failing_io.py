"""Disks that answer with I/O errors: a volume goes offline, nothing acknowledged goes with it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from random import Random

import pytest

from storage import ErasureProfile, FileStorage, InsufficientWorkers, StorageError
from storage.errors import IncompletePush
from tests.crash.disk import PowerLoss
from tests.crash.ledger import KEYS, Key, Ledger, Operation, check
from tests.crash.recording import ASKED, Asked
from tests.crash.session import Session, fresh
from tests.crash.stores import CHUNK_BYTES, Setting, open_store, plain_flushing, write_state
from tests.same_disk import as_the_same_disk

SETTING = Setting(ErasureProfile(4, 6), 256 * 1024, 8192)
KEY = Key("ann", "file-0")
SEEDS = range(8)
STEPS = 40


@pytest.fixture(autouse=True)
def quick_flushing() -> Iterator[None]:
    with plain_flushing():
        yield


def directory(slot: int) -> str:
    return f"volumes/{slot}"


def push(store: FileStorage, ledger: Ledger, key: Key, content: bytes) -> None:
    ledger.saved(key, store.push(content, filename=key.name, user_id=key.user), content)


def states(store: FileStorage) -> list[str]:
    return [volume.state for volume in store.stats().volumes]


def mend(store: FileStorage, session: Session) -> None:
    """The disks are well again, and the operator has the store repaired."""
    session.recorder.faults.stop()
    store.scrub()
    assert store.repair().complete
    assert states(store) == ["ok"] * SETTING.volume_count
    assert store.scrub().clean


def contents(rng: Random) -> bytes:
    return rng.randbytes(rng.choice((10, 5000, CHUNK_BYTES, 5 * CHUNK_BYTES)))


@pytest.mark.parametrize("asked", ASKED)
def test_one_failing_disk_costs_nothing_but_itself(fast_directory: Path, asked: Asked) -> None:
    rng = Random(1)
    session = Session(fresh(fast_directory / "store"), SETTING)
    ledger = Ledger()
    with session.open() as store:
        push(store, ledger, KEYS[0], contents(rng))
        session.recorder.faults.start(directory(2), asked)
        for _ in range(4):
            for key in KEYS[1:6]:
                push(store, ledger, key, contents(rng))
            store.delete(ledger.files[KEYS[1]].file_id, user_id=KEYS[1].user)
            ledger.removed(KEYS[1])
            store.collect(grace_s=0)
        store.scrub()
        check(store, ledger)
        # One more may be lost at any time.
        shutil.copytree(fast_directory / "store", fast_directory / "one less")
        mend(store, session)
        check(store, ledger)
    shutil.rmtree(fast_directory / "one less" / directory(2))
    shutil.rmtree(fast_directory / "one less" / directory(4))
    with open_store(fast_directory / "one less", SETTING) as store:
        check(store, ledger)


@pytest.mark.parametrize("asked", ASKED)
def test_a_disk_that_fails_when_the_store_is_opened_costs_nothing_but_itself(
    fast_directory: Path, asked: Asked
) -> None:
    rng = Random(5)
    world = fresh(fast_directory / "store")
    session = Session(world, SETTING)
    ledger = Ledger()
    with session.open() as store:
        push(store, ledger, KEYS[0], contents(rng))
        # The next opening finds a process that was killed: there is something to read in.
        shutil.copytree(world.root, fast_directory / "killed")
    shutil.rmtree(world.root)
    as_the_same_disk(fast_directory / "killed").rename(world.root)
    session.recorder.faults.start(directory(3), asked)
    with session.open() as store:
        check(store, ledger)
        push(store, ledger, KEYS[1], contents(rng))
        check(store, ledger)
        mend(store, session)
        check(store, ledger)


def test_what_cannot_be_read_for_a_while_is_not_thrown_away(fast_directory: Path) -> None:
    """A collect, and an opening that reads in what its index lacks, meet more failing disks than may be lost."""
    rng = Random(6)
    world = fresh(fast_directory / "store")
    session = Session(world, SETTING)
    ledger = Ledger()
    with session.open() as store:
        for key in KEYS:
            push(store, ledger, key, contents(rng))
        for key in KEYS[::2]:
            store.delete(ledger.files[key].file_id, user_id=key.user)
            ledger.removed(key)
        fail_to_read(session)
        store.collect(grace_s=0)
        session.recorder.faults.stop()
        mend(store, session)
        check(store, ledger)
        shutil.copytree(world.root, fast_directory / "killed")
    shutil.rmtree(world.root)
    as_the_same_disk(fast_directory / "killed").rename(world.root)
    fail_to_read(session)
    with session.open() as store:
        mend(store, session)
        check(store, ledger)


def fail_to_read(session: Session) -> None:
    for slot in range(SETTING.profile.n - SETTING.profile.k + 1):
        session.recorder.faults.start(directory(slot), "read")


def test_a_delete_while_no_volume_can_be_written(fast_directory: Path) -> None:
    rng = Random(7)
    session = Session(fresh(fast_directory / "store"), SETTING)
    ledger = Ledger()
    with session.open() as store:
        for key in KEYS[:3]:
            push(store, ledger, key, contents(rng))
        for slot in range(SETTING.volume_count):
            session.recorder.faults.start(directory(slot), "write")
        for key in KEYS[:2]:
            store.delete(ledger.files[key].file_id, user_id=key.user)
            ledger.removed(key)
        mend(store, session)
        check(store, ledger)
    shutil.rmtree(fast_directory / "store" / "catalog")
    with open_store(fast_directory / "store", SETTING) as store:
        store.rebuild()
        check(store, ledger)


@pytest.mark.parametrize("asked", ["write", "datasync"])
def test_what_one_more_loss_could_cost_is_refused(fast_directory: Path, asked: Asked) -> None:
    rng = Random(2)
    session = Session(fresh(fast_directory / "store"), SETTING)
    ledger = Ledger()
    with session.open() as store:
        for key in KEYS[:4]:
            push(store, ledger, key, contents(rng))
        session.recorder.faults.start(directory(1), asked)
        session.recorder.faults.start(directory(5), asked)
        for size in (10, 5 * CHUNK_BYTES):
            for key in KEYS[3:5]:
                with pytest.raises(InsufficientWorkers):
                    store.push(rng.randbytes(size), filename=key.name, user_id=key.user)
        check(store, ledger)
        assert sorted(states(store)) == ["offline"] * 2 + ["ok"] * 4
        mend(store, session)
        push(store, ledger, KEYS[3], contents(rng))
        check(store, ledger)
    with open_store(fast_directory / "store", SETTING) as store:
        check(store, ledger)
        assert store.scrub().clean


def test_what_a_failed_flush_left_in_the_cache_is_not_counted_on(fast_directory: Path) -> None:
    """The kernel drops such pages whenever it likes; until then they can be read (PostgreSQL's fsync story)."""
    content = Random(3).randbytes(5 * CHUNK_BYTES)
    session = Session(fresh(fast_directory / "store"), SETTING)
    ledger = Ledger()
    with session.open() as store:
        push(store, ledger, KEYS[1], b"from before")
        for slot in range(SETTING.volume_count):
            session.recorder.faults.start(directory(slot), "datasync")
        with pytest.raises(StorageError):
            store.push(content, filename=KEY.name, user_id=KEY.user)
        session.recorder.faults.stop()
        store.repair()
        push(store, ledger, KEY, content)
        power_loss(session, fast_directory / "crashed")
    with open_store(fast_directory / "crashed", SETTING) as store:
        check(store, ledger)
        assert store.scrub().clean


def power_loss(session: Session, root: Path) -> None:
    moment, disk = session.now()
    write_state(disk.after_power_loss(PowerLoss(survive=0.0), Random(0)), moment.databases, root)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_upload_that_lived_through_failures_is_whole_enough_or_refused(fast_directory: Path, failing: int) -> None:
    """Volumes went offline while it ran, and were back, repaired, before it ended.

    Shards are written in the background: what too many volumes missed fails the call that is under way when it comes to
    light, or the next one, and the commit at the latest.
    """
    rng = Random(4)
    pieces = [rng.randbytes(4 * CHUNK_BYTES) for _ in range(3)]
    session = Session(fresh(fast_directory / "store"), SETTING)
    with session.open() as store:
        with store.upload(filename=KEY.name, user_id=KEY.user) as upload:
            upload.write(pieces[0])
            for slot in range(failing):
                session.recorder.faults.start(directory(slot), "write", "datasync")
            with nullcontext() if failing == 1 else suppress(InsufficientWorkers):
                upload.write(pieces[1] + pieces[2][:CHUNK_BYTES])
            while states(store).count("offline") < failing:
                time.sleep(0.01)
            session.recorder.faults.stop()
            store.repair()
            with nullcontext() if failing == 1 else pytest.raises((InsufficientWorkers, IncompletePush)):
                upload.write(pieces[2][CHUNK_BYTES:])
                upload.commit()
        found = store.find(KEY.name, user_id=KEY.user)
        assert (found is not None) == (failing == 1)
        if found is not None:
            shutil.rmtree(store.volume_paths[5])
            assert store.get(found.file_id, user_id=KEY.user) == b"".join(pieces)


@pytest.mark.parametrize("seed", SEEDS)
def test_disks_that_fail_and_recover(fast_directory: Path, seed: int) -> None:
    bad_days(fast_directory, Random(seed), STEPS)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 300))
def test_many_crashes_of_disks_that_fail_and_recover(fast_directory: Path, seed: int) -> None:
    bad_days(fast_directory, Random(seed), 5 * STEPS)


def bad_days(scratch: Path, rng: Random, steps: int) -> None:
    session = Session(fresh(scratch / "store"), SETTING)
    ledger = Ledger()
    store = session.open()
    for _ in range(steps):
        chance = rng.random()
        if chance < 0.15:
            session.recorder.faults.start(directory(rng.randrange(SETTING.volume_count)), *rng.sample(ASKED, 2))
        elif chance < 0.25:
            mend(store, session)
        elif chance < 0.3:
            store.close()
            session.recorder.faults.stop()
            store = session.open()
        else:
            attempt(store, ledger, rng)
    mend(store, session)
    check(store, ledger)
    power_loss(session, scratch / "crashed")
    store.close()
    with open_store(scratch / "crashed", SETTING) as crashed:
        check(crashed, ledger)
        assert crashed.scrub().clean


def attempt(store: FileStorage, ledger: Ledger, rng: Random) -> None:
    """One operation, acknowledged or refused; a refused one is not seen, and may be had again."""
    key = rng.choice(KEYS)
    known = [version.content for file in ledger.files.values() for version in file.versions]
    content = rng.choice(
        [contents(rng), *[ghost.content for ghost in ledger.ghosts[-3:] if ghost.content], *known[-1:]]
    )
    try:
        if key in ledger.files and rng.random() < 0.3:
            store.delete(ledger.files[key].file_id, user_id=key.user)
            ledger.removed(key)
        elif rng.random() < 0.1:
            store.collect(grace_s=0)
        else:
            push(store, ledger, key, content)
    except InsufficientWorkers:
        ledger.ghosts.append(Operation(key, content))
