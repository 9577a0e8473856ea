"""Writes chunks to workers, for all pushes of one client."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

from blake3 import blake3

from storage.erasure import ErasureProfile
from storage.errors import StorageError
from storage.keys import SHARD_HASH_BYTES, Kind, slot_of
from storage.limits import MIB, BytesLike
from storage.sealing.objects import OVERHEAD_BYTES, seal_into
from storage.shards import Shard
from storage.stripes.encoding import Encoder
from storage.stripes.stripes import chunk_stripe
from storage.submitting import submitted
from storage.system.forks import HomeProcess
from taskworker.client.direct.fleet import TicketedFleet
from taskworker.client.direct.pace import Pace
from taskworker.client.direct.pauses import Pauses
from taskworker.client.direct.places import ChunkKey, Places
from taskworker.transport.ticketed_volume import Putting, TicketedVolume

T = TypeVar("T")

_WRITERS = 6
_TOGETHER = 3  # so that one push is done with half of the memory
# If less than this gets through, a worker is slow, for which the pool finds another one, or the client's own link is,
# over which fewer bytes need to be sent to the pool.
_BYTES_PER_S_MIN = MIB
_LOOK_S = 0.2
_PATIENCE_S = 5.0
# As the pool judges them: so much longer than half of the workers take, but at least this long.
_TIMES_SLOWER = 5.0
_SLOW_S = 2.0
_SLOW_MAX = 256
# Chunks that are being sent while the next one is begun. To distant workers, all of a page are sent at once, once the
# client's own link is known to be fast: over a slow one, what was sent in vain would hold up a push through the pool.
_AHEAD = 2
_FAR_S = 0.02


class SealedChunk(NamedTuple):
    """A chunk as it is stored: its id and all its shards."""

    stored_id: bytes
    shards: list[Shard]

    @property
    def hashes(self) -> bytes:
        """What the pool keeps of the hashes of the shards."""
        return b"".join(shard.digest[:SHARD_HASH_BYTES] for shard in self.shards)


class _Begun(NamedTuple):
    """A chunk on its way: since when, and by the position of each worker among the holders what goes there."""

    since_s: float
    puttings: dict[int, Putting]


class _Space:
    """Memory for one chunk at a time."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._parity = bytearray()

    def sealed(
        self, content: BytesLike, plain_id: bytes, key: ChunkKey, profile: ErasureProfile, encoder: Encoder
    ) -> SealedChunk:
        """Seal and code a chunk."""
        length = len(content) + OVERHEAD_BYTES
        shard_bytes = profile.shard_length(length)
        if len(self._data) < profile.k * shard_bytes:
            self._data = bytearray(profile.k * shard_bytes)
            self._parity = bytearray((profile.n - profile.k) * shard_bytes)
        data = memoryview(self._data)[: profile.k * shard_bytes]
        seal_into(key, Kind.CHUNK, plain_id, content, data[:length])
        data[length:] = bytes(len(data) - length)
        stored_id = blake3(data[:length]).digest()
        stripe = chunk_stripe(stored_id, profile)
        return SealedChunk(stored_id, encoder.shards_of(stripe, data, length, self._parity))


class DirectWrites:
    """Writes to workers, and remembers whether that works. Thread-safe.

    Args:
        fleet: connects to workers.
        clock_s: monotonic seconds.
    """

    def __init__(self, fleet: TicketedFleet, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._home = HomeProcess("this client")
        self._fleet = fleet
        self._clock_s = clock_s
        self._is_off = False
        self._failed: Pauses[None] = Pauses(1, clock_s)
        self._pace = Pace(clock_s)
        self._slow: Pauses[int] = Pauses(_SLOW_MAX, clock_s)  # by slot in the fleet
        self._encoder = Encoder()
        self._local = threading.local()  # memory that each thread uses again and again
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="direct-write")

    @property
    def together(self) -> int:
        """How many pages of a push are written at a time."""
        return _TOGETHER

    def may_write(self) -> bool:
        """Whether writing to workers is worth a try: it has not failed lately. In a forked process, it is not."""
        return self._home.is_here and not (self._is_off or self._failed.has(None))

    def note_failed(self) -> None:
        """Push through the pool for a while; longer each time."""
        self._failed.note_failed(None)

    def never(self) -> None:
        """Do not try again: the pool does not know how."""
        self._is_off = True

    def submit(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Do something in another thread.

        Raises:
            StoreClosed: the client is closed.
            StoreUnavailable: the machine has no thread for it.
        """
        return submitted("the client was closed while a file was being pushed", self._writers, work, *arguments)

    def sealed(
        self,
        contents: Sequence[BytesLike],
        plain_ids: Sequence[bytes],
        keys: Sequence[ChunkKey],
        profile: ErasureProfile,
    ) -> list[SealedChunk]:
        """Seal and code chunks. Their shards are valid until this thread's next call."""
        spaces: list[_Space] = getattr(self._local, "spaces", [])
        spaces += [_Space() for _ in range(len(contents) - len(spaces))]
        self._local.spaces = spaces
        return [
            space.sealed(content, plain_id, key, profile, self._encoder)
            for space, content, plain_id, key in zip(spaces, contents, plain_ids, keys, strict=False)
        ]

    def write(self, places: Places, chunks: Sequence[SealedChunk], is_given_up: Callable[[], bool]) -> list[bool]:
        """Write chunks to their places; return for each whether all workers took it.

        If that is slower than through the pool, this is noted as a failure, and as a success if it is not. Nothing more
        is written as soon as it is certain.
        """
        size = sum(len(shard.payload) for chunk in chunks for shard in chunk.shards)
        self._pace.begin(size)
        try:
            return self._write(places, chunks, size, is_given_up)
        finally:
            is_fast = self._pace.end(size)
            if is_fast:
                self._failed.note_worked(None)
            elif is_fast is not None:
                self.note_failed()

    def _write(
        self, places: Places, chunks: Sequence[SealedChunk], size: int, is_given_up: Callable[[], bool]
    ) -> list[bool]:
        until_s = self._clock_s() + _PATIENCE_S + size / _BYTES_PER_S_MIN

        def left_s() -> float:
            return 0.0 if is_given_up() else until_s - self._clock_s()

        sending = _Sending(self._fleet, places, left_s, is_given_up, self._slow, self._clock_s)
        ahead = len(chunks) if sending.is_far and self._pace.is_known_fast else _AHEAD
        under_way: deque[_Begun | None] = deque()
        done: list[bool] = []
        for chunk, row in zip(chunks, places.placed, strict=True):
            under_way.append(None if row is None or self._pace.is_hopeless else sending.begin(chunk, row))
            if len(under_way) > ahead:
                done.append(sending.ended(under_way.popleft()))
        return done + [sending.ended(begun) for begun in under_way]

    def close(self) -> None:
        """End threads. Running pushes go on through the pool, or fail."""
        if self._home.is_here:
            self.never()
            self._writers.shutdown(wait=False)


class _Sending:
    """Chunks on their way to their places. For one thread.

    Attributes:
        is_far: whether any of the workers is.
    """

    def __init__(
        self,
        fleet: TicketedFleet,
        places: Places,
        left_s: Callable[[], float],
        is_given_up: Callable[[], bool],
        slow: Pauses[int],
        clock_s: Callable[[], float],
    ) -> None:
        self._clock_s = clock_s
        self._slow_s = _SLOW_S  # how long a worker may take
        self._is_given_up = is_given_up
        self._slow = slow
        self._fleet = fleet
        self._ticket = places.ticket
        self._left_s = left_s
        slots = fleet.connect(places, self._await_all)
        self._workers: list[tuple[int, TicketedVolume] | None] = [
            (slot, volume) if (volume := fleet.volume(slot)) and not slow.has(slot) else None for slot in slots
        ]
        # Workers take nothing large on a connection on which they have seen no ticket. Distant ones, which have seen an
        # earlier one, are not shown each ticket before: that would take another round trip.
        shown = [at for at in range(len(slots)) if not self._is_far(at)]
        begun = {at: putting for at in shown if (putting := self._put(at, [])) is not None}
        self._ended(_Begun(clock_s(), begun))
        for at in range(len(slots)):
            if at not in begun and not self._is_far(at):  # or its connection has ended meanwhile
                self._workers[at] = None
        self.is_far = any(map(self._is_far, range(len(slots))))

    def _is_far(self, at: int) -> bool:
        """Whether a worker has accepted a ticket on the present connection, and is far away."""
        worker = self._workers[at]
        distance_s = None if worker is None else worker[1].distance_s
        return distance_s is not None and distance_s >= _FAR_S

    def _await_all(self, futures: Collection[Future[None]], within_s: float) -> None:
        wait(futures, max(0.0, min(within_s, self._left_s())))

    def begin(self, chunk: SealedChunk, row: tuple[int, ...]) -> _Begun | None:
        """Begin to send the shards of a chunk; return None if that is not possible."""
        begun = _Begun(self._clock_s(), {})
        if not all(map(self._takes, row)):
            return None
        for at in dict.fromkeys(row):
            putting = self._put(at, [shard for shard in chunk.shards if row[slot_of(shard.key)] == at])
            if putting is None:
                return None
            begun.puttings[at] = putting
        return begun

    def ended(self, begun: _Begun | None) -> bool:
        """Wait until all workers have a chunk; return whether they do. Nobody waits long for those that are slow."""
        if begun is None or not self._ended(begun):
            return False
        for at in begun.puttings:
            if (worker := self._workers[at]) is not None:
                self._slow.note_worked(worker[0])
        return True

    def _ended(self, begun: _Begun) -> bool:
        waiting, is_whole, many = dict(begun.puttings), True, len(begun.puttings)
        while waiting:
            for number, (at, putting) in enumerate(list(waiting.items())):
                taken = self._has_taken(at, putting, min(_LOOK_S, self._left_s()) if number == 0 else 0.0)
                if taken is not None:
                    del waiting[at]
                    is_whole = is_whole and taken
                    if 2 * (len(waiting) + 1) > many >= 2 * len(waiting):
                        self._slow_s = max(_SLOW_S, _TIMES_SLOWER * (self._clock_s() - begun.since_s))
            is_late = 2 * len(waiting) <= many and self._clock_s() - begun.since_s > self._slow_s
            if waiting and (is_late or self._left_s() <= 0):
                for at, putting in waiting.items():
                    putting.cancel()
                    self._leave(at)
                return False
        return is_whole

    def _takes(self, at: int) -> bool:
        """Whether a worker is given something; not if others have found it slow meanwhile."""
        worker = self._workers[at]
        if worker is not None and self._slow.has(worker[0]):
            self._workers[at] = None
        return self._workers[at] is not None

    def _leave(self, at: int) -> None:
        """Leave a slow worker alone, unless it is this push that takes no longer: each page would wait for it again."""
        worker, self._workers[at] = self._workers[at], None
        if worker is not None and not self._is_given_up():
            self._slow.note_failed(worker[0])

    def _put(self, at: int, shards: Sequence[Shard]) -> Putting | None:
        worker, until_s = self._workers[at], self._clock_s() + self._slow_s
        if worker is None:
            return None
        slot, volume = worker
        try:
            return volume.begin_put(self._ticket, shards, lambda: min(self._left_s(), until_s - self._clock_s()))
        except StorageError as error:
            if self._clock_s() >= until_s:
                self._leave(at)  # it takes nothing from its connection
            self._fleet.note_refused(slot, volume, error)
            return None

    def _has_taken(self, at: int, putting: Putting, within_s: float) -> bool | None:
        """Whether a worker has taken what it was given; None: it is not known within so many seconds."""
        worker = self._workers[at]
        if worker is None:
            return False
        slot, volume = worker
        try:
            return putting.wait(max(0.0, within_s)) or None
        except StorageError as error:
            self._workers[at] = None
            self._fleet.note_refused(slot, volume, error)
            return False
