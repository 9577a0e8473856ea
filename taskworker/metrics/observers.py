"""Who is told of the calls that this process serves: nobody, until its metrics are wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class CallObserver(Protocol):
    """Is told of the calls of one method. Thread-safe, and quick, as it is told of each message."""

    def received(self, count: int) -> None:
        """Note a message that arrived, of this many bytes."""

    def sent(self, count: int) -> None:
        """Note a message that is to be sent, of this many bytes."""

    def ended(self, seconds: float, code: str) -> None:
        """Note a call that ended, by the name of its status code."""


class Told(NamedTuple):
    """Makes the observers.

    Attributes:
        of_rpc: (service, method) → the observer of a method of gRPC.
        of_shards: name of the call → the observer of a call of the shard transport.
        synced: told for how many seconds a caller waited until a volume's shards were durable.
    """

    of_rpc: Callable[[str, str], CallObserver]
    of_shards: Callable[[str], CallObserver]
    synced: Callable[[float], None]


class Observers:
    """The observers of this process. Servers ask for them when they are made, so that otherwise nothing is spent."""

    def __init__(self) -> None:
        self._told: Told | None = None

    def begin(self, told: Told) -> None:
        """Have servers that are made from now on observed."""
        self._told = told

    def of_rpc(self, service: str, method: str) -> CallObserver | None:
        """The observer of a method of gRPC; None: nobody wants to know."""
        return None if self._told is None else self._told.of_rpc(service, method)

    def of_shards(self, call: str) -> CallObserver | None:
        """The observer of a call of the shard transport; None: nobody wants to know."""
        return None if self._told is None else self._told.of_shards(call)

    @property
    def synced(self) -> Callable[[float], None] | None:
        """Who is told of syncs of a volume; None: nobody wants to know."""
        return None if self._told is None else self._told.synced


OBSERVERS = Observers()
"""One for all servers of a process, as a process has one endpoint."""
