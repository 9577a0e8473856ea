"""Both ends of the transport, fed with arbitrary bytes in memory. A target raises an error if a promise is broken."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any

from storage.keys import Kind as ShardKind
from storage.keys import shard_key, stripe_key
from taskworker.transport.fetches import Fetch, Outcome
from taskworker.transport.frames import (
    FrameError,
    Wanted,
    fetched_bytes,
    parse_append,
    parse_fetched,
    parse_found,
    parse_keys,
    parse_locations,
    parse_positions,
    parse_shards,
    parse_wanted,
)
from taskworker.transport.making_frames import MakeOrder, parse_made, parse_make, parse_proofs, parse_prove
from taskworker.transport.shard_calls import ShardCalls
from taskworker.transport.wire.answering import AnsweringConnection
from taskworker.transport.wire.answers import ManyAnswers, OneAnswer
from taskworker.transport.wire.body_memory import BodyMemory
from taskworker.transport.wire.budget import Budget
from taskworker.transport.wire.connection import Connection, Room, Signal
from taskworker.transport.wire.poller import LockSignal
from taskworker.transport.wire.serving import Resources
from tests.transport.echo import METHODS, Do, describe
from tests.transport.memory_stream import MemoryStream
from tests.transport.peers import WELCOME, answer, call

KEY = shard_key(stripe_key(ShardKind.CHUNK, b"\1" * 32, 4, 6), 2)
WANTED = [Wanted(KEY, 30), Wanted(KEY, 5)]
ORDER = MakeOrder(stripe_key(ShardKind.CHUNK, b"\1" * 32, 4, 6), 100, (0, 5), ())
BUDGET_BYTES = 32 << 20


def cut(raw: bytes) -> tuple[bytes, Callable[[], int]]:
    """What is sent, and in which portions; the first bytes tell the portions."""
    count = raw[0] % 8 if raw else 0
    sizes = iter(raw[1 : 1 + count])
    return raw[1 + count :], lambda: next(sizes, 1 << 20)


# -- the answering end -----------------------------------------------------------------------------


class Later(Executor):
    """Runs what is submitted when told to, in the same thread."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], object]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.waiting.append(lambda: fn(*args, **kwargs))
        return Future()


class Alone:
    """A server's part for one connection. See :class:`taskworker.transport.wire.answering.Surroundings`."""

    is_crowded = False

    def __init__(self) -> None:
        self.calls_again = True
        self.forgotten = False

    def watch(self, connection: AnsweringConnection, *, writes: bool) -> None:
        self.calls_again = True

    def call_soon(self, connection: AnsweringConnection) -> None:
        self.calls_again = True

    def forget(self, connection: AnsweringConnection) -> None:
        assert not self.forgotten
        self.forgotten = True
        connection.close()


def answering_end(raw: bytes) -> None:
    """A server's connection: it ends, and gives back all that it took, whatever arrives."""
    incoming, portion = cut(raw)
    threads, server = Later(), Alone()
    bodies, answers = BodyMemory(BUDGET_BYTES), Budget(BUDGET_BYTES)
    stream = MemoryStream(incoming, portion, ends=True)
    resources = Resources(bodies, answers, threads, threads, lambda: 0.0)
    connection = AnsweringConnection(stream, METHODS, describe, server, resources)
    turns = 0
    while server.calls_again or threads.waiting:
        turns += 1
        assert turns < 100_000, "it goes on for ever"
        if server.calls_again:
            server.calls_again = False
            connection.run()
        if threads.waiting:
            threads.waiting.popleft()()
    assert server.forgotten
    assert bodies.take(connection, BUDGET_BYTES), "memory of calls was not given back"
    assert answers.take(BUDGET_BYTES), "memory of answers was not given back"


# -- the calling end -------------------------------------------------------------------------------


class NoPoller:
    """Calls nobody. See :class:`taskworker.transport.wire.connection.Poller`."""

    def add(self, connection: Connection) -> None:
        pass

    def watch_writes(self, connection: Connection, *, watch: bool) -> None:
        pass

    def remove(self, connection: Connection) -> None:
        pass

    def room(self, lock: threading.Lock) -> Room:
        return threading.Condition(lock)

    def signal(self) -> Signal:
        return LockSignal()


def calling_end(raw: bytes) -> None:
    """A caller's connection: each call ends once, and memory is written only before its end."""
    incoming, portion = cut(raw)
    poller = NoPoller()
    stream = MemoryStream(incoming, portion, ends=True)
    connection = Connection(stream, 1, poller, clock_s=lambda: 0.0)
    calls = ShardCalls("127.0.0.1:1", "w", 5.0, poller, clock_s=lambda: 0.0)
    one, many = OneAnswer(poller.signal(), 100), ManyAnswers(poller.room, 50)
    places = [memoryview(bytearray(want.length)) for want in WANTED]
    outcomes: list[Outcome] = []
    kept, given_up = Fetch(calls, WANTED, places, outcomes.append), bytearray(40)
    dropped: list[Outcome] = []
    cancelled = Fetch(calls, WANTED[:1], [memoryview(given_up)[:30]], dropped.append)
    connection.call(Do.ECHO, [b"1"], one, 5.0)
    connection.call(Do.COUNT, [b"2"], many, 5.0)
    connection.call(Do.ECHO, [b"3"], kept, 5.0)
    number = connection.call(Do.ECHO, [b"4"], cancelled, 5.0)
    connection.readable()
    connection.cancel(number)
    before = bytes(given_up)
    turns = 0
    while connection.is_usable:
        turns += 1
        assert turns < 10_000, "it goes on for ever"
        connection.readable()
    assert bytes(given_up) == before, "memory was written after a cancellation"
    assert len(outcomes) == len(dropped) == 1
    assert one._signal.wait(0), "a call did not end"
    assert many._ended or many._error is not None
    assert len(many._messages) <= 4


# -- messages --------------------------------------------------------------------------------------

PARSERS: Sequence[Callable[[bytes], object]] = (
    lambda raw: parse_append(memoryview(raw)),
    parse_keys,
    parse_shards,
    parse_wanted,
    lambda raw: parse_locations(raw, 2),
    lambda raw: parse_positions(raw, 5),
    lambda raw: parse_found(memoryview(raw), [KEY, KEY]),
    lambda raw: parse_fetched(memoryview(raw), WANTED),
    parse_make,
    parse_prove,
    lambda raw: parse_made(raw, ORDER),
    lambda raw: parse_proofs(raw, 2),
)


def messages(raw: bytes) -> None:
    """Parsers of messages refuse what is none with the one error for it."""
    if raw:
        with suppress(FrameError):
            PARSERS[raw[0] % len(PARSERS)](raw[1:])


TARGETS: dict[str, Callable[[bytes], None]] = {
    "answering_end": answering_end,
    "calling_end": calling_end,
    "messages": messages,
}

_FETCHED = bytes(fetched_bytes(WANTED))
GOOD: dict[str, list[bytes]] = {
    "answering_end": [
        b"\0TWSP\1\1\1\0"
        + call(1, b"abc")
        + call(2, b"\5\0\0\0", method=Do.COUNT)
        + bytes.fromhex("00000000 02000000 05 00 0000 03000000")
        + call(3, b"no", method=Do.REFUSE)
        + call(4, bytes(9000), method=Do.SLOW)
        + bytes.fromhex("00000000 02000000 04 00 0000 00000000"),
    ],
    "calling_end": [
        b"\0" + WELCOME + answer(2, b"x", 0) + answer(1, b"abc") + answer(3, _FETCHED) + answer(2) + answer(4),
        b"\3\x20\x01\x40" + WELCOME + answer(3, b"a" * 30 + b"\1\0") + answer(4, b"b" * 30 + b"\1"),
    ],
    "messages": [bytes([at]) for at in range(len(PARSERS))],
}
"""Inputs to begin with."""
