"""The same operations on a store with few files and on one with very many."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.limits import DurableCommits, SmallReads
from benchmarks.measure import MIB, Figure, Limit, SuiteResult, Target, seconds_of
from benchmarks.processes import Outcome, run_task
from benchmarks.scale_store import FILE_BYTES, ScaleStore, name_of
from benchmarks.session import Session, settle
from benchmarks.workload import USER, small_content
from storage import FileStorage

PAGE_FILES = 1000
RATIO_MAX = 1.3
OPEN_SECONDS_MAX = 1.0
UPKEEP_MIB_MAX = 200
DELETED_FILES = 100
WARM_UP_GETS = 20_000
"""Enough to touch most pages of the catalog and the indexes, as the first access to a page costs a page fault."""
OPERATIONS = {
    "push": "raw LMDB durable commit",
    "get": "LMDB look-up + pread + BLAKE3",
    "list-page": f"LMDB walk over {PAGE_FILES} records",
    "history": "LMDB look-up",
}


@dataclass(slots=True)
class Samples:
    """Samples by round: median seconds of one operation, and seconds of opening a store."""

    few: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in OPERATIONS})
    many: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in OPERATIONS})
    raw: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in OPERATIONS})
    open_few: list[float] = field(default_factory=list)
    open_many: list[float] = field(default_factory=list)
    build_rate: float = 0.0


def run(session: Session) -> SuiteResult:
    """Build both stores, measure them alternately, then collect and scrub each of them in a fresh process."""
    sizes, samples = session.sizes, Samples()
    few = ScaleStore(session.directory / f"scale-{sizes.scale_files_few}", sizes.scale_files_few)
    many = ScaleStore(session.directory / f"scale-{sizes.scale_files_many}", sizes.scale_files_many)
    try:
        _build(session, few)
        samples.build_rate = _build(session, many)
        _measure(session, few, many, samples)
        figures, targets = _result(session, samples)
        for store in (few, many):
            more_figures, more_targets = _upkeep(session, store)
            figures += more_figures
            targets += more_targets
    finally:
        if not session.keep:
            for store in (few, many):
                shutil.rmtree(store.path, ignore_errors=True)
                store.path.with_name(store.path.name + ".built").unlink(missing_ok=True)
    remarks = [f"Tiny files of {FILE_BYTES} B, all of one user; costs are medians of single operations, by round."]
    if samples.build_rate:
        remarks.append(f"The large store was built with {samples.build_rate:,.0f} durable pushes a second.")
    return SuiteResult("scale", tuple(figures), tuple(targets), tuple(remarks))


def _build(session: Session, store: ScaleStore) -> float:
    """Complete the store; return the files pushed per second, 0 if it was complete already."""
    before = store.built
    if before >= store.files:
        return 0.0
    start = time.monotonic()
    with session.progress.counted(f"building a store of {store.files:,} files", store.files) as counter:
        counter.reach(before)
        store.build(counter.reach)
    return (store.files - before) / (time.monotonic() - start)


def _measure(session: Session, few: ScaleStore, many: ScaleStore, samples: Samples) -> None:
    with _opened(few, samples.open_few) as small, _opened(many, samples.open_many) as large:
        reads = SmallReads(session.directory, FILE_BYTES)
        costs_few = _Costs(small, few.files, session.sizes.scale_operations)
        costs_many = _Costs(large, many.files, session.sizes.scale_operations)
        for costs in (costs_few, costs_many):
            costs.warm_up()
        for number in session.rounds("operations on both stores"):
            for name in OPERATIONS:
                samples.few[name].append(costs_few.median_of(name, number))
                samples.many[name].append(costs_many.median_of(name, number))
            _raw_costs(session, reads, samples)
        reads.close()
    for _ in range(session.sizes.rounds - 1):
        with _opened(few, samples.open_few), _opened(many, samples.open_many):
            pass


@contextmanager
def _opened(store: ScaleStore, seconds: list[float]) -> Iterator[FileStorage]:
    start = time.perf_counter()
    with FileStorage.open(store.path) as engine:
        seconds.append(time.perf_counter() - start)
        yield engine


class _Costs:
    """Measures median seconds of single operations on one store."""

    def __init__(self, store: FileStorage, files: int, count: int) -> None:
        self._store, self._files, self._count = store, files, count
        self._series = f"{time.time_ns():x}"

    def warm_up(self) -> None:
        """Use much of the store once, so as to measure the cost in a process that has run for a while."""
        rng = random.Random("warm-up")
        for _ in range(min(self._files, WARM_UP_GETS)):
            self._get(rng.randrange(self._files))()

    def median_of(self, operation: str, number: int) -> float:
        """Return the median seconds of ``operation`` in round ``number``, on files picked at random."""
        rng = random.Random(number)
        picked = [rng.randrange(self._files) for _ in range(self._count)]
        actions: dict[str, Callable[[], list[Callable[[], object]]]] = {
            "push": lambda: [self._push(number, turn) for turn in range(self._count)],
            "get": lambda: [self._get(index) for index in picked],
            "list-page": lambda: [self._list_page(index) for index in picked],
            "history": lambda: [self._history(index) for index in picked],
        }
        return statistics.median(seconds_of(action) for action in actions[operation]())

    def _push(self, number: int, turn: int) -> Callable[[], object]:
        name = f"extra-{self._series}-{number}-{turn}"
        content = small_content(name, self._files, FILE_BYTES)
        return lambda: self._store.push(content, filename=name, user_id=USER)

    def _get(self, index: int) -> Callable[[], object]:
        file_id = self._file_id(index)
        return lambda: self._store.get(file_id, user_id=USER)

    def _history(self, index: int) -> Callable[[], object]:
        file_id = self._file_id(index)
        return lambda: self._store.history(file_id, user_id=USER)

    def _list_page(self, index: int) -> Callable[[], object]:
        after = name_of(index % max(1, self._files - PAGE_FILES))
        return lambda: self._store.list_files(user_id=USER, after=after, limit=PAGE_FILES)

    def _file_id(self, index: int) -> str:
        version = self._store.find(name_of(index), user_id=USER)
        assert version is not None, f"file {index} should be in the store"
        return version.file_id


def _raw_costs(session: Session, reads: SmallReads, samples: Samples) -> None:
    count = session.sizes.scale_operations
    settle()
    samples.raw["push"].append(DurableCommits(session.directory).run(count) / count)
    samples.raw["get"].append(reads.gets(count) / count)
    samples.raw["list-page"].append(reads.pages(count, PAGE_FILES) / count)
    samples.raw["history"].append(reads.look_ups(count) / count)


def _result(session: Session, samples: Samples) -> tuple[list[Figure], list[Target]]:
    sizes = session.sizes
    figures, targets = [], []
    for name, limit_name in OPERATIONS.items():
        limit = Limit(limit_name, _milliseconds(samples.raw[name]))
        for files, found in ((sizes.scale_files_few, samples.few), (sizes.scale_files_many, samples.many)):
            figures.append(Figure(f"{name} among {files:,} files", "ms", _milliseconds(found[name]), "lower", limit))
        ratios = tuple(large / small for large, small in zip(samples.many[name], samples.few[name], strict=True))
        text = f"{name}: cost with {sizes.scale_files_many:,} files / with {sizes.scale_files_few:,}"
        targets.append(Target("g", text, "at most", RATIO_MAX, "x", ratios, figures[-1].name, sizes.reduced))
    opening = Figure(
        f"opening a store of {sizes.scale_files_many:,} files",
        "ms",
        _milliseconds(samples.open_many),
        "lower",
        Limit(f"opening one of {sizes.scale_files_few:,}", _milliseconds(samples.open_few)),
    )
    figures.append(opening)
    text = f"opening a store of {sizes.scale_files_many:,} files"
    opens = tuple(samples.open_many)
    targets.append(Target("g", text, "at most", OPEN_SECONDS_MAX, "s", opens, opening.name, sizes.reduced))
    return figures, targets


def _upkeep(session: Session, store: ScaleStore) -> tuple[list[Figure], list[Target]]:
    """Measure time and peak memory of collect (after some deletes) and scrub, each in a fresh process."""
    session.progress.step(f"deleting {DELETED_FILES} of {store.files:,} files")
    _delete_extra(store)
    bare = run_task("nothing", {})
    figures, targets = [], []
    judged = store.files == session.sizes.scale_files_many
    for task in ("collect", "scrub"):
        with session.progress.counted(f"{task} of {store.files:,} files", 0) as counter:
            outcome = run_task(task, {"store": store.path}, counter.reach)
        figure = _memory_figure(f"{task} of {store.files:,} files: peak memory", outcome, bare)
        figures.append(figure)
        if not judged:
            continue
        text = f"{task} of {store.files:,} files: peak anonymous memory"
        anonymous = (outcome.memory.anonymous / MIB,)
        targets.append(
            Target("g", text, "at most", UPKEEP_MIB_MAX, "MiB", anonymous, figure.name, session.sizes.reduced)
        )
    return figures, targets


def _memory_figure(name: str, outcome: Outcome, bare: Outcome) -> Figure:
    resident, anonymous = outcome.memory.resident / MIB, outcome.memory.anonymous / MIB
    limit = Limit("a process that only imports the engine", (bare.memory.resident / MIB,))
    note = f"{anonymous:.0f} MiB of it anonymous; took {outcome.values['seconds']:.1f} s"
    return Figure(name, "MiB", (resident,), "lower", limit, note)


def _delete_extra(store: ScaleStore) -> None:
    """Delete files added by the measured pushes, so that collect has something to do."""
    with FileStorage.open(store.path) as engine:
        for version in engine.list_files(user_id=USER, prefix="extra-", limit=DELETED_FILES):
            engine.delete(version.file_id, user_id=USER)


def _milliseconds(seconds: list[float]) -> tuple[float, ...]:
    return tuple(one * 1e3 for one in seconds)
