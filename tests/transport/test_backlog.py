"""How much of a connection's data waits on a slow link."""

from __future__ import annotations

import pytest

from taskworker.transport.wire.backlog import SendBacklog

KIB, MIB = 1 << 10, 1 << 20
STEP_S = 0.05


class Link:
    """A connection whose send buffer is always filled, and the link that empties it.

    Args:
        rate: bytes per second.
        buffer: bytes.
        queued_s: how long a packet waits on the way at most, in seconds.
    """

    def __init__(self, rate: float, buffer: int = 4 * MIB, queued_s: float = 0.4) -> None:
        self.now_s = 0.0
        self.rate = rate
        self.queued_s = queued_s
        self.buffer = buffer
        self.waiting = 0.0
        self.backlog = SendBacklog(
            lambda: int(self.waiting),
            lambda: min(self.queued_s, self.waiting / self.rate),
            self._limit,
            lambda: self.now_s,
        )

    def _limit(self, count: int) -> None:
        self.buffer = count

    def pass_time(self, seconds: float, *, stalled: bool = False) -> float:
        """Send for a while; return how long the last byte waits, in seconds."""
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            if not stalled:
                self.waiting = max(0.0, self.waiting - self.rate * STEP_S)
            count = max(0, int(self.buffer - self.waiting))
            self.waiting += count
            self.backlog.note(count)
        return self.waiting / self.rate


@pytest.mark.parametrize("rate", [125_000, 250_000, 1_250_000])
def test_little_waits_on_a_slow_link_which_stays_busy(rate: int) -> None:
    link = Link(rate)
    assert link.pass_time(0.2) > 3.0
    link.pass_time(4 * MIB / rate + 2)  # what waited already passes first
    for _ in range(10):
        assert 0.1 < link.pass_time(0.5) <= 0.5


def test_a_fast_link_is_left_alone() -> None:
    link = Link(100_000_000)
    link.pass_time(5)
    assert link.buffer == 4 * MIB


def test_a_link_without_queues_is_left_alone() -> None:
    link = Link(1_500_000, queued_s=0.15)
    link.pass_time(20)
    assert link.buffer == 4 * MIB


def test_a_link_whose_queues_are_gone_gets_its_buffer_back() -> None:
    link = Link(1_500_000)
    link.pass_time(20)
    assert link.buffer < MIB
    link.queued_s = 0.1
    link.pass_time(10)
    assert link.buffer == 4 * MIB


def test_a_link_that_becomes_fast_is_used_fully_again() -> None:
    link = Link(125_000)
    link.pass_time(60)
    assert link.buffer < 64 * KIB
    link.rate = 12_500_000
    link.pass_time(5)
    assert link.buffer >= 1 * MIB


def test_moments_in_which_nothing_arrives_do_not_shrink_the_buffer() -> None:
    link = Link(1_250_000, buffer=512 * KIB)
    link.pass_time(2)
    usual = link.buffer
    for _ in range(10):
        link.pass_time(0.3, stalled=True)
        link.pass_time(0.5)
    assert link.buffer >= usual // 2
