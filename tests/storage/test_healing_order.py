"""The order of healing, and when it waits for users. A stand-in for the stripes blocks at the first one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from storage.errors import DataLossError
from storage.keys import Kind, StripeKey, stripe_key
from storage.maintenance.heal import Healer
from storage.runtime import Runtime
from storage.stripes.stripes import StripeStore


def stripe(number: int) -> StripeKey:
    return stripe_key(Kind.CHUNK, number.to_bytes(32, "big"), 4, 6)


class Stripes:
    def __init__(self) -> None:
        self.volumes: Any = SimpleNamespace(sync_each=lambda: None, report=self.report)
        self.healed: list[list[StripeKey]] = []
        self.lost: list[StripeKey] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def heal_all(self, stripes: Sequence[StripeKey]) -> list[tuple[int, int] | DataLossError]:
        self.healed.append(list(stripes))
        self.begun.set()
        assert self.go_on.wait(10)
        return [DataLossError(one[:32].hex(), 3, 4) if one == stripe(404) else (1, 1) for one in stripes]

    def report(self, kind: str, key: StripeKey, _slot: int, _text: str) -> None:
        assert kind == "lost"
        self.lost.append(key)


class Counting:
    def __init__(self) -> None:
        self.lulls, self.rests = 0, 0

    def lull(self, _is_over: Callable[[], bool]) -> None:
        self.lulls += 1

    def rest(self, _worked_s: float) -> None:
        self.rests += 1


def test_rotten_stripes_go_first_and_only_the_others_make_way() -> None:
    stripes, pace = Stripes(), Counting()
    healer = Healer(cast(StripeStore, stripes), Runtime())
    healer.pace = pace
    healer.request(stripe(0))
    assert stripes.begun.wait(10)
    assert (healer.state().waiting, healer.state().ended_ms) == (1, 0)
    for number in range(1, 21):
        healer.request_missing(stripe(number))
        healer.request_missing(stripe(number))
    healer.request(stripe(404))
    healer.request(stripe(5))  # now requested as rotten, not just missing
    healer.request_missing(stripe(404))
    assert healer.state().waiting == 22
    stripes.go_on.set()
    healer.drain()
    lacking = [stripe(number) for number in range(1, 21) if number != 5]
    assert stripes.healed[:3] == [[stripe(0)], [stripe(404)], [stripe(5)]]
    assert [one for group in stripes.healed[3:] for one in group] == lacking
    assert len(stripes.healed[3:]) == pace.rests == 3
    assert stripes.lost == [stripe(404)]
    state = healer.state()
    assert (state.waiting, state.healed_shards, state.failed_stripes) == (0, 21, 1)
    assert state.ended_ms > 0
    healer.close()


class Lull(Counting):
    """A pace with busy users: a lull lasts until something more urgent has to be done."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def lull(self, is_over: Callable[[], bool]) -> None:
        super().lull(is_over)
        self.begun.set()
        while not is_over():
            time.sleep(0.001)


def test_what_can_wait_is_begun_in_a_lull_once_and_what_is_rotten_is_not() -> None:
    stripes, pace = Stripes(), Lull()
    stripes.go_on.set()
    healer = Healer(cast(StripeStore, stripes), Runtime())
    healer.pace = pace
    for number in range(20):
        healer.request_missing(stripe(number))
    assert pace.begun.wait(10)
    assert stripes.healed == []
    healer.request(stripe(99))
    healer.drain()
    assert stripes.healed[0] == [stripe(99)]
    assert sum(map(len, stripes.healed)) == 21
    assert (pace.lulls, pace.rests) == (1, 3)
    healer.close()


def test_a_lull_ends_with_the_store() -> None:
    stripes, pace = Stripes(), Lull()
    stripes.go_on.set()
    healer = Healer(cast(StripeStore, stripes), Runtime())
    healer.pace = pace
    healer.request_missing(stripe(1))
    assert pace.begun.wait(10)
    healer.close()
