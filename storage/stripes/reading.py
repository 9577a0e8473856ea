"""Verified reads: the fast path first, then recovery if it fails."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from storage.keys import StripeKey, object_id_of
from storage.stripes.fast_reads import FastReads
from storage.stripes.recovery import Recovery
from storage.stripes.soundness import Soundness


class StripeReader:
    """Reads objects. Thread-safe.

    Args:
        fast: reads healthy stripes.
        recovery: reads all other stripes.
        soundness: remembers which stripes were read.
    """

    def __init__(self, fast: FastReads, recovery: Recovery, soundness: Soundness) -> None:
        self._fast = fast
        self._recovery = recovery
        self._soundness = soundness

    def read_into(self, stripe: StripeKey, target: memoryview) -> None:
        """Fill ``target`` (exactly the object's length) with the verified object.

        For a healthy stripe, the k data shards are read straight into ``target``, which is hashed once.

        Raises:
            DataLossError: fewer than k intact shards are left.
            ShardsUnavailable: too many shards are out of reach for now.
        """
        if self._fast.read(stripe, target) and blake3(target).digest() == object_id_of(stripe):
            self._soundness.note_read(stripe)
            return
        data = self._recovery.recover(stripe, expect=len(target))
        target[:] = data[: len(target)]

    def read_all(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> None:
        """Like :meth:`read_into` for several objects, which may be read together.

        Raises:
            DataLossError: fewer than k intact shards of one of them are left.
            ShardsUnavailable: too many shards of one of them are out of reach for now.
        """
        for stripe, target in self._fast.read_together(reads):
            self.read_into(stripe, target)
