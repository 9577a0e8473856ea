"""Standard descriptors that were closed, so that no file of a store is opened in their place.

A process that is started with descriptors 0 to 2 closed (`<&-`, some daemons) gives these numbers to the first
files that it opens. Whatever then reads "standard input", or writes to "standard output", does so to a store's
lock, database or segment.
"""

from __future__ import annotations

import errno
import os

STANDARD_DESCRIPTORS = (0, 1, 2)


def occupy_standard_descriptors() -> frozenset[int]:
    """Open the null device as those of descriptors 0 to 2 that are closed; says which they were.

    Each is opened for the direction that it is not used in, as coreutils and gnulib do: reading standard input
    fails, and so does writing to the other two, just as if they were closed still.
    """
    if all(map(_is_open, STANDARD_DESCRIPTORS)):
        return frozenset()
    closed: set[int] = set()
    # The system gives out the lowest free number, so nothing can come between the look and the opening.
    while (descriptor := os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)) in STANDARD_DESCRIPTORS:
        closed.add(descriptor)
        if descriptor == 0:
            _replace(descriptor, os.O_WRONLY)
        else:
            os.set_inheritable(descriptor, True)  # programs started from here are no safer without it
    os.close(descriptor)
    return frozenset(closed)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return False
    return True


def _replace(descriptor: int, mode: int) -> None:
    other = os.open(os.devnull, mode | os.O_CLOEXEC)
    os.dup2(other, descriptor, inheritable=True)
    os.close(other)
