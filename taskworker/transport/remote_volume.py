"""A worker's volume as a shard store: the client side of the shard transport."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import inf
from operator import lt

import msgspec
from blake3 import blake3

from storage.batching import batched
from storage.errors import InvalidArgument, StorageError
from storage.keys import SHARD_KEY_BYTES, Kind, ShardKey
from storage.limits import KIB, MIB
from storage.shards import CorruptShard, Location, Shard, VolumeFailed, VolumeUnavailable, VolumeUsage
from storage.shards.port import Verdict, Verification
from taskworker.transport.append_sender import AppendSender, SyncTicket
from taskworker.transport.fetches import Outcome, begin_fetches
from taskworker.transport.frames import (
    CORRUPT,
    KEYS_MAX,
    MESSAGE_BYTES_MAX,
    UNREADABLE,
    Call,
    join_keys,
    pack_locations,
    parse_digests,
    parse_found,
    parse_keys,
    parse_locations,
    parse_positions,
    parse_shards,
)
from taskworker.transport.making_frames import (
    DIGEST_BYTES,
    MakeOrder,
    pack_make,
    pack_prove,
    parse_made,
    parse_proofs,
)
from taskworker.transport.remote_verification import RemoteVerification
from taskworker.transport.shard_calls import LONG_TIMEOUT_S, Lane, ShardCalls
from taskworker.transport.wire.connection import Poller
from taskworker.transport.wire.poller import SHARED
from taskworker.transport.wire.streams import Dial, dial

# A worker that takes longer than this for one message counts as away, and the data goes elsewhere.
CALL_TIMEOUT_S = 5.0
# A worker that scans its disk for records sends a message every second or so, empty if it has found none.
_SCAN_TIMEOUT_S = 60.0
# A worker sends 256 KiB of records at a time; those of earlier releases send 1 MiB. Headers come on top.
_PAGE_OF_RECORDS_BYTES_MAX = 5 * MIB
# How long a walk over a worker's keys may wait in total: this time, and more for each key it returns. An honest worker
# returns 4096 keys within milliseconds.
_WALK_WAIT_S = 30.0
_WALK_KEYS_PER_S_MIN = 5_000
# No worker holds more than 2^30 shards. For a range of ids, the limit is proportional to its width, but at least a
# 256th.
_KEYS_HELD_MAX = 1 << 30
_RANGES = 256
_PROBE_S = 4.0  # on a distant link, a connection whose first packet is lost takes more than 1 s
# The worker reads them all before it answers: a slow disk reads this many of the largest within the time limit.
_CHECKED_TOGETHER = 32
_DIGESTS_TOGETHER = 2048
# Making shards takes a worker this long for each stripe at most, and more for each byte: it waits for other workers.
_MAKING_S = 20.0
_MADE_BYTES_PER_S_MIN = 64 * KIB
_PROGRESS = struct.Struct("<Q")
_RATIO = struct.Struct("<d")
_COMPACTED = struct.Struct("<IQ")
_usages = msgspec.msgpack.Decoder(VolumeUsage)


class RemoteVolume:
    """See :class:`storage.shards.ShardStore`. Thread-safe.

    A failed call makes the volume unusable; to connect again, make a new one.

    Args:
        address: the worker's address, ``host:port`` or ``unix:path``.
        name: the worker's name, for texts.
        instance: name of the worker's process that is to take appends; those sent to another process fail. Empty: any.
        timeout_s: seconds without a sign of life after which the worker counts as away.
        poller: receives for the connections.
        dial: connects to an address.
        clock_s: monotonic seconds.

    Attributes:
        address: as given.
        makes: see :class:`taskworker.transport.port.WorkerVolume`.
    """

    def __init__(
        self,
        address: str,
        name: str,
        instance: str = "",
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        poller: Poller = SHARED,
        dial: Dial = dial,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.address = address
        self.makes = True
        self._instance = instance.encode()
        self._clock_s = clock_s
        self._calls = ShardCalls(address, name, timeout_s, poller, dial, clock_s)
        self._sender = AppendSender(self._calls, self._instance, clock_s)

    @property
    def misbehaved(self) -> str:
        """How the worker misbehaved; empty: it did not."""
        return self._calls.misbehaved

    @misbehaved.setter
    def misbehaved(self, how: str) -> None:
        self._calls.misbehaved = how

    @property
    def received(self) -> int:
        """See :class:`taskworker.transport.port.WorkerVolume`."""
        return self._calls.received

    def note_alive(self) -> None:
        """See :class:`taskworker.transport.port.WorkerVolume`."""
        self._calls.note_alive()

    # -- writing ---------------------------------------------------------------------------------

    @property
    def needs_sync(self) -> bool:
        """See :class:`taskworker.transport.port.WorkerVolume`."""
        return self._sender.needs_sync

    @property
    def oldest_s(self) -> float:
        """See :class:`taskworker.transport.port.WorkerVolume`."""
        return self._sender.oldest_s

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """See :meth:`ShardStore.append`. Only queues the shards: a failure is raised by the next sync."""
        self._sender.offer(shards, inf, urgent=urgent)

    def offer(self, shards: Sequence[Shard], within_s: float, *, urgent: bool = False) -> Sequence[Shard]:
        """See :meth:`taskworker.transport.port.WorkerVolume.offer`."""
        return self._sender.offer(shards, within_s, urgent=urgent)

    def start_sync(self, shards: Sequence[Shard] = ()) -> SyncTicket:
        """See :meth:`taskworker.transport.port.WorkerVolume.start_sync`."""
        return self._sender.start_sync(shards)

    def sync(self) -> None:
        """See :meth:`ShardStore.sync`."""
        self.start_sync().wait()

    def start_make(self, orders: Sequence[MakeOrder]) -> Iterator[list[bytes] | None]:
        """See :meth:`taskworker.transport.port.WorkerVolume.start_make`."""
        size = sum(order.length for order in orders)
        limit_s = _MAKING_S + size / _MADE_BYTES_PER_S_MIN
        most = 1 + DIGEST_BYTES * max(len(order.slots) for order in orders)
        self._sender.begin_making()
        messages = self._calls.begin(Call.MAKE, pack_make(self._instance, orders), limit_s, limit_s, most)
        return self._made(orders, messages)

    def _made(self, orders: Sequence[MakeOrder], messages: Iterator[bytes]) -> Iterator[list[bytes] | None]:
        told = 0
        try:
            for message in messages:
                if told == len(orders):
                    raise self._calls.broken(ValueError("more answers than stripes to make shards of"))
                order = orders[told]
                yield self._calls.checked(lambda message=message, order=order: parse_made(message, order))  # type: ignore[misc]
                told += 1
        except TimeoutError:  # maybe because of workers that this one waits for; it may go on making shards
            raise VolumeUnavailable(f"worker {self.name} takes too long to make shards") from None
        except InvalidArgument:  # a worker of a former version does not know the call
            self.makes = False
            self._sender.end_making()
            raise
        except StorageError:
            self._sender.end_making()
            raise
        self._sender.end_making()

    def prove(self, nonce: bytes, keys: Sequence[ShardKey]) -> list[bytes | None]:
        """See :meth:`taskworker.transport.port.WorkerVolume.prove`."""
        self._sender.await_delivery(keys)
        proofs: list[bytes | None] = []
        for batch in batched(keys, _CHECKED_TOGETHER):
            answer = self._calls.call(Call.PROVE, pack_prove(nonce, batch), lane=Lane.LONG)
            proofs += self._calls.checked(lambda answer=answer, batch=batch: parse_proofs(answer, len(batch)))  # type: ignore[misc]
        return proofs

    def begin_written(self, keys: Sequence[ShardKey]) -> Callable[[], list[bytes | None]]:
        """See :class:`taskworker.transport.port.WorkerVolume`."""
        batches = [*batched(keys, _DIGESTS_TOGETHER)] or [[]]  # without keys, to find out whether it knows the call
        begun = [self._calls.begin_call(Call.WRITTEN, join_keys(batch)) for batch in batches]

        def ended() -> list[bytes | None]:
            found: list[bytes | None] = []
            for batch, end in zip(batches, begun, strict=True):
                answer = bytes(end())
                self._sender.note_written()  # after: a sync that was sent before may not have covered them
                found += self._calls.checked(lambda answer=answer, batch=batch: parse_digests(answer, len(batch)))  # type: ignore[misc]
            return found

        return ended

    # -- reading ---------------------------------------------------------------------------------

    def locate(self, key: ShardKey) -> Location | None:
        """See :meth:`ShardStore.locate`."""
        return self.locate_all([key])[0]

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        """See :meth:`ShardStore.locate_all`. Shards that are being sent count as present, at segment and offset 0."""
        found: list[Location | None] = []
        for batch in batched(keys, KEYS_MAX):
            queued = self._sender.places()
            unknown = [key for key in batch if key not in queued]
            there = dict(zip(unknown, self._ask_locations(unknown), strict=True)) if unknown else {}
            found += [queued.get(key) or there.get(key) for key in batch]
        return found

    def _ask_locations(self, keys: list[ShardKey]) -> list[Location | None]:
        return self._calls.checked(lambda: parse_locations(self._calls.call(Call.LOCATE, join_keys(keys)), len(keys)))

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        """See :meth:`ShardStore.missing`. Shards that are being sent count as present."""
        found: list[int] = []
        for start in range(0, len(keys), KEYS_MAX):
            batch = keys[start : start + KEYS_MAX]
            frames = self._sender.queued()  # read before the call, which finds what arrives meanwhile
            absent = self._ask_missing(batch)
            if frames:
                absent = [at for at in absent if not any(batch[at] in queued for queued in frames)]
            found += [start + at for at in absent] if start else absent
        return found

    def _ask_missing(self, keys: Sequence[ShardKey]) -> list[int]:
        return self._calls.checked(lambda: parse_positions(self._calls.call(Call.MISSING, join_keys(keys)), len(keys)))

    def read_into(self, key: ShardKey, buffers: Sequence[memoryview], length: int) -> bool:
        """See :meth:`ShardStore.read_into`."""
        payload = self.fetch_all([(key, length)])[0]
        if payload is None:
            return False
        at = 0
        for buffer in buffers:
            buffer[:] = payload[at : at + len(buffer)]
            at += len(buffer)
        return True

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> Sequence[memoryview | None]:
        """See :meth:`ShardStore.fetch_all`."""
        self._sender.await_delivery([key for key, _ in wanted])
        into = [memoryview(bytearray(length)) for _, length in wanted]
        signal = self._calls.poller.signal()
        outcomes: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            signal.set()

        cancel = self.begin_fetch(wanted, into, done)
        try:
            signal.wait()
        finally:
            cancel()
        (outcome,) = outcomes
        if isinstance(outcome, StorageError):
            raise outcome
        return [place if present else None for place, present in zip(into, outcome, strict=True)]

    def begin_fetch(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        """See :meth:`ShardStore.begin_fetch`.

        A shard that is on its way to the worker is not there yet: over a slow link, others have theirs long before.
        """
        absent = self._sender.undelivered([key for key, _ in wanted])
        return begin_fetches(self._calls, wanted, into, done, absent)

    def read(self, key: ShardKey) -> Shard | None:
        """See :meth:`ShardStore.read`. Only the worker vouches that the digest is the one that was written."""
        self._sender.await_delivery([key])
        found = self._calls.checked(
            lambda: parse_found(
                self._calls.call_raw(Call.READ, key, lane=Lane.FETCHES, bytes_max=MESSAGE_BYTES_MAX), [key]
            )
        )[0]
        if found == UNREADABLE:
            raise VolumeUnavailable(f"worker {self.name} cannot read its shard {key.hex()} now")
        if found == CORRUPT:
            raise CorruptShard(f"worker {self.name} says that its shard {key.hex()} is rotten")
        if not isinstance(found, Shard):
            return None
        if blake3(found.payload).digest() != found.digest:
            raise CorruptShard(f"worker {self.name} sent a shard {key.hex()} that does not match its own digest")
        return found

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        """See :meth:`ShardStore.keys`. Order, range, number and pace of the listed keys are checked."""
        self._sender.await_delivery()
        request, most = bytes([len(start)]) + start + (stop or b""), _keys_max(start, stop)
        before, count, waited_s = b"", 0, 0.0
        asked_s = self._clock_s()
        for message in self._calls.stream(
            Call.KEYS, request, each_s=self._calls.timeout_s, bytes_max=KEYS_MAX * SHARD_KEY_BYTES
        ):
            waited_s += self._clock_s() - asked_s
            page = self._calls.checked(lambda message=message: parse_keys(message))  # type: ignore[misc]
            count += len(page)
            if not _is_listing(page, before, start, stop) or count > most:
                raise self._calls.broken(ValueError("a list of keys that is out of order, out of range or endless"))
            if waited_s > _WALK_WAIT_S + count / _WALK_KEYS_PER_S_MIN:
                # A worker that does this repeatedly keeps mending from ending, as a liar would.
                raise self._calls.misbehaves(f"lists its keys too slowly: {count:,} in {waited_s:.0f} s")
            before = page[-1]
            yield from page
            asked_s = self._clock_s()

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        """See :meth:`ShardStore.records`. The caller has to limit the total time."""
        self._sender.await_delivery()
        most = MESSAGE_BYTES_MAX if Kind.CHUNK in kinds else _PAGE_OF_RECORDS_BYTES_MAX
        request = bytes(sorted(kinds))
        for message in self._calls.stream(Call.RECORDS, request, each_s=_SCAN_TIMEOUT_S, all_s=inf, bytes_max=most):
            yield self._calls.checked(lambda message=message: parse_shards(message))  # type: ignore[misc]

    def newest(self) -> Shard | None:
        """See :meth:`ShardStore.newest`."""
        self._sender.await_delivery()
        found = self._calls.checked(
            lambda: parse_shards(self._calls.call(Call.NEWEST, lane=Lane.LONG, bytes_max=_PAGE_OF_RECORDS_BYTES_MAX))
        )
        if len(found) > 1:
            raise self._calls.broken(ValueError("several newest records"))
        return found[0] if found else None

    # -- maintenance ----------------------------------------------------------------------------------

    def remove(self, keys: Iterable[ShardKey]) -> int:
        """See :meth:`ShardStore.remove`."""
        self._sender.await_delivery()
        removed = 0
        for batch in batched(keys, KEYS_MAX):
            (told,) = self._calls.number(_PROGRESS, self._calls.call(Call.REMOVE, join_keys(batch), lane=Lane.LONG))
            removed += min(told, len(batch))
        return removed

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """See :meth:`ShardStore.discard`."""
        answer = self._calls.call(Call.DISCARD, key + pack_locations([location]) + bytes([wrong]))
        if answer not in (b"\0", b"\1"):
            raise self._calls.broken(ValueError("neither yes nor no"))
        return answer == b"\1"

    def verify(self, progress: Callable[[int], None]) -> Verification:
        """See :meth:`ShardStore.verify`."""
        self._sender.await_delivery()
        for message in self._calls.stream(Call.VERIFY, b""):
            if len(message) == 1 + _PROGRESS.size:
                return RemoteVerification(self._calls, message[1:])
            progress(self._calls.believable(self._calls.number(_PROGRESS, message)[0]))
        raise VolumeFailed(f"worker {self.name} ended a verification without an outcome")

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """See :meth:`ShardStore.check`."""
        self._sender.await_delivery()
        verdicts: list[Verdict] = []
        for batch in batched(keys, _CHECKED_TOGETHER):
            verdicts += self._calls.verdicts(self._calls.call(Call.CHECK, join_keys(batch), lane=Lane.LONG), batch)
        return verdicts

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        """See :meth:`ShardStore.compact`."""
        segments, freed = self._calls.number(
            _COMPACTED,
            self._calls.call(Call.COMPACT, _RATIO.pack(live_ratio_max), timeout_s=LONG_TIMEOUT_S, lane=Lane.LONG),
        )
        return segments, self._calls.believable(freed)

    def usage(self) -> VolumeUsage:
        """See :meth:`ShardStore.usage`."""
        try:
            told = _usages.decode(self._calls.call(Call.USAGE))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._calls.broken(error) from None
        for number in (told.segments, told.bytes_used, told.bytes_live, told.bytes_free, told.shards):
            self._calls.believable(number)
        return told

    def instance(self, *, patient: bool = True) -> str:
        """The random name of the process that answers.

        Args:
            patient: keep trying to connect for as long as a call may take, since one attempt may fail on a busy
                machine.
        """
        call = self._calls.call_patiently if patient else self._calls.call
        return call(Call.INSTANCE).decode("ascii", "replace")

    # -- ending ----------------------------------------------------------------------------------

    def abandon(self, reason: str) -> None:
        """See :meth:`ShardStore.abandon`."""
        self._sender.fail(VolumeFailed(reason))
        self._calls.disconnect()

    def close(self) -> None:
        """Send what is queued, then disconnect."""
        self._sender.close(2 * self._calls.timeout_s)
        self.abandon(f"the connection to worker {self.name} was closed")


def _keys_max(start: bytes, stop: bytes | None) -> int:
    """The most keys that a worker may list between two ids."""
    first, last = start[0] if start else 0, stop[0] if stop else _RANGES
    return _KEYS_HELD_MAX * max(1, last - first) // _RANGES


def _is_listing(page: Sequence[ShardKey], before: bytes, start: bytes, stop: bytes | None) -> bool:
    """Whether these keys come after ``before``, in ascending order and within ``start`` <= key < ``stop``."""
    return (
        bool(page)
        and page[0] > before
        and page[0] >= start
        and (stop is None or page[-1] < stop)
        and all(map(lt, page, islice(page, 1, None)))
    )


def identify_process(address: str, name: str, dialling: Dial = dial) -> str:
    """The random name of the process that answers at a worker's address.

    Raises:
        VolumeFailed: no process answers.
    """
    probe = RemoteVolume(address, name, timeout_s=_PROBE_S, dial=dialling)
    try:
        return probe.instance(patient=False)
    finally:
        probe.abandon("the connection only identified the process")
