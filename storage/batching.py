"""Splits iterables into batches (itertools.batched needs Python 3.12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to ``size`` items, in order."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class UpToError(Generic[T]):
    """The items of an iterable up to its error, which waits until what came before has been dealt with."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[T]:
        try:
            yield from self._items
        except Exception as error:  # raised by raise_error()
            self._error = error

    def raise_error(self) -> None:
        """Raise the error of the iterable, if there was one."""
        if self._error is not None:
            raise self._error


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
