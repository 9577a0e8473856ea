"""Calls of the shard service of one worker: over its channel, with every failure and wrong answer made an error."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from storage.errors import InvalidArgument, StorageError, StoreClosed, StoreFull
from storage.keys import ShardKey
from storage.limits import KIB, MIB
from storage.shards import VolumeFailed, VolumeUnavailable
from storage.shards.port import Verdict
from taskworker.errors import DeadlineExceeded, MessageTooLarge, StorageUnavailable
from taskworker.rpc import status
from taskworker.rpc.dialling import dial
from taskworker.rpc.limits import CONNECT_TIMEOUT_MS, WINDOW_OPTIONS
from taskworker.transport.frames import COUNT_MAX, MESSAGE_BYTES_MAX, SHARD_SERVICE

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
_SCAN_AHEAD_BYTES = 256 * KIB
# Walks and compactions read and write whole segments between two messages.
LONG_TIMEOUT_S = 600.0
# Calls that a worker may refuse without being broken: it keeps few verifications.
_REFUSABLE = ("Judge", "Rest")


class ShardCalls:
    """Calls one worker. Thread-safe, but for :meth:`fail` and :meth:`end`, which are called under the sender's lock.

    Args:
        address: of the worker, ``host:port`` or ``unix:path``.
        name: what people call it.
        timeout_s: for one ordinary call.

    Attributes:
        misbehaved: what it answered that no honest worker answers, if it did.
        failure: why no more calls can be made, if so.
        ending: whether the connection is being closed: what was appended before is still sent.
    """

    def __init__(self, address: str, name: str, timeout_s: float) -> None:
        self.name = name
        self.timeout_s = timeout_s
        self.misbehaved = ""
        self.failure: StorageError | None = None
        self.ending = False
        self._address = address
        self._channel = dial(address, _CHANNEL_OPTIONS)
        self._methods: dict[str, Any] = {}
        self._lock = threading.Lock()  # of the further connections
        self._further: set[grpc.Channel] = set()

    # -- the connection --------------------------------------------------------------------------

    def fail(self, error: VolumeFailed) -> None:
        """Make every call from now on fail."""
        self.failure = self.failure or error

    def end(self) -> None:
        """Take no more calls but those that send what was appended before."""
        self.ending = True

    def check_usable(self) -> None:
        """Raise an error unless calls can be made."""
        if self.failure is not None:
            raise VolumeFailed(str(self.failure))
        if self.ending:
            raise StoreClosed(f"the connection to worker {self.name} is being closed")

    def disconnect(self) -> None:
        """Close all connections; calls under way fail."""
        with self._lock:
            further = list(self._further)
        for channel in (self._channel, *further):
            channel.close()

    @contextmanager
    def connected(self, message_bytes_max: int) -> Iterator[grpc.Channel]:
        """A further connection to the worker, which ends with this one if not before.

        Args:
            message_bytes_max: of messages that come over it, of which none is fetched long before.
        """
        others = {**dict(_CHANNEL_OPTIONS), "grpc.http2.lookahead_bytes": _SCAN_AHEAD_BYTES}
        options = [*(others | {"grpc.max_receive_message_length": message_bytes_max}).items()]
        channel = dial(self._address, options)
        with self._lock:
            self._further.add(channel)
        try:
            yield channel
        finally:
            with self._lock:
                self._further.discard(channel)
            channel.close()

    # -- calls -----------------------------------------------------------------------------------

    def call(self, name: str, request: bytes, timeout_s: float | None = None, *, wait_for_ready: bool = False) -> bytes:
        """The answer to a call."""
        self.check_usable()
        return self.send(name, request, timeout_s, wait_for_ready=wait_for_ready)

    def send(self, name: str, request: bytes, timeout_s: float | None = None, *, wait_for_ready: bool = False) -> bytes:
        """The answer to a call that is made while the connection is being closed, too."""
        timeout_s = timeout_s or self.timeout_s
        try:
            answer: bytes = self._method(name)(request, timeout=timeout_s, wait_for_ready=wait_for_ready)
        except (grpc.RpcError, ValueError) as error:
            raise self._translated(name, error) from None
        return answer

    def stream(
        self,
        name: str,
        request: bytes,
        each_s: float = LONG_TIMEOUT_S,
        all_s: float | None = LONG_TIMEOUT_S,
        channel: grpc.Channel | None = None,
    ) -> Iterator[bytes]:
        """The messages of a stream: for each at most ``each_s`` seconds are waited, for all together ``all_s``."""
        self.check_usable()
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
                raise self.misbehaves(f"took longer than {each_s:g} s over a part of {name}") from None
            raise self._translated(name, error) from None

    def _method(self, name: str, *, streamed: bool = False) -> Any:
        method = self._methods.get(name)
        if method is None:
            make = self._channel.unary_stream if streamed else self._channel.unary_unary
            method = self._methods[name] = make(_path(name))
        return method

    # -- errors ----------------------------------------------------------------------------------

    def _translated(self, name: str, error: grpc.RpcError | ValueError) -> StorageError:
        """What a failed call means: all but a full disk, what may pass, and plain refusals make the volume unusable."""
        if self.failure is not None:
            return VolumeFailed(str(self.failure))
        if isinstance(error, ValueError):  # gRPC's word for a closed channel
            return VolumeFailed(f"the connection to worker {self.name} was closed")
        return self._meaning(name, error)

    def _meaning(self, name: str, error: grpc.RpcError) -> StorageError:
        failure = status.decode(error, self._address)
        if isinstance(failure, StoreFull) or (isinstance(failure, InvalidArgument) and name in _REFUSABLE):
            return failure
        if isinstance(failure, MessageTooLarge):
            return self.broken(failure)
        if isinstance(failure, VolumeUnavailable):  # for want of descriptors or the like; it remains in use
            return VolumeUnavailable(f"worker {self.name}: {failure}")
        if type(failure) is StorageUnavailable:
            return VolumeFailed(f"worker {self.name} does not answer at {self._address}")
        if isinstance(failure, DeadlineExceeded):
            return VolumeFailed(f"worker {self.name} took longer than {self.timeout_s:g} s to answer")
        return VolumeFailed(f"worker {self.name}: {failure}")

    def checked(self, parse: Callable[[], ResultT]) -> ResultT:
        """What ``parse`` makes of an answer; a worker whose answer makes it raise ``InvalidArgument`` is broken."""
        try:
            return parse()
        except InvalidArgument as error:
            raise self.broken(error) from None

    def number(self, form: struct.Struct, message: bytes) -> tuple[Any, ...]:
        """The numbers in an answer."""
        if len(message) != form.size:
            raise self.broken(ValueError(f"{len(message)} bytes instead of {form.size}"))
        return form.unpack(message)

    def believable(self, number: int) -> int:
        """A number that counts bytes or shards on one machine, small enough for those of a thousand to be added up."""
        if not 0 <= number <= COUNT_MAX:
            raise self.broken(ValueError(f"the number {number}"))
        return number

    def verdicts(self, answer: bytes, keys: Sequence[ShardKey]) -> list[Verdict]:
        """The verdicts on these shards in an answer."""
        if len(answer) != len(keys) or max(answer, default=0) > max(Verdict):
            raise self.broken(ValueError("verdicts that do not fit the keys"))
        return [Verdict(verdict) for verdict in answer]

    def broken(self, error: Exception) -> VolumeFailed:
        """The error of a worker whose answer cannot be right."""
        self.misbehaved = self.misbehaved or str(error)
        return VolumeFailed(f"worker {self.name} answers nonsense: {error}")

    def misbehaves(self, how: str) -> VolumeFailed:
        """The error of a worker that keeps its caller waiting as no sound one does."""
        self.misbehaved = how
        return VolumeFailed(f"worker {self.name} {how}")


def _path(method: str) -> str:
    return f"/{SHARD_SERVICE}/{method}"


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
