"""Maintenance: scrub, repair of a lost volume, and rebuild of a lost catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.limits import PhysicalLimits
from benchmarks.measure import MEGABYTE, Figure, SuiteResult, megabytes_per_second, rate, seconds_of
from benchmarks.session import Session, human_size, sampled, times
from benchmarks.store_copy import StoreCopy
from benchmarks.workload import USER, RandomContent, small_content
from storage import FileStorage, RepairReport, ScrubReport

LOST_VOLUME = 1
SMALL_FILES = 500
SMALL_FILE_BYTES = 4096
SCRUB_LIMIT = "read + BLAKE3 of every stored byte, one after another"
REPAIR_LIMIT = "read k shards + BLAKE3 of the chunk + make the shard + its BLAKE3 + write and fsync"
REBUILD_LIMIT = "read of every stored byte, one after another"


@dataclass(slots=True)
class Samples:
    """Seconds by round, and bytes processed in a round."""

    scrub: list[float] = field(default_factory=list)
    scrub_bytes: int = 0
    scrub_limit: list[Mapping[str, float]] = field(default_factory=list)
    repair: list[float] = field(default_factory=list)
    repair_bytes: int = 0
    repair_limit: list[Mapping[str, float]] = field(default_factory=list)
    rebuild: list[float] = field(default_factory=list)
    rebuild_limit: list[Mapping[str, float]] = field(default_factory=list)


def run(session: Session) -> SuiteResult:
    """Measure on copies of a store with one large file and some small ones."""
    content = RandomContent("repair", session.sizes.repair_bytes)
    samples = Samples()
    with session.scratch("repair") as root:
        session.progress.step("making the store")
        source = content.write_to(root / "source")
        copy = StoreCopy(root / "original", root / "copy")
        _make_store(copy.original, source)
        for _ in session.rounds(f"upkeep of {human_size(content.size)}"):
            _scrub(copy, samples)
            sampled(lambda: _scrub_parts(session.limits, copy.original, samples.scrub_bytes), samples.scrub_limit)
            _repair(copy, samples)
            sampled(lambda: session.limits.repair_parts(source, content.size), samples.repair_limit)
            _rebuild(copy, samples)
            sampled(lambda: {"read": _read_volumes(session.limits, copy.original)}, samples.rebuild_limit)
    return _result(session, samples)


def _make_store(path: Path, source: Path) -> None:
    with FileStorage.open(path) as store:
        store.push(source, filename="large", user_id=USER)
        for index in range(SMALL_FILES):
            store.push(small_content("repair", index, SMALL_FILE_BYTES), filename=f"small-{index}", user_id=USER)


def _scrub(copy: StoreCopy, samples: Samples) -> None:
    copy.make()
    with copy.open() as store:
        reports: list[ScrubReport] = []
        samples.scrub.append(seconds_of(lambda: reports.append(store.scrub())))
    if not reports[0].clean:
        raise AssertionError(f"the scrub of a new store should be clean, found {len(reports[0].damaged)} damaged")
    samples.scrub_bytes = reports[0].bytes_checked


def _repair(copy: StoreCopy, samples: Samples) -> None:
    copy.make(lost=(LOST_VOLUME,))
    with copy.open() as store:
        reports: list[RepairReport] = []
        samples.repair.append(seconds_of(lambda: reports.append(store.repair())))
        if not reports[0].complete or not store.scrub().clean:
            raise AssertionError(f"after one lost volume, repair left {reports[0].lost_count} objects incomplete")
    samples.repair_bytes = reports[0].bytes_rebuilt


def _rebuild(copy: StoreCopy, samples: Samples) -> None:
    copy.make()
    copy.lose_catalog()
    with copy.open() as store:
        samples.rebuild.append(seconds_of(store.rebuild))
        if store.stats().files != SMALL_FILES + 1:
            raise AssertionError(f"a rebuilt store should have {SMALL_FILES + 1} files, has {store.stats().files}")


def _read_volumes(limits: PhysicalLimits, store: Path) -> float:
    return sum(limits.read(path) for path in sorted((store / "volumes").rglob("*")) if path.is_file())


def _scrub_parts(limits: PhysicalLimits, store: Path, checked: int) -> Mapping[str, float]:
    return {"read": _read_volumes(limits, store), "BLAKE3": limits.hash_shards(int(checked / limits.stretch))}


def _result(session: Session, samples: Samples) -> SuiteResult:
    size = session.sizes.repair_bytes
    files = SMALL_FILES + 1
    scrub = Figure(
        f"scrub of {human_size(size)} of data",
        "MB/s",
        megabytes_per_second(samples.scrub_bytes, samples.scrub),
        limit=times(samples.scrub_limit).limit(SCRUB_LIMIT, samples.scrub_bytes / MEGABYTE),
        note="of stored bytes",
    )
    repair = Figure(
        "repair of one lost volume of six",
        "MB/s",
        megabytes_per_second(samples.repair_bytes, samples.repair),
        limit=times(samples.repair_limit).limit(REPAIR_LIMIT, samples.repair_bytes / MEGABYTE),
        note="of rebuilt bytes",
    )
    rebuild = Figure(
        f"rebuild of the catalog, {files} files, {human_size(size)} of data",
        "files/s",
        rate(files, samples.rebuild),
        limit=times(samples.rebuild_limit).limit(REBUILD_LIMIT, files),
        note=f"{sorted(samples.rebuild)[len(samples.rebuild) // 2]:.2f} s",
    )
    return SuiteResult("repair", (scrub, repair, rebuild))
