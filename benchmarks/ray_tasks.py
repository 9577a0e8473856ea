"""Measures additions as tasks of Ray, with one driver. A script for an interpreter with Ray, not otherwise required.

It first prints the version of Ray as a line of JSON. For each line of standard input, ``{"count": 100}`` or
``{"callers": 16, "seconds": 2.0}``, it prints its measurements as one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable

PROCESSORS = 2
OBJECTS_BYTES = 100 << 20


def main() -> None:
    """Start Ray, answer the lines of standard input, and stop Ray."""
    ray = importlib.import_module("ray")
    ray.init(
        num_cpus=PROCESSORS,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=OBJECTS_BYTES,
        _node_ip_address="127.0.0.1",
    )
    try:
        add = ray.remote(lambda a, b: a + b)

        def once() -> None:
            if ray.get(add.remote(3, 4)) != 7:
                raise AssertionError("Ray cannot add")

        once()
        print(json.dumps({"version": ray.__version__}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            found = _latencies(once, asked["count"]) if "count" in asked else _sustained(once, **asked)
            print(json.dumps(found), flush=True)
    finally:
        ray.shutdown()


def _latencies(once: Callable[[], None], count: int) -> dict[str, list[float]]:
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        once()
        taken.append((time.perf_counter() - start) * 1e3)
    return {"milliseconds": taken}


def _sustained(once: Callable[[], None], callers: int, seconds: float) -> dict[str, float]:
    begun = time.monotonic()
    done = [0] * callers

    def call(number: int) -> None:
        while time.monotonic() < begun + seconds:
            once()
            done[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"calls": sum(done), "seconds": time.monotonic() - begun}


if __name__ == "__main__":
    main()
