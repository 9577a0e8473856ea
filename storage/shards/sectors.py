"""Bad sectors: pages of a segment that its disk does not give, while it answers for the rest."""

from __future__ import annotations

from storage.system.faults import Fault, fault_of

_PAGES_MAX = 1024  # given up at one opening, 4 MiB; a disk with more bad sectors is failing as a whole


def any_page(_error: OSError) -> bool:
    """Go past every page that cannot be read. For readers, which drop nothing."""
    return True


class BadSectors:
    """Decides which failed reads to go past: those of the device, up to a limit.

    Other errors are about the machine, not about a place on the disk: the whole volume has to wait for them.

    Args:
        limit: how many, by default as many as a replay goes past.

    Attributes:
        given_up: number of reads that were given up so far.
        last: the error of the last one, None if there was none.
    """

    def __init__(self, limit: int = _PAGES_MAX) -> None:
        self._limit = limit
        self.given_up = 0
        self.last: OSError | None = None

    def go_past(self, error: OSError) -> bool:
        """Whether to go on without what failed to be read."""
        if fault_of(error) is not Fault.BROKEN or self.given_up >= self._limit:
            return False
        self.given_up += 1
        self.last = error
        return True
