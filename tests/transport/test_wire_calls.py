"""Calls between a connection and a server over real sockets: each answer belongs to its call, and nothing is left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskworker.transport.wire.answers import ManyAnswers, OneAnswer, Refused
from taskworker.transport.wire.connection import CallsLost, Connection
from taskworker.transport.wire.framing import LAST, Header, Kind, WireError
from taskworker.transport.wire.outgoing import Parts
from taskworker.transport.wire.poller import SHARED, ThreadPoller
from taskworker.transport.wire.server import WireServer
from taskworker.transport.wire.serving import Caller, Method, Style
from taskworker.transport.wire.signs import NO_OTHERS, SignsOfLife
from taskworker.transport.wire.streams import SocketStream, dial, dial_socket
from tests.transport.echo import NUMBER, Do, describe, echo_server
from tests.transport.peers import call, caller

WITHIN_S = 20.0


@pytest.fixture(scope="module", params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = echo_server()
    path = tmp_path_factory.mktemp("sockets") / "s"
    yield server.start(f"unix:{path}" if request.param == "unix" else "127.0.0.1:0")
    server.stop(0.0)


@contextmanager
def connected(
    address: str,
    clock_s: Callable[[], float] = time.monotonic,
    stream_of: type[SocketStream] = SocketStream,
    signs: SignsOfLife = NO_OTHERS,
) -> Iterator[Connection]:
    connection = Connection(stream_of(dial_socket(address, 5.0)), 1, SHARED, clock_s=clock_s, signs=signs)
    try:
        yield connection
    finally:
        connection.close()


def until(is_so: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < give_up_s
        time.sleep(0.005)


def ask(connection: Connection, do: int, body: bytes, bytes_max: int = 1 << 20) -> bytes:
    answer = OneAnswer(SHARED.signal(), bytes_max)
    connection.call(do, [body], answer, WITHIN_S)
    return bytes(answer.wait())


def counted(connection: Connection, count: int) -> Iterator[bytes]:
    answers = ManyAnswers(SHARED.room, 100)
    number = connection.call(Do.COUNT, [NUMBER.pack(count)], answers, WITHIN_S)
    return answers.take(connection, number, lambda: WITHIN_S)


class Noted:
    """See :class:`taskworker.transport.wire.connection.Answer`. Writes into memory that it was given."""

    def __init__(self, size: int) -> None:
        self.place = bytearray(size)
        self.bytes_max = size
        self.outcomes: list[str] = []
        self.ended = threading.Event()

    def memory(self, header: Header) -> Sequence[memoryview]:
        return [memoryview(self.place)[: header.length]]

    def arrived(self, header: Header) -> None:
        self._note("arrived")

    def refused(self, description: bytes) -> None:
        self._note(f"refused: {description.decode('latin-1')}")

    def dropped(self) -> None:
        self._note("dropped")

    def lost(self, error: Exception) -> None:
        self._note(f"lost: {error}")

    def _note(self, outcome: str) -> None:
        self.outcomes.append(outcome)
        self.ended.set()


# -- all at once -----------------------------------------------------------------------------------

moves = st.one_of(
    st.tuples(st.just("call"), st.sampled_from([Do.ECHO, Do.SLOW]), st.integers(0, 300_000) | st.integers(0, 50)),
    st.tuples(st.just("refuse"), st.just(Do.REFUSE), st.integers(0, 50)),
    st.tuples(st.just("cancel"), st.sampled_from([Do.ECHO, Do.SLOW, Do.LARGE]), st.integers(0, 2_000_000)),
    st.tuples(st.just("stream"), st.just(Do.COUNT), st.integers(0, 40)),
    st.tuples(st.just("part of a stream"), st.just(Do.COUNT), st.integers(0, 40)),
    st.tuples(st.just("unknown"), st.just(99), st.integers(0, 10)),
)


@given(plan=st.lists(moves, max_size=25), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_answer_belongs_to_its_call(address: str, plan: list[tuple[str, int, int]], seed: int) -> None:
    """Calls, cancellations, streams and failures, begun one after another and ended in any order."""
    rng = Random(seed)
    with connected(address) as connection:
        begun = [_begin(connection, what, do, size, rng) for what, do, size in plan]
        rng.shuffle(begun)
        for check in begun:
            check()
        assert ask(connection, Do.ECHO, b"and then") == b"and then"
        until(lambda: not connection._calls)
        assert connection._size == 0
        assert connection.is_usable


def _begin(connection: Connection, what: str, do: int, size: int, rng: Random) -> Callable[[], None]:
    """Begin a call; return what waits for its end, and checks it."""
    if do == Do.COUNT:
        wanted = size if what == "stream" or not size else rng.randint(1, size)
        return partial(_check_stream, counted(connection, size), size, wanted)
    body = rng.randbytes(size) if do != Do.LARGE else NUMBER.pack(size)
    answer = Noted(max(size, len(body), 1))
    number = connection.call(do, [body[: size // 2], body[size // 2 :]], answer, WITHIN_S)
    if what == "cancel":
        connection.cancel(number)
        return partial(_check_cancelled, answer, bytes(answer.place))
    outcome = {"call": "arrived", "refuse": f"refused: {body.decode('latin-1')}"}
    return partial(_check, answer, outcome.get(what, "refused: there is no method 99"), body if what == "call" else b"")


def _check(answer: Noted, outcome: str, body: bytes) -> None:
    assert answer.ended.wait(WITHIN_S)
    assert answer.outcomes == [outcome]
    assert bytes(answer.place[: len(body)]) == body


def _check_cancelled(answer: Noted, place: bytes) -> None:
    assert answer.ended.wait(WITHIN_S)
    assert answer.outcomes in (["arrived"], ["dropped"])
    assert bytes(answer.place) == place, "memory was written after a cancellation"


def _check_stream(messages: Iterator[bytes], size: int, wanted: int) -> None:
    for number in range(wanted):
        assert next(messages) == NUMBER.pack(number)
    if wanted == size:
        assert next(messages, None) is None
    messages.close()  # type: ignore[attr-defined]


def test_many_threads_share_a_connection(address: str) -> None:
    """Some give up their calls; nobody gets another's answer, nor waits for ever."""
    wrong: list[str] = []

    def use(connection: Connection, seed: int) -> None:
        rng = Random(seed)
        for _ in range(60):
            size = rng.choice([0, 1, 4096, 100_000])
            body = rng.randbytes(size)
            kind = rng.random()
            if kind < 0.7:
                if ask(connection, rng.choice([Do.ECHO, Do.SLOW]), body) != body:
                    wrong.append("an answer of another call")
            elif kind < 0.85:
                answer = Noted(size + 1)
                connection.cancel(connection.call(Do.SLOW, [body], answer, WITHIN_S))
                if not answer.ended.wait(WITHIN_S):
                    wrong.append("a cancelled call did not end")
            elif [*counted(connection, size % 97)] != [NUMBER.pack(number) for number in range(size % 97)]:
                wrong.append("messages of a stream are missing")

    with connected(address) as connection:
        threads = [threading.Thread(target=use, args=(connection, seed)) for seed in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        until(lambda: not connection._calls)
        assert connection._size == 0


def test_more_calls_at_once_than_are_allowed_wait_for_others(address: str) -> None:
    """A call counts at the server until shortly after its answer; a caller that has many is none that misbehaves."""
    with connected(address) as connection:
        for _ in range(3):
            answers = [Noted(100) for _ in range(600)]
            for number, answer in enumerate(answers):
                connection.call(Do.SLOW, [NUMBER.pack(number)], answer, WITHIN_S)
            for number, answer in enumerate(answers):
                assert answer.ended.wait(WITHIN_S)
                assert (answer.outcomes, bytes(answer.place[:4])) == (["arrived"], NUMBER.pack(number))


def test_a_stream_is_sent_no_further_than_was_asked_for(address: str) -> None:
    produced: list[int] = []

    def produce(_body: memoryview, _caller: Caller) -> Iterator[Parts]:
        for number in range(1000):
            produced.append(number)
            yield (NUMBER.pack(number),)

    server = WireServer({1: Method("produce", Style.STREAM, produce)}, describe)
    try:
        with connected(server.start("127.0.0.1:0")) as connection:
            answers = ManyAnswers(SHARED.room, 100)
            number = connection.call(1, [], answers, WITHIN_S)
            messages = answers.take(connection, number, lambda: WITHIN_S)
            next(messages)
            until(lambda: len(produced) >= 4)
            time.sleep(0.05)
            assert len(produced) <= 5
            assert len([*messages]) == 999
    finally:
        server.stop(0.0)


# -- time that runs out ----------------------------------------------------------------------------


class Late:
    """A server whose clock goes ahead when told to, and what its methods did."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.waits = threading.Event()
        self.go_on = threading.Event()
        self.ahead_s = 0.0

    def clock_s(self) -> float:
        return time.monotonic() + self.ahead_s

    def store(self, _body: memoryview, _caller: Caller) -> Parts:
        self.done.append("stored")
        return ()

    def wait(self, _body: memoryview, _caller: Caller) -> Parts:
        self.waits.set()
        self.go_on.wait(WITHIN_S)
        return ()

    def list(self, _body: memoryview, _caller: Caller) -> Iterator[Parts]:
        for number in range(10):
            if number == 2:
                self.ahead_s = 3600.0
            yield (NUMBER.pack(number),)


@pytest.fixture
def late() -> Iterator[tuple[Late, str]]:
    work = Late()
    methods = {
        1: Method("store", Style.QUICK, work.store),
        2: Method("wait", Style.QUICK, work.wait),
        3: Method("list", Style.STREAM, work.list),
    }
    server = WireServer(methods, describe, clock_s=work.clock_s)
    yield work, server.start("127.0.0.1:0")
    work.go_on.set()
    server.stop(0.0)


def test_what_was_not_done_in_time_is_not_confirmed(late: tuple[Late, str]) -> None:
    """An empty answer would say that it was stored."""
    work, address = late
    with caller(address) as peer:
        peer.send(call(1, method=2), call(2, method=1, value=1000))
        assert work.waits.wait(WITHIN_S)
        work.ahead_s = 3600.0
        work.go_on.set()
        assert peer.frame() == (Header(0, 1, Kind.ANSWER, 0, LAST, 0), b"")
        header, description = peer.frame() or (None, b"")
        assert header is not None
        assert (header.call, header.kind) == (2, Kind.FAILURE)
        assert b"time of the call had run out" in description
        assert work.done == []


def test_a_list_that_was_cut_off_by_time_is_none(late: tuple[Late, str]) -> None:
    _, address = late
    with connected(address) as connection:
        answers = ManyAnswers(SHARED.room, 100)
        number = connection.call(3, [], answers, WITHIN_S, limit_s=WITHIN_S)
        with pytest.raises(Refused):
            list(answers.take(connection, number, lambda: WITHIN_S))


def test_a_call_without_a_limit_may_take_any_time() -> None:
    now = [0.0]
    server = echo_server()
    try:
        with connected(server.start("127.0.0.1:0"), lambda: now[0]) as connection:
            answers = ManyAnswers(SHARED.room, 100)
            number = connection.call(Do.COUNT, [NUMBER.pack(50)], answers, 600.0, limit_s=float("inf"))
            messages = answers.take(connection, number, lambda: WITHIN_S)
            heard = 0
            for _ in range(50):
                next(messages)
                if connection.received > heard:  # several messages may have arrived at once
                    connection.tick()
                    heard = connection.received
                    now[0] += 500.0
                    connection.tick()
            assert next(messages, None) is None
            assert now[0] > 1000.0
    finally:
        server.stop(0.0)


def test_a_server_of_which_nothing_is_heard_counts_as_dead() -> None:
    now = [0.0]
    server = echo_server()
    address = server.start("127.0.0.1:0")
    try:
        with connected(address, lambda: now[0]) as connection:
            answer = Noted(4)
            connection.call(Do.COUNT, [NUMBER.pack(50)], answer, 5.0)  # never asks for more
            until(lambda: len(answer.outcomes) >= 1)
            connection.tick()
            now[0] += 5.5
            connection.tick()
            assert not connection.is_usable
            with pytest.raises(CallsLost, match="5 s"):
                ask(connection, Do.ECHO, b"")
    finally:
        server.stop(0.0)


class CongestedStream(SocketStream):
    """A stream over a line with long queues, on which TCP waits for as many seconds before it sends again."""

    waits_s = 0.8

    def retransmission_s(self) -> float:
        return self.waits_s


@pytest.mark.parametrize(("waits_s", "usable_s", "dead_s"), [(0.8, 10.0, 11.0), (100.0, 14.5, 15.5)])
def test_a_server_may_be_silent_for_longer_where_losses_take_long(
    monkeypatch: pytest.MonkeyPatch, waits_s: float, usable_s: float, dead_s: float
) -> None:
    """Another program fills the line: three of our packets are lost in a row, and TCP waits twice as long each time."""
    monkeypatch.setattr(CongestedStream, "waits_s", waits_s)
    now = [0.0]
    server = echo_server()
    try:
        with connected(server.start("127.0.0.1:0"), lambda: now[0], CongestedStream) as connection:
            answer = Noted(4)
            connection.call(Do.COUNT, [NUMBER.pack(50)], answer, 5.0, limit_s=5.0)  # never asks for more
            until(lambda: len(answer.outcomes) >= 1)
            connection.tick()
            now[0] = usable_s
            connection.tick()
            assert connection.is_usable
            now[0] = dead_s
            connection.tick()
            assert not connection.is_usable
    finally:
        server.stop(0.0)


@pytest.mark.parametrize(("told_until_s", "usable_s", "dead_s"), [(3.0, 7.5, 8.5), (100.0, 14.5, 15.5)])
def test_a_server_that_says_that_it_lives_may_be_silent_for_longer(
    told_until_s: float, usable_s: float, dead_s: float
) -> None:
    """What others send over its link may keep its answers back, but not for ever."""
    now = [0.0]
    signs = SignsOfLife(told_s=lambda: min(now[0], told_until_s))
    server = echo_server()
    try:
        with connected(server.start("127.0.0.1:0"), lambda: now[0], signs=signs) as connection:
            answer = Noted(4)
            connection.call(Do.COUNT, [NUMBER.pack(50)], answer, 5.0)  # never asks for more
            until(lambda: len(answer.outcomes) >= 1)
            connection.tick()
            now[0] = usable_s
            connection.tick()
            assert connection.is_usable
            now[0] = dead_s
            connection.tick()
            assert not connection.is_usable
    finally:
        server.stop(0.0)


def test_the_wait_for_losses_is_that_of_tcp(address: str) -> None:
    with connected(address) as connection:
        ask(connection, Do.ECHO, bytes(100_000))
        waits_s = connection.stream.retransmission_s()
        assert waits_s == 0 if address.startswith("unix:") else waits_s > 0


# -- callers that leave ----------------------------------------------------------------------------


def test_what_callers_leave_behind_is_cleared_away() -> None:
    """Calls that wait when their caller leaves would keep memory and a descriptor for ever."""
    server = echo_server()
    address = server.start("127.0.0.1:0")
    descriptors = len(os.listdir("/proc/self/fd"))
    raw = b"".join(
        call(number, bytes(5000), method=method)
        for number, method in enumerate([Do.ECHO, Do.SLOW, 99, Do.COUNT, Do.LARGE] * 5, 1)
    )
    for cut in range(0, len(raw), 4001):
        with caller(address) as peer:
            peer.send(raw[:cut])
    until(lambda: not server._connections)
    assert server._resources.bodies.free == 48 << 20
    assert server._resources.answers._left == 32 << 20
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
    server.stop(0.0)


def test_a_server_stops_while_it_is_called(tmp_path: Path) -> None:
    server = echo_server()
    address = server.start(f"unix:{tmp_path}/s")
    with connected(address) as connection:
        streams = [counted(connection, 10_000) for _ in range(40)]
        for messages in streams:
            next(messages)
        server.stop(0.2)
        for messages in streams:
            with pytest.raises(ConnectionError):
                list(messages)
    assert not (tmp_path / "s").exists()


# -- the poller ------------------------------------------------------------------------------------


def test_a_forked_child_makes_connections_of_its_own(address: str) -> None:
    """The parent's are not used, nor closed, by what the child does with them."""
    poller = ThreadPoller()
    os.register_at_fork(after_in_child=poller.forked)
    connection = Connection(dial(address, 5.0), 1, poller)
    answer = OneAnswer(poller.signal(), 100)
    connection.call(Do.ECHO, [b"parent"], answer, WITHIN_S)
    assert bytes(answer.wait()) == b"parent"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert not connection.is_usable
            connection.close()
            own = Connection(dial(address, 5.0), 1, poller)
            answer = OneAnswer(poller.signal(), 100)
            own.call(Do.ECHO, [b"child"], answer, WITHIN_S)
            assert bytes(answer.wait()) == b"child"
            own.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    answer = OneAnswer(poller.signal(), 100)
    connection.call(Do.ECHO, [b"parent again"], answer, WITHIN_S)
    assert bytes(answer.wait()) == b"parent again"
    connection.close()


def test_a_failure_of_one_connection_does_not_disturb_others(address: str) -> None:
    class Broken(Noted):
        def arrived(self, header: Header) -> None:
            raise ZeroDivisionError

    with connected(address) as broken, connected(address) as sound:
        answer = Broken(10)
        broken.call(Do.ECHO, [b"a"], answer, WITHIN_S)
        assert answer.ended.wait(WITHIN_S)
        assert answer.outcomes == ["lost: "]
        until(lambda: not broken.is_usable)
        assert ask(sound, Do.ECHO, b"b") == b"b"


def test_an_answer_larger_than_was_asked_for(address: str) -> None:
    with connected(address) as connection, pytest.raises(WireError, match="at most 10 were asked for"):
        ask(connection, Do.ECHO, bytes(11), bytes_max=10)
