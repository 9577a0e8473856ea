"""Workers that make shards from those of other workers: what they store is right, whatever the others do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from storage.errors import InvalidArgument, StoreFull
from storage.keys import Kind, StripeKey, shard_key, stripe_key
from storage.runtime import Runtime
from storage.shards import LocalVolume, Shard, VolumeFailed, VolumeUnavailable
from storage.stripes.encoding import Encoder
from taskworker.errors import CallAbandoned
from taskworker.transport.frames import Call
from taskworker.transport.making_frames import OWN, MakeOrder, Result, Source, pack_made
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.shard_maker import ShardMaker
from taskworker.transport.shard_service import ShardService, describe
from taskworker.transport.sources import Sources
from taskworker.transport.wire.server import WireServer
from tests.pool.helpers import Refusal, made_up_server, open_volume, served
from tests.storage.helpers import content
from tests.transport.peers import worker

K, N = 4, 6
SIZE = 100_001
NONCE = bytes(range(32))


def chunk(seed: int, size: int = SIZE, k: int = K, n: int = N) -> tuple[StripeKey, list[Shard]]:
    """A chunk's stripe key and all of its shards."""
    data = content(seed, size)
    stripe = stripe_key(Kind.CHUNK, blake3(data).digest(), k, n)
    return stripe, Encoder().shards_of(stripe, data + bytes(-size % k), size)


class Crew:
    """Workers that have a shard each, and one that shall make others.

    Attributes:
        addresses: of the worker with the shard in each slot.
        local: volume of the worker that makes shards.
        maker: the same over the network.
    """

    def __init__(self, directory: Path, exits: ExitStack, n: int = N) -> None:
        self.volumes = [exits.enter_context(closing(open_volume(directory / str(slot)))) for slot in range(n)]
        self.addresses = [exits.enter_context(served(volume)) for volume in self.volumes]
        self.local = exits.enter_context(closing(open_volume(directory / "maker")))
        self.address = exits.enter_context(served(self.local, "this process"))
        self.maker = RemoteVolume(self.address, "maker", "this process")
        exits.callback(self.maker.abandon, "end of the test")

    def give(self, shards: list[Shard]) -> None:
        """Give each worker its shard."""
        for volume, shard in zip(self.volumes, shards, strict=True):
            volume.append([shard])

    def order(self, stripe: StripeKey, slots: tuple[int, ...], held: list[int], size: int = SIZE) -> MakeOrder:
        """An order for shards, with the workers in ``held`` as sources."""
        return MakeOrder(stripe, size, slots, tuple(Source(slot, self.addresses[slot]) for slot in held))


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with ExitStack() as exits:
        yield Crew(tmp_path, exits)


@pytest.mark.parametrize("slots", [(0,), (5,), (1, 4), (0, 1)])
def test_lost_shards_are_made_from_any_others(crew: Crew, slots: tuple[int, ...]) -> None:
    stripe, shards = chunk(1)
    crew.give(shards)
    held = [slot for slot in range(N) if slot not in slots]
    (digests,) = crew.maker.start_make([crew.order(stripe, slots, held)])
    assert digests == [shards[slot].digest for slot in slots]
    for slot in slots:
        stored = crew.local.read(shard_key(stripe, slot))
        assert stored is not None
        assert bytes(stored.payload) == bytes(shards[slot].payload)
        assert stored.object_length == SIZE


@pytest.mark.parametrize(("k", "n", "size"), [(1, 3, 5000), (1, 1, 1), (2, 3, 1), (3, 4, 7), (4, 6, 300_000)])
def test_every_profile_and_size_is_made(tmp_path: Path, k: int, n: int, size: int) -> None:
    stripe, shards = chunk(2, size, k, n)
    with ExitStack() as exits:
        crew = Crew(tmp_path, exits, n)
        crew.give(shards)
        (digests,) = crew.maker.start_make([crew.order(stripe, tuple(range(n)), list(range(n)), size)])
        assert digests == [shard.digest for shard in shards]
        assert not crew.local.missing([shard.key for shard in shards])


def test_shards_of_its_own_are_used_without_asking_anybody(crew: Crew) -> None:
    stripe, shards = chunk(14)
    crew.local.append(shards[:3])
    order = MakeOrder(stripe, SIZE, (5,), tuple(Source(slot, OWN) for slot in range(4)))
    assert list(crew.maker.start_make([order])) == [None]
    crew.local.append([shards[3]])
    assert list(crew.maker.start_make([order])) == [[shards[5].digest]]


def test_many_stripes_are_made_in_one_call(crew: Crew) -> None:
    wanted = [chunk(seed) for seed in range(20)]
    for _, shards in wanted:
        crew.give(shards)
    unknown, _ = chunk(99)
    orders = [crew.order(stripe, (2,), [0, 1, 3, 4, 5]) for stripe, _ in wanted]
    outcomes = list(crew.maker.start_make([*orders, crew.order(unknown, (2,), [0, 1, 3, 4, 5])]))
    assert outcomes == [*([shards[2].digest] for _, shards in wanted), None]
    assert crew.local.missing([shard_key(unknown, 2)]) == [0]


def test_what_was_made_is_durable_after_the_next_sync(crew: Crew) -> None:
    stripe, shards = chunk(3)
    crew.give(shards)
    crew.maker.sync()
    assert [crew.maker.needs_sync] == [False]
    outcomes = crew.maker.start_make([crew.order(stripe, (0,), [1, 2, 3, 4])])
    assert crew.maker.needs_sync  # others may find the shard from now on
    crew.maker.sync()
    assert crew.maker.needs_sync  # it may have been too early
    assert list(outcomes) == [[shards[0].digest]]
    crew.maker.sync()
    assert not crew.maker.needs_sync


# -- sources that fail -----------------------------------------------------------------------------


def test_a_source_that_is_gone_is_replaced(crew: Crew) -> None:
    stripe, shards = chunk(4)
    crew.give(shards)
    order = crew.order(stripe, (0,), [1, 2, 3, 4, 5])
    gone = order._replace(sources=(Source(1, "127.0.0.1:1"), *order.sources[1:]))
    assert list(crew.maker.start_make([gone])) == [[shards[0].digest]]


def test_a_source_that_hangs_is_replaced(crew: Crew) -> None:
    stripe, shards = chunk(5)
    crew.give(shards)
    over = threading.Event()
    with worker(lambda peer: _wait(over)) as address:
        order = crew.order(stripe, (0,), [1, 2, 3, 4, 5])
        hanging = order._replace(sources=(Source(1, address), *order.sources[1:]))
        assert list(crew.maker.start_make([hanging])) == [[shards[0].digest]]
        over.set()


@pytest.mark.parametrize("address", ["nonsense", "host:port", "unix:/nowhere", "127.0.0.1:99999", "\0:1", "[::1"])
def test_an_address_that_is_none_is_a_source_that_fails(crew: Crew, address: str) -> None:
    stripe, shards = chunk(6)
    crew.give(shards)
    order = crew.order(stripe, (0,), [1, 2, 3, 4, 5])
    odd = order._replace(sources=(Source(1, address), *order.sources[1:]))
    assert list(crew.maker.start_make([odd])) == [[shards[0].digest]]


def test_too_few_sources_make_nothing(crew: Crew) -> None:
    stripe, shards = chunk(7)
    crew.give(shards)
    assert list(crew.maker.start_make([crew.order(stripe, (0,), [1, 2, 3])])) == [None]
    assert list(crew.maker.start_make([crew.order(stripe, (0,), [])])) == [None]
    assert crew.local.missing([shards[0].key]) == [0]
    assert list(crew.maker.start_make([crew.order(stripe, (0,), [1, 2, 3, 4])])) == [[shards[0].digest]]


def test_nothing_is_made_of_wrong_bytes(crew: Crew) -> None:
    stripe, shards = chunk(8)
    forged = bytes(len(shards[1].payload))
    crew.give([shards[0], shards[1]._replace(payload=forged, digest=blake3(forged).digest()), *shards[2:]])
    assert list(crew.maker.start_make([crew.order(stripe, (0,), [1, 2, 3, 4])])) == [None]
    assert crew.local.missing([shards[0].key]) == [0]


@pytest.mark.parametrize("length", [1, SIZE - 1, SIZE + 1, SIZE + 4, 1 << 24])
def test_nothing_is_made_of_an_object_of_another_length(crew: Crew, length: int) -> None:
    stripe, shards = chunk(9)
    crew.give(shards)
    assert list(crew.maker.start_make([crew.order(stripe, (0,), [1, 2, 3, 4, 5], length)])) == [None]


# -- the worker that makes -------------------------------------------------------------------------


def test_another_process_makes_nothing(crew: Crew) -> None:
    stripe, shards = chunk(10)
    crew.give(shards)
    with closing(RemoteVolume(crew.address, "maker", "the process before")) as stale:
        with pytest.raises(VolumeFailed, match="restarted"):
            list(stale.start_make([crew.order(stripe, (0,), [1, 2, 3, 4])]))
        assert crew.local.missing([shards[0].key]) == [0]


@contextmanager
def former_version(volume: LocalVolume) -> Iterator[str]:
    """A worker that knows neither Make nor Prove."""
    methods = ShardService(volume, "").methods()
    known = {call: method for call, method in methods.items() if call not in (Call.MAKE, Call.PROVE)}
    server = WireServer(known, describe)
    try:
        yield server.start("127.0.0.1:0")
    finally:
        server.stop(0.0)


def test_a_worker_of_the_former_version_is_not_asked_again(crew: Crew) -> None:
    stripe, shards = chunk(11)
    crew.give(shards)
    with former_version(crew.local) as address, closing(RemoteVolume(address, "old")) as old:
        assert [old.makes] == [True]
        with pytest.raises(InvalidArgument):
            list(old.start_make([crew.order(stripe, (0,), [1, 2, 3, 4])]))
        assert not old.makes
        old.append([shards[0]])  # it can be used like before
        old.sync()
        assert not old.needs_sync
        with pytest.raises(InvalidArgument):
            old.prove(NONCE, [shards[0].key])
        assert not old.missing([shards[0].key])


class Waits:
    """A caller that waits a number of times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def is_active(self) -> bool:
        self.times -= 1
        return self.times >= 0


@contextmanager
def making(own: LocalVolume, memory_bytes: int = 1 << 27) -> Iterator[ShardMaker]:
    sources = Sources(lambda: own)
    try:
        yield ShardMaker(sources, Runtime(), memory_bytes)
    finally:
        sources.close()


def test_nothing_more_is_made_for_a_caller_that_left(crew: Crew) -> None:
    size = 5 << 20
    wanted = [chunk(seed, size) for seed in range(4)]
    orders = []
    for stripe, shards in wanted:
        for volume, shard in zip(crew.volumes, shards, strict=True):
            volume.append([shard])
        orders.append(crew.order(stripe, (0,), [1, 2, 3, 4], size))
    stored: list[Shard] = []
    with making(crew.local) as maker, pytest.raises(CallAbandoned):
        list(maker.make(orders, stored.extend, Waits(1)))
    assert len(stored) == 2  # those that are handled together


def test_memory_is_bounded_and_given_back(crew: Crew) -> None:
    stripe, shards = chunk(12)
    crew.give(shards)
    order = crew.order(stripe, (0,), [1, 2, 3, 4])
    with making(crew.local, memory_bytes=4 * SIZE) as maker:
        huge = order._replace(length=1 << 24)
        assert [made.result for made in maker.make([huge], _keep_nothing, Waits(9))] == [Result.BUSY]
        for _ in range(20):
            assert [made.result for made in maker.make([order], _keep_nothing, Waits(9))] == [Result.MADE]
        with pytest.raises(StoreFull):
            list(maker.make([order], _refuse, Waits(9)))
        assert [made.result for made in maker.make([order], _keep_nothing, Waits(9))] == [Result.MADE]


def _keep_nothing(_shards: object) -> None:
    pass


def _refuse(_shards: object) -> None:
    raise StoreFull("no space")


# -- what the pool believes ------------------------------------------------------------------------

STRIPE = stripe_key(Kind.CHUNK, b"\1" * 32, K, N)
ORDER = MakeOrder(STRIPE, SIZE, (0,), (Source(1, "a:1"),))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "answers nonsense"),
        (pack_made(Result.MADE, []), "answers nonsense"),
        (pack_made(Result.MADE, [bytes(32)] * 2), "larger|answers nonsense|at most"),
        (bytes([77]), "answers nonsense"),
    ],
)
def test_an_answer_that_cannot_be_right_is_that_of_a_broken_worker(answer: bytes, text: str) -> None:
    with _lying(lambda name: answer) as lying, pytest.raises(VolumeFailed, match=text):
        list(lying.start_make([ORDER]))


def test_more_answers_than_stripes_are_refused() -> None:
    with _lying(lambda name: pack_made(Result.TOO_FEW), times=2) as lying:
        with pytest.raises(VolumeFailed, match="answers nonsense"):
            list(lying.start_make([ORDER]))
        assert lying.misbehaved


def test_a_worker_that_has_no_space_says_so() -> None:
    def answer(name: str) -> bytes:
        raise Refusal(b"StoreFull\0no space")

    with _lying(answer) as lying:
        with pytest.raises(StoreFull):
            list(lying.start_make([ORDER]))
        assert lying.makes


def test_a_worker_that_never_answers_is_given_up_without_blame() -> None:
    over = threading.Event()
    now_s = [0.0]

    def answer(name: str) -> bytes:
        _wait(over)
        return b""

    with _lying(answer, clock_s=lambda: now_s[0]) as lying:
        outcomes = lying.start_make([ORDER])
        now_s[0] = 22.0
        with pytest.raises(VolumeUnavailable, match="too long"):
            list(outcomes)
        assert not lying.misbehaved
        assert lying.needs_sync  # it may still make the shard
        over.set()


def _wait(over: threading.Event) -> None:
    over.wait(30.0)


@contextmanager
def _lying(
    answer: Callable[[str], bytes], times: int = 1, clock_s: Callable[[], float] = time.monotonic
) -> Iterator[RemoteVolume]:
    with made_up_server(lambda name, request, caller: answer(name), times) as (address, _):
        volume = RemoteVolume(address, "liar", clock_s=clock_s)
        try:
            yield volume
        finally:
            volume.abandon("end of the test")


def test_only_equal_shards_are_proved_alike(crew: Crew) -> None:
    stripe, shards = chunk(13)
    crew.local.append(shards[:2])
    keys = [shard.key for shard in shards[:3]]
    first = crew.maker.prove(NONCE, keys)
    assert first == [blake3(shard.payload, key=NONCE).digest() for shard in shards[:2]] + [None]
    assert crew.maker.prove(bytes(32), keys)[0] != first[0]
    assert stripe == keys[0][:35]
