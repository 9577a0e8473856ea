"""Latencies: who is slower than others, and for how long that is believed."""

from __future__ import annotations

from taskworker.functions.routing.latency import Latencies


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def test_one_that_takes_five_times_as_long_is_five_times_as_slow() -> None:
    latencies = Latencies(Clock())
    assert latencies.slowness("f", ["a", "b"]) == {"a": 1.0, "b": 1.0}
    for _ in range(50):
        latencies.took("f", "a", 0.1)
        latencies.took("f", "b", 0.5)
    assert latencies.slowness("f", ["a", "b", "new"]) == {"a": 1.0, "b": 5.0, "new": 1.0}
    assert latencies.slowness("g", ["a", "b"]) == {"a": 1.0, "b": 1.0}


def test_workers_about_as_fast_are_alike() -> None:
    latencies = Latencies(Clock())
    latencies.took("f", "a", 0.10)
    latencies.took("f", "b", 0.19)
    assert latencies.slowness("f", ["a", "b"]) == {"a": 1.0, "b": 1.0}


def test_a_cold_start_is_not_held_against_a_worker_for_long() -> None:
    clock = Clock()
    latencies = Latencies(clock)
    latencies.took("f", "b", 2.0)
    for _ in range(60):
        clock.s += 0.1
        latencies.took("f", "a", 0.01)
    assert latencies.slowness("f", ["a", "b"]) == {"a": 1.0, "b": 1.0}  # it is tried again
    latencies.took("f", "b", 0.01)
    assert latencies.slowness("f", ["a", "b"]) == {"a": 1.0, "b": 1.0}  # and was quick


def test_a_flood_of_names_is_bounded() -> None:
    latencies = Latencies(Clock())
    for number in range(20_000):
        latencies.took(f"f{number}", "a", 1.0)
    latencies.took("f", "a", 1.0)
    latencies.took("f", "b", 9.0)
    assert latencies.slowness("f", ["a", "b"])["b"] == 9.0
    assert len(latencies._latencies) <= 4096
