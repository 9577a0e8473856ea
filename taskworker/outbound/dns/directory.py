"""The port to whoever knows what is in the pool: nodes, workers, functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Host:
    """A process of the pool.

    Attributes:
        name: its id.
        address: where it is reached, ``host:port``, ``[ipv6]:port`` or ``unix:path``; empty while it is not.
        notes: what its TXT record tells, as ``key=value``.
    """

    name: str
    address: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedFunction:
    """A function, and the ids of the workers that can run it now; ``notes`` as of :class:`Host`."""

    name: str
    workers: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """All that has a name."""

    nodes: tuple[Host, ...] = ()
    workers: tuple[Host, ...] = ()
    functions: tuple[NamedFunction, ...] = ()


class Directory(Protocol):
    """Knows who is in the pool."""

    def listing(self) -> Listing:
        """Everybody, as of now; quick, as it is asked for several times a second. Thread-safe."""
