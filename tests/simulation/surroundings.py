"""What is set up around a simulation and taken down after it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PARTITIONS = 32
CHECKPOINT_CHUNKS = 2  # after so many, an upload leases what it has taken in


@contextmanager
def simulated_surroundings() -> Iterator[None]:
    """Layouts have 32 rows instead of 1024, most of a simulation's time otherwise; and nothing is logged.

    What the pool has to say about simulated faults is no news.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("storage.layout.PARTITIONS", PARTITIONS)
            patch.setattr("storage.layout.partition_of", _partition_of)
            patch.setattr("taskworker.pool.fleet.partition_of", _partition_of)
            patch.setattr("storage.upload.FAN_OUT", CHECKPOINT_CHUNKS)
            patch.setattr("storage.upload._IN_FLIGHT_MAX", CHECKPOINT_CHUNKS)
            yield
    finally:
        logging.disable(before)


def _partition_of(object_id: bytes) -> int:
    return object_id[0] % PARTITIONS
