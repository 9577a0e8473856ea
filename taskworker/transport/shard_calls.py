"""Calls of one worker's shard service: every failure and every wrong answer becomes an error."""

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
    # Not shared with other channels to the same address: a stalled channel must not stall them.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)
_SCAN_AHEAD_BYTES = 256 * KIB
# Walks and compactions read and write whole segments between two messages.
LONG_TIMEOUT_S = 600.0
# Calls that a sound worker may refuse, since it keeps few verifications.
_REFUSABLE = ("Judge", "Rest")


class ShardCalls:
    """Calls one worker. Thread-safe, except :meth:`fail` and :meth:`end`, which are called under the sender's lock.

    Args:
        address: the worker's address, ``host:port`` or ``unix:path``.
        name: the worker's name, for texts.
        timeout_s: seconds for an ordinary call.

    Attributes:
        misbehaved: how the worker misbehaved; empty: it did not.
        failure: why no more calls can be made; None: they can.
        ending: whether the connection is being closed; queued appends are still sent.
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
        self._lock = threading.Lock()  # guards the further connections
        self._further: set[grpc.Channel] = set()

    # -- the connection --------------------------------------------------------------------------

    def fail(self, error: VolumeFailed) -> None:
        """Make all further calls fail."""
        self.failure = self.failure or error

    def end(self) -> None:
        """Take no more calls, except those that send queued appends."""
        self.ending = True

    def check_usable(self) -> None:
        """Raise an error if no calls can be made."""
        if self.failure is not None:
            raise VolumeFailed(str(self.failure))
        if self.ending:
            raise StoreClosed(f"the connection to worker {self.name} is being closed")

    def disconnect(self) -> None:
        """Close all connections; running calls fail."""
        with self._lock:
            further = list(self._further)
        for channel in (self._channel, *further):
            channel.close()

    @contextmanager
    def connected(self, message_bytes_max: int) -> Iterator[grpc.Channel]:
        """A further connection to the worker, which is closed with the first one at the latest.

        Args:
            message_bytes_max: largest message that it accepts. It reads few bytes ahead.
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
        """Make a call, and return the answer."""
        self.check_usable()
        return self.send(name, request, timeout_s, wait_for_ready=wait_for_ready)

    def send(self, name: str, request: bytes, timeout_s: float | None = None, *, wait_for_ready: bool = False) -> bytes:
        """Like :meth:`call`, but also while the connection is being closed."""
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
        """The messages of a stream; each may take ``each_s`` seconds, and all together ``all_s``."""
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
        """The error that a failed call means.

        The volume becomes unusable, unless the error is a full disk, a temporary failure or a permitted refusal.
        """
        if self.failure is not None:
            return VolumeFailed(str(self.failure))
        if isinstance(error, ValueError):  # gRPC's error for a closed channel
            return VolumeFailed(f"the connection to worker {self.name} was closed")
        return self._meaning(name, error)

    def _meaning(self, name: str, error: grpc.RpcError) -> StorageError:
        failure = status.decode(error, self._address)
        if isinstance(failure, StoreFull) or (isinstance(failure, InvalidArgument) and name in _REFUSABLE):
            return failure
        if isinstance(failure, MessageTooLarge):
            return self.broken(failure)
        if isinstance(failure, VolumeUnavailable):  # it lacks descriptors, for example; the volume stays usable
            return VolumeUnavailable(f"worker {self.name}: {failure}")
        if type(failure) is StorageUnavailable:
            return VolumeFailed(f"worker {self.name} does not answer at {self._address}")
        if isinstance(failure, DeadlineExceeded):
            return VolumeFailed(f"worker {self.name} took longer than {self.timeout_s:g} s to answer")
        return VolumeFailed(f"worker {self.name}: {failure}")

    def checked(self, parse: Callable[[], ResultT]) -> ResultT:
        """Call ``parse`` on an answer, and return its result.

        If it raises ``InvalidArgument``, the worker counts as broken.
        """
        try:
            return parse()
        except InvalidArgument as error:
            raise self.broken(error) from None

    def number(self, form: struct.Struct, message: bytes) -> tuple[Any, ...]:
        """Unpack the numbers in an answer."""
        if len(message) != form.size:
            raise self.broken(ValueError(f"{len(message)} bytes instead of {form.size}"))
        return form.unpack(message)

    def believable(self, number: int) -> int:
        """Check a number of bytes or shards that one machine could have; the sum of a thousand fits into 64 bits."""
        if not 0 <= number <= COUNT_MAX:
            raise self.broken(ValueError(f"the number {number}"))
        return number

    def verdicts(self, answer: bytes, keys: Sequence[ShardKey]) -> list[Verdict]:
        """The verdicts on these shards, from an answer."""
        if len(answer) != len(keys) or max(answer, default=0) > max(Verdict):
            raise self.broken(ValueError("verdicts that do not fit the keys"))
        return [Verdict(verdict) for verdict in answer]

    def broken(self, error: Exception) -> VolumeFailed:
        """Note that an answer cannot be right, and return the error for it."""
        self.misbehaved = self.misbehaved or str(error)
        return VolumeFailed(f"worker {self.name} answers nonsense: {error}")

    def misbehaves(self, how: str) -> VolumeFailed:
        """Note that the worker keeps its caller waiting as no sound one does, and return the error for it."""
        self.misbehaved = how
        return VolumeFailed(f"worker {self.name} {how}")


def _path(method: str) -> str:
    return f"/{SHARD_SERVICE}/{method}"


def _next_within(call: Any, within_s: float, overdue: threading.Event) -> bytes | None:
    """The next message of a stream; None at its end. Cancels the stream after ``within_s`` seconds."""

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
