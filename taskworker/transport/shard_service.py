"""Serves a worker's volume to its pool over the shard transport."""

from __future__ import annotations

import logging
import secrets
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec
from blake3 import blake3

from storage.batching import batched
from storage.errors import InvalidArgument, StorageError
from storage.keys import SHARD_KEY_BYTES, Kind, ShardKey
from storage.limits import KIB, BytesLike
from storage.progress import Progress
from storage.runtime import Runtime
from storage.shards import CorruptShard, Shard, ShardStore, VolumeReadOnly, VolumeUnavailable
from storage.shards.filesystem import VolumeFile
from storage.shards.port import Verification
from taskworker.errors import ServerFault, WorkerReadOnly, WorkerRestarted
from taskworker.metrics.observers import OBSERVERS
from taskworker.rpc import status
from taskworker.rpc.binding import require_active
from taskworker.rpc.running import Run
from taskworker.transport.frames import (
    ABSENT,
    CORRUPT,
    FLAG_SYNC,
    FLAG_URGENT,
    KEYS_MAX,
    PRESENT,
    UNREADABLE,
    Call,
    Wanted,
    join_keys,
    pack_found,
    pack_locations,
    pack_positions,
    pack_shards,
    parse_append,
    parse_keys,
    parse_locations,
    parse_wanted,
    split_keys,
)
from taskworker.transport.making_frames import ABSENT_PROOF, pack_made, parse_make, parse_prove
from taskworker.transport.observed import observed
from taskworker.transport.shard_maker import ShardMaker
from taskworker.transport.shards_of_clients import ShardsOfClients
from taskworker.transport.sources import Sources
from taskworker.transport.wire.connection import Poller
from taskworker.transport.wire.outgoing import FilePart, Parts
from taskworker.transport.wire.poller import SHARED
from taskworker.transport.wire.server import Allowed, WireServer
from taskworker.transport.wire.serving import Caller, Method, Style
from taskworker.transport.wire.streams import Dial, Secure, SocketStream, dial

log = logging.getLogger(__name__)

_VERIFICATIONS_KEPT = 2
_TOKEN_BYTES = 8
_SIGN_OF_LIFE_S = 1.0
# Sending from the file saves a copy, but is a system call more.
_FROM_FILE_BYTES_MIN = 32 * KIB
# A sync of less is done in the thread that reads the connection: handing it over takes longer than the flush.
_QUICK_SYNC_BYTES_MAX = 256 * KIB
_PROGRESS = struct.Struct("<Q")
_RATIO = struct.Struct("<d")
_COMPACTED = struct.Struct("<IQ")


Current = Callable[[], tuple[ShardStore, str]]
"""Returns the volume to serve, and its random instance name, which changes when the volume is reopened."""


class Dialling(NamedTuple):
    """How a worker reaches other workers.

    Attributes:
        poller: receives for the connections.
        dial: connects to an address.
        runtime: what to wait with.
    """

    poller: Poller
    dial: Dial
    runtime: Runtime


@runtime_checkable
class HasPayloadFiles(Protocol):
    """A shard store on this machine, whose payloads can be sent from their files."""

    def payload_file(self, key: ShardKey, length: int) -> tuple[VolumeFile, int] | None:
        """The open file that has a payload, and where it begins; None if it cannot be read this way."""


class ShardService:
    """Serves one volume. Every method takes a request, and returns an answer or an iterator of messages.

    Args:
        volume: the volume to serve.
        instance: random name of this process, by which the pool distinguishes it from others at its address.
        current: returns both for each call, if they change when the volume is reopened.
        clock_s: monotonic seconds.
        dialling: how to reach other workers.
        from_clients: remembers what clients wrote.
    """

    def __init__(
        self,
        volume: ShardStore | None,
        instance: str,
        current: Current | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        dialling: Dialling | None = None,
        from_clients: ShardsOfClients | None = None,
    ) -> None:
        self._from_clients = from_clients or ShardsOfClients()
        self._clock_s = clock_s
        means = dialling or Dialling(SHARED, dial, Runtime())
        self._sources = Sources(lambda: self._volume, means.poller, means.dial, clock_s)
        self._maker = ShardMaker(self._sources, means.runtime)
        self._current = current or (lambda: _unchanging(volume, instance))
        self._lock = threading.Lock()
        self._verifications: OrderedDict[bytes, Verification] = OrderedDict()
        self._synced = OBSERVERS.synced
        self._unsynced = 0  # bytes appended since the last sync; need not be exact

    @property
    def _volume(self) -> ShardStore:
        return self._current()[0]

    @property
    def _instance(self) -> bytes:
        return self._current()[1].encode()

    def instance(self, _request: bytes, _caller: Caller) -> bytes:
        """The instance name of this process."""
        return self._instance

    def append(self, request: memoryview, _caller: Caller) -> Parts:
        """Store shards; if requested, make them and all earlier ones durable.

        Raises:
            WorkerRestarted: the request is meant for an earlier process, whose shards may not have reached the disk.
        """
        flags, instance, shards = parse_append(request)
        volume = self._volume_of(instance)
        try:
            if shards:
                self._unsynced += len(request)
                volume.append(shards, urgent=bool(flags & FLAG_URGENT))
            if flags & FLAG_SYNC:
                self._unsynced = self._from_clients.unsynced = 0
                self._sync(volume)
        except VolumeReadOnly as error:
            raise WorkerReadOnly(str(error)) from error
        return ()

    def _sync(self, volume: ShardStore) -> None:
        began_s = time.perf_counter()
        volume.sync()
        if self._synced is not None:
            self._synced(time.perf_counter() - began_s)

    def _volume_of(self, instance: bytes) -> ShardStore:
        """The volume, if it is that of the process with this name; an empty name means any."""
        volume, now = self._current()
        if instance not in (b"", now.encode()):
            raise WorkerRestarted("this worker restarted, or reopened its volume, since it joined; it joins again")
        return volume

    def make(self, request: bytes, caller: Caller) -> Iterator[bytes]:
        """Make shards from those of other workers, and store them, but not durably yet.

        Raises:
            WorkerRestarted: see :meth:`append`.
        """
        instance, orders = parse_make(request)
        volume = self._volume_of(instance)

        def append(shards: Sequence[Shard]) -> None:
            self._unsynced += sum(len(shard.payload) for shard in shards)
            try:
                volume.append(shards)
            except VolumeReadOnly as error:
                raise WorkerReadOnly(str(error)) from error

        for made in self._maker.make(orders, append, caller):
            yield pack_made(made.result, made.digests)

    def prove(self, request: bytes, _caller: Caller) -> bytes:
        """Hashes of payloads that are stored, with a key that shows that they are read now."""
        nonce, keys = parse_prove(request)
        shards = (self._read(key) for key in keys)
        return b"".join(
            blake3(shard.payload, key=nonce).digest() if isinstance(shard, Shard) else ABSENT_PROOF for shard in shards
        )

    def close(self) -> None:
        """Close the connections to other workers."""
        self._sources.close()

    def _style_of_append(self, request: memoryview) -> Style:
        """A flush of much takes long, and appends that follow need not wait for it."""
        syncs = len(request) > 0 and request[0] & FLAG_SYNC
        unsynced = self._unsynced + self._from_clients.unsynced + len(request)
        return Style.SLOW if syncs and unsynced > _QUICK_SYNC_BYTES_MAX else Style.QUICK

    def locate(self, request: bytes, _caller: Caller) -> bytes:
        """Which shards are here."""
        return pack_locations(self._volume.locate_all(parse_keys(request)))

    def missing(self, request: bytes, _caller: Caller) -> bytes:
        """Which shards are not here."""
        return pack_positions(self._volume.missing(split_keys(request)))

    def fetch(self, request: memoryview, _caller: Caller) -> Parts:
        """Payloads, not verified: the reader verifies the whole object."""
        return self.payloads(parse_wanted(request))

    def payloads(self, wanted: Sequence[Wanted]) -> Parts:
        """The answer to a fetch of these shards."""
        states = bytearray(len(wanted))
        parts: list[BytesLike | FilePart] = []
        for at, want in enumerate(wanted):
            payload = self._payload(want, partial(states.__setitem__, at, ABSENT))
            if payload is not None:
                states[at] = PRESENT
                parts.append(payload)
        parts.append(states)
        return parts

    def _payload(self, want: Wanted, failed: Callable[[], None]) -> BytesLike | FilePart | None:
        """A payload, from its file if it is large; None if it cannot be read."""
        volume = self._volume
        try:
            if want.length >= _FROM_FILE_BYTES_MIN and isinstance(volume, HasPayloadFiles):
                found = volume.payload_file(want.key, want.length)
                if found is not None:
                    file, offset = found
                    return FilePart(file, file.descriptor(), offset, want.length, failed)
            (payload,) = volume.fetch_all([want])
        except (CorruptShard, VolumeUnavailable):
            return None  # the reader asks other workers; Read reports what is wrong here
        return payload

    def read(self, request: bytes, _caller: Caller) -> bytes:
        """Shards, with header and digest verified."""
        return pack_found([self._read(key) for key in parse_keys(request)])

    def _read(self, key: bytes) -> Shard | int | None:
        try:
            return self._volume.read(key)  # type: ignore[arg-type]
        except CorruptShard:
            return CORRUPT
        except VolumeUnavailable:
            return UNREADABLE

    def written(self, request: bytes, _caller: Caller) -> bytes:
        """Hashes of payloads that clients wrote, as far as they are still here."""
        return b"".join(self._from_clients.digests(self._volume, parse_keys(request)))

    def remove(self, request: bytes, _caller: Caller) -> bytes:
        """Forget shards."""
        return _PROGRESS.pack(self._volume.remove(parse_keys(request)))

    def discard(self, request: bytes, _caller: Caller) -> bytes:
        """Set a bad shard aside if it is still at its location: key, location, whether it was proved wrong (1)."""
        if len(request) < SHARD_KEY_BYTES:
            raise InvalidArgument("a discard request is a key and a location")
        (key,) = parse_keys(request[:SHARD_KEY_BYTES])
        (location,) = parse_locations(request[SHARD_KEY_BYTES:-1], 1)
        if location is None:
            raise InvalidArgument("a location to discard is needed")
        return bytes([self._volume.discard(key, location, wrong=request[-1] != 0)])

    def keys(self, request: bytes, caller: Caller) -> Iterator[bytes]:
        """Keys from ``start`` up to ``stop``: length of start (1), start, stop (empty: no end)."""
        start, stop = _parse_range(request)
        for batch in batched(self._volume.keys(start, stop), KEYS_MAX):
            require_active(caller)
            yield join_keys(batch)

    def records(self, request: bytes, caller: Caller) -> Iterator[bytes]:
        """All intact shards of these kinds (a byte each), found by a scan; empty frames show that it is running."""
        kinds = frozenset(Kind(kind) for kind in request if kind in set(Kind))
        told_s = self._clock_s()
        for page in self._volume.records(kinds):
            require_active(caller)
            if page or self._clock_s() - told_s >= _SIGN_OF_LIFE_S:
                yield pack_shards(page)
                told_s = self._clock_s()

    def newest(self, _request: bytes, _caller: Caller) -> bytes:
        """The readable version or tombstone with the highest sequence number; nothing if there is none."""
        shard = self._volume.newest()
        return pack_shards([shard] if shard is not None else [])

    def verify(self, _request: bytes, _caller: Caller) -> Iterator[bytes]:
        """Verify everything: sends the numbers of bytes read (8), and at last a token for Judge and Rest (9)."""
        with Run(self._verify) as run:
            told = 0
            for done, _ in run.progress():
                yield _PROGRESS.pack(done - told)
                told = done
            token = secrets.token_bytes(_TOKEN_BYTES)
            with self._lock:
                self._verifications[token] = run.outcome()
                while len(self._verifications) > _VERIFICATIONS_KEPT:
                    self._verifications.popitem(last=False)
        yield b"\1" + token

    def _verify(self, progress: Progress) -> Verification:
        """Verify the volume, and add up its progress reports."""
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            progress(done, 0)

        return self._volume.verify(add)

    def judge(self, request: bytes, _caller: Caller) -> bytes:
        """Verdicts (a byte each) on keys, from a verification: token (8), keys."""
        verification = self._verification(request[:_TOKEN_BYTES])
        return bytes(verification.judge(parse_keys(request[_TOKEN_BYTES:])))

    def rest(self, request: bytes, caller: Caller) -> Iterator[bytes]:
        """Forget the other shards that a verification found corrupt, end it, and return their keys."""
        verification = self._verification(request)
        for batch in batched(verification.quarantine_rest(), KEYS_MAX):
            require_active(caller)
            yield join_keys(batch)
        with self._lock:
            self._verifications.pop(request, None)

    def _verification(self, token: bytes) -> Verification:
        with self._lock:
            found = self._verifications.get(token)
        if found is None:
            raise InvalidArgument("this verification has ended; verify again")
        return found

    def check(self, request: bytes, _caller: Caller) -> bytes:
        """Verdicts (a byte each) on keys, by reading them now; corrupt shards are set aside."""
        return bytes(self._volume.check(parse_keys(request)))

    def compact(self, request: bytes, _caller: Caller) -> bytes:
        """Rewrite segments with at most this share of live bytes (a double)."""
        if len(request) != _RATIO.size:
            raise InvalidArgument("a compact request is one double")
        segments, freed = self._volume.compact(*_RATIO.unpack(request))
        return _COMPACTED.pack(segments, freed)

    def usage(self, _request: bytes, _caller: Caller) -> bytes:
        """Space and contents, as a MessagePack map."""
        return msgspec.msgpack.encode(self._volume.usage())

    def methods(self) -> dict[int, Method]:
        """All methods, as the server of the transport takes them."""
        quick: Mapping[Call, Callable[[bytes, Caller], bytes]] = {
            Call.LOCATE: self.locate,
            Call.MISSING: self.missing,
            Call.READ: self.read,
            Call.DISCARD: self.discard,
            Call.USAGE: self.usage,
            Call.INSTANCE: self.instance,
            Call.WRITTEN: self.written,
        }
        slow: Mapping[Call, Callable[[bytes, Caller], bytes]] = {
            Call.REMOVE: self.remove,
            Call.JUDGE: self.judge,
            Call.CHECK: self.check,
            Call.COMPACT: self.compact,
            Call.NEWEST: self.newest,
            Call.PROVE: self.prove,
        }
        streams: Mapping[Call, Callable[[bytes, Caller], Iterator[bytes]]] = {
            Call.KEYS: self.keys,
            Call.RECORDS: self.records,
            Call.VERIFY: self.verify,
            Call.REST: self.rest,
            Call.MAKE: self.make,
        }
        return {
            Call.APPEND: Method(Call.APPEND.name, self._style_of_append, self.append),
            Call.FETCH: Method(Call.FETCH.name, Style.QUICK, self.fetch),
            **{call: Method(call.name, Style.QUICK, _once(serve)) for call, serve in quick.items()},
            **{call: Method(call.name, Style.SLOW, _once(serve)) for call, serve in slow.items()},
            **{call: Method(call.name, Style.STREAM, _each(serve)) for call, serve in streams.items()},
        }


def _once(serve: Callable[[bytes, Caller], bytes]) -> Callable[[memoryview, Caller], Parts]:
    return lambda request, caller: (serve(bytes(request), caller),)


def _each(serve: Callable[[bytes, Caller], Iterator[bytes]]) -> Callable[[memoryview, Caller], Iterator[Parts]]:
    return lambda request, caller: ((message,) for message in serve(bytes(request), caller))


def shard_server(
    volume: ShardStore | None,
    instance: str = "",
    hide: tuple[str, ...] = (),
    current: Current | None = None,
    secure: Secure = SocketStream,
    dialling: Dialling | None = None,
    allowed: Allowed = lambda stream: None,
    from_clients: ShardsOfClients | None = None,
) -> WireServer:
    """A server of a volume; see :class:`ShardService` and :class:`WireServer`.

    Args:
        volume: the volume, if it is always the same.
        instance: name of this process.
        hide: paths not to show to callers.
        current: returns the volume as it is open now, and the name of this process.
        secure: makes an accepted socket a stream.
        dialling: how to reach other workers.
        allowed: which methods a caller may call, see :class:`WireServer`.
        from_clients: remembers what clients wrote.
    """
    service = ShardService(volume, instance, current, dialling=dialling, from_clients=from_clients)
    return _ShardServer(service, hide, secure, allowed)


class _ShardServer(WireServer):
    """Serves a volume, and closes the connections to other workers in the end."""

    def __init__(self, service: ShardService, hide: tuple[str, ...], secure: Secure, allowed: Allowed) -> None:
        super().__init__(
            observed(service.methods()), lambda error: describe(error, hide), secure=secure, allowed=allowed
        )
        self._service = service

    def stop(self, grace_s: float = 5.0) -> None:
        """See :meth:`WireServer.stop`."""
        super().stop(grace_s)
        self._service.close()


def describe(error: Exception, hide: tuple[str, ...] = ()) -> bytes:
    """An error as it travels: the name of its class, and its text. Unforeseen ones are only logged."""
    if not isinstance(error, StorageError) or not status.is_foreseen(error):
        reference = secrets.token_hex(4)
        log.error("a call of the shard transport failed (reference %s)", reference, exc_info=error)
        error = ServerFault(f"the worker failed unexpectedly; see reference {reference} in its log")
    failure = status.encode(error, hide)
    return f"{status.kind_of(error)}\0{failure.text}".encode()


def _unchanging(volume: ShardStore | None, instance: str) -> tuple[ShardStore, str]:
    assert volume is not None, "pass either a volume or a function that returns one"
    return volume, instance


def _parse_range(request: bytes) -> tuple[bytes, bytes | None]:
    if not request or len(request) < 1 + request[0]:
        raise InvalidArgument("malformed key range")
    start, stop = request[1 : 1 + request[0]], request[1 + request[0] :]
    return start, stop or None
