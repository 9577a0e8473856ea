"""Get of one large file without two of its six volumes, compared with the healthy get."""

from __future__ import annotations

from collections.abc import Mapping

from blake3 import blake3

from benchmarks.measure import MIB, Figure, SuiteResult, Target, megabytes_per_second, seconds_of
from benchmarks.session import Session, human_size, sampled, times
from benchmarks.store_copy import StoreCopy
from benchmarks.suites.engine import GET_LIMIT, read_through
from benchmarks.workload import USER, RandomContent
from storage import FileStorage

READ_BUFFER_BYTES = 4 * MIB
PAIRS = ((0, 1), (2, 4), (3, 5))
"""Three of the 15 pairs, with every volume once. Each chunk has its own assignment of slots to volumes, so that with
each pair there are chunks with two, one and no missing data shards."""
DECODING_LIMIT = "read + BLAKE3 + decode + copy out, one after another"


def run(session: Session) -> SuiteResult:
    """Measure healthy and degraded gets alternately. Every degraded get reads a fresh copy of the store.

    The copy must be fresh because the engine heals what it finds missing, so that a second get would be healthy.
    """
    content = RandomContent("degraded", session.sizes.file_bytes)
    healthy: list[float] = []
    healthy_limit: list[Mapping[str, float]] = []
    degraded: dict[tuple[int, int], list[float]] = {lost: [] for lost in PAIRS}
    degraded_limit: dict[tuple[int, int], list[Mapping[str, float]]] = {lost: [] for lost in PAIRS}
    with session.scratch("degraded") as root:
        session.progress.step("making the store")
        source = content.write_to(root / "source")
        copy = StoreCopy(root / "original", root / "copy")
        with FileStorage.open(copy.original) as store:
            file_id = store.push(source, filename="file", user_id=USER).file_id
        session.progress.step("checking every byte with two volumes gone")
        for lost in PAIRS:
            _check(copy, lost, file_id, content)
        for _ in session.rounds(f"gets of {human_size(content.size)}"):
            healthy.append(_timed_get(copy, (), file_id))
            sampled(lambda: session.limits.get_parts(source, content.size), healthy_limit)
            for lost in PAIRS:
                degraded[lost].append(_timed_get(copy, lost, file_id))
                sampled(lambda: session.limits.degraded_get_parts(source, content.size), degraded_limit[lost])
    return _result(session, healthy, healthy_limit, degraded, degraded_limit)


def _timed_get(copy: StoreCopy, lost: tuple[int, ...], file_id: str) -> float:
    copy.make(lost)
    buffer = memoryview(bytearray(READ_BUFFER_BYTES))
    with copy.open() as store:
        return seconds_of(lambda: read_through(store, file_id, buffer))


def _check(copy: StoreCopy, lost: tuple[int, ...], file_id: str, content: RandomContent) -> None:
    """Read a degraded copy once, untimed, and check its content by its digest."""
    copy.make(lost)
    hasher = blake3()
    with copy.open() as store, store.open_file(file_id, user_id=USER) as reader:
        while piece := reader.read(READ_BUFFER_BYTES):
            hasher.update(piece)
    if hasher.digest() != content.digest():
        raise AssertionError(f"without volumes {lost}, the engine returned other bytes than were pushed")


def _result(
    session: Session,
    healthy: list[float],
    healthy_limit: list[Mapping[str, float]],
    degraded: dict[tuple[int, int], list[float]],
    degraded_limit: dict[tuple[int, int], list[Mapping[str, float]]],
) -> SuiteResult:
    size, reduced = session.sizes.file_bytes, session.sizes.reduced
    amount, label = size / 1e6, human_size(size)
    rates = megabytes_per_second(size, healthy)
    figures = [
        Figure(f"get {label}, healthy", "MB/s", rates, limit=times(healthy_limit).limit(GET_LIMIT, amount)),
    ]
    targets = []
    for (one, other), seconds in degraded.items():
        slower = megabytes_per_second(size, seconds)
        limit = times(degraded_limit[one, other]).limit(DECODING_LIMIT, amount)
        figures.append(Figure(f"get {label}, volumes {one} and {other} gone", "MB/s", slower, limit=limit))
        ratios = tuple(mine / whole for mine, whole in zip(slower, rates, strict=True))
        text = f"get with volumes {one} and {other} gone / healthy get"
        targets.append(Target("c", text, "at least", 0.8, "x", ratios, figures[-1].name, reduced))
    return SuiteResult("degraded", tuple(figures), tuple(targets), ("Every byte was checked in untimed gets.",))
