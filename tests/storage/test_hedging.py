"""The object is made from the k fastest shards, whichever stores hang; late answers change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import zfec  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.keys import Kind, ShardKey, StripeKey, stripe_key
from storage.runtime import Runtime
from storage.stripes import hedging
from storage.stripes.hedging import HedgedReader
from tests.storage.helpers import content


def stripe_of(k: int, n: int) -> StripeKey:
    return stripe_key(Kind.CHUNK, bytes(32), k, n)


def coded(data: bytes, k: int, n: int) -> list[bytes]:
    """Return the n shards of an object, computed by zfec."""
    length = -(-len(data) // k)
    padded = data.ljust(k * length, b"\0")
    blocks = [padded[slot * length : (slot + 1) * length] for slot in range(k)]
    return [bytes(shard) for shard in zfec.Encoder(k, n).encode(blocks)] if length else [b""] * n


class Workers:
    """Shards of one object on stores 100, 101, …. Each store may lack its shard, fail, or hang until released."""

    def __init__(self, data: bytes, k: int, n: int) -> None:
        self.shards = coded(data, k, n)
        self.stripe = stripe_of(k, n)
        self.holders = tuple(100 + slot for slot in range(n))
        self.missing: set[int] = set()
        self.failing: set[int] = set()
        self.hanging: dict[int, threading.Event] = {}
        self.asked: list[int] = []
        self.answered = [threading.Event() for _ in range(n)]
        self.before_answer: Callable[[int], None] = lambda slot: None

    def hang(self, *slots: int) -> None:
        self.hanging |= {slot: threading.Event() for slot in slots}

    def let_go(self) -> None:
        for event in self.hanging.values():
            event.set()

    def fetch_all(self, store: int, wanted: Sequence[tuple[ShardKey, int]]) -> list[memoryview | None]:
        return [self.fetch(store, key, length) for key, length in wanted]

    def fetch(self, store: int, key: ShardKey, length: int) -> memoryview | None:
        slot = key[35]
        assert store == self.holders[slot]
        assert key[:35] == self.stripe
        assert length == len(self.shards[slot])
        self.asked.append(slot)
        try:
            if slot in self.hanging:
                self.hanging[slot].wait()
            self.before_answer(slot)
            if slot in self.failing:
                raise OSError("the connection broke")
            return None if slot in self.missing else memoryview(self.shards[slot])
        finally:
            self.answered[slot].set()

    def read(self, reader: HedgedReader, size: int) -> tuple[bytearray, list[int] | None]:
        target = bytearray(b"?" * size)
        return target, reader.read_into(self.stripe, self.holders, memoryview(target))


@pytest.fixture
def exits() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def set_up(exits: ExitStack, size: int = 1000, k: int = 4, n: int = 6) -> tuple[bytes, Workers, HedgedReader]:
    """Provide an object, its workers and a reader; at the end, release all workers and close the reader."""
    data = content(size, size)
    workers = Workers(data, k, n)
    reader = HedgedReader(workers.fetch_all, Runtime())
    exits.callback(reader.close)
    exits.callback(workers.let_go)
    return data, workers, reader


def test_the_data_shards_are_asked_for_first(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    workers.hang(4, 5)  # reads do not wait for parity
    target, missing = workers.read(reader, len(data))
    assert (bytes(target), missing) == (data, [])
    assert {0, 1, 2, 3} <= {*workers.asked}


def test_a_store_that_hangs_keeps_no_other_from_being_asked(exits: ExitStack) -> None:
    """There are more reads than threads, and each asks the store that hangs."""
    data, workers, reader = set_up(exits)
    workers.hang(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hedging, "_SHUNNED_S", 0.0)  # as if all stores had been slow lately
        for _ in range(100):
            target, missing = workers.read(reader, len(data))
            assert (bytes(target), missing) == (data, [])


def test_a_store_that_owes_an_answer_is_asked_last(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    workers.hang(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hedging, "_SHUNNED_S", 0.0)
        workers.read(reader, len(data))
        patch.setattr(hedging, "_HEDGE_S_FIRST", 600.0)
        workers.asked.clear()
        workers.read(reader, len(data))
        assert 2 not in workers.asked


def test_what_small_reads_take_says_nothing_of_large_ones(exits: ExitStack) -> None:
    """After enough small reads to know their time, a large read that takes longer must not ask another store."""
    small, few, _ = set_up(exits)
    large = content(7, 1_000_000)
    many = Workers(large, 4, 6)
    exits.callback(many.let_go)

    def fetch_all(store: int, wanted: Sequence[tuple[ShardKey, int]]) -> list[memoryview | None]:
        return (few if wanted[0][1] == len(few.shards[0]) else many).fetch_all(store, wanted)

    both = HedgedReader(fetch_all, Runtime())
    exits.callback(both.close)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hedging, "_HEDGE_S_FIRST", 600.0)
        for _ in range(100):
            few.read(both, len(small))
        many.hang(*range(6))
        threading.Timer(0.3, many.let_go).start()
        target, missing = many.read(both, len(large))
    assert (bytes(target), missing) == (large, [])
    assert len(many.asked) == 4


def test_shards_that_are_known_to_be_nowhere_are_not_asked_for(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    holders = tuple(None if slot in (0, 4) else store for slot, store in enumerate(workers.holders))
    target = bytearray(len(data))
    assert reader.read_into(workers.stripe, holders, memoryview(target)) == []
    assert bytes(target) == data
    assert {*workers.asked} == {1, 2, 3, 5}
    assert reader.read_into(workers.stripe, (None, None, None, *workers.holders[3:]), memoryview(target)) is None


@given(
    k=st.integers(1, 6),
    extra=st.integers(0, 4),
    size=st.integers(0, 3000),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_any_k_shards_make_the_object_and_fewer_make_none(k: int, extra: int, size: int, data: st.DataObject) -> None:
    n = k + extra
    gone = data.draw(st.sets(st.integers(0, n - 1)))
    broken = data.draw(st.sets(st.integers(0, n - 1)))
    with ExitStack() as exits, pytest.MonkeyPatch.context() as patch:
        patch.setattr(hedging, "_HEDGE_S_FIRST", 600.0)  # so that a slow machine does not ask for more than necessary
        whole, workers, reader = set_up(exits, size, k, n)
        workers.missing, workers.failing = gone, broken
        target, missing = workers.read(reader, size)
        if len(gone | broken) > extra:
            assert missing is None
            assert bytes(target) == b"?" * size
            assert sorted(workers.asked) == list(range(n))
        else:
            assert bytes(target) == whole
            assert missing is not None
            assert {*range(k)} & (gone | broken) <= {*missing} <= gone | broken


@pytest.mark.parametrize("hanging", [(0,), (1, 3), (0, 5)])
def test_a_worker_that_hangs_is_done_without(exits: ExitStack, hanging: tuple[int, ...]) -> None:
    """The worker is released only after the read has ended."""
    data, workers, reader = set_up(exits)
    workers.hang(*hanging)
    target, missing = workers.read(reader, len(data))
    assert bytes(target) == data
    assert missing == []  # a slow store does not count as lacking its shard
    assert not any(workers.answered[slot].is_set() for slot in hanging)


def test_one_hangs_and_another_lacks_its_shard(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    workers.hang(2)
    workers.missing = {0}
    target, missing = workers.read(reader, len(data))
    assert bytes(target) == data
    assert missing is not None
    assert {*missing} <= {0}  # the read may have finished before the store's answer


def test_with_too_few_others_a_slow_worker_is_waited_for(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    workers.hang(0)
    workers.missing = {4, 5}

    def let_go_when_all_have_answered(slot: int) -> None:
        if slot in workers.missing and {4, 5} <= {*workers.asked}:
            workers.let_go()

    workers.before_answer = let_go_when_all_have_answered
    target, missing = workers.read(reader, len(data))
    assert bytes(target) == data
    assert missing is not None
    assert {*missing} <= {4, 5}


def test_a_late_answer_never_touches_the_object(exits: ExitStack) -> None:
    """The caller may have reused the memory for something else."""
    data, workers, reader = set_up(exits)
    workers.hang(0, 1)
    target, missing = workers.read(reader, len(data))
    assert bytes(target) == data
    target[:] = bytes(len(data))
    workers.let_go()
    for slot in (0, 1):
        workers.answered[slot].wait()
    reader.close()
    assert bytes(target) == bytes(len(data))
    assert missing == []


def test_a_worker_that_was_slow_is_asked_last_for_a_while(exits: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hedging, "_SHUNNED_S", 600.0)
    data, workers, reader = set_up(exits)
    workers.hang(1)
    workers.read(reader, len(data))
    workers.let_go()
    workers.hanging = {}
    now = workers.asked.copy()
    monkeypatch.setattr(hedging, "_HEDGE_S_FIRST", 600.0)
    for _ in range(3):
        target, missing = workers.read(reader, len(data))
        assert (bytes(target), missing) == (data, [])
    assert workers.asked[len(now) : len(now) + 4].count(1) == 0


def test_slow_workers_are_asked_as_usual_when_their_time_is_up(
    exits: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hedging, "_SHUNNED_S", 0.0)
    data, workers, reader = set_up(exits)
    workers.hang(1)
    workers.read(reader, len(data))
    workers.let_go()
    workers.hanging = {}
    del workers.asked[:]
    while 1 not in workers.asked:  # at once, or when its outstanding call has ended
        workers.read(reader, len(data))


def test_many_reads_at_once_while_one_worker_hangs(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    workers.hang(3)
    outcomes: list[tuple[bytearray, list[int] | None]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(workers.read(reader, len(data)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    assert all((bytes(target), missing) == (data, []) for target, missing in outcomes)


def test_a_read_that_waits_for_a_thread_ends_when_the_reader_is_closed(exits: ExitStack) -> None:
    """All threads hang in other reads; closing the reader must end reads whose requests were never sent."""
    data, workers, reader = set_up(exits)
    workers.hang(*range(6))
    threads = [threading.Thread(target=workers.read, args=(reader, len(data))) for _ in range(12)]
    for thread in threads:
        thread.start()
    while len(workers.asked) < 32:  # all threads are busy with the four stores that are asked first
        workers.hanging[0].wait(0.01)
    closing = threading.Thread(target=reader.close)
    closing.start()
    threads_of_reader = list(reader._threads.values())
    while not all(isinstance(each, ThreadPoolExecutor) and each._shutdown for each in threads_of_reader):
        workers.hanging[0].wait(0.01)
    workers.let_go()
    for thread in (*threads, closing):
        thread.join()


def test_a_closed_reader_reads_nothing(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    reader.close()
    target, missing = workers.read(reader, len(data))
    assert missing is None
    assert bytes(target) == b"?" * len(data)
