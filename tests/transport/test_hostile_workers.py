"""Whatever a worker sends, its caller gets a typed error in time, and nobody else notices."""

from __future__ import annotations

import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import StorageError
from storage.keys import Kind as ShardKind
from storage.shards import VolumeFailed
from taskworker.transport.fetches import Outcome
from taskworker.transport.frames import PRESENT, Call, join_keys
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.wire.answers import OneAnswer
from taskworker.transport.wire.connection import Connection
from taskworker.transport.wire.framing import (
    BODY_BYTES_MAX,
    GREETING_BYTES,
    HEADER_BYTES,
    LAST,
    Kind,
    pack_header,
    pack_welcome,
)
from taskworker.transport.wire.poller import SHARED
from taskworker.transport.wire.streams import dial
from tests.pool.helpers import key_of, open_volume, served, shard_of
from tests.transport.peers import WELCOME, Peer, answer, call, greeted, worker

MIB = 1 << 20
WANTED = [(key_of(1), 1000), (key_of(2), 500)]


@contextmanager
def volume_at(
    address: str, timeout_s: float = 2.0, clock_s: Callable[[], float] = time.monotonic
) -> Iterator[RemoteVolume]:
    volume = RemoteVolume(address, "w", timeout_s=timeout_s, clock_s=clock_s)
    try:
        yield volume
    finally:
        volume.abandon("end of the test")


def used_until_it_fails(use: Callable[[], object], pause_s: float = 0.0) -> str:
    """The text of the error that ends the use of a volume."""
    for _ in range(100):
        try:
            use()
        except VolumeFailed as error:
            return str(error)
        time.sleep(pause_s)
    raise AssertionError("it can still be used")


@pytest.fixture
def sound(tmp_path: Path) -> Iterator[RemoteVolume]:
    """A worker beside the hostile one, in the care of the same receiving thread."""
    local = open_volume(tmp_path / "sound")
    with served(local) as address, volume_at(address) as volume:
        volume.append([shard_of(1)])
        volume.sync()
        yield volume
    local.close()


def answering(say: Callable[[int], bytes]) -> Callable[[Peer], None]:
    """Answers each call with what ``say`` returns for its number."""

    def behave(peer: Peer) -> None:
        greeted(peer)
        while (frame := peer.frame()) is not None:
            if frame[0].kind == Kind.CALL:
                peer.send(say(frame[0].call))

    return behave


# -- what no sound worker sends --------------------------------------------------------------------

LIES: dict[str, Callable[[int], bytes]] = {
    "an answer to a call that was not made": lambda number: answer(number + 1, b"abc"),
    "an answer to call 0": lambda _: answer(0),
    "two answers": lambda number: answer(number, b"\x80") + answer(number, b"\x80"),
    "a second message": lambda number: answer(number, b"\x80", flags=0) + answer(number, b"\x80"),
    "a call": lambda number: call(number),
    "cancel": lambda number: pack_header(Kind.CANCEL, number, 0),
    "kind 9": lambda number: pack_header(9, number, 0),  # type: ignore[arg-type]
    "unknown flags": lambda number: answer(number, flags=3),
    "a method": lambda number: pack_header(Kind.ANSWER, number, 0, method=1, flags=LAST),
    "a value": lambda number: pack_header(Kind.ANSWER, number, 0, flags=LAST, value=1),
    "more than was asked for": lambda number: answer(number, bytes(MIB)),
    "the largest length": lambda number: pack_header(Kind.ANSWER, number, 2**32 - 1, flags=LAST),
    "a failure too large": lambda number: pack_header(Kind.FAILURE, number, 9000),
    "garbage": lambda _: b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n",
}


@pytest.mark.parametrize("say", LIES.values(), ids=LIES)
def test_a_worker_that_breaks_the_protocol_misbehaves(say: Callable[[int], bytes], sound: RemoteVolume) -> None:
    with worker(answering(say)) as address, volume_at(address) as volume:
        used_until_it_fails(volume.usage)
        assert volume.misbehaved
    assert sound.missing([shard_of(1).key]) == []


def test_an_answer_before_any_call() -> None:
    def behave(peer: Peer) -> None:
        greeted(peer)
        peer.send(answer(1))

    with worker(behave) as address, volume_at(address) as volume:
        with pytest.raises(VolumeFailed, match="nonsense"):
            volume.usage()
        assert volume.misbehaved


@pytest.mark.parametrize(
    ("welcome", "text"),
    [
        (pack_welcome(0, BODY_BYTES_MAX, 256), "install the same version"),
        (pack_welcome(2, BODY_BYTES_MAX, 256), "install the same version"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "none of this protocol"),
        (pack_welcome(1, 1000, 256), "too little"),
        (pack_welcome(1, BODY_BYTES_MAX, 0), "too little"),
    ],
)
def test_a_wrong_greeting(welcome: bytes, text: str) -> None:
    with (
        worker(lambda peer: greeted(peer, welcome)) as address,
        volume_at(address) as volume,
        pytest.raises(VolumeFailed, match=text),
    ):
        volume.usage()


def test_a_stream_beyond_what_was_asked_for() -> None:
    with (
        worker(answering(lambda number: b"".join(answer(number, flags=0) for _ in range(10)))) as address,
        volume_at(address) as volume,
    ):
        with pytest.raises(VolumeFailed, match="more messages of an answer than were asked for"):
            list(volume.records(frozenset({ShardKind.VERSION})))
        assert volume.misbehaved


@given(raw=st.binary(max_size=300), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_answers(raw: bytes, seed: int) -> None:
    def behave(peer: Peer) -> None:
        peer.take(GREETING_BYTES + HEADER_BYTES)
        peer.send(WELCOME if seed % 4 else b"", answer(1, raw[:20]) if seed % 3 == 0 else b"", raw)
        peer.socket.shutdown(socket.SHUT_RDWR)

    with worker(behave) as address, volume_at(address) as volume, pytest.raises(StorageError):
        volume.usage()


# -- a worker that does not go on ------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 5, HEADER_BYTES, HEADER_BYTES + 700, HEADER_BYTES + 1501])
def test_a_worker_that_stops_in_the_middle_of_an_answer_is_away(sent: int, sound: RemoteVolume) -> None:
    raw = bytes(1500) + bytes([PRESENT] * 2)
    with (
        worker(answering(lambda number: answer(number, raw)[:sent])) as address,
        volume_at(address, 0.5) as volume,
    ):
        with pytest.raises(VolumeFailed, match=r"took longer than 0.5 s"):
            volume.fetch_all(WANTED)
        assert not volume.misbehaved, "its machine or line may have failed"
        assert sound.missing([shard_of(1).key]) == []


def test_a_worker_that_does_not_greet_is_away() -> None:
    with (
        worker(lambda peer: peer.take(1000) and None) as address,  # type: ignore[arg-type]
        volume_at(address, 0.5) as volume,
        pytest.raises(VolumeFailed, match=r"took longer than 0.5 s"),
    ):
        volume.usage()


def test_an_answer_that_trickles_in_is_waited_for_in_proportion_to_its_size(sound: RemoteVolume) -> None:
    """An hour of the caller's time passes in a second."""

    def behave(peer: Peer) -> None:
        greeted(peer)
        while (frame := peer.frame()) is not None:
            for byte in answer(frame[0].call, bytes(100)):
                time.sleep(0.05)
                peer.send(bytes([byte]))

    began_s = time.monotonic()
    with (
        worker(behave) as address,
        volume_at(address, 60.0, lambda: began_s + 60 * (time.monotonic() - began_s)) as volume,
    ):
        with pytest.raises(VolumeFailed, match="took longer than"):
            volume.usage()
        assert sound.missing([shard_of(1).key]) == []


def test_a_call_waits_for_room_as_long_as_what_is_under_way_gets_on() -> None:
    """A worker behind a slow line takes its time over what fills the window."""
    body = bytes(BODY_BYTES_MAX)

    def behave(peer: Peer) -> None:
        greeted(peer)
        left = HEADER_BYTES + len(body)
        for _ in range(30):
            left -= len(peer.take(256 * 1024))
            time.sleep(0.05)
        peer.take(left)
        peer.send(answer(1))
        assert peer.frame() is not None
        peer.send(answer(2))

    with worker(behave) as address:
        connection = Connection(dial(address, 5.0), 1, SHARED)
        try:
            answers = [OneAnswer(SHARED.signal(), 0) for _ in range(2)]
            connection.call(1, [body], answers[0], 1.0)
            connection.call(1, [b"waits"], answers[1], 1.0)
            assert [bytes(one.wait()) for one in answers] == [b"", b""]
        finally:
            connection.close()


def test_a_worker_that_closes_every_connection_is_not_called_for_ever() -> None:
    accepted: list[int] = []

    def behave(peer: Peer) -> None:
        accepted.append(1)
        peer.socket.shutdown(socket.SHUT_RDWR)

    with worker(behave) as address, volume_at(address) as volume:
        used_until_it_fails(volume.usage)
    assert len(accepted) < 20


def test_a_flood_for_a_call_that_was_cancelled(sound: RemoteVolume) -> None:
    """Nobody counts its messages any more, but they are bounded, and others' answers do not wait for them."""
    flooding = threading.Event()

    def behave(peer: Peer) -> None:
        greeted(peer)
        frame = peer.frame()
        assert frame is not None
        while (other := peer.frame()) is not None and other[0].kind != Kind.CANCEL:
            pass
        flooding.set()
        raw = b"".join(answer(frame[0].call, flags=0) for _ in range(1000))
        while True:
            peer.socket.sendall(raw)

    with worker(behave) as address, volume_at(address) as volume:
        cancel = volume.begin_fetch(WANTED, [memoryview(bytearray(size)) for _, size in WANTED], lambda _: None)
        cancel()
        assert flooding.wait(10)
        for _ in range(20):
            assert sound.missing([shard_of(1).key]) == []
        used_until_it_fails(volume.usage, 0.05)
        assert volume.misbehaved


def test_a_small_call_waits_while_the_worker_sends_something_else() -> None:
    """Over a slow link it waits for that; and not for long over any other."""
    fetching, over = threading.Event(), threading.Event()

    def behave(peer: Peer) -> None:
        greeted(peer)
        frame = peer.frame()
        assert frame is not None
        raw = answer(frame[0].call, bytes(64 * 1024) + bytes([PRESENT]))
        if frame[0].method == Call.FETCH:
            fetching.set()
            for at in range(200):
                peer.send(raw[at : at + 1])
                if over.wait(0.1):
                    break
            peer.send(raw[at + 1 :])
        else:
            over.wait(3.0)
            peer.send(answer(frame[0].call))
            over.set()

    with worker(behave) as address, volume_at(address, 1.5) as volume:
        ended = threading.Event()
        volume.begin_fetch([(key_of(1), 64 * 1024)], [memoryview(bytearray(64 * 1024))], lambda _: ended.set())
        assert fetching.wait(10)
        assert volume.missing([key_of(2)]) == []
        assert ended.wait(10)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, HEADER_BYTES, HEADER_BYTES + 400])
def test_nothing_is_written_to_memory_after_a_cancellation(sent: int) -> None:
    go_on = threading.Event()
    began = threading.Event()
    raw = b"\xaa" * 1500 + bytes([PRESENT] * 2)

    def behave(peer: Peer) -> None:
        greeted(peer)
        frame = peer.frame()
        assert frame is not None
        message = answer(frame[0].call, raw)
        peer.send(message[:sent])
        began.set()
        go_on.wait(10)
        peer.send(message[sent:])
        while peer.frame() is not None:
            pass

    with worker(behave) as address, volume_at(address, 10.0) as volume:
        into = [memoryview(bytearray(size)) for _, size in WANTED]
        ended = threading.Event()
        outcomes: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            ended.set()

        cancel = volume.begin_fetch(WANTED, into, done)
        assert began.wait(10)
        if sent > HEADER_BYTES:
            while not any(into[0]):
                time.sleep(0.005)
        cancel()
        for place in into:
            place[:] = b"\x11" * len(place)  # the caller uses it for something else
        go_on.set()
        assert ended.wait(10)
        assert outcomes == [[False, False]]
        assert all(bytes(place) == b"\x11" * len(place) for place in into)


def test_a_worker_that_takes_nothing_has_little_kept_for_it() -> None:
    """However much it allows to be under way."""
    payload = bytes(4 * MIB)
    with (
        worker(lambda peer: greeted(peer, pack_welcome(1, 2**32 - 1, 2**32 - 1))) as address,
        volume_at(address, 1.0) as volume,
    ):
        tracemalloc.start()
        try:
            used_until_it_fails(lambda: volume.append([shard_of(1)._replace(payload=payload)]))
            assert tracemalloc.get_traced_memory()[1] < 100 * MIB
        finally:
            tracemalloc.stop()


def test_payloads_are_not_kept_until_a_worker_has_confirmed_them() -> None:
    payload = bytearray(MIB)
    with worker(answering(lambda _: b"")) as address, volume_at(address) as volume:
        before = sys.getrefcount(payload)
        volume.append([shard_of(1)._replace(payload=payload)])
        assert sys.getrefcount(payload) == before


def test_lists_that_are_announced_but_do_not_come_cost_no_memory() -> None:
    raw = join_keys([key_of(1)])

    def say(number: int) -> bytes:
        return pack_header(Kind.ANSWER, number, BODY_BYTES_MAX, flags=0) + raw

    with worker(answering(say)) as address, volume_at(address, 0.5) as volume:
        tracemalloc.start()
        try:
            for _ in range(20):
                with pytest.raises(VolumeFailed):
                    list(volume.keys())
            assert tracemalloc.get_traced_memory()[1] < 2 * MIB
        finally:
            tracemalloc.stop()
