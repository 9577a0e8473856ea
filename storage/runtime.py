"""What the engine uses of the machine apart from disks: threads, clocks and random bytes."""

from __future__ import annotations

import queue
import secrets
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

ItemT = TypeVar("ItemT")


class Mailbox(Protocol[ItemT]):
    """Where one thread waits for what others put in, in order. Thread-safe."""

    def put(self, item: ItemT, /) -> None:
        """Put something in. Never waits."""

    def get(self, block: bool = True, timeout: float | None = None) -> ItemT:
        """Take something out.

        Args:
            block: wait for it.
            timeout: seconds to wait; None: for ever.

        Raises:
            queue.Empty: nothing was put in in time.
        """


class Runtime:
    """The machine's threads, clocks and random bytes. A simulation replaces it with one that a seed determines."""

    def mailbox(self) -> Mailbox[Any]:
        """An empty mailbox."""
        return queue.SimpleQueue()

    def executor(self, threads: int, name: str) -> Executor:
        """An executor with up to ``threads`` threads called ``name``."""
        return ThreadPoolExecutor(threads, thread_name_prefix=name)

    def monotonic_s(self) -> float:
        """Seconds since some unspecified moment; never goes back."""
        return time.monotonic()

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, by a clock that may be set forward or back, even to before 1970."""
        return time.time_ns()

    def wall_ms(self) -> int:
        """Like :meth:`wall_ns`, in milliseconds."""
        return self.wall_ns() // 1_000_000

    def token_bytes(self, count: int) -> bytes:
        """Cryptographically secure random bytes."""
        return secrets.token_bytes(count)
