"""What the engine takes from the machine it runs on, apart from disks: threads, clocks, random bytes."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import Executor, ThreadPoolExecutor


class Runtime:
    """The machine's own. A simulation gives another, in which one seed decides everything."""

    def executor(self, threads: int, name: str) -> Executor:
        """Does work in up to ``threads`` threads called ``name``."""
        return ThreadPoolExecutor(threads, thread_name_prefix=name)

    def monotonic_s(self) -> float:
        """Seconds that only ever grow, from some moment on."""
        return time.monotonic()

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, by a clock that may be set, back as well, and before 1970."""
        return time.time_ns()

    def wall_ms(self) -> int:
        """Like :meth:`wall_ns`, in milliseconds."""
        return self.wall_ns() // 1_000_000

    def token_bytes(self, count: int) -> bytes:
        """Bytes that nobody can guess."""
        return secrets.token_bytes(count)
