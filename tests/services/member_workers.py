"""A worker that joined with a token, at which its pool makes calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskworker.worker.functions import HostedFunctions
from taskworker.worker.functions_only import FunctionsOnlyWorker
from taskworker.worker.member import WorkerMember

WAIT_S = 60.0


@contextmanager
def serving(member: WorkerMember, directory: Path) -> Iterator[str]:
    """Run a worker that has no volume; yield the address at which it takes calls."""
    functions = HostedFunctions("the pool", directory / "f", required=False, member=member)
    worker = FunctionsOnlyWorker(member.worker_id, directory / member.worker_id, functions, member)
    threading.Thread(target=worker.start, args=("127.0.0.1:0",), daemon=True).start()
    try:
        give_up = time.monotonic() + WAIT_S
        while not worker.address:
            assert time.monotonic() < give_up, "the worker does not serve"
            time.sleep(0.02)
        yield worker.address
    finally:
        worker.stop(0.0)
