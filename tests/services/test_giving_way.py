"""Expensive work of one user gives way to others, and only to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskworker.auth.rights import Principal, Role
from taskworker.errors import CallAbandoned
from taskworker.rpc.admission import Gate
from taskworker.rpc.authorization import KnownCaller
from taskworker.services.giving_way import Progress, paced


class Work:
    """Work of ``ann``, in steps of a second, by a clock that it moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.rests: list[float] = []
        self.active = True
        self.gate = Gate(8, "too many", clock_s=lambda: self.now_s)
        self.on_rest: Callable[[], None] = lambda: None

    def is_active(self) -> bool:
        return self.active

    def begin(self, user: str | None = "ann") -> Progress:
        caller = self if user is None else KnownCaller(self, Principal(user, Role.USER))
        return paced(caller, self.gate.has_others, lambda: self.now_s, self._rest)

    def _rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now_s += seconds
        self.on_rest()

    def come(self, user: str) -> None:
        with self.gate.place(user):
            pass


@pytest.fixture
def work() -> Work:
    return Work()


def test_work_rests_for_three_times_as_long_as_it_took_while_others_call(work: Work) -> None:
    progress = work.begin()
    for _ in range(3):
        work.come("bob")
        work.come("ann")
        work.come("ann")
        work.now_s += 0.1
        progress(1, 10)
    assert work.rests == pytest.approx([0.3] * 3)
    work.come("bob")
    work.now_s += 0.2
    progress(1, 10)
    assert work.rests[3:] == pytest.approx([0.6])
    work.now_s += 10  # a long step is no reason for a long rest
    work.come("bob")
    progress(1, 10)
    assert work.rests[4:] == [1.0]


def test_work_does_not_rest_for_its_own_user_or_for_nobody(work: Work) -> None:
    progress = work.begin()
    work.come("bob")
    work.now_s += 0.3  # bob has gone
    progress(1, 10)
    for _ in range(5):
        work.come("ann")
        work.now_s += 0.1
        progress(1, 10)
    unknown = work.begin(user=None)
    work.come("bob")
    work.now_s += 0.1
    unknown(1, 10)
    assert work.rests == []


def test_work_ends_with_its_caller_also_after_a_rest(work: Work) -> None:
    def leave() -> None:
        work.active = False

    work.on_rest = leave
    progress = work.begin()
    work.come("bob")
    work.now_s += 0.1
    with pytest.raises(CallAbandoned):
        progress(1, 10)
    with pytest.raises(CallAbandoned):
        progress(1, 10)
    assert len(work.rests) == 1
