"""The port through which DNS learns what is in the pool: nodes, workers, functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Host:
    """A process of the pool.

    Attributes:
        name: its id.
        address: its address, ``host:port``, ``[ipv6]:port`` or ``unix:path``; empty while it is not reachable.
        notes: the entries of its TXT record, ``key=value``.
    """

    name: str
    address: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedFunction:
    """A function, and the ids of the workers that can run it now; ``notes`` as for :class:`Host`."""

    name: str
    workers: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything in the pool that has a name."""

    nodes: tuple[Host, ...] = ()
    workers: tuple[Host, ...] = ()
    functions: tuple[NamedFunction, ...] = ()


class Directory(Protocol):
    """Lists what is in the pool."""

    def listing(self) -> Listing:
        """The current listing; must be fast, as it is called several times a second. Thread-safe."""
