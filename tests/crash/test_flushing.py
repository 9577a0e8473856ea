"""The flushers themselves: each descriptor's outcome is told, so the flush did reach the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.system.flushing import Flusher, FlushError, KernelFlusher, ThreadFlusher


@pytest.fixture(params=["kernel", "threads"])
def flusher(request: pytest.FixtureRequest) -> Iterator[Flusher]:
    try:
        flusher: Flusher = KernelFlusher() if request.param == "kernel" else ThreadFlusher(3)
    except FlushError as error:
        pytest.skip(f"the kernel's own flushing is not to be had: {error}")
    yield flusher
    flusher.close()


@pytest.mark.parametrize("count", [1, 6, 100])
def test_what_fails_is_told_apart_from_what_does_not(flusher: Flusher, tmp_path: Path, count: int) -> None:
    descriptors = [os.open(tmp_path / str(number), os.O_CREAT | os.O_RDWR) for number in range(count)]
    reading, writing = os.pipe()
    try:
        for descriptor in descriptors:
            os.write(descriptor, b"content")
        mixed = [*descriptors[: count // 2], writing, *descriptors[count // 2 :], reading]
        outcomes = flusher.flush(mixed)
    finally:
        for descriptor in (*descriptors, reading, writing):
            os.close(descriptor)
    failed = [place for place, outcome in enumerate(outcomes) if outcome is not None]
    assert failed == [count // 2, count + 1]
    assert {outcome.errno for outcome in outcomes if outcome is not None} <= {errno.EINVAL, errno.EROFS}


def test_nothing_to_flush(flusher: Flusher) -> None:
    assert flusher.flush([]) == []
