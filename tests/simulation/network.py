"""The network between the pool and its workers: calls that may fail before or after their effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import TypeVar

from storage.errors import StorageError, StoreFull
from storage.keys import Kind, ShardKey
from storage.shards import Location, Shard, VolumeFailed, VolumeUnavailable, VolumeUsage
from storage.shards.port import Verdict, Verification
from tests.simulation.disk import MemoryVerification, MemoryVolume

T = TypeVar("T")


class PoolCrashed(BaseException):
    """The pool's process has crashed. Everything that it still tries to do raises this."""


class Network:
    """Addresses of workers, and events scheduled for later calls.

    Attributes:
        answering: reachable volumes, by address.
        instances: the worker's process at each address.
        calls: number of calls so far.
        injected: faults that have happened, by kind; see :class:`tests.simulation.faults.Faults`.
        late: the share of syncs that are late.
    """

    def __init__(self, rng: Random) -> None:
        self.answering: dict[str, MemoryVolume] = {}
        self.instances: dict[str, str] = {}
        self.calls = 0
        self.injected: Counter[str] = Counter()
        self.rng = rng
        self.late = 0.0
        self.let_pass: Callable[[float], None] = lambda seconds: None  # advances the clock
        self._due: list[tuple[int, Callable[[], None]]] = []

    def after_calls(self, count: int, what: Callable[[], None]) -> None:
        """Schedule ``what`` just before the ``count``-th call from now."""
        self._due.append((self.calls + count, what))

    def happen(self) -> None:
        """Count a call, and run all events that are due."""
        self.calls += 1
        while self._due and (at := min(self._due, key=lambda due: due[0]))[0] <= self.calls:
            self._due.remove(at)
            at[1]()

    def forget_due(self) -> None:
        """Drop all scheduled events."""
        self._due.clear()


class Process:
    """The pool's process, which may be dead or alive.

    Args:
        network: network of the simulation.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.dead = False
        self.failures = 0  # calls that failed for the caller
        self.dies_at = ""  # the moment at which it will die

    def reach(self, moment: str) -> None:
        """Raise `PoolCrashed` if the process is dead. Called before every effect outside of the process."""
        if moment and moment == self.dies_at:
            self.dead = True
        if self.dead:
            raise PoolCrashed(moment)

    def call(self, address: str, name: str, work: Callable[[MemoryVolume], T]) -> T:
        """Call a worker's volume, if the worker is reachable."""
        self.network.happen()
        self.reach("")
        volume = self.network.answering.get(address)
        if volume is None:
            raise VolumeFailed(f"worker {name} does not answer")
        return work(volume)

    def connect(self, address: str, name: str, instance: str) -> Connection:
        """See :data:`taskworker.transport.port.Connect`."""
        return Connection(self, address, name, instance)


class Ticket:
    """See :class:`taskworker.transport.port.Ticket`.

    Args:
        work: what the sync does.
        late_s: for how many seconds it is waited for in vain.
        let_pass: lets time pass.
    """

    def __init__(
        self, work: Callable[[], StorageError | None], late_s: float, let_pass: Callable[[float], None]
    ) -> None:
        self._work = work
        self._late_s = late_s
        self._let_pass = let_pass
        self._done = False
        self._error: StorageError | None = None
        self.took_s = 0.0

    def settle(self) -> None:
        """Do the work now."""
        if not self._done:
            self._error, self._done = self._work(), True

    def ended_within(self, within_s: float) -> bool:
        if not self._done and self._late_s > 0:
            self._late_s -= max(within_s, 0.01)
            self._let_pass(max(0.0, within_s))
            return False
        self.settle()
        return True

    def wait(self) -> None:
        self.settle()
        if self._error is not None:
            raise self._error


class Connection:
    """See :class:`taskworker.transport.port.WorkerVolume`. Like the real one, it sends appended shards later.

    When the worker goes away, a frame that is on its way may or may not have been received.
    """

    def __init__(self, process: Process, address: str, name: str, instance: str) -> None:
        self._process = process
        self._address = address
        self._name = name
        self._instance = instance
        self._queue: list[tuple[tuple[Shard, ...], bool]] = []
        self._failure: VolumeFailed | None = None
        self.misbehaved = ""
        self._unreported: StorageError | None = None
        self._tickets: list[Ticket] = []
        self.lost_replies = 0  # how many of the next calls take effect but fail
        self.lost_requests = 0  # how many of the next calls fail without effect

    @property
    def address(self) -> str:
        """Address of the worker."""
        return self._address

    @property
    def usable(self) -> bool:
        """Whether no call has failed so far."""
        return self._failure is None

    def call(self, work: Callable[[MemoryVolume], T]) -> T:
        """Call the worker to do something with its volume."""
        self._check_usable()
        try:
            if self.lost_requests:
                self.lost_requests -= 1
                self._process.network.injected["request lost"] += 1
                raise VolumeFailed(f"worker {self._name} does not answer")
            outcome = self._process.call(self._address, self._name, work)
            if self.lost_replies:
                self.lost_replies -= 1
                self._process.network.injected["reply lost"] += 1
                raise VolumeFailed(f"worker {self._name} took too long")
        except VolumeFailed:
            self._process.failures += 1
            raise
        return outcome

    def write(self, work: Callable[[MemoryVolume], T]) -> T:
        """Like :meth:`call`, but fails if the worker was restarted."""

        def guarded(volume: MemoryVolume) -> T:
            if self._process.network.instances.get(self._address) != self._instance:
                raise VolumeFailed(f"worker {self._name} was started anew")
            return work(volume)

        return self.call(guarded)

    def _check_usable(self) -> None:
        self._process.reach("")
        if self._failure is not None:
            raise VolumeFailed(str(self._failure))

    # -- writing ---------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        self._check_usable()
        self._queue.append((tuple(shard._replace(payload=bytes(shard.payload)) for shard in shards), urgent))
        if self._process.network.rng.random() < 0.5:
            self._deliver()

    def _deliver(self) -> None:
        queue, self._queue = self._queue, []
        for shards, urgent in queue:
            try:
                self.write(lambda volume, shards=shards, urgent=urgent: volume.append(shards, urgent=urgent))  # type: ignore[misc]
            except (StoreFull, VolumeUnavailable) as error:
                self._unreported = self._unreported or error
            except VolumeFailed as error:
                self._failure = self._failure or error
                return

    def start_sync(self, shards: Sequence[Shard] = ()) -> Ticket:
        self._check_usable()
        if shards:
            self._queue.append((tuple(shard._replace(payload=bytes(shard.payload)) for shard in shards), False))
        network = self._process.network
        late_s = 3 * network.rng.random() if network.rng.random() < network.late else 0.0
        network.injected["sync late"] += late_s > 0
        ticket = Ticket(self._sync, late_s, network.let_pass)
        if not late_s and network.rng.random() < 0.5:
            ticket.settle()
        return ticket

    def sync(self) -> None:
        self.start_sync().wait()

    def _sync(self) -> StorageError | None:
        if self._failure is None:
            self._deliver()
        if self._failure is None and self._unreported is None:
            try:
                self.write(lambda volume: volume.sync())
            except VolumeFailed as error:
                self._failure = error
            except (StoreFull, VolumeUnavailable) as error:
                self._unreported = error
        outcome, self._unreported = self._failure or self._unreported, None
        return outcome

    # -- reading ---------------------------------------------------------------------------------

    def locate(self, key: ShardKey) -> Location | None:
        return self.locate_all([key])[0]

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        there = self.call(lambda volume: volume.locate_all(keys))
        queued = {
            shard.key: Location(0, 0, len(shard.payload), shard.object_length)
            for shards, _ in self._queue
            for shard in shards
        }
        return [queued.get(key) or place for key, place in zip(keys, there, strict=True)]

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        absent = self.call(lambda volume: volume.missing(keys))
        queued = {shard.key for shards, _ in self._queue for shard in shards}
        return [at for at in absent if keys[at] not in queued]

    def read_into(self, key: ShardKey, buffers: Sequence[memoryview], length: int) -> bool:
        payload = self.fetch_all([(key, length)])[0]
        if payload is None:
            return False
        at = 0
        for buffer in buffers:
            buffer[:] = payload[at : at + len(buffer)]
            at += len(buffer)
        return True

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> Sequence[memoryview | None]:
        return self.call(lambda volume: [volume.fetch(key, length) for key, length in wanted])

    def begin_fetch(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Sequence[bool] | StorageError], None],
    ) -> Callable[[], None]:
        try:
            payloads = self.fetch_all(wanted)
        except StorageError as error:
            done(error)
            return lambda: None
        for payload, place in zip(payloads, into, strict=True):
            if payload is not None:
                place[:] = payload
        done([payload is not None for payload in payloads])
        return lambda: None

    def read(self, key: ShardKey) -> Shard | None:
        return self.call(lambda volume: volume.read(key))

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        return iter(self.call(lambda volume: list(volume.keys(start, stop))))

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        pages = self.call(lambda volume: volume.records(kinds))
        while (page := self.call(lambda _: next(pages, None))) is not None:
            yield page

    def newest(self) -> Shard | None:
        return self.call(lambda volume: volume.newest())

    # -- maintenance ----------------------------------------------------------------------------------

    def remove(self, keys: Iterable[ShardKey]) -> int:
        doomed = list(keys)
        return self.call(lambda volume: volume.remove(doomed))

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        return self.call(lambda volume: volume.discard(key, location, wrong=wrong))

    def verify(self, progress: Callable[[int], None]) -> Verification:
        return _Verification(self, *self.call(lambda volume: (volume.verify(progress), volume.boots)))

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        return self.call(lambda volume: volume.check(keys))

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        return self.call(lambda volume: volume.compact(live_ratio_max))

    def instance(self) -> str:
        return self.call(lambda _: self._process.network.instances[self._address])

    def usage(self) -> VolumeUsage:
        return self.call(lambda volume: volume.usage())

    def abandon(self, reason: str) -> None:
        self._failure = self._failure or VolumeFailed(reason)

    def close(self) -> None:
        if self._failure is None:
            self._deliver()
        self.abandon(f"the connection to worker {self._name} was closed")


class _Verification:
    """See :class:`storage.shards.port.Verification`. A restarted worker does not know it any more."""

    def __init__(self, connection: Connection, verification: MemoryVerification, boots: int) -> None:
        self._connection = connection
        self._verification = verification
        self._boots = boots

    def judge(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        return self._connection.call(lambda volume: self._of(volume).judge(keys))

    def quarantine_rest(self) -> Iterator[ShardKey]:
        return iter(self._connection.call(lambda volume: list(self._of(volume).quarantine_rest())))

    def _of(self, volume: MemoryVolume) -> MemoryVerification:
        if volume.boots != self._boots:
            raise VolumeFailed("the worker was started anew during a verification")
        return self._verification
