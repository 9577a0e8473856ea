"""Frames arrive as they were sent, wherever the stream cuts them; what is none ends with an error of the protocol."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage.errors import InvalidArgument
from taskworker.transport.wire.budget import Budget
from taskworker.transport.wire.framing import (
    BODY_BYTES_MAX,
    FAILURE_BYTES_MAX,
    GREETING_BYTES,
    HEADER_BYTES,
    LAST,
    STREAM_AHEAD_MAX,
    VERSION,
    WELCOME_BYTES,
    Header,
    Kind,
    WireError,
    check_from_client,
    check_from_server,
    choose_version,
    pack_greeting,
    pack_header,
    pack_welcome,
    parse_welcome,
    unpack_header,
)
from taskworker.transport.wire.outgoing import FilePart, Outgoing, SendFailed
from taskworker.transport.wire.reading import ConnectionEnded, FrameReader, NotNow
from taskworker.transport.wire.sending import Outbox
from taskworker.transport.wire.streams import milliseconds, split_address
from tests.transport.memory_stream import MemoryStream, Portion

headers = st.builds(
    Header,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
)
frames = st.lists(st.binary(max_size=20_000) | st.binary(max_size=20), max_size=8)
portions = st.lists(st.integers(0, 20) | st.integers(0, 30_000), max_size=30)


def in_portions(sizes: Sequence[int]) -> Portion:
    """These sizes, then all that there is."""
    left = iter(sizes)
    return lambda: next(left, 1 << 62)


def packed(bodies: Sequence[bytes]) -> bytes:
    return b"".join(
        pack_header(Kind.CALL, number, len(body), method=number % 256) + body for number, body in enumerate(bodies, 1)
    )


# -- headers and greetings -------------------------------------------------------------------------


@given(header=headers)
def test_headers(header: Header) -> None:
    length, call, kind, method, flags, value = header
    raw = pack_header(kind, call, length, method=method, flags=flags, value=value)  # type: ignore[arg-type]
    assert len(raw) == HEADER_BYTES
    assert unpack_header(raw) == header
    assert unpack_header(b"??" + raw, 2) == header


@given(header=headers)
def test_what_the_ends_take_from_each_other_is_bounded(header: Header) -> None:
    """Whatever a header says, it is refused, or says nothing that its receiver does not expect."""
    with suppress(WireError):
        check_from_client(header)
        assert header.kind in (Kind.CALL, Kind.CANCEL, Kind.MORE)
        assert header.length <= (BODY_BYTES_MAX if header.kind == Kind.CALL else 0)
        assert header.call
        assert not header.flags
        assert header.kind != Kind.MORE or 1 <= header.value <= STREAM_AHEAD_MAX
    with suppress(WireError):
        check_from_server(header)
        assert header.kind in (Kind.ANSWER, Kind.FAILURE)
        assert header.kind != Kind.FAILURE or header.length <= FAILURE_BYTES_MAX
        assert header.flags in (0, LAST)
        assert (header.method, header.value) == (0, 0)


@given(oldest=st.integers(0, 255), newest=st.integers(0, 255), lane=st.integers(0, 255))
def test_the_newest_version_of_both_is_chosen(oldest: int, newest: int, lane: int) -> None:
    raw = pack_greeting(lane, oldest, newest)
    assert len(raw) == GREETING_BYTES
    if oldest > newest:
        with pytest.raises(WireError):
            choose_version(raw)
    else:
        assert choose_version(raw) == (VERSION if oldest <= VERSION <= newest else 0)


@given(raw=st.binary(min_size=WELCOME_BYTES, max_size=WELCOME_BYTES))
def test_arbitrary_greetings(raw: bytes) -> None:
    with pytest.raises(WireError, match="none of this protocol"):
        choose_version(raw[:GREETING_BYTES])
    with pytest.raises(WireError, match="none of this protocol"):
        parse_welcome(raw)


def test_a_server_of_other_versions_says_so() -> None:
    with pytest.raises(WireError, match="install the same version"):
        parse_welcome(pack_welcome(0, BODY_BYTES_MAX, 256))


@pytest.mark.parametrize(("window", "calls"), [(BODY_BYTES_MAX - 1, 256), (BODY_BYTES_MAX, 15)])
def test_a_server_that_allows_too_little(window: int, calls: int) -> None:
    with pytest.raises(WireError, match="too little"):
        parse_welcome(pack_welcome(VERSION, window, calls))


def test_a_server_that_allows_more_than_a_caller_keeps_for_it() -> None:
    """What is not taken waits in the caller's memory."""
    welcome = parse_welcome(pack_welcome(VERSION, 2**32 - 1, 2**32 - 1))
    assert welcome.window <= 4 * BODY_BYTES_MAX
    assert welcome.calls <= 4096


@given(text=st.text(max_size=30) | st.from_regex(r"\A(unix:|\[?)[^:]{0,9}\]?(:[0-9]{0,7})?\Z"))
def test_addresses(text: str) -> None:
    with suppress(InvalidArgument):
        path, host, port = split_address(text)
        assert (path is None) == bool(host)
        assert 0 <= port <= 65535


def test_time_limits_as_they_travel() -> None:
    assert [milliseconds(within_s) for within_s in (None, float("inf"), 0.0, 0.0001, 1.5, 1e12)] == [
        *(0, 0, 1, 1, 1500),
        2**32 - 1,
    ]


# -- reading ---------------------------------------------------------------------------------------


class Bodies:
    """Gives memory for bodies in several pieces, and keeps them."""

    def __init__(self, *, dropped: Callable[[Header], bool] = lambda header: False) -> None:
        self.read: list[bytes | None] = []
        self._memory: bytearray | None = bytearray()
        self._dropped = dropped

    def memory(self, header: Header) -> Sequence[memoryview] | None:
        if self._dropped(header):
            self._memory = None
            return None
        self._memory = bytearray(header.length)
        view = memoryview(self._memory)
        third = header.length // 3
        return [view[:third], view[third:third], view[third:]]

    def note(self) -> None:
        self.read.append(None if self._memory is None else bytes(self._memory))


def read_all(reader: FrameReader, bodies: Bodies, stream: MemoryStream) -> list[Header]:
    """Read until nothing is left."""
    found: list[Header] = []
    idle = 0
    while idle < 40:  # the stream may let nothing pass now and then
        header = reader.read(wait=False)
        if header is None:
            idle += 1
        else:
            idle = 0
            found.append(header)
            bodies.note()
    assert not stream.incoming
    return found


@given(sent=frames, sizes=portions, drops=st.sets(st.integers(1, 8)))
def test_frames_arrive_however_they_are_cut(sent: list[bytes], sizes: list[int], drops: set[int]) -> None:
    stream = MemoryStream(pack_greeting(1) + packed(sent), in_portions(sizes))
    bodies = Bodies(dropped=lambda header: header.call in drops)
    reader = FrameReader(stream, bodies.memory)
    greeting = None
    while greeting is None:
        greeting = reader.take(GREETING_BYTES, wait=False)
    assert bytes(greeting) == pack_greeting(1)
    found = read_all(reader, bodies, stream)
    assert [header.call for header in found] == [*range(1, len(sent) + 1)]
    assert [header.length for header in found] == [len(body) for body in sent]
    assert bodies.read == [None if number in drops else body for number, body in enumerate(sent, 1)]
    assert not reader.is_inside
    assert reader.received == GREETING_BYTES + len(packed(sent))


@given(body=st.binary(min_size=1, max_size=20_000), at=st.integers(0, 20_000), sizes=portions)
def test_a_body_that_is_diverted_is_written_no_further(body: bytes, at: int, sizes: list[int]) -> None:
    stream = MemoryStream(b"", in_portions(sizes))
    place = bytearray(len(body))
    reader = FrameReader(stream, lambda header: [memoryview(place)] if header.call == 7 else [])
    raw = pack_header(Kind.ANSWER, 7, len(body)) + body
    stream.incoming += raw[: HEADER_BYTES + min(at, len(body) - 1)]
    while stream.incoming:
        assert reader.read(wait=False) is None
    reader.divert(6)
    reader.divert(7)
    before = bytes(place)
    stream.incoming += raw[HEADER_BYTES + min(at, len(body) - 1) :] + pack_header(Kind.ANSWER, 8, 0)
    found: list[int] = []
    for _ in range(100):
        header = reader.read(wait=False)
        found += [] if header is None else [header.call]
    assert found == [7, 8]
    if at:  # before that, nobody has asked for its memory
        assert bytes(place) == before


@given(sent=frames, cut=st.integers(0, 10**6))
def test_a_stream_that_ends_anywhere(sent: list[bytes], cut: int) -> None:
    raw = packed(sent)
    raw = raw[: cut % (len(raw) + 1)]
    bodies = Bodies()
    reader = FrameReader(MemoryStream(raw, ends=True), bodies.memory)
    with suppress(ConnectionEnded):
        while reader.read(wait=True):
            bodies.note()
        pytest.fail("the end was not noticed")
    ends = [*accumulate(HEADER_BYTES + len(body) for body in sent)]
    assert bodies.read == [body for body, end in zip(sent, ends, strict=True) if end <= len(raw)]


def test_a_body_for_which_there_is_no_memory_waits() -> None:
    allowed = [False]

    def memory(header: Header) -> Sequence[memoryview]:
        if not allowed[0]:
            raise NotNow
        return [memoryview(bytearray(header.length))]

    reader = FrameReader(MemoryStream(packed([b"abc"])), memory)
    for _ in range(3):
        assert reader.read(wait=True) is None
        assert reader.starved
    allowed[0] = True
    assert reader.read(wait=True) is not None
    assert not reader.starved


def test_memory_of_another_length_than_the_body() -> None:
    reader = FrameReader(MemoryStream(packed([b"abc"])), lambda header: [memoryview(bytearray(2))])
    with pytest.raises(WireError, match="where others are expected"):
        reader.read(wait=True)


def test_a_peer_that_sends_byte_by_byte_does_not_keep_a_thread() -> None:
    reader = FrameReader(
        MemoryStream(packed([bytes(1000)]), lambda: 1), lambda header: [memoryview(bytearray(header.length))]
    )
    calls = 1
    while reader.read(wait=True) is None:
        calls += 1
    assert calls > 100


@given(raw=st.binary(max_size=500), sizes=portions)
def test_arbitrary_bytes_cost_no_memory(raw: bytes, sizes: list[int]) -> None:
    for check in (check_from_client, check_from_server):

        def memory(header: Header, check: Callable[[Header], None] = check) -> None:
            check(header)

        reader = FrameReader(MemoryStream(raw, in_portions(sizes), ends=True), memory)
        tracemalloc.start()
        try:
            with suppress(WireError, ConnectionEnded):
                for _ in range(2000):
                    reader.read(wait=False)
                pytest.fail("the end was not noticed")
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


# -- sending ---------------------------------------------------------------------------------------


@given(sent=st.lists(st.lists(st.binary(max_size=100), max_size=4), max_size=8), sizes=portions, data=st.data())
def test_an_outbox_sends_everything_in_order(sent: list[list[bytes]], sizes: list[int], data: st.DataObject) -> None:
    stream = MemoryStream(b"", in_portions(sizes))
    outbox = Outbox(stream)
    for parts in sent:
        outbox.put([bytearray(part) for part in parts])
        if data.draw(st.booleans()):
            outbox.flush()
    for _ in range(40):
        outbox.flush()
    assert not outbox
    assert outbox.size == 0
    assert bytes(stream.sent) == b"".join(part for parts in sent for part in parts)


def test_memory_may_be_used_again_once_it_is_in_the_outbox() -> None:
    stream = MemoryStream(b"", in_portions([2]))
    outbox = Outbox(stream)
    memory = bytearray(b"abcdef")
    outbox.put([memory])
    memory[:] = b"??????"
    outbox.flush()
    assert bytes(stream.sent) == b"abcdef"


class FileStream(MemoryStream):
    """Sends from files as well."""

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        piece = os.pread(descriptor, min(count, self._portion()), offset)
        if not piece and os.fstat(descriptor).st_size <= offset:
            raise EOFError
        self.sent += piece
        return len(piece)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("files") / "file"
    path.write_bytes(bytes(range(256)) * 800)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@given(
    parts=st.lists(
        st.binary(max_size=300) | st.tuples(st.integers(0, 210_000), st.integers(0, 150_000)), min_size=1, max_size=6
    ),
    sizes=portions,
    crowded=st.booleans(),
)
@example(parts=[(204_800, 150_000)], sizes=[0, 0], crowded=False)  # more zeros than there is memory for
def test_answers_that_wait_are_sent_in_order(
    file: int, parts: list[bytes | tuple[int, int]], sizes: list[int], crowded: bool
) -> None:
    """Files that are too short are filled up with zeros, and their parts say so."""
    content = bytes(range(256)) * 800
    failed: list[int] = []
    expected = b""
    sent: list[bytes | FilePart] = []
    for at, part in enumerate(parts):
        if isinstance(part, bytes):
            sent.append(part)
            expected += part
        else:
            offset, length = part
            sent.append(FilePart(None, file, offset, length, lambda at=at: failed.append(at)))  # type: ignore[misc]
            expected += content[offset : offset + length].ljust(length, b"\0")
    budget = Budget(10_000)
    stream = FileStream(b"", in_portions(sizes))
    outgoing = Outgoing(stream, budget, lambda: crowded, lambda: 0.0)
    outgoing.put(sent)
    outgoing.put([b"end"])
    for _ in range(60):
        outgoing.flush(wait=False)
    assert not outgoing.is_blocked
    assert bytes(stream.sent) == expected + b"end"
    short = [
        at for at, part in enumerate(parts) if not isinstance(part, bytes) and part[1] and sum(part) > len(content)
    ]
    assert failed == short
    assert budget.take(10_000), "all memory was given back"


def test_an_answer_that_is_not_taken_and_for_which_there_is_no_memory() -> None:
    budget = Budget(10)
    outgoing = Outgoing(MemoryStream(b"", lambda: 0), budget, lambda: False, lambda: 0.0)
    outgoing.put([bytes(10)])
    with pytest.raises(SendFailed):
        outgoing.put([bytes(1)])
    outgoing.drop()
    assert budget.take(10)


@pytest.mark.parametrize(("taken", "stuck"), [(0, True), (1, True), (100_000, False)])
def test_a_caller_that_takes_too_little_is_given_up(taken: int, stuck: bool) -> None:
    now = [0.0]
    allowed: list[int] = []
    stream = MemoryStream(b"", lambda: allowed.pop() if allowed else 0)
    outgoing = Outgoing(stream, Budget(1 << 30), lambda: False, lambda: now[0])
    outgoing.put([bytes(10_000_000)])
    assert outgoing.is_blocked
    for second in range(1, 31):
        now[0] = float(second)
        assert second > 20 or not outgoing.is_stuck(now[0])
        allowed[:] = [taken]
        outgoing.flush(wait=False)
    assert outgoing.is_stuck(now[0]) == stuck
