"""Splits iterables into batches (itertools.batched needs Python 3.12)."""

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
    """Lists of up to ``count`` items; a list ends early once the sizes of its items add up to ``size`` or more."""
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
