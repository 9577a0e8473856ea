"""Content to store: random, and never the same twice, since equal content would not be stored again."""

from __future__ import annotations

import os
import secrets

_SLACK_BYTES = 1 << 20


class Content:
    """Random content of many files, for little memory: each begins elsewhere in one piece of random bytes.

    Args:
        size: bytes of each file.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._bytes = memoryview(os.urandom(size + _SLACK_BYTES))
        self._start = secrets.randbelow(_SLACK_BYTES)

    def of(self, number: int) -> memoryview:
        """The content of a file; equal for numbers that differ by a multiple of about a million only."""
        at = (self._start + number * 7919) % _SLACK_BYTES  # a prime: all places are taken before one is taken again
        return self._bytes[at : at + self._size]
