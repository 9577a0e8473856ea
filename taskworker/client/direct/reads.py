"""Reads chunks from workers, for all gets of one client."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TypeVar

from storage.errors import StorageError
from storage.keys import object_id_of
from storage.runtime import Runtime
from storage.shards import VolumeUnavailable
from storage.stripes.contents import ContentRead, Contents
from storage.stripes.stripes import StripeStore
from storage.submitting import submitted
from storage.system.forks import HomeProcess
from taskworker.auth.contexts import is_on_this_machine
from taskworker.auth.tls import trusting_context
from taskworker.client.direct.fleet import CONNECT_S, Entered, TicketedFleet
from taskworker.client.direct.page import Holder, Holders
from taskworker.client.direct.pauses import Pauses
from taskworker.client.direct.reader import Reader, current_reader, reading
from taskworker.client.direct.volume import WorkerVolume
from taskworker.transport.ticketed_volume import TicketedVolume
from taskworker.transport.wire.secure import dial_secure
from taskworker.transport.wire.streams import Dial, Stream, dial, split_address

T = TypeVar("T")

_READERS = 4
_FILES_MAX = 4096
_CONNECTING = 16
_SILENT_S = 5.0  # as long as the pool waits for a sign of life of a worker


class DirectReads:
    """Reads from workers, and remembers whether that works. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._home = HomeProcess("this client")
        self._clock_s = clock_s
        self._is_off = False
        self._pool: Pauses[None] = Pauses(1, clock_s)
        self._files: Pauses[str] = Pauses(_FILES_MAX, clock_s)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="direct")
        self._connecting = ThreadPoolExecutor(_CONNECTING, thread_name_prefix="direct-connect")
        self.fleet = TicketedFleet(self._volume, self._connecting, clock_s)
        self._stripes = StripeStore(self.fleet, Runtime())
        self._contents = Contents(self._stripes)

    def may_read(self, file_id: str) -> bool:
        """Whether reading a file from workers is worth a try: neither it nor the pool has failed lately.

        In a process that was forked, nothing is.
        """
        return self._home.is_here and not (self._is_off or self._pool.has(None) or self._files.has(file_id))

    def note_failed(self, file_id: str) -> None:
        """Read a file through the pool for a while; longer each time. Others may be on other workers."""
        self._files.note_failed(file_id)

    def note_pool_failed(self) -> None:
        """Read all files through the pool for a while; longer each time."""
        self._pool.note_failed(None)

    def note_worked(self, file_id: str) -> None:
        """Note that a file was read."""
        self._files.note_worked(file_id)
        self._pool.note_worked(None)

    def never(self) -> None:
        """Do not try again: the pool does not know how."""
        self._is_off = True

    def together(self, chunk_bytes: int) -> int:
        """How many chunks of this size to read at a time."""
        return self._stripes.together(chunk_bytes)

    def submit(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Do something in another thread.

        Raises:
            StoreClosed: the client is closed.
            StoreUnavailable: the machine has no thread for it.
        """
        return submitted("the client was closed while a file was being read", self._readers, work, *arguments)

    def read(self, reader: Reader, entered: Entered, first: int, targets: Sequence[memoryview]) -> None:
        """Read chunks of a page.

        Args:
            reader: for whom.
            entered: the page.
            first: position of the first chunk in it.
            targets: memory for the content of each, of exactly its size.

        Raises:
            StorageError: one of them cannot be read.
        """
        page = entered.page
        with reading(reader, entered.granted):
            self._contents.read_all(
                [
                    ContentRead(stripe, object_id_of(stripe), page.keys, target)
                    for stripe, target in zip(page.stripes[first : first + len(targets)], targets, strict=True)
                ]
            )

    def close(self) -> None:
        """Close the connections, and end threads. Running reads fail."""
        if not self._home.is_here:
            return
        self.never()
        self.fleet.close()
        self._stripes.close()
        self._readers.shutdown(wait=False)
        self._connecting.shutdown(wait=False)

    def _volume(self, holder: Holder, slot: int, page: Holders) -> TicketedVolume:
        return WorkerVolume(
            holder.address,
            holder.address,
            slot,
            self._connecting,
            timeout_s=_SILENT_S,
            dial=_dial_of(holder, page.authorities),
            clock_s=self._clock_s,
        )


def _dial_of(holder: Holder, authorities: bytes) -> Dial:
    """How to connect to a worker.

    Raises:
        StorageError: the pool says that it is another machine, but not who vouches for it.
    """
    if authorities:
        return partial(_dial_secure, holder.name, authorities)
    split_address(holder.address)  # raises if it is malformed
    if not is_on_this_machine(holder.address):
        raise StorageError(f"worker {holder.address} is on another machine, and shows no certificate")
    return _dial_plainly


def _dial_plainly(address: str, within_s: float) -> Stream:
    with _connecting_in_time(within_s) as left_s:
        return dial(address, left_s)


def _dial_secure(name: str, authorities: bytes, address: str, within_s: float) -> Stream:
    try:
        context = _context(authorities)
    except ssl.SSLError as error:
        raise ConnectionError(f"the pool's certificates are malformed: {error}") from None
    with _connecting_in_time(within_s) as left_s:
        return dial_secure(address, left_s, context, name, _known_by_name)


@contextmanager
def _connecting_in_time(within_s: float) -> Iterator[float]:
    """How long connecting may take, in seconds. A worker is not blamed for a get that has less time.

    Raises:
        VolumeUnavailable: the get's time was over.
    """
    reader, limit_s = current_reader(), min(within_s, CONNECT_S)
    left_s = limit_s if reader is None else reader.within_s(limit_s)
    try:
        if left_s <= 0:
            raise TimeoutError("no time is left")
        yield left_s
    except OSError:
        if left_s < limit_s:
            raise VolumeUnavailable("the time of the get was over before it was connected to the worker") from None
        raise


@lru_cache(maxsize=4)
def _context(authorities: bytes) -> ssl.SSLContext:
    return trusting_context(authorities)


def _known_by_name(_certificate: bytes) -> None:
    """The TLS library has compared the name."""
