"""What a fleet knows of the conduct of its workers."""

from __future__ import annotations

from collections.abc import Callable

from storage.errors import StorageError
from taskworker.transport.conduct import Conduct
from taskworker.transport.member_fleet import MemberFleet


class JudgedFleet(MemberFleet):
    """A fleet that judges its workers by their conduct.

    Args:
        grace_s: how long to wait for a worker that is away.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, grace_s: float, clock_s: Callable[[], float], now_ms: Callable[[], int]) -> None:
        super().__init__(clock_s, now_ms)
        self._conduct = Conduct(clock_s, grace_s)

    def gone_but_for(self, slot: int) -> list[int]:
        """Other workers that went away lately, so that this one may have their shards; each as often as it went."""
        with self._lock:
            return self._conduct.gone_but_for(slot)

    def trusts(self, slot: int) -> bool:
        """See :meth:`Fleet.trusts`."""
        return slot not in self._conduct.distrusted

    def is_spotless(self, slot: int) -> bool:
        """Whether no lie of a worker was found lately, not even one that is tolerated."""
        with self._lock:
            return self._conduct.is_spotless(slot)

    def distrusted(self) -> frozenset[int]:
        """Workers whose answers about shards do not count."""
        return self._conduct.distrusted

    def proven_liars(self) -> list[int]:
        """Workers that lied so often that the pool should drain them."""
        with self._lock:
            return self._conduct.proven_liars()

    def slow(self) -> frozenset[int]:
        """See :meth:`Fleet.slow`. Others stand in for these workers."""
        return self._conduct.slow

    def full(self) -> frozenset[int]:
        """See :meth:`Fleet.full`. They serve what they hold."""
        return self._conduct.full

    def takes_new(self, slot: int) -> bool:
        """Whether a worker is given new shards: it is neither full, slow nor distrusted."""
        return slot not in self._conduct.avoided and slot not in self._conduct.full

    def why_no_space(self) -> StorageError:
        """See :meth:`Fleet.why_no_space`."""
        return self._conduct.why_no_space(self.name)

    def read_only(self) -> frozenset[int]:
        """Those of the :meth:`full` workers whose disks take no writes."""
        return self._conduct.read_only

    def refusing(self) -> frozenset[int]:
        """Those of the :meth:`full` workers that could not write for another reason than lack of space."""
        return self._conduct.refusing

    def lies(self) -> dict[int, int]:
        """How many wrong or rotten shards each worker has had since the pool started; only workers with some."""
        with self._lock:
            return self._conduct.wrong_shards()

    def times_lied(self, slot: int) -> int:
        """How many lies of a worker, about shards or otherwise, were found since the pool started."""
        with self._lock:
            return self._conduct.times_lied(slot)
