"""A worker's volume as a shard store: the client side of the shard transport.

Appends are gathered: while one frame is on its way, what comes meanwhile goes into the next, so that
large pushes travel in large messages and a lone small one leaves at once.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
import msgspec
from blake3 import blake3

from storage.batching import batched
from storage.errors import InvalidArgument, StorageError, StoreClosed, StoreFull
from storage.keys import Kind, ShardKey
from storage.limits import MIB
from storage.shards import CorruptShard, Location, Shard, VolumeFailed, VolumeUsage
from storage.shards.port import Verdict, Verification
from taskworker.client.channel import target_of
from taskworker.wire import status
from taskworker.wire.limits import WINDOW_OPTIONS
from taskworker.wire.shards import (
    CORRUPT,
    FLAG_SYNC,
    FLAG_URGENT,
    KEYS_MAX,
    MESSAGE_BYTES_MAX,
    SHARD_SERVICE,
    AppendFrame,
    Wanted,
    join_keys,
    pack_locations,
    pack_wanted,
    parse_fetched,
    parse_found,
    parse_keys,
    parse_locations,
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
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)

# A worker that takes longer over one message than this is as good as away: the data goes elsewhere.
CALL_TIMEOUT_S = 5.0
# Walks and compactions read and write whole segments between two messages.
_LONG_TIMEOUT_S = 600.0
# Frames waiting for one worker; appends wait beyond that, which bounds the pool's memory.
_QUEUED_BYTES_MAX = 4 * MIB

_PROGRESS = struct.Struct("<Q")
_RATIO = struct.Struct("<d")
_COMPACTED = struct.Struct("<IQ")


class SyncTicket:
    """A sync under way on a remote volume."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: StorageError | None = None

    def settle(self, error: StorageError | None) -> None:
        """Say how it ended."""
        self._error = error
        self._done.set()

    def wait(self) -> None:
        """Return when everything before is durable.

        Raises:
            StoreFull, VolumeFailed: something of it could not be stored.
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
        timeout_s: for one ordinary call.
    """

    def __init__(self, address: str, name: str, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.name = name
        self._address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target_of(address), options=_CHANNEL_OPTIONS)
        self._methods: dict[str, Any] = {}
        self._failure: StorageError | None = None
        self._changed = threading.Condition()
        self._frame = AppendFrame()
        self._tickets: list[SyncTicket] = []
        self._sent: AppendFrame | None = None
        self._unreported: StorageError | None = None
        self._closing = False
        self._sender = threading.Thread(target=self._send_all, name=f"append-{name}", daemon=True)
        self._sender.start()

    # -- writing ---------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """See :meth:`ShardStore.append`: queued when it returns. A failure shows at the next sync."""
        with self._changed:
            while self._failure is None and not self._closing and self._frame.size > _QUEUED_BYTES_MAX:
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
            self._frame.add(shard)
        self._frame.mark(flags)
        self._changed.notify_all()

    def _send_all(self) -> None:
        """The sender thread: one frame after another, until the volume is closed or has failed."""
        append = self._method("Append")
        while True:
            with self._changed:
                while self._failure is None and not self._frame.pending and not self._closing:
                    self._changed.wait()
                if self._failure is not None or not self._frame.pending:
                    return
                frame, self._frame = self._frame, AppendFrame()
                tickets, self._tickets = self._tickets, []
                self._sent = frame
                self._changed.notify_all()
            error = self._send(append, frame)
            with self._changed:
                self._sent = None
                if isinstance(error, VolumeFailed):
                    self._fail(error)
                self._unreported = self._unreported or error
                outcome = self._unreported
                if tickets:
                    self._unreported = None
            for ticket in tickets:
                ticket.settle(outcome)

    def _send(self, append: Callable[..., bytes], frame: AppendFrame) -> StorageError | None:
        try:
            append(frame.message(), timeout=self._timeout_s)
        except grpc.RpcError as error:
            failure = status.decode(error, self._address)
            return failure if isinstance(failure, StoreFull) else VolumeFailed(f"worker {self.name}: {failure}")
        return None

    # -- reading ---------------------------------------------------------------------------------

    def locate(self, key: ShardKey) -> Location | None:
        """See :meth:`ShardStore.locate`."""
        return self.locate_all([key])[0]

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        """See :meth:`ShardStore.locate_all`. What is on its way counts as there, at place 0."""
        found: list[Location | None] = []
        for batch in batched(keys, KEYS_MAX):
            with self._changed:
                queued = self._frame.keys | (self._sent.keys if self._sent is not None else {})
            unknown = [key for key in batch if key not in queued]
            there = dict(zip(unknown, self._ask_locations(unknown), strict=True)) if unknown else {}
            found += [queued.get(key) or there.get(key) for key in batch]
        return found

    def _ask_locations(self, keys: list[ShardKey]) -> list[Location | None]:
        return self._checked(lambda: parse_locations(self._call("Locate", join_keys(keys)), len(keys)))

    def read_into(self, key: ShardKey, buffers: Sequence[memoryview], length: int) -> bool:
        """See :meth:`ShardStore.read_into`."""
        payload = self.fetch(key, length)
        if payload is None:
            return False
        at = 0
        for buffer in buffers:
            buffer[:] = payload[at : at + len(buffer)]
            at += len(buffer)
        return True

    def fetch(self, key: ShardKey, length: int) -> memoryview | None:
        """The payload, unchecked; None if it is not there or of another length."""
        wanted = [Wanted(key, length)]
        return self._checked(lambda: parse_fetched(self._call("Fetch", pack_wanted(wanted)), wanted))[0]

    def read(self, key: ShardKey) -> Shard | None:
        """See :meth:`ShardStore.read`. That the digest is the written one is the worker's word, no more."""
        found = self._checked(lambda: parse_found(self._call("Read", key), [key]))[0]
        if found == CORRUPT:
            raise CorruptShard(f"worker {self.name} says that its shard {key.hex()} is rotten")
        if not isinstance(found, Shard):
            return None
        if blake3(found.payload).digest() != found.digest:
            raise CorruptShard(f"worker {self.name} sent a shard {key.hex()} that does not match its own digest")
        return found

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        """See :meth:`ShardStore.keys`."""
        for message in self._stream("Keys", bytes([len(start)]) + start + (stop or b"")):
            yield from self._checked(lambda message=message: parse_keys(message))  # type: ignore[misc]

    def records(self, kinds: frozenset[Kind]) -> Iterator[Shard]:
        """See :meth:`ShardStore.records`."""
        for message in self._stream("Records", bytes(sorted(kinds))):
            yield from self._checked(lambda message=message: parse_shards(message))  # type: ignore[misc]

    # -- upkeep ----------------------------------------------------------------------------------

    def remove(self, keys: Iterable[ShardKey]) -> int:
        """See :meth:`ShardStore.remove`."""
        removed = 0
        for batch in batched(keys, KEYS_MAX):
            removed += self._number(_PROGRESS, self._call("Remove", join_keys(batch)))[0]
        return removed

    def discard(self, key: ShardKey, location: Location) -> bool:
        """See :meth:`ShardStore.discard`."""
        return self._call("Discard", key + pack_locations([location])) == b"\1"

    def verify(self, progress: Callable[[int], None]) -> Verification:
        """See :meth:`ShardStore.verify`."""
        for message in self._stream("Verify", b""):
            if len(message) == 1 + _PROGRESS.size:
                return _RemoteVerification(self, message[1:])
            progress(self._number(_PROGRESS, message)[0])
        raise VolumeFailed(f"worker {self.name} ended a verification without an outcome")

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        """See :meth:`ShardStore.compact`."""
        segments, freed = self._number(
            _COMPACTED, self._call("Compact", _RATIO.pack(live_ratio_max), timeout_s=_LONG_TIMEOUT_S)
        )
        return segments, freed

    def usage(self) -> VolumeUsage:
        """See :meth:`ShardStore.usage`."""
        try:
            return msgspec.msgpack.decode(self._call("Usage", b""), type=VolumeUsage)
        except msgspec.DecodeError as error:
            raise self._broken(error) from None

    # -- ending ----------------------------------------------------------------------------------

    def abandon(self, reason: str) -> None:
        """See :meth:`ShardStore.abandon`."""
        with self._changed:
            self._fail(VolumeFailed(reason))
        self._channel.close()

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
            method = self._methods[name] = make(f"/{SHARD_SERVICE}/{name}")
        return method

    def _call(self, name: str, request: bytes, timeout_s: float | None = None) -> bytes:
        self._check_usable()
        try:
            answer: bytes = self._method(name)(request, timeout=timeout_s or self._timeout_s)
        except (grpc.RpcError, ValueError) as error:
            raise self._translated(error) from None
        return answer

    def _stream(self, name: str, request: bytes) -> Iterator[bytes]:
        self._check_usable()
        try:
            call = self._method(name, streamed=True)(request, timeout=_LONG_TIMEOUT_S)
            try:
                yield from call
            finally:
                call.cancel()
        except (grpc.RpcError, ValueError) as error:
            raise self._translated(error) from None

    def _translated(self, error: grpc.RpcError | ValueError) -> StorageError:
        """What a failed call means: all but plain refusals make the volume unusable."""
        if self._failure is not None:
            return VolumeFailed(str(self._failure))
        if isinstance(error, ValueError):  # gRPC's word for a closed channel
            return VolumeFailed(f"the connection to worker {self.name} was closed")
        failure = status.decode(error, self._address)
        if isinstance(failure, StoreFull | InvalidArgument):
            return failure
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

    def _broken(self, error: Exception) -> VolumeFailed:
        return VolumeFailed(f"worker {self.name} answers nonsense: {error}")


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
            if len(answer) != len(batch) or max(answer, default=0) > max(Verdict):
                raise self._volume._broken(ValueError("verdicts that do not fit the keys"))
            verdicts += map(Verdict, answer)
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
