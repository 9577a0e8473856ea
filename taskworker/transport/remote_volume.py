"""A worker's volume as a shard store: the client side of the shard transport.

Appends are gathered: while one frame is on its way, what comes meanwhile goes into the next, so that
large pushes travel in large messages and a lone small one leaves at once.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import lt
from typing import Any, TypeVar

import grpc
import msgspec
from blake3 import blake3

from storage.batching import batched
from storage.errors import InvalidArgument, StorageError, StoreClosed, StoreFull
from storage.keys import Kind, ShardKey
from storage.limits import KIB, MIB
from storage.shards import CorruptShard, Location, Shard, VolumeFailed, VolumeUnavailable, VolumeUsage
from storage.shards.port import Verdict, Verification
from taskworker.errors import DeadlineExceeded, MessageTooLarge, StorageUnavailable
from taskworker.rpc import status
from taskworker.rpc.dialling import dial
from taskworker.rpc.limits import CONNECT_TIMEOUT_MS, WINDOW_OPTIONS
from taskworker.transport.frames import (
    CORRUPT,
    COUNT_MAX,
    FLAG_SYNC,
    FLAG_URGENT,
    KEYS_MAX,
    MESSAGE_BYTES_MAX,
    SHARD_SERVICE,
    UNREADABLE,
    AppendFrame,
    Wanted,
    join_keys,
    pack_locations,
    pack_wanted,
    parse_fetched,
    parse_found,
    parse_keys,
    parse_locations,
    parse_positions,
    parse_shards,
)

ResultT = TypeVar("ResultT")

_CHANNEL_OPTIONS = (
    *WINDOW_OPTIONS,
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX + MIB),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX + MIB),
    ("grpc.enable_retries", 0),
    # Of its own, not shared with other channels to the same address: a stalled one must not stall them.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)

# A worker that takes longer over one message than this is as good as away: the data goes elsewhere.
CALL_TIMEOUT_S = 5.0
# Walks and compactions read and write whole segments between two messages.
_LONG_TIMEOUT_S = 600.0
# A worker that scans its disk for records shows what it found, if only that it goes on, every second or so.
_SCAN_TIMEOUT_S = 60.0
_SCAN_AHEAD_BYTES = 256 * KIB
# A worker shows 256 KiB of records at a time; those of earlier releases 1 MiB, not counting what goes with each.
_PAGE_OF_RECORDS_BYTES_MAX = 5 * MIB
# What a worker may make a walk over its keys wait in all: so long, and longer the more keys it gives. An honest one
# gives 4096 within milliseconds.
_WALK_WAIT_S = 30.0
_WALK_KEYS_PER_S_MIN = 5_000
# More than this no worker holds: 2^30 shards, and of a range of ids as much of that as the range is wide, at least a
# 256th.
_KEYS_HELD_MAX = 1 << 30
_RANGES = 256
# Frames waiting for one worker; appends wait beyond that, which bounds the pool's memory.
_QUEUED_BYTES_MAX = 4 * MIB
_PROBE_S = 1.0
# Measured with 256 KiB shards: four to a message cost half of what one does, eight no less.
_FILLED_BYTES = 900 * 1024
_FILL_S = 0.02
# The worker reads them before it answers: as many of the largest as a slow disk gives within the time limit.
_CHECKED_TOGETHER = 32
# Calls that a worker may refuse without being broken: it keeps few verifications.
_REFUSABLE = ("Judge", "Rest")

_PROGRESS = struct.Struct("<Q")
_RATIO = struct.Struct("<d")
_COMPACTED = struct.Struct("<IQ")
_usages = msgspec.msgpack.Decoder(VolumeUsage)


class SyncTicket:
    """A sync under way on a remote volume."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: StorageError | None = None
        self._began_s = time.monotonic()
        self.took_s = 0.0

    def settle(self, error: StorageError | None) -> None:
        """Say how it ended."""
        self._error = error
        self.took_s = time.monotonic() - self._began_s
        self._done.set()

    def wait(self) -> None:
        """Return when everything before is durable.

        Raises:
            StoreFull, VolumeUnavailable, VolumeFailed: something of it could not be stored.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error


class RemoteVolume:
    """See :class:`storage.shards.ShardStore`. Thread-safe.

    A failed call makes the volume unusable: whoever holds it connects again with a new one.

    Args:
        address: of the worker, ``host:port`` or ``unix:path``.
        name: what people call it.
        instance: the process of the worker that is meant; default whichever answers. What another one is
            sent to append or sync fails.
        timeout_s: for one ordinary call.

    Attributes:
        misbehaved: what it answered that no honest worker answers, if it did.
    """

    def __init__(self, address: str, name: str, instance: str = "", *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.name = name
        self._instance = instance.encode()
        self._address = address
        self._timeout_s = timeout_s
        self._channel = dial(address, _CHANNEL_OPTIONS)
        self._methods: dict[str, Any] = {}
        self._failure: StorageError | None = None
        self.misbehaved = ""
        self._changed = threading.Condition()
        self._frame = AppendFrame(self._instance)
        self._full: deque[AppendFrame] = deque()  # frames before that one
        self._delivered = 0  # frames whose sending has ended
        self._awaited = 0  # threads that wait for what is on its way
        self._tickets: list[SyncTicket] = []
        self._sent: AppendFrame | None = None
        self._unreported: StorageError | None = None
        self._closing = False
        self._further: set[grpc.Channel] = set()
        self._sender = threading.Thread(target=self._send_all, name=f"append-{name}", daemon=True)
        self._sender.start()

    # -- writing ---------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """See :meth:`ShardStore.append`: queued when it returns. A failure shows at the next sync."""
        with self._changed:
            while self._failure is None and not self._closing and self._is_crowded():
                self._changed.wait()
            self._put(shards, FLAG_URGENT if urgent else 0)

    def start_sync(self, shards: Sequence[Shard] = ()) -> SyncTicket:
        """Append ``shards`` and make them and everything before durable, in one message where it can be."""
        ticket = SyncTicket()
        with self._changed:
            self._put(shards, FLAG_SYNC)
            self._tickets.append(ticket)
        return ticket

    def sync(self) -> None:
        """See :meth:`ShardStore.sync`."""
        self.start_sync().wait()

    def _put(self, shards: Sequence[Shard], flags: int) -> None:
        self._check_usable()
        for shard in shards:
            if not self._frame.takes(shard):
                self._frame.mark(flags & FLAG_URGENT)
                self._full.append(self._frame)
                self._frame = AppendFrame(self._instance)
                if self._tickets:
                    self._frame.mark(FLAG_SYNC)  # they are settled with the last frame
            self._frame.add(shard)
        self._frame.mark(flags)
        self._changed.notify_all()

    def _is_crowded(self) -> bool:
        return bool(self._full) or self._frame.size > _QUEUED_BYTES_MAX

    def _on_its_way(self) -> list[AppendFrame]:
        """Frames not delivered yet; with the lock held."""
        sent = [self._sent] if self._sent is not None else []
        return [*sent, *self._full, *([self._frame] if self._frame.pending else [])]

    def _await_delivery(self, keys: Collection[ShardKey] | None = None) -> None:
        """Return when all that was appended has been sent, so that the worker can tell of it.

        Args:
            keys: wait only if any of these shards is among it.
        """
        with self._changed:
            frames = self._on_its_way()
            if keys is not None and not any(key in frame.keys for frame in frames for key in keys):
                return
            until = self._delivered + len(frames)
            self._awaited += 1
            self._changed.notify_all()
            try:
                while self._failure is None and self._delivered < until:
                    self._changed.wait()
            finally:
                self._awaited -= 1

    def _send_all(self) -> None:
        """The sender thread: one frame after another, until the volume is closed or has failed."""
        append = self._method("Append")
        while True:
            with self._changed:
                while self._failure is None and not self._on_its_way() and not self._closing:
                    self._changed.wait()
                self._let_it_fill()
                if self._failure is not None or not self._on_its_way():
                    return
                tickets: list[SyncTicket] = []
                if self._full:
                    frame = self._full.popleft()
                else:
                    frame, self._frame = self._frame, AppendFrame(self._instance)
                    tickets, self._tickets = self._tickets, []
                self._sent = frame
                self._changed.notify_all()
            error = self._send(append, frame)
            with self._changed:
                self._sent = None
                self._delivered += 1
                self._changed.notify_all()
                if isinstance(error, VolumeFailed):
                    self._fail(error)
                self._unreported = self._unreported or error
                outcome = self._unreported
                if tickets:
                    self._unreported = None
            for ticket in tickets:
                ticket.settle(outcome)

    def _let_it_fill(self) -> None:
        """Hold a frame for a moment that is neither full nor waited for: few large messages cost less than many."""
        until_s = time.monotonic() + _FILL_S
        while self._failure is None and not self._closing and not self._full and not self._awaited:
            left_s = until_s - time.monotonic()
            if self._frame.urgent or self._frame.size >= _FILLED_BYTES or left_s <= 0:
                return
            self._changed.wait(left_s)

    def _send(self, append: Callable[..., bytes], frame: AppendFrame) -> StorageError | None:
        try:
            answer = append(frame.message(), timeout=self._timeout_s)
        except (grpc.RpcError, ValueError) as error:
            return self._translated("Append", error)
        return self._broken(ValueError(f"{len(answer)} bytes instead of none")) if answer else None

    # -- reading ---------------------------------------------------------------------------------

    def locate(self, key: ShardKey) -> Location | None:
        """See :meth:`ShardStore.locate`."""
        return self.locate_all([key])[0]

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        """See :meth:`ShardStore.locate_all`. What is on its way counts as there, at place 0."""
        found: list[Location | None] = []
        for batch in batched(keys, KEYS_MAX):
            with self._changed:
                queued = {key: place for frame in self._on_its_way() for key, place in frame.keys.items()}
            unknown = [key for key in batch if key not in queued]
            there = dict(zip(unknown, self._ask_locations(unknown), strict=True)) if unknown else {}
            found += [queued.get(key) or there.get(key) for key in batch]
        return found

    def _ask_locations(self, keys: list[ShardKey]) -> list[Location | None]:
        return self._checked(lambda: parse_locations(self._call("Locate", join_keys(keys)), len(keys)))

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        """See :meth:`ShardStore.missing`. What is on its way counts as there."""
        found: list[int] = []
        for start in range(0, len(keys), KEYS_MAX):
            batch = keys[start : start + KEYS_MAX]
            with self._changed:  # before the question: what is delivered meanwhile is there
                frames = [frame.keys for frame in self._on_its_way()]
            absent = self._ask_missing(batch)
            if frames:
                absent = [at for at in absent if not any(batch[at] in queued for queued in frames)]
            found += [start + at for at in absent] if start else absent
        return found

    def _ask_missing(self, keys: Sequence[ShardKey]) -> list[int]:
        return self._checked(lambda: parse_positions(self._call("Missing", join_keys(keys)), len(keys)))

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
        payloads: list[memoryview | None] = []
        for batch in _fitting(wanted):
            self._await_delivery([want.key for want in batch])
            payloads += self._checked(
                lambda batch=batch: parse_fetched(self._call("Fetch", pack_wanted(batch)), batch)  # type: ignore[misc]
            )
        return payloads

    def read(self, key: ShardKey) -> Shard | None:
        """See :meth:`ShardStore.read`. That the digest is the written one is the worker's word, no more."""
        self._await_delivery([key])
        found = self._checked(lambda: parse_found(self._call("Read", key), [key]))[0]
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
        """See :meth:`ShardStore.keys`. Order, range, number and pace of what the worker lists are checked."""
        self._await_delivery()
        request, most = bytes([len(start)]) + start + (stop or b""), _keys_max(start, stop)
        before, count, waited_s = b"", 0, 0.0
        asked_s = time.monotonic()
        for message in self._stream("Keys", request, each_s=self._timeout_s):
            waited_s += time.monotonic() - asked_s
            page = self._checked(lambda message=message: parse_keys(message))  # type: ignore[misc]
            count += len(page)
            if not _is_listing(page, before, start, stop) or count > most:
                raise self._broken(ValueError("a list of keys that is out of order, out of range or endless"))
            if waited_s > _WALK_WAIT_S + count / _WALK_KEYS_PER_S_MIN:
                # A worker that does so again and again keeps mending from its end, as a liar would.
                self.misbehaved = f"lists its keys too slowly: {count:,} in {waited_s:.0f} s"
                raise VolumeFailed(f"worker {self.name} {self.misbehaved}")
            before = page[-1]
            yield from page
            asked_s = time.monotonic()

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        """See :meth:`ShardStore.records`. How long they may take in all is for the caller to say."""
        self._await_delivery()
        most = MESSAGE_BYTES_MAX if Kind.CHUNK in kinds else _PAGE_OF_RECORDS_BYTES_MAX
        # Over a connection of its own that keeps little ready: many workers may be asked at once.
        with self._connected(_scan_options(most)) as channel:
            request = bytes(sorted(kinds))
            for message in self._stream("Records", request, each_s=_SCAN_TIMEOUT_S, all_s=None, channel=channel):
                if len(message) > most:
                    raise self._broken(ValueError(f"a page of records of {len(message):,} bytes"))
                yield self._checked(lambda message=message: parse_shards(message))  # type: ignore[misc]

    @contextmanager
    def _connected(self, options: Sequence[tuple[str, int]]) -> Iterator[grpc.Channel]:
        """A further connection to the worker, which ends with this one if not before."""
        channel = dial(self._address, options)
        with self._changed:
            self._further.add(channel)
        try:
            yield channel
        finally:
            with self._changed:
                self._further.discard(channel)
            channel.close()

    def newest(self) -> Shard | None:
        """See :meth:`ShardStore.newest`."""
        self._await_delivery()
        found = self._checked(lambda: parse_shards(self._call("Newest", b"")))
        if len(found) > 1:
            raise self._broken(ValueError("several newest records"))
        return found[0] if found else None

    # -- maintenance ----------------------------------------------------------------------------------

    def remove(self, keys: Iterable[ShardKey]) -> int:
        """See :meth:`ShardStore.remove`."""
        self._await_delivery()
        removed = 0
        for batch in batched(keys, KEYS_MAX):
            (told,) = self._number(_PROGRESS, self._call("Remove", join_keys(batch)))
            removed += min(told, len(batch))
        return removed

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """See :meth:`ShardStore.discard`."""
        answer = self._call("Discard", key + pack_locations([location]) + bytes([wrong]))
        if answer not in (b"\0", b"\1"):
            raise self._broken(ValueError("neither yes nor no"))
        return answer == b"\1"

    def verify(self, progress: Callable[[int], None]) -> Verification:
        """See :meth:`ShardStore.verify`."""
        self._await_delivery()
        for message in self._stream("Verify", b""):
            if len(message) == 1 + _PROGRESS.size:
                return _RemoteVerification(self, message[1:])
            progress(self._believable(self._number(_PROGRESS, message)[0]))
        raise VolumeFailed(f"worker {self.name} ended a verification without an outcome")

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """See :meth:`ShardStore.check`."""
        self._await_delivery()
        verdicts: list[Verdict] = []
        for batch in batched(keys, _CHECKED_TOGETHER):
            verdicts += self._verdicts(self._call("Check", join_keys(batch)), batch)
        return verdicts

    def _verdicts(self, answer: bytes, keys: Sequence[ShardKey]) -> list[Verdict]:
        if len(answer) != len(keys) or max(answer, default=0) > max(Verdict):
            raise self._broken(ValueError("verdicts that do not fit the keys"))
        return [Verdict(verdict) for verdict in answer]

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        """See :meth:`ShardStore.compact`."""
        segments, freed = self._number(
            _COMPACTED, self._call("Compact", _RATIO.pack(live_ratio_max), timeout_s=_LONG_TIMEOUT_S)
        )
        return segments, self._believable(freed)

    def usage(self) -> VolumeUsage:
        """See :meth:`ShardStore.usage`."""
        try:
            told = _usages.decode(self._call("Usage", b""))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._broken(error) from None
        for number in (told.segments, told.bytes_used, told.bytes_live, told.bytes_free, told.shards):
            self._believable(number)
        return told

    def instance(self, *, patient: bool = True) -> str:
        """Random name of the process that answers.

        Args:
            patient: keep trying to connect for as long as a call may take: on a busy machine a single try may fail.
        """
        return self._call("Instance", b"", wait_for_ready=patient).decode("ascii", "replace")

    # -- ending ----------------------------------------------------------------------------------

    def abandon(self, reason: str) -> None:
        """See :meth:`ShardStore.abandon`."""
        with self._changed:
            self._fail(VolumeFailed(reason))
            further = list(self._further)
        for channel in (self._channel, *further):
            channel.close()

    def close(self) -> None:
        """Send what is queued, then disconnect."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._sender.join(2 * self._timeout_s)
        self.abandon(f"the connection to worker {self.name} was closed")

    def _fail(self, error: VolumeFailed) -> None:
        """Make every call from now on, and everybody who waits, fail; with the lock held."""
        self._failure = self._failure or error
        tickets, self._tickets = self._tickets, []
        for ticket in tickets:
            ticket.settle(self._failure)
        self._changed.notify_all()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise VolumeFailed(str(self._failure))
        if self._closing:
            raise StoreClosed(f"the connection to worker {self.name} is being closed")

    # -- calls -----------------------------------------------------------------------------------

    def _method(self, name: str, *, streamed: bool = False) -> Any:
        method = self._methods.get(name)
        if method is None:
            make = self._channel.unary_stream if streamed else self._channel.unary_unary
            method = self._methods[name] = make(_path(name))
        return method

    def _call(
        self, name: str, request: bytes, timeout_s: float | None = None, *, wait_for_ready: bool = False
    ) -> bytes:
        self._check_usable()
        timeout_s = timeout_s or self._timeout_s
        try:
            answer: bytes = self._method(name)(request, timeout=timeout_s, wait_for_ready=wait_for_ready)
        except (grpc.RpcError, ValueError) as error:
            raise self._translated(name, error) from None
        return answer

    def _stream(
        self,
        name: str,
        request: bytes,
        each_s: float = _LONG_TIMEOUT_S,
        all_s: float | None = _LONG_TIMEOUT_S,
        channel: grpc.Channel | None = None,
    ) -> Iterator[bytes]:
        """The messages of a stream: for each at most ``each_s`` seconds are waited, for all together ``all_s``."""
        self._check_usable()
        overdue = threading.Event()
        try:
            begin = self._method(name, streamed=True) if channel is None else channel.unary_stream(_path(name))
            call = begin(request, timeout=all_s)
            try:
                while (message := _next_within(call, each_s, overdue)) is not None:
                    yield message
            finally:
                call.cancel()
        except (grpc.RpcError, ValueError) as error:
            if overdue.is_set():
                self.misbehaved = f"took longer than {each_s:g} s over a part of {name}"
                raise VolumeFailed(f"worker {self.name} {self.misbehaved}") from None
            raise self._translated(name, error) from None

    def _translated(self, name: str, error: grpc.RpcError | ValueError) -> StorageError:
        """What a failed call means: all but a full disk, what may pass, and plain refusals make the volume unusable."""
        if self._failure is not None:
            return VolumeFailed(str(self._failure))
        if isinstance(error, ValueError):  # gRPC's word for a closed channel
            return VolumeFailed(f"the connection to worker {self.name} was closed")
        return self._meaning(name, error)

    def _meaning(self, name: str, error: grpc.RpcError) -> StorageError:
        failure = status.decode(error, self._address)
        if isinstance(failure, StoreFull) or (isinstance(failure, InvalidArgument) and name in _REFUSABLE):
            return failure
        if isinstance(failure, MessageTooLarge):
            return self._broken(failure)
        if isinstance(failure, VolumeUnavailable):  # for want of descriptors or the like; it remains in use
            return VolumeUnavailable(f"worker {self.name}: {failure}")
        if type(failure) is StorageUnavailable:
            return VolumeFailed(f"worker {self.name} does not answer at {self._address}")
        if isinstance(failure, DeadlineExceeded):
            return VolumeFailed(f"worker {self.name} took longer than {self._timeout_s:g} s to answer")
        return VolumeFailed(f"worker {self.name}: {failure}")

    def _checked(self, parse: Callable[[], ResultT]) -> ResultT:
        try:
            return parse()
        except InvalidArgument as error:
            raise self._broken(error) from None

    def _number(self, form: struct.Struct, message: bytes) -> tuple[Any, ...]:
        if len(message) != form.size:
            raise self._broken(ValueError(f"{len(message)} bytes instead of {form.size}"))
        return form.unpack(message)

    def _believable(self, number: int) -> int:
        """A number that counts bytes or shards on one machine, small enough for those of a thousand to be added up."""
        if not 0 <= number <= COUNT_MAX:
            raise self._broken(ValueError(f"the number {number}"))
        return number

    def _broken(self, error: Exception) -> VolumeFailed:
        self.misbehaved = self.misbehaved or str(error)
        return VolumeFailed(f"worker {self.name} answers nonsense: {error}")


def _path(method: str) -> str:
    return f"/{SHARD_SERVICE}/{method}"


def _scan_options(message_bytes_max: int) -> list[tuple[str, int]]:
    """Those of a connection over which messages of up to this size come, of which none is fetched long before."""
    others = {**dict(_CHANNEL_OPTIONS), "grpc.http2.lookahead_bytes": _SCAN_AHEAD_BYTES}
    return [*(others | {"grpc.max_receive_message_length": message_bytes_max}).items()]


def _next_within(call: Any, within_s: float, overdue: threading.Event) -> bytes | None:
    """The next message of a stream; None at its end. The stream is cancelled if it takes longer than that."""

    def give_up() -> None:
        overdue.set()
        call.cancel()

    timer = threading.Timer(within_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        message: bytes | None = next(call, None)
    finally:
        timer.cancel()
    return message


def _keys_max(start: bytes, stop: bytes | None) -> int:
    """How many keys a worker may list between two ids."""
    first, last = start[0] if start else 0, stop[0] if stop else _RANGES
    return _KEYS_HELD_MAX * max(1, last - first) // _RANGES


def _is_listing(page: Sequence[ShardKey], before: bytes, start: bytes, stop: bytes | None) -> bool:
    """Whether these keys go on after ``before``, in ascending order and within ``start`` <= key < ``stop``."""
    return (
        bool(page)
        and page[0] > before
        and page[0] >= start
        and (stop is None or page[-1] < stop)
        and all(map(lt, page, islice(page, 1, None)))
    )


def _fitting(wanted: Sequence[tuple[ShardKey, int]]) -> Iterator[list[Wanted]]:
    """What is wanted, as much at a time as fits into one reply."""
    batch: list[Wanted] = []
    size = 0
    for key, length in wanted:
        if batch and (size + length + 1 > MESSAGE_BYTES_MAX or len(batch) == KEYS_MAX):
            yield batch
            batch, size = [], 0
        batch.append(Wanted(key, length))
        size += length + 1
    if batch:
        yield batch


class _RemoteVerification:
    """See :class:`storage.shards.port.Verification`."""

    def __init__(self, volume: RemoteVolume, token: bytes) -> None:
        self._volume = volume
        self._token = token

    def judge(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """See :meth:`storage.shards.port.Verification.judge`."""
        verdicts: list[Verdict] = []
        for batch in batched(keys, KEYS_MAX):
            answer = self._ask(lambda batch=batch: self._volume._call("Judge", self._token + join_keys(batch)))  # type: ignore[misc]
            verdicts += self._volume._verdicts(answer, batch)
        return verdicts

    def quarantine_rest(self) -> Iterator[ShardKey]:
        """See :meth:`storage.shards.port.Verification.quarantine_rest`."""
        messages = self._volume._stream("Rest", self._token)
        while (message := self._ask(lambda: next(messages, None))) is not None:
            yield from self._volume._checked(lambda message=message: parse_keys(message))  # type: ignore[misc]

    def _ask(self, ask: Callable[[], ResultT]) -> ResultT:
        try:
            return ask()
        except InvalidArgument as error:
            raise VolumeFailed(f"worker {self._volume.name} was started anew during a verification ({error})") from None


def identify_process(address: str, name: str) -> str:
    """Random name of the process that answers at a worker's address.

    Raises:
        VolumeFailed: none does.
    """
    probe = RemoteVolume(address, name, timeout_s=_PROBE_S)
    try:
        return probe.instance(patient=False)
    finally:
        probe.abandon("it was only looked for")
