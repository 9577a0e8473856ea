"""The object is made from the k fastest shards, whichever stores hang; late answers change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
import zfec  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.keys import Kind, ShardKey, StripeKey, stripe_key
from storage.runtime import Runtime
from storage.stripes import patience
from storage.stripes.hedging import HedgedReader, Outcome, StripeRead
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
        self.cancelled: list[int] = []
        self.reported: list[int] = []
        self.answered = [threading.Event() for _ in range(n)]
        self.before_answer: Callable[[int], None] = lambda slot: None
        self._threads: list[threading.Thread] = []

    def hang(self, *slots: int) -> None:
        self.hanging |= {slot: threading.Event() for slot in slots}

    def let_go(self) -> None:
        for event in self.hanging.values():
            event.set()

    def end(self) -> None:
        """Let all fetches end."""
        self.let_go()
        for thread in self._threads:
            thread.join()

    def begin(
        self,
        store: int,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        """Fetch in a thread, as :data:`storage.stripes.hedging.Begin` tells."""
        (key, length), (place,) = wanted[0], into
        slot = key[35]
        assert store == self.holders[slot]
        assert key[:35] == self.stripe
        assert length == len(self.shards[slot]) == len(place)
        self.asked.append(slot)
        writing, is_cancelled = threading.Lock(), threading.Event()

        def cancel() -> None:
            with writing:
                is_cancelled.set()
            self.cancelled.append(slot)

        def fetch() -> None:
            if slot in self.hanging:
                self.hanging[slot].wait()
            self.before_answer(slot)
            present = slot not in self.missing
            if present and slot not in self.failing:
                with writing:
                    if not is_cancelled.is_set():
                        place[:] = self.shards[slot]
            done((lambda: self.reported.append(slot)) if slot in self.failing else [present])
            self.answered[slot].set()

        thread = threading.Thread(target=fetch)
        self._threads.append(thread)
        thread.start()
        return cancel

    def read(self, reader: HedgedReader, size: int) -> tuple[bytearray, list[int] | None]:
        target = bytearray(b"?" * size)
        return target, reader.read_into(self.stripe, self.holders, memoryview(target))


@pytest.fixture
def exits() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def set_up(exits: ExitStack, size: int = 1000, k: int = 4, n: int = 6) -> tuple[bytes, Workers, HedgedReader]:
    """Provide an object, its workers and a reader; at the end, release all workers."""
    data = content(size, size)
    workers = Workers(data, k, n)
    exits.callback(workers.end)
    return data, workers, HedgedReader(workers.begin, Runtime())


def test_the_data_shards_are_asked_for_first(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    workers.hang(4, 5)  # reads do not wait for parity
    target, missing = workers.read(reader, len(data))
    assert (bytes(target), missing) == (data, [])
    assert {0, 1, 2, 3} <= {*workers.asked}


def test_a_store_that_hangs_keeps_no_other_from_being_asked(exits: ExitStack) -> None:
    """Each read asks the store that hangs, among others."""
    data, workers, reader = set_up(exits)
    workers.hang(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "_SHUNNED_S", 0.0)  # as if all stores had been slow lately
        for _ in range(100):
            target, missing = workers.read(reader, len(data))
            assert (bytes(target), missing) == (data, [])


def test_a_store_that_owes_an_answer_is_asked_last(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    workers.hang(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "_SHUNNED_S", 0.0)
        workers.read(reader, len(data))
        patch.setattr(patience, "_HEDGE_S_FIRST", 600.0)
        workers.asked.clear()
        workers.read(reader, len(data))
        assert 2 not in workers.asked


def test_what_small_reads_take_says_nothing_of_large_ones(exits: ExitStack) -> None:
    """After enough small reads to know their time, a large read that takes longer must not ask another store."""
    small, few, _ = set_up(exits)
    large = content(7, 1_000_000)
    many = Workers(large, 4, 6)
    exits.callback(many.end)

    def begin(
        store: int,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        return (few if wanted[0][1] == len(few.shards[0]) else many).begin(store, wanted, into, done)

    both = HedgedReader(begin, Runtime())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "_HEDGE_S_FIRST", 600.0)
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
        patch.setattr(patience, "_HEDGE_S_FIRST", 600.0)  # so that a slow machine does not ask for more than necessary
        whole, workers, reader = set_up(exits, size, k, n)
        workers.missing, workers.failing = gone, broken
        target, missing = workers.read(reader, size)
        if len(gone | broken) > extra:
            assert missing is None  # payloads that arrived are in their places; the caller throws them away
            assert sorted(workers.asked) == list(range(n))
        else:
            assert bytes(target) == whole
            assert missing is not None
            assert {*range(k)} & (gone | broken) <= {*missing} <= gone | broken
        assert {*workers.reported} == {*workers.asked} & broken


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
    assert bytes(target) == bytes(len(data))
    assert missing == []


def test_an_object_is_not_written_to_after_it_was_handed_out(exits: ExitStack) -> None:
    """A store that is late, and lies, answers as soon as the reader has checked the object."""
    data, workers, reader = set_up(exits)
    workers.hang(0)
    workers.shards[0] = bytes(len(workers.shards[0]))  # not what was stored
    target = bytearray(len(data))
    for _, missing in reader.read_each([StripeRead(workers.stripe, workers.holders, memoryview(target))]):
        assert missing == []
        assert bytes(target) == data
        workers.let_go()
        workers.answered[0].wait()
        assert bytes(target) == data


def test_a_worker_that_was_slow_is_asked_last_for_a_while(exits: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_SHUNNED_S", 600.0)
    data, workers, reader = set_up(exits)
    workers.hang(1)
    workers.read(reader, len(data))
    workers.let_go()
    workers.hanging = {}
    now = workers.asked.copy()
    monkeypatch.setattr(patience, "_HEDGE_S_FIRST", 600.0)
    for _ in range(3):
        target, missing = workers.read(reader, len(data))
        assert (bytes(target), missing) == (data, [])
    assert workers.asked[len(now) : len(now) + 4].count(1) == 0


def test_slow_workers_are_asked_as_usual_when_their_time_is_up(
    exits: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_SHUNNED_S", 0.0)
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


def test_what_is_not_needed_any_more_is_cancelled(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    workers.hang(0, 3)
    target, missing = workers.read(reader, len(data))
    assert (bytes(target), missing) == (data, [])
    assert {0, 3} <= {*workers.cancelled}


def test_a_read_that_fails_leaves_nothing_behind_that_writes(exits: ExitStack) -> None:
    data, workers, reader = set_up(exits)
    workers.missing = {1, 2, 4, 5}
    workers.hang(0)
    workers.before_answer = lambda slot: workers.let_go() if slot == 5 else None
    target, missing = workers.read(reader, len(data))
    assert missing is None
    target[:] = bytes(len(data))
    workers.end()
    assert bytes(target) == bytes(len(data))


def test_what_a_slow_store_sends_late_changes_no_object_that_was_passed_on() -> None:
    """It may send anything, and its shard's place is a part of the object, which was verified before."""
    late: list[memoryview] = []
    given_up: list[bool] = []

    def begin(
        store: int, wanted: Sequence[tuple[ShardKey, int]], into: Sequence[memoryview], done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        if store == 0 and not late:
            late.extend(into)
            return lambda: given_up.append(True)
        for (key, _), place in zip(wanted, into, strict=True):
            place[:] = shards[key]
        done([True] * len(wanted))
        return lambda: None

    contents = [content(seed, 2000) for seed in range(2)]
    stripes = [stripe_key(Kind.CHUNK, bytes([number]) * 32, 2, 3) for number in range(2)]
    shards = {
        stripe + bytes([slot]): shard
        for stripe, data in zip(stripes, contents, strict=True)
        for slot, shard in enumerate(coded(data, 2, 3))
    }
    targets = [memoryview(bytearray(2000)) for _ in stripes]
    reader = HedgedReader(begin, Runtime())
    reads = [StripeRead(stripe, (0, 1, 2), target) for stripe, target in zip(stripes, targets, strict=True)]
    for at, missing in reader.read_each(reads):
        assert missing is not None
        if not given_up:
            for place in late:
                place[:] = bytes(len(place))
        assert targets[at] == contents[at]
