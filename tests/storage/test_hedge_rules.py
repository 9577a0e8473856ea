"""How many shards are requested from stores that are late, by a clock that the test sets."""

from __future__ import annotations

import heapq
import itertools
import queue
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from storage.keys import Kind, ShardKey, StripeKey, stripe_key
from storage.runtime import Runtime
from storage.stripes.hedging import HedgedReader, Outcome, StripeRead

K, N = 4, 6
SHARD_BYTES = 64
MOST_IN_VAIN = 0.05


class Clock(Runtime):
    """A machine on which time only passes while somebody waits."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._number = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def monotonic_s(self) -> float:
        return self.now_s

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now_s + seconds, next(self._number), action))

    def mailbox(self) -> Any:
        return _Mailbox(self)

    def sleep(self, seconds: float) -> None:
        """Let time pass, and what is due be done."""
        until_s = self.now_s + seconds
        while self.pass_until(until_s):
            pass

    def pass_until(self, until_s: float | None) -> bool:
        """Do what is due next; return False if nothing is before that time, which has come then."""
        if not self._due or (until_s is not None and self._due[0][0] > until_s):
            assert until_s is not None, "the reader waits for ever"
            self.now_s = until_s
            return False
        self.now_s, _, action = heapq.heappop(self._due)
        action()
        return True


class _Mailbox(queue.SimpleQueue[Any]):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        until_s = None if timeout is None else self._clock.now_s + timeout
        while self.empty():
            if not self._clock.pass_until(until_s):
                raise queue.Empty
        return super().get()


class Stores:
    """Stores that answer after the seconds that ``takes_s`` gives for the slot and the number of the read."""

    def __init__(self, takes_s: Callable[[int, int], float]) -> None:
        self.clock = Clock()
        self.takes_s = takes_s
        self.each_s: Callable[[int], float] = lambda _store: 0.0  # in addition, for each shard
        self.asked = 0
        self.asked_of: Counter[int] = Counter()
        self.reads = 0
        self.reader = HedgedReader(self._begin, self.clock)

    def _begin(
        self,
        store: int,
        wanted: Sequence[tuple[ShardKey, int]],
        _into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        self.asked += len(wanted)
        self.asked_of[store] += len(wanted)
        takes_s = self.takes_s(store, self.reads) + len(wanted) * self.each_s(store)
        self.clock.after(takes_s, lambda: done([True] * len(wanted)))
        return lambda: None

    def read(self, stripes: int = 1, k: int = K, n: int = N) -> int:
        """Read stripes together; return how many shards were requested."""
        before, self.reads = self.asked, self.reads + 1
        reads = [
            StripeRead(_stripe(number, k, n), tuple(range(n)), memoryview(bytearray(k * SHARD_BYTES)))
            for number in range(stripes)
        ]
        assert self.reader.read_all(reads) == [[]] * stripes
        return self.asked - before


def _stripe(number: int, k: int, n: int) -> StripeKey:
    return stripe_key(Kind.CHUNK, number.to_bytes(32, "big"), k, n)


@pytest.fixture(params=[0, 500], ids=["at first", "after many reads"])
def earlier_reads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def after_reads(count: int, takes_s: Callable[[int, int], float]) -> Stores:
    """Stores of which so many quick reads were made before they take as long as told."""
    stores = Stores(lambda _store, _read: 0.001)
    for _ in range(count):
        stores.read()
    stores.takes_s = takes_s
    return stores


def test_no_further_shards_are_requested_if_all_stores_are_late(earlier_reads: int) -> None:
    """The machine or its link is busy: more requests would make it worse."""
    stores = after_reads(earlier_reads, lambda store, _read: 3.0 + store / 10)
    assert stores.read(stripes=8) == 8 * K


def test_answers_that_come_one_after_another_over_a_busy_link_are_not_requested_twice(earlier_reads: int) -> None:
    stores = after_reads(earlier_reads, lambda store, _read: 0.5 + 0.1 * store)
    assert sum(stores.read(stripes=8) for _ in range(20)) == 20 * 8 * K


@pytest.mark.parametrize("late", [{0}, {1, 3}])
def test_shards_of_stores_that_are_later_than_others_are_requested_elsewhere(
    earlier_reads: int, late: set[int]
) -> None:
    stores = after_reads(earlier_reads, lambda store, _read: 100.0 if store in late else 0.001)
    before_s = stores.clock.now_s
    assert stores.read() == K + len(late)
    assert stores.clock.now_s < before_s + 1


def test_without_others_to_compare_with_the_only_holder_asked_is_not_waited_for() -> None:
    stores = Stores(lambda store, _read: 100.0 if store == 0 else 0.001)
    before_s = stores.clock.now_s
    assert stores.read(k=1, n=3) == 2
    assert stores.clock.now_s < before_s + 1


@pytest.mark.parametrize(("holders", "asked"), [((0, 0, 1, 2, 3, 4), K + 2), ((0, 0, 1, 2, 3, None), K)])
def test_two_shards_at_a_late_store_are_requested_elsewhere_if_both_can_be(
    holders: tuple[int | None, ...], asked: int
) -> None:
    stores = Stores(lambda store, _read: 100.0 if store == 0 else 0.001)
    target = memoryview(bytearray(K * SHARD_BYTES))
    assert stores.reader.read_into(_stripe(1, K, N), holders, target) == []
    assert stores.asked == asked


def test_what_is_requested_in_vain_is_a_small_share_of_what_is_needed() -> None:
    """Each read, one store answers just after another one was asked in its place, which is later still."""

    def takes_s(store: int, read: int) -> float:
        return 0.2 if store == read % K else 0.001 if store < K else 0.3

    stores = Stores(takes_s)
    for _ in range(1000):
        stores.read()
        stores.clock.sleep(5.0)  # until nobody counts as slow any more
    assert 1000 * K < stores.asked <= 1000 * K * (1 + MOST_IN_VAIN)


def test_stores_that_hang_now_and_then_are_done_without() -> None:
    stores = Stores(lambda store, read: 2.5 if store == read % K else 0.001)
    for _ in range(1000):
        stores.read()
        stores.clock.sleep(5.0)  # until nobody counts as slow any more
    assert stores.asked == 1000 * (K + 1)


@pytest.mark.parametrize(("takes_s", "parity"), [(0.001, 0), (0.05, 4)])
def test_distant_stores_are_asked_for_as_much_each_and_near_ones_for_data(takes_s: float, parity: int) -> None:
    stores = Stores(lambda _store, _read: takes_s)
    for _ in range(10):
        stores.read()
    stores.asked_of.clear()
    assert stores.read(6) == 6 * K
    assert [stores.asked_of[store] for store in range(K, N)] == [parity] * (N - K)


def test_what_a_distant_store_has_several_shards_of_counts_for_each() -> None:
    stores = Stores(lambda _store, _read: 0.05)
    for _ in range(10):
        stores.read()
    stores.asked_of.clear()
    several = StripeRead(_stripe(0, 2, 3), (0, 0, None), memoryview(bytearray(2 * SHARD_BYTES)))
    others = [StripeRead(_stripe(number, 1, 2), (0, 1), memoryview(bytearray(SHARD_BYTES))) for number in (1, 2)]
    assert stores.reader.read_all([several, *others]) == [[]] * 3
    assert stores.asked_of == {0: 2, 1: 2}


def test_one_quick_store_does_not_make_distant_stores_near_for_long() -> None:
    stores = Stores(lambda store, read: 0.001 if (store, read) == (0, 1) else 0.05)
    for _ in range(100):
        stores.read()
    stores.asked_of.clear()
    stores.read(6)
    assert set(stores.asked_of.values()) == {4}


def _distant_after_losses() -> Stores:
    """Distant stores of which all were slow for a while, so that calls are waited for patiently."""
    stores = Stores(lambda _store, read: 2.0 if read <= 10 else 0.1)
    for _ in range(30):
        stores.read(6)
    return stores


def test_the_last_distant_store_is_not_waited_for_as_long_as_all_were_before() -> None:
    stores = _distant_after_losses()
    stores.takes_s = lambda store, _read: 2.5 if store == 0 else 0.1
    before_s = stores.clock.now_s
    assert stores.read(6) == 6 * K + 4
    assert stores.clock.now_s < before_s + 0.5


def test_while_several_distant_stores_have_not_answered_they_are_waited_for() -> None:
    stores = _distant_after_losses()
    stores.takes_s = lambda store, _read: 0.9 if store in (0, 1) else 0.1
    assert stores.read(6) == 6 * K


def _asked_of(stores: Stores, reads: int, stripes: int) -> list[float]:
    """How many shards each store was asked for, as a multiple of all if they were asked for as much each."""
    stores.asked_of.clear()
    for _ in range(reads):
        stores.read(stripes)
    return [stores.asked_of[store] * N / (reads * stripes * K) for store in range(N)]


def test_distant_stores_are_asked_for_as_much_as_they_send_in_the_same_time() -> None:
    stores = Stores(lambda _store, _read: 0.1)
    stores.each_s = lambda _store: 0.03
    even = _asked_of(stores, 60, 12)
    assert all(0.85 < share < 1.15 for share in even), even
    stores.each_s = lambda store: 0.1 if store == 2 else 0.03
    _asked_of(stores, 30, 12)
    before_s = stores.clock.now_s
    uneven = _asked_of(stores, 30, 12)
    assert 0.25 < uneven[2] < 0.75, uneven
    # As fast as if the others had been asked alone, and not as slow as the slow one with its share.
    assert stores.clock.now_s - before_s < 30 * (0.1 + 0.1 * 6)
    stores.each_s = lambda _store: 0.03
    _asked_of(stores, 30, 12)
    again = _asked_of(stores, 30, 12)
    assert all(0.85 < share < 1.15 for share in again), again


def test_a_distant_store_that_is_as_slow_as_can_be_is_tried_again_now_and_then() -> None:
    stores = Stores(lambda _store, _read: 0.1)
    stores.each_s = lambda store: 3.0 if store == 2 else 0.03
    _asked_of(stores, 100, 3)
    shares = _asked_of(stores, 300, 3)
    assert 0.0 < shares[2] < 0.5, shares


def test_objects_without_bytes_say_nothing_of_how_long_distant_stores_take() -> None:
    stores = Stores(lambda _store, _read: 0.1)
    for _ in range(10):
        stores.read(6)
    empty = [StripeRead(_stripe(number, K, N), tuple(range(N)), memoryview(b"")) for number in range(6)]
    assert stores.reader.read_all(empty) == [[]] * 6
