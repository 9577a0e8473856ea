"""How much memory a process takes, as the kernel tells.

Anonymous memory (RssAnon) is what a process really holds; PSS adds its part of mapped files, among them
the pages of LMDB's databases, which the kernel takes back whenever it wants them.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: highest resident set, highest anonymous part seen, proportional set size when last looked."""

    resident: int
    anonymous: int
    proportional: int

    def __str__(self) -> str:
        parts = (self.anonymous / MIB, self.resident / MIB, self.proportional / MIB)
        return "{:.0f} MiB anonymous, {:.0f} MiB resident at the most; {:.0f} MiB PSS".format(*parts)


class MemoryWatch:
    """Samples the memory of a process until closed; a context manager."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._anonymous = self._resident = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def peak(self) -> Memory:
        """The most seen since it began."""
        self._sample()
        return Memory(self._resident, self._anonymous, _proportional(self._pid))

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        fields = _fields(self._pid, "status")
        self._anonymous = max(self._anonymous, fields.get("RssAnon", 0))
        self._resident = max(self._resident, fields.get("VmRSS", 0))


def own_peak() -> Memory:
    """This very process: its highest resident set, and the rest as it is now."""
    fields = _fields(os.getpid(), "status")
    return Memory(fields["VmHWM"], fields["RssAnon"], _proportional(os.getpid()))


def _proportional(pid: int) -> int:
    return _fields(pid, "smaps_rollup").get("Pss", 0)


def _fields(pid: int, name: str) -> dict[str, int]:
    """Fields of a file in /proc that are in kB, in bytes; none if the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[-2]) * 1024 for words in pairs}
