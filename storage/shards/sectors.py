"""Bad sectors: pages of a segment that the disk cannot read, while it can read the rest."""

from __future__ import annotations

from storage.system.faults import Fault, fault_of

_PAGES_MAX = 1024  # pages to skip at one opening, 4 MiB; a disk with more bad sectors is failing


def any_page(_error: OSError) -> bool:
    """Skip every page that cannot be read. For reads that discard nothing."""
    return True


class BadSectors:
    """Decides which failed reads to skip: those that failed in the device, up to a limit.

    Other errors concern the machine rather than a place on the disk, so the whole volume has to wait until they pass.

    Args:
        limit: how many reads to skip; by default the limit of a replay.

    Attributes:
        given_up: number of reads skipped so far.
        last: error of the last one; None if there was none.
    """

    def __init__(self, limit: int = _PAGES_MAX) -> None:
        self._limit = limit
        self.given_up = 0
        self.last: OSError | None = None

    def go_past(self, error: OSError) -> bool:
        """Whether to continue without the data that could not be read."""
        if fault_of(error) is not Fault.BROKEN or self.given_up >= self._limit:
            return False
        self.given_up += 1
        self.last = error
        return True
