"""ShardService: serves a worker's volume to its pool, in raw frames (see ``transport.frames``)."""

from __future__ import annotations

import secrets
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

import grpc
import msgspec

from storage.batching import batched
from storage.errors import InvalidArgument
from storage.keys import SHARD_KEY_BYTES, Kind
from storage.reports import Progress
from storage.shards import CorruptShard, Shard, ShardStore, VolumeReadOnly, VolumeUnavailable
from storage.shards.port import Verification
from taskworker.errors import WorkerReadOnly, WorkerRestarted
from taskworker.rpc.binding import Caller, raw_handler, require_active
from taskworker.services.running import Run
from taskworker.transport.frames import (
    CORRUPT,
    FLAG_SYNC,
    FLAG_URGENT,
    KEYS_MAX,
    SHARD_SERVICE,
    UNREADABLE,
    FetchReply,
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

_VERIFICATIONS_KEPT = 2
_TOKEN_BYTES = 8
_SIGN_OF_LIFE_S = 1.0
_PROGRESS = struct.Struct("<Q")
_RATIO = struct.Struct("<d")
_COMPACTED = struct.Struct("<IQ")


Current = Callable[[], tuple[ShardStore, str]]
"""Returns the volume to serve, and its random instance name, which changes when the volume is reopened."""


class ShardService:
    """Serves one volume. Every method takes and returns frames, or iterators of them.

    Args:
        volume: the volume to serve.
        instance: random name of this process, by which the pool distinguishes it from others at its address.
        current: returns both for each call, if they change when the volume is reopened.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        volume: ShardStore | None,
        instance: str,
        current: Current | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock_s = clock_s
        self._current = current or (lambda: _unchanging(volume, instance))
        self._lock = threading.Lock()
        self._verifications: OrderedDict[bytes, Verification] = OrderedDict()

    @property
    def _volume(self) -> ShardStore:
        return self._current()[0]

    @property
    def _instance(self) -> bytes:
        return self._current()[1].encode()

    def Instance(self, _request: bytes, _caller: Caller) -> bytes:  # noqa: N802 - the names are the contract's
        """The instance name of this process."""
        return self._instance

    def Append(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802 - the names are the contract's
        """Store shards; if requested, make them and all earlier ones durable.

        Raises:
            WorkerRestarted: the request is meant for an earlier process, whose shards may not have reached the disk.
        """
        flags, instance, shards = parse_append(request)
        volume, now = self._current()
        if instance not in (b"", now.encode()):
            raise WorkerRestarted("this worker restarted, or reopened its volume, since it joined; it joins again")
        try:
            if shards:
                volume.append(shards, urgent=bool(flags & FLAG_URGENT))
            if flags & FLAG_SYNC:
                volume.sync()
        except VolumeReadOnly as error:
            raise WorkerReadOnly(str(error)) from error
        return b""

    def Locate(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Which shards are here."""
        return pack_locations(self._volume.locate_all(parse_keys(request)))

    def Missing(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Which shards are not here."""
        return pack_positions(self._volume.missing(split_keys(request)))

    def Fetch(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Payloads, not verified: the reader verifies the whole object."""
        reply = FetchReply(parse_wanted(request))
        for index, want, place in reply.slots():
            try:
                present = self._volume.read_into(want.key, [place], want.length)
            except (CorruptShard, VolumeUnavailable):
                present = False  # the reader asks other workers; Read reports what is wrong here
            reply.note(index, present=present)
        return reply.message()

    def Read(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Shards, with header and digest verified."""
        return pack_found([self._read(key) for key in parse_keys(request)])

    def _read(self, key: bytes) -> Shard | int | None:
        try:
            return self._volume.read(key)  # type: ignore[arg-type]
        except CorruptShard:
            return CORRUPT
        except VolumeUnavailable:
            return UNREADABLE

    def Remove(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Forget shards."""
        return _PROGRESS.pack(self._volume.remove(parse_keys(request)))

    def Discard(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Set a bad shard aside if it is still at its location: key, location, whether it was proved wrong (1)."""
        if len(request) < SHARD_KEY_BYTES:
            raise InvalidArgument("a discard request is a key and a location")
        (key,) = parse_keys(request[:SHARD_KEY_BYTES])
        (location,) = parse_locations(request[SHARD_KEY_BYTES:-1], 1)
        if location is None:
            raise InvalidArgument("a location to discard is needed")
        return bytes([self._volume.discard(key, location, wrong=request[-1] != 0)])

    def Keys(self, request: bytes, caller: Caller) -> Iterator[bytes]:  # noqa: N802
        """Keys from ``start`` up to ``stop``: length of start (1), start, stop (empty: no end)."""
        start, stop = _parse_range(request)
        for batch in batched(self._volume.keys(start, stop), KEYS_MAX):
            require_active(caller)
            yield join_keys(batch)

    def Records(self, request: bytes, caller: Caller) -> Iterator[bytes]:  # noqa: N802
        """All intact shards of these kinds (a byte each), found by a scan; empty frames show that it is running."""
        kinds = frozenset(Kind(kind) for kind in request if kind in set(Kind))
        told_s = self._clock_s()
        for page in self._volume.records(kinds):
            require_active(caller)
            if page or self._clock_s() - told_s >= _SIGN_OF_LIFE_S:
                yield pack_shards(page)
                told_s = self._clock_s()

    def Newest(self, _request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """The readable version or tombstone with the highest sequence number; nothing if there is none."""
        shard = self._volume.newest()
        return pack_shards([shard] if shard is not None else [])

    def Verify(self, _request: bytes, _caller: Caller) -> Iterator[bytes]:  # noqa: N802
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

    def Judge(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Verdicts (a byte each) on keys, from a verification: token (8), keys."""
        verification = self._verification(request[:_TOKEN_BYTES])
        return bytes(verification.judge(parse_keys(request[_TOKEN_BYTES:])))

    def Rest(self, request: bytes, caller: Caller) -> Iterator[bytes]:  # noqa: N802
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

    def Check(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Verdicts (a byte each) on keys, by reading them now; corrupt shards are set aside."""
        return bytes(self._volume.check(parse_keys(request)))

    def Compact(self, request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Rewrite segments with at most this share of live bytes (a double)."""
        if len(request) != _RATIO.size:
            raise InvalidArgument("a compact request is one double")
        segments, freed = self._volume.compact(*_RATIO.unpack(request))
        return _COMPACTED.pack(segments, freed)

    def Usage(self, _request: bytes, _caller: Caller) -> bytes:  # noqa: N802
        """Space and contents, as a MessagePack map."""
        return msgspec.msgpack.encode(self._volume.usage())


UNARY = (
    "Append",
    "Locate",
    "Missing",
    "Fetch",
    "Read",
    "Remove",
    "Discard",
    "Judge",
    "Check",
    "Compact",
    "Usage",
    "Newest",
    "Instance",
)
STREAMS = ("Keys", "Records", "Verify", "Rest")


def shard_handler(
    volume: ShardStore | None, instance: str = "", hide: tuple[str, ...] = (), current: Current | None = None
) -> grpc.GenericRpcHandler:
    """The handlers of a volume's service; see :class:`ShardService`. ``hide``: paths not to show to callers."""
    service = ShardService(volume, instance, current)
    return raw_handler(SHARD_SERVICE, service, unary=UNARY, streams=STREAMS, hide=hide)


def _unchanging(volume: ShardStore | None, instance: str) -> tuple[ShardStore, str]:
    assert volume is not None, "pass either a volume or a function that returns one"
    return volume, instance


def _parse_range(request: bytes) -> tuple[bytes, bytes | None]:
    if not request or len(request) < 1 + request[0]:
        raise InvalidArgument("malformed key range")
    start, stop = request[1 : 1 + request[0]], request[1 + request[0] :]
    return start, stop or None
