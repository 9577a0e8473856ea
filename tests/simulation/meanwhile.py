"""Lets other threads of the pool work during an operation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulation.pool import Cluster

_TRIES = 60
_MAKERS = frozenset({"repair_scheduler", "healer"})  # they restore stripes, each by one thread at a time


@dataclass(slots=True)
class Meanwhile:
    """Runs work of the pool's other threads, one piece at a time, just before a call of the running thread.

    The work gets its own thread, and the running thread waits for it. So the order is determined by the seed.
    """

    cluster: Cluster
    running: set[str] = field(default_factory=set)
    _nested: bool = False

    def after_calls(self, count: int, thread: str, work: Callable[[], object], tries: int = _TRIES) -> None:
        """Run ``work`` before the ``count``-th call from now, or before the next call at which it need not wait.

        Args:
            count: number of calls.
            thread: name of the pool's thread that does this work; it does one thing at a time.
            work: the work to do.
            tries: after how many further calls to give up.
        """

        def fire() -> None:
            if thread in self.running or self._would_wait(thread):
                if tries:
                    self.after_calls(1, thread, work, tries - 1)
                return
            self._run(thread, work)

        self.cluster.network.after_calls(count, fire)

    def _would_wait(self, thread: str) -> bool:
        """Whether the running thread holds a lock that this one would wait for."""
        cluster = self.cluster
        if self._nested or cluster.tables.writing or cluster.pool.store._parts.pushing.pins.holds_up:
            return True
        if cluster.pool.store.upkeep.keys.is_giving:
            return True
        return thread in _MAKERS and cluster.pool.store._parts.stripes._making.holds_up

    def _run(self, name: str, work: Callable[[], object]) -> None:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        self.running.add(name)
        self._nested = True
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        self._nested = False
        self.running.discard(name)
        if errors:
            raise errors[0]
