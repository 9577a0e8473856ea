"""Patches that are applied during a simulation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Self, TypeVar

import pytest

from storage.formats import authenticity
from taskworker.rpc.running import Run

T = TypeVar("T")

PARTITIONS = 32
_REAL_AT_ZERO = authenticity._at_zero
SWEEP_KEYS = 16  # small, so that a collect takes several steps
CHECKPOINT_CHUNKS = 2  # after so many chunks, an upload leases those it has stored


@contextmanager
def simulated_surroundings() -> Iterator[None]:
    """Make simulations faster and silent.

    Layouts have 32 rows instead of 1024, which would take most of the time. Secrets recovered from shares are cached,
    as computing one takes milliseconds. Logging is off, as the pool would only report simulated faults.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("storage.fleet.layout.PARTITIONS", PARTITIONS)
            patch.setattr("storage.fleet.assignment.PARTITIONS", PARTITIONS)
            patch.setattr("storage.fleet.layout.partition_of", _partition_of)
            patch.setattr("taskworker.transport.absences.partition_of", _partition_of)
            patch.setattr("taskworker.transport.places.partition_of", _partition_of)
            patch.setattr("storage.formats.authenticity._at_zero", _at_zero)
            patch.setattr("storage.maintenance.collect._SWEEP_KEYS", SWEEP_KEYS)
            patch.setattr("storage.write.upload.FAN_OUT", CHECKPOINT_CHUNKS)
            patch.setattr("storage.write.pipeline._IN_FLIGHT_MAX", CHECKPOINT_CHUNKS)
            patch.setattr("taskworker.transport.shard_service.Run", _RunAtOnce)
            yield
    finally:
        logging.disable(before)


def _at_zero(shares: Mapping[int, bytes]) -> bytes:
    return _known_at_zero(frozenset(shares.items()))


@lru_cache(maxsize=1024)
def _known_at_zero(shares: frozenset[tuple[int, bytes]]) -> bytes:
    return _REAL_AT_ZERO(dict(shares))


def _partition_of(object_id: bytes) -> int:
    return object_id[0] % PARTITIONS


class _RunAtOnce(Run[T]):
    """Runs the operation when it is entered, without a thread, whose speed no seed determines."""

    def __enter__(self) -> Self:
        self._run()
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: the operation has ended."""
