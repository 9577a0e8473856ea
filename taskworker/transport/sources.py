"""Other workers' volumes, from which a worker fetches shards that its pool tells it to make."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from storage.errors import StorageError
from storage.keys import ShardKey
from storage.shards import ShardStore, VolumeFailed
from storage.stripes.hedging import Outcome
from taskworker.transport.making_frames import OWN
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.wire.connection import Poller
from taskworker.transport.wire.poller import SHARED
from taskworker.transport.wire.streams import Dial, dial

log = logging.getLogger(__name__)

_OWN_NUMBER = 0
# More than a pool has workers for one stripe. Connections that nobody uses for a minute close by themselves.
_KEPT_MAX = 512
# A worker that cannot be reached is not tried for each stripe, as an attempt may take seconds.
_SHUNNED_S = 10.0


class _Source:
    """One worker's volume."""

    __slots__ = ("address", "number", "shunned_until_s", "volume")

    def __init__(self, address: str, number: int) -> None:
        self.address = address
        self.number = number
        self.shunned_until_s = 0.0
        self.volume: RemoteVolume | None = None


class Sources:
    """Fetches shards from workers' volumes by their addresses. Thread-safe.

    Connections are kept, and used by all calls. Only addresses that were given to :meth:`number` are connected to.

    Args:
        own: returns the volume of this process, which the address OWN stands for.
        poller: receives for the connections.
        dial: connects to an address.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        own: Callable[[], ShardStore],
        poller: Poller = SHARED,
        dial: Dial = dial,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = own
        self._poller = poller
        self._dial = dial
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._by_address: OrderedDict[str, _Source] = OrderedDict()  # the last one used is the last one
        self._by_number: dict[int, _Source] = {}
        self._last = 0

    def number(self, address: str) -> int:
        """The number by which :meth:`begin_fetch` knows the volume at an address."""
        if address == OWN:
            return _OWN_NUMBER
        forgotten = None
        with self._lock:
            found = self._by_address.get(address)
            if found is None:
                self._last += 1
                found = self._by_address[address] = self._by_number[self._last] = _Source(address, self._last)
                if len(self._by_address) > _KEPT_MAX:
                    _, forgotten = self._by_address.popitem(last=False)
                    del self._by_number[forgotten.number]
            self._by_address.move_to_end(address)
        if forgotten is not None and forgotten.volume is not None:
            forgotten.volume.abandon("other workers are asked now")
        return found.number

    def begin_fetch(
        self,
        number: int,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        """Begin to fetch payloads; see :data:`storage.stripes.hedging.Begin`."""
        if number == _OWN_NUMBER:
            return self._read_own(wanted, into, done)
        volume = self._volume(number)
        if volume is None:
            done([False] * len(wanted))
            return lambda: None

        def ended(outcome: Sequence[bool] | StorageError) -> None:
            if isinstance(outcome, StorageError):
                done(partial(self._failed, number, volume, outcome))
            else:
                done(outcome)

        try:
            return volume.begin_fetch(wanted, into, ended)
        except StorageError as error:
            ended(error)
            return lambda: None

    def _read_own(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        def ended(outcome: Sequence[bool] | StorageError) -> None:
            if isinstance(outcome, StorageError):
                log.warning("shards of this worker's own cannot be read: %s", outcome)
                outcome = [False] * len(wanted)
            done(outcome)

        try:
            return self._own().begin_fetch(wanted, into, ended)
        except StorageError as error:
            ended(error)
            return lambda: None

    def _volume(self, number: int) -> RemoteVolume | None:
        with self._lock:
            source = self._by_number.get(number)
            if source is None or self._clock_s() < source.shunned_until_s:
                return None
            if source.volume is None:
                source.volume = RemoteVolume(
                    source.address, source.address, poller=self._poller, dial=self._dial, clock_s=self._clock_s
                )
            return source.volume

    def _failed(self, number: int, volume: RemoteVolume, error: StorageError) -> None:
        """Note that a fetch failed. If the volume is of no further use, another connection is made later."""
        if not isinstance(error, VolumeFailed):
            return
        with self._lock:
            source = self._by_number.get(number)
            if source is not None and source.volume is volume:
                source.volume = None
                source.shunned_until_s = self._clock_s() + _SHUNNED_S
        volume.abandon(str(error))

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            sources, self._by_number = list(self._by_number.values()), {}
            self._by_address.clear()
        for source in sources:
            if source.volume is not None:
                source.volume.abandon("the worker stops")
