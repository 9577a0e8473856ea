"""Everything that is looked at, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from taskworker.doctor.access import contexts, membership, port
from taskworker.doctor.disks import disk
from taskworker.doctor.findings import Finding, problem
from taskworker.doctor.machine import clock, descriptors, sandboxes, versions

log = logging.getLogger(__name__)


def examine(directories: Sequence[Path], addresses: Sequence[str], *, functions: bool) -> Iterator[Finding]:
    """Look at this machine, and yield each finding as it is made.

    Args:
        directories: of pools, workers and stores, made already or not.
        addresses: where servers are to listen, ``HOST:PORT``.
        functions: whether functions are to run here.
    """
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("versions", versions),
        ("descriptors", descriptors),
        ("clock", clock),
        *([("sandboxes", sandboxes)] if functions else []),
        *((f"disk {one}", partial(disk, one)) for one in directories),
        *((f"worker {one}", partial(membership, one)) for one in directories),
        *((f"address {one}", partial(port, one)) for one in addresses),
        ("contexts", contexts),
    ]
    for about, check in checks:
        try:
            yield from check()
        except Exception as error:  # one check that fails must not hide the others
            log.warning("the check of %s failed", about, exc_info=error)
            yield problem(about, f"it cannot be checked: {error}", "see the message above")
