"""The content of chunks: as it is stored, or sealed with its owner's key."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from storage.errors import KeyRequired, SealBroken
from storage.keys import Kind, StripeKey
from storage.sealing.objects import OVERHEAD_BYTES, open_into, opened
from storage.sealing.user_keys import ObjectKeys
from storage.stripes.stripes import StripeStore


class ContentRead(NamedTuple):
    """A chunk to read.

    Attributes:
        stripe: its stripe.
        plain_id: hash of its content.
        keys: keys of its owner; None if it is not sealed.
        target: memory for its content, of exactly its size.
    """

    stripe: StripeKey
    plain_id: bytes
    keys: ObjectKeys | None
    target: memoryview


class Scratch:
    """Memory that each thread uses again and again, which saves the system from clearing new memory every time."""

    def __init__(self) -> None:
        self._local = threading.local()

    def of(self, size: int) -> memoryview:
        """Return this thread's memory, with ``size`` arbitrary bytes; valid until this thread's next call."""
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = bytearray(size)
        return memoryview(buffer)[:size]


class Contents:
    """Reads the content of chunks. Thread-safe.

    Args:
        stripes: the store's stripes.

    Attributes:
        stripes: the argument.
    """

    def __init__(self, stripes: StripeStore) -> None:
        self.stripes = stripes
        self._scratch = Scratch()

    def read_all(self, reads: Sequence[ContentRead]) -> None:
        """Fill the targets with verified content; see :meth:`StripeStore.read_all`.

        Raises:
            DataLossError, ShardsUnavailable: see :meth:`StripeStore.read_all`.
            KeyRequired: a key is not here.
        """
        sealed = [read for read in reads if read.keys is not None]
        if not sealed:
            self.stripes.read_all([(read.stripe, read.target) for read in reads])
            return
        if not self.stripes.volumes.remote:
            for read in reads:
                self._read_local(read)
            return
        space = self._scratch.of(sum(len(read.target) + OVERHEAD_BYTES for read in sealed))
        raws: list[memoryview] = []
        for read in sealed:
            raws.append(space[: len(read.target) + OVERHEAD_BYTES])
            space = space[len(read.target) + OVERHEAD_BYTES :]
        stored = [(read.stripe, raw) for read, raw in zip(sealed, raws, strict=True)]
        self.stripes.read_all(stored + [(read.stripe, read.target) for read in reads if read.keys is None])
        for read, raw in zip(sealed, raws, strict=True):
            assert read.keys is not None
            open_into(read.keys, Kind.CHUNK, read.plain_id, raw, read.target)

    def _read_local(self, read: ContentRead) -> None:
        """Read one chunk. Opening a sealed one verifies it, so that it need not be hashed as well."""
        if read.keys is None:
            self.stripes.read_into(read.stripe, read.target)
            return
        raw = self._scratch.of(len(read.target) + OVERHEAD_BYTES)
        try:
            if self.stripes.read_unverified(read.stripe, raw):
                open_into(read.keys, Kind.CHUNK, read.plain_id, raw, read.target)
                return
        except (SealBroken, KeyRequired):
            pass  # the shards may be bad, the epoch in them included
        self.stripes.read_into(read.stripe, raw)
        open_into(read.keys, Kind.CHUNK, read.plain_id, raw, read.target)

    def read(self, stripe: StripeKey, plain_id: bytes, keys: ObjectKeys | None) -> bytes:
        """Return the verified content of a chunk, with the length from its shards; see :meth:`StripeStore.read`."""
        raw = self.stripes.read(stripe)
        return raw if keys is None else bytes(opened(keys, Kind.CHUNK, plain_id, raw))
