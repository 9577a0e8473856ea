"""Documents in memory, and a clock that tests set."""

from __future__ import annotations


class Documents:
    """Documents in memory.

    Attributes:
        kept: by name.
        writes: how many writes there were.
    """

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.writes = 0

    def document(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def save_document(self, name: str, raw: bytes) -> None:
        self.writes += 1
        self.kept[name] = raw


class Clock:
    """Milliseconds since 1970."""

    now_ms = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ms
