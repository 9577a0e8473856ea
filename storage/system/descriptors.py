"""File descriptors: how many there may be, and standard ones that no file of a store may get.

If a process is started with some of descriptors 0 to 2 closed (`<&-`, some daemons), the first files that it opens get
these numbers. Code that reads "standard input" or writes to "standard output" would then access a store's lock,
database or segment.
"""

from __future__ import annotations

import errno
import os
import resource
import sys

STANDARD_DESCRIPTORS = (0, 1, 2)
DESCRIPTORS_WANTED = 16_384


def occupy_standard_descriptors() -> frozenset[int]:
    """Open the null device for each of descriptors 0 to 2 that is closed, and return these.

    Each is opened for the opposite direction, as coreutils and gnulib do: reading standard input fails, and so does
    writing to the other two, as if they were still closed.
    """
    if all(map(_is_open, STANDARD_DESCRIPTORS)):
        return frozenset()
    closed: set[int] = set()
    # The system assigns the lowest free number, so the null device gets the number that was found closed.
    while (descriptor := os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)) in STANDARD_DESCRIPTORS:
        closed.add(descriptor)
        if descriptor == 0:
            _replace(descriptor, os.O_WRONLY)
        else:
            os.set_inheritable(descriptor, True)  # child processes need it as well
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


def raise_descriptor_limit(wanted: int = DESCRIPTORS_WANTED) -> None:
    """Allow this process ``wanted`` descriptors, or as many as it may allow itself.

    The soft limit of 1,024 that most systems set is there for programs that call ``select``, see
    https://0pointer.net/blog/file-descriptor-limits.html; this one does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def descriptor_limit() -> int:
    """Return how many descriptors this process may have now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
