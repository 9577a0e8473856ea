"""The whole measurement: each size with each number of callers, then calls; afterwards all is deleted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from storage import StorageError, Version
from taskworker.measuring.content import Content
from taskworker.measuring.figures import Figures, Limit, figures
from taskworker.measuring.places import Place, delete_all, new_prefix
from taskworker.measuring.running import Callers

_BYTES_MAX = 1 << 30  # of one kind of file with one number of callers
_FILES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        sizes: of files, bytes.
        callers: how many work at the same time, one measurement after the other.
        seconds: of each measurement.
        limits: the limits of a put and of a get of a file of this size.
        call: calls the function once; None: no calls are measured.
        call_limit: the limit of a call.
    """

    sizes: Sequence[int]
    callers: Sequence[int]
    seconds: float
    limits: Callable[[int], tuple[Limit | None, Limit | None]]
    call: Callable[[], None] | None = None
    call_limit: Limit | None = None


class Suite:
    """Measures a place; a context manager that deletes what it has put there, however it ends.

    Args:
        place: the files of a user.
        clean: the same, to delete them with: over a connection of its own, as that of a put may have been closed.
        plan: what to measure.
    """

    def __init__(self, place: Place, clean: Place, plan: Plan) -> None:
        self._place = place
        self._clean = clean
        self._plan = plan
        self.prefix = new_prefix()
        self.deleted = 0

    def __enter__(self) -> Suite:
        return self

    def __exit__(self, *_: object) -> None:
        self.deleted = delete_all(self._clean, self.prefix)

    def run(self) -> Iterator[Figures]:
        """Measure, and yield figures as they are there.

        Raises:
            StorageError: nothing could be put at all.
        """
        for size in self._plan.sizes:
            put_limit, get_limit = self._plan.limits(size)
            for callers in self._plan.callers:
                put, files = self._put(size, callers, put_limit)
                yield put
                yield self._get(files, size, callers, get_limit)
                self._place.delete(files)
        if self._plan.call is not None:
            for callers in self._plan.callers:
                yield self._called(self._plan.call, callers)

    def _put(self, size: int, callers: int, limit: Limit | None) -> tuple[Figures, list[Version]]:
        content = Content(size)
        files: list[Version] = []

        def put(number: int) -> None:
            files.append(self._place.put(f"{self.prefix}{size}/{callers}/{number}", content.of(number)))

        at_most = max(2 * callers, min(_FILES_MAX, _BYTES_MAX // max(1, size)))
        run = Callers(callers, self._plan.seconds, at_most).run(put)
        if not files:
            raise StorageError(f"nothing could be stored: {run.failures[0] if run.failures else 'no time was left'}")
        return figures("put", size, callers, run.durations_s, run.wall_s, limit, run.failures), files

    def _get(self, files: Sequence[Version], size: int, callers: int, limit: Limit | None) -> Figures:
        order = random.Random(0)
        chosen = [order.randrange(len(files)) for _ in range(4096)]

        def get(number: int) -> None:
            found = self._place.get(files[chosen[number % len(chosen)]])
            if found != size:
                raise StorageError(f"{found} bytes came back of a file of {size}")

        run = Callers(callers, self._plan.seconds, _FILES_MAX).run(get)
        return figures("get", size, callers, run.durations_s, run.wall_s, limit, run.failures)

    def _called(self, call: Callable[[], None], callers: int) -> Figures:
        run = Callers(callers, self._plan.seconds, _FILES_MAX).run(lambda _number: call())
        return figures("call", None, callers, run.durations_s, run.wall_s, self._plan.call_limit, run.failures)
