"""Tasks that run in their own child process, so that its peak memory can be measured.

The process prints lines of JSON: progress as ``{"done", "total"}``, and finally the result.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import MIB
from benchmarks.processes import own_peak_resident
from benchmarks.workload import USER
from storage import FileStorage

READ_BUFFER_BYTES = 4 * MIB
PROGRESS_INTERVAL_S = 0.5

Arguments = Mapping[str, Any]
Values = dict[str, float]


def main() -> None:
    """Run the task named on the command line with the JSON arguments after it."""
    values = TASKS[sys.argv[1]](json.loads(sys.argv[2]))
    _print(values | {"peak_resident": own_peak_resident()})


def nothing(_: Arguments) -> Values:
    """Only import the engine, to measure the least memory of a process that uses it."""
    return {}


def push(arguments: Arguments) -> Values:
    """Push ``source`` into ``store`` as ``filename``."""
    with FileStorage.open(arguments["store"]) as store:
        start = time.perf_counter()
        store.push(Path(arguments["source"]), filename=arguments["filename"], user_id=USER, progress=_progress())
        return {"seconds": time.perf_counter() - start}


def get(arguments: Arguments) -> Values:
    """Read ``filename`` to its end, into one reused buffer."""
    buffer = memoryview(bytearray(READ_BUFFER_BYTES))
    with FileStorage.open(arguments["store"]) as store:
        file_id = _file_id(store, arguments)
        start = time.perf_counter()
        with store.open_file(file_id, user_id=USER) as reader:
            while reader.readinto(buffer):
                pass
        return {"seconds": time.perf_counter() - start}


def revise(arguments: Arguments) -> Values:
    """Compute the difference between ``source`` and the newest version of ``filename``, and apply it."""
    with FileStorage.open(arguments["store"]) as store:
        file_id = _file_id(store, arguments)
        start = time.perf_counter()
        difference = store.diff(file_id, Path(arguments["source"]), user_id=USER)
        store.revise(file_id, difference, user_id=USER)
        return {"seconds": time.perf_counter() - start, "patches": len(difference.patches)}


def scrub(arguments: Arguments) -> Values:
    """Verify every stored shard."""
    with FileStorage.open(arguments["store"]) as store:
        start = time.perf_counter()
        report = store.scrub(progress=_progress())
        return {
            "seconds": time.perf_counter() - start,
            "shards": report.shards_checked,
            "bytes": report.bytes_checked,
            "damaged": report.rotten + report.missing,
        }


def collect(arguments: Arguments) -> Values:
    """Drop everything that no version reaches, without a grace period."""
    with FileStorage.open(arguments["store"]) as store:
        start = time.perf_counter()
        report = store.collect(progress=_progress(), grace_s=0.0)
        return {
            "seconds": time.perf_counter() - start,
            "objects": report.objects_removed,
            "bytes_freed": report.bytes_freed,
        }


def rebuild(arguments: Arguments) -> Values:
    """Rebuild the catalog from the volumes."""
    with FileStorage.open(arguments["store"]) as store:
        start = time.perf_counter()
        report = store.rebuild(progress=_progress())
        return {"seconds": time.perf_counter() - start, "files": report.files, "versions": report.versions}


TASKS: dict[str, Callable[[Arguments], Values]] = {
    task.__name__: task for task in (nothing, push, get, revise, scrub, collect, rebuild)
}


def _file_id(store: FileStorage, arguments: Arguments) -> str:
    version = store.find(arguments["filename"], user_id=USER)
    if version is None:
        raise FileNotFoundError(f"the store has no {arguments['filename']}")
    return version.file_id


def _progress() -> Callable[[int, int], None]:
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_INTERVAL_S:
            last = time.monotonic()
            _print({"done": done, "total": total})

    return report


def _print(values: Mapping[str, float]) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
