"""What work costs: processor time of processes, and bytes on loopback.

Processor time is that of all threads of a process, in the kernel and outside it, from ``/proc/PID/stat``, which counts
in steps of 10 ms. Bytes are those that the loopback interface of this network namespace has carried, from
``/proc/net/dev``. They include the headers of TCP and IP, acknowledgements, and whatever else uses loopback meanwhile,
but nothing that passes through Unix sockets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ResultT = TypeVar("ResultT")

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_USER_TICKS, _SYSTEM_TICKS = 11, 12  # fields of /proc/PID/stat after the program's name


@dataclass(frozen=True, slots=True)
class Usage:
    """What one piece of work cost.

    Attributes:
        cpu_s: processor seconds by group of processes.
        loopback_bytes: bytes that loopback carried meanwhile.
    """

    cpu_s: Mapping[str, float]
    loopback_bytes: int


class Meter:
    """Measures what groups of processes spend.

    Args:
        groups: process ids, by the name of their group.
    """

    def __init__(self, groups: Mapping[str, Iterable[int]]) -> None:
        self._groups = {name: tuple(pids) for name, pids in groups.items()}

    def during(self, action: Callable[[], ResultT]) -> tuple[ResultT, Usage]:
        """Run ``action``; return its result, and what was spent meanwhile."""
        cpu_s, carried = self._cpu_s(), loopback_bytes()
        result = action()
        spent = {name: after - cpu_s[name] for name, after in self._cpu_s().items()}
        return result, Usage(spent, loopback_bytes() - carried)

    def _cpu_s(self) -> dict[str, float]:
        return {name: sum(map(processor_s, pids)) for name, pids in self._groups.items()}


def processor_s(pid: int) -> float:
    """Return the processor time of a process so far, in seconds; 0 if there is no such process any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / _TICKS_PER_S


def loopback_bytes() -> int:
    """Return how many bytes loopback has carried since this machine started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    return 0
