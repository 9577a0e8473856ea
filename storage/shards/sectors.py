"""Bad sectors: pages of a segment that its disk does not give, while it answers for the rest."""

from __future__ import annotations

from storage.faults import Fault, fault_of

_PAGES_MAX = 1024  # given up at one opening, 4 MiB; a disk with more bad sectors is failing as a whole


def any_page(_error: OSError) -> bool:
    """Go past every page that cannot be read. For readers, which drop nothing."""
    return True


class BadSectors:
    """Decides which failed reads a replay goes past: those of the device, up to a limit.

    Other errors are about the machine, not about a place on the disk: the whole volume has to wait for them.

    Attributes:
        given_up: number of pages that were given up so far.
        last: the last error, None if there was none.
    """

    def __init__(self) -> None:
        self.given_up = 0
        self.last: OSError | None = None

    def go_past(self, error: OSError) -> bool:
        """Whether to go on without a page that failed to be read."""
        if fault_of(error) is not Fault.BROKEN or self.given_up >= _PAGES_MAX:
            return False
        self.given_up += 1
        self.last = error
        return True
