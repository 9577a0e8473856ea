"""Taking a long walk in batches (itertools.batched came with Python 3.12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to ``size`` items, in order."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def batched_by_size(items: Iterable[T], count: int, size: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of up to ``count`` items, fewer where these come to ``size`` or more before."""
    batch: list[T] = []
    together = 0
    for item in items:
        batch.append(item)
        together += size_of(item)
        if len(batch) >= count or together >= size:
            yield batch
            batch, together = [], 0
    if batch:
        yield batch
