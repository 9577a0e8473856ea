"""Durable pushes and gets of 4 KiB files with distinct contents and names, in an embedded store and through a pool."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks.limits import DurableCommits, SmallReads, plain_files
from benchmarks.measure import Figure, Limit, SuiteResult, Target, rate, seconds_of
from benchmarks.pooled_small import PooledSamples, figures_of, measure, targets_of
from benchmarks.session import Session, settle
from benchmarks.workload import USER, small_content
from storage import FileStorage

FILE_BYTES = 4096
THREADS = 16
SINGLE_MIN = 0.35
THREADED_MIN = 1.0
GETS_MIN = 5000
COMMIT_LIMIT = "raw LMDB durable commits, one after another"
GET_LIMIT = "LMDB look-up + pread + BLAKE3, one after another"


@dataclass(slots=True)
class Samples:
    """Seconds by round."""

    single: list[float] = field(default_factory=list)
    threaded: list[float] = field(default_factory=list)
    gets: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    raw_gets: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    pooled: PooledSamples = field(default_factory=PooledSamples)


def run(session: Session) -> SuiteResult:
    """Measure durable pushes with 1 and with 16 threads, gets with one thread, and both through a pool."""
    sizes, samples = session.sizes, Samples()
    with session.scratch("small") as root, FileStorage.open(root / "store") as store:
        raw_reads = SmallReads(root, FILE_BYTES)
        _push_threaded(store, "warm-up", sizes.small_pushes)
        for number in session.rounds("pushes and gets of 4 KiB"):
            samples.single.append(_push_single(store, f"single-{number}", sizes.small_pushes))
            settle()
            samples.commits.append(DurableCommits(root).run(sizes.small_pushes))
            settle()
            samples.threaded.append(_push_threaded(store, f"threaded-{number}", sizes.small_threaded_pushes))
            samples.gets.append(_gets(store, sizes.small_gets))
            samples.raw_gets.append(raw_reads.gets(sizes.small_gets))
            if session.peers:
                settle()
                samples.plain.append(plain_files(root, _contents(f"plain-{number}", sizes.small_pushes)))
        raw_reads.close()
    measure(session, samples.pooled)
    return _result(session, samples)


def _contents(series: str, count: int) -> list[bytes]:
    return [small_content(series, index, FILE_BYTES) for index in range(count)]


def _push_single(store: FileStorage, series: str, count: int) -> float:
    contents = _contents(series, count)

    def action() -> None:
        for index, content in enumerate(contents):
            store.push(content, filename=f"{series}/{index}", user_id=USER)

    return seconds_of(action)


def _push_threaded(store: FileStorage, series: str, count: int) -> float:
    contents = _contents(series, count)

    def push_share(first: int) -> None:
        for index in range(first, count, THREADS):
            store.push(contents[index], filename=f"{series}/{index}", user_id=USER)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(int, range(THREADS)))
        return seconds_of(lambda: list(pool.map(push_share, range(THREADS))))


def _gets(store: FileStorage, count: int) -> float:
    """Time ``count`` gets, in seconds. Files are read in strides, so that successive files are not neighbours."""
    ids = [version.file_id for version in store.list_files(user_id=USER, limit=count)]
    order = [ids[index * 7919 % len(ids)] for index in range(count)]

    def action() -> None:
        for file_id in order:
            store.get(file_id, user_id=USER)

    return seconds_of(action)


def _result(session: Session, samples: Samples) -> SuiteResult:
    sizes = session.sizes
    commits = Limit(COMMIT_LIMIT, rate(sizes.small_pushes, samples.commits))
    reads = Limit(GET_LIMIT, rate(sizes.small_gets, samples.raw_gets))
    single = _figure("durable pushes of 4 KiB, one after another", sizes.small_pushes, samples.single, commits)
    threaded = _figure(
        f"durable pushes of 4 KiB, {THREADS} threads", sizes.small_threaded_pushes, samples.threaded, commits
    )
    gets = _figure("gets of 4 KiB, one thread", sizes.small_gets, samples.gets, reads)
    figures = [single, threaded, gets]
    if samples.plain:
        plain = "plain files: create + write + fsync, one after another"
        figures.append(_figure(plain, sizes.small_pushes, samples.plain, commits))
    figures += figures_of(session, samples.pooled)
    targets = [
        _target("d", "4 KiB pushes, one after another / raw LMDB commits", SINGLE_MIN, "x", single.ratios, single),
        _target("d", "4 KiB pushes, 16 threads / raw LMDB commits", THREADED_MIN, "x", threaded.ratios, threaded),
        _target("e", "gets of 4 KiB on one thread", GETS_MIN, "/s", gets.samples, gets),
        *targets_of(session, samples.pooled, figures),
    ]
    remarks = (
        "Through the pool: all callers are threads of one client process, and all processes share this machine.",
        *samples.pooled.remarks,
    )
    return SuiteResult("small-files", tuple(figures), tuple(targets), remarks)


def _target(mark: str, text: str, bound: float, unit: str, samples: Sequence[float], figure: Figure) -> Target:
    return Target(mark, text, "at least", bound, unit, tuple(samples), figure.name)


def _figure(name: str, count: int, seconds: Sequence[float], limit: Limit) -> Figure:
    return Figure(name, "/s", rate(count, seconds), limit=limit)
