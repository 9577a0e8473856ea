"""Streams in memory, which cut what passes wherever a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from storage.limits import BytesLike

Portion = Callable[[], int]
"""How many bytes pass at the next call; 0: none now."""


def whole() -> int:
    """All that there is."""
    return 1 << 62


class MemoryStream:
    """See :class:`taskworker.transport.wire.streams.Stream`. Receives ``incoming``, and keeps what is sent.

    Args:
        incoming: what the other end sent.
        portion: how many bytes pass at each call.
        ends: whether the other end has closed the stream behind ``incoming``.
    """

    def __init__(self, incoming: bytes = b"", portion: Portion = whole, *, ends: bool = False) -> None:
        self.incoming = bytearray(incoming)
        self.sent = bytearray()
        self._portion = portion
        self._ends = ends

    def receive(self, buffers: Sequence[memoryview], *, wait: bool) -> int | None:
        """See :class:`Stream`."""
        assert buffers
        assert all(len(buffer) for buffer in buffers)
        if not self.incoming:
            return 0 if self._ends else None
        left = self._portion()
        if not left:
            return None
        count = 0
        for buffer in buffers:
            step = min(len(buffer), left - count, len(self.incoming))
            buffer[:step] = self.incoming[:step]
            del self.incoming[:step]
            count += step
        return count

    def send(self, buffers: Sequence[BytesLike], *, wait: bool, more: bool = False) -> int:
        """See :class:`Stream`."""
        taken = b"".join(map(bytes, buffers))[: self._portion()]
        self.sent += taken
        return len(taken)

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        """See :class:`Stream`."""
        raise NotImplementedError

    @property
    def has_more(self) -> bool:
        """See ``Stream``."""
        return False

    def unsent(self) -> int:
        """See :class:`Stream`."""
        return 0

    def retransmission_s(self) -> float:
        """See :class:`Stream`."""
        return 0.0

    def shortest_round_trip_s(self) -> float:
        """See :class:`Stream`."""
        return 0.0

    def fileno(self) -> int:
        """See :class:`Stream`."""
        return -1

    def shutdown(self) -> None:
        """See :class:`Stream`."""

    def close(self) -> None:
        """See :class:`Stream`."""
