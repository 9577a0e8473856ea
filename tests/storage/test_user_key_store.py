"""The users' keys go to far-away volumes at the same time, and nobody waits for those that are slow to take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event, Timer
from typing import Any, cast

import pytest

from storage.catalog import MemoryCatalog
from storage.erasure import ErasureProfile
from storage.errors import InsufficientWorkers, StoreClosed, StoreFull
from storage.fleet.fleet import Fleet
from storage.keys import ShardKey
from storage.runtime import Runtime
from storage.sealing.keyring import decode_sealed_keys
from storage.sealing.master_keys import MasterKey, MasterKeys
from storage.shards import Shard
from storage.write.user_keys import UserKeyStore

_VOLUMES = 6
_WAIT_S = 20.0


class FarVolume:
    """A volume that keeps shards in memory.

    Attributes:
        on_asked: called with each question what is missing, before the answer.
    """

    def __init__(self) -> None:
        self.kept: dict[ShardKey, Shard] = {}
        self.on_asked: Callable[[], object] = lambda: None

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        self.on_asked()
        return [at for at, key in enumerate(keys) if key not in self.kept]

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        self.kept |= {shard.key: shard for shard in shards}

    def sync(self) -> None:
        pass

    def keys(self, start: bytes, stop: bytes) -> list[ShardKey]:
        return sorted(key for key in self.kept if start <= key < stop)

    def read(self, key: ShardKey) -> Shard | None:
        return self.kept.get(key)

    def remove(self, keys: Sequence[ShardKey]) -> None:
        for key in keys:
            self.kept.pop(key, None)

    def copies(self) -> list[set[bytes]]:
        """The ids of the keys in each copy."""
        return [{key.key_id for key in decode_sealed_keys(bytes(one.payload)).keys} for one in self.kept.values()]


class FarFleet:
    """What the store of keys asks of a fleet of workers."""

    remote = True

    def __init__(self) -> None:
        self.volumes = [FarVolume() for _ in range(_VOLUMES)]

    def __len__(self) -> int:
        return len(self.volumes)

    def online(self) -> list[tuple[int, FarVolume]]:
        return list(enumerate(self.volumes))

    def volume(self, slot: int) -> FarVolume:
        return self.volumes[slot]

    def name(self, slot: int) -> str:
        return f"w{slot}"

    def note_write_refused(self, slot: int, error: Exception) -> None:
        pass

    def trusts(self, slot: int) -> bool:
        return True

    @contextmanager
    def guard(self, slot: int, volume: object) -> Iterator[None]:
        yield


@pytest.fixture
def fleet() -> FarFleet:
    return FarFleet()


@pytest.fixture
def keys(fleet: FarFleet) -> Iterator[UserKeyStore]:
    masters = MasterKeys(MasterKey(bytes(32)))
    catalog = MemoryCatalog()
    store = UserKeyStore(
        catalog, cast(Fleet[Any], fleet), ErasureProfile(4, 6), masters, Runtime(), seals=True, is_lost=False
    )
    yield store
    for volume in fleet.volumes:
        volume.on_asked = lambda: None
    store.close()


def test_volumes_are_given_a_new_key_at_the_same_time(keys: UserKeyStore, fleet: FarFleet) -> None:
    meeting = Barrier(_VOLUMES)  # broken unless all volumes are asked before any has answered
    for volume in fleet.volumes:
        volume.on_asked = lambda: meeting.wait(_WAIT_S)
    key = keys.current("ann")
    assert keys.spread() == _VOLUMES
    assert all(len(volume.copies()) == 1 and key.key_id in volume.copies()[0] for volume in fleet.volumes)


@pytest.fixture
def silent(fleet: FarFleet) -> Iterator[tuple[FarVolume, list[int], Event]]:
    """A volume that does not answer before the event, and how often it was asked."""
    asked: list[int] = []
    ends = Event()

    def ask() -> None:
        asked.append(1)
        ends.wait(_WAIT_S)

    fleet.volumes[2].on_asked = ask
    yield fleet.volumes[2], asked, ends
    ends.set()


def test_nobody_waits_for_a_volume_that_does_not_answer(
    keys: UserKeyStore, fleet: FarFleet, silent: tuple[FarVolume, list[int], Event]
) -> None:
    volume, asked, ends = silent
    made = {keys.current(f"user{number}").key_id for number in range(40)}  # more than there are threads
    assert not ends.is_set()
    assert len(asked) == 1
    assert not volume.kept
    assert keys.is_giving
    ends.set()
    assert keys.spread() == _VOLUMES
    for each in fleet.volumes:
        (held,) = each.copies()
        assert made <= held


def test_users_who_come_at_the_same_time_do_not_wait_for_it_either(
    keys: UserKeyStore, fleet: FarFleet, silent: tuple[FarVolume, list[int], Event]
) -> None:
    _, asked, ends = silent
    with ThreadPoolExecutor(40) as callers:
        made = [callers.submit(keys.current, f"user{number}") for number in range(40)]
        found = {one.result(_WAIT_S / 2).key_id for one in made}
    assert len(found) == 40
    assert len(asked) == 1
    joined = keys.spread([0])  # a worker that joins does not wait for another one
    assert (joined, ends.is_set()) == (1, False)
    assert all(found <= held for held in fleet.volumes[0].copies())


def test_destroyed_keys_do_not_come_back_with_a_slow_volume(
    keys: UserKeyStore, silent: tuple[FarVolume, list[int], Event]
) -> None:
    volume, _, ends = silent
    key = keys.current("ann")
    Timer(0.1, ends.set).start()  # while the former keys are on their way to the volume
    assert keys.destroy("ann") == 1
    assert all(key.key_id not in held for held in volume.copies())


def test_a_store_that_was_closed_says_so(keys: UserKeyStore) -> None:
    keys.close()
    with pytest.raises(StoreClosed):
        keys.current("ann")


def test_no_version_gets_a_secret_of_a_key_that_may_be_lost(keys: UserKeyStore, fleet: FarFleet) -> None:
    def full() -> None:
        raise StoreFull("no space")

    for volume in fleet.volumes[1:]:
        volume.on_asked = full
    for _ in range(2):
        with pytest.raises(InsufficientWorkers):
            keys.new_secret()
    for volume in fleet.volumes[1:]:
        volume.on_asked = lambda: None
    name = keys.new_secret().name
    assert keys.keys_of("system:shredding").ids == {name.key_id}
    assert sum(name.key_id in one for volume in fleet.volumes for one in volume.copies()) >= 4
