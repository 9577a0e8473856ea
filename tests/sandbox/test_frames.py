"""What comes out of a sandbox is hostile: the decoder, the protocol, and a live host fed with anything."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskworker.sandbox import FunctionImage, LimitExceeded, Limits, ProtocolViolation, SandboxError, SandboxHost
from taskworker.sandbox.frames import (
    ASK_BYTES_MAX,
    ASKS_MAX,
    FRAME_BYTES_MAX,
    FROM_SANDBOX,
    HEADER,
    HELLO,
    NUMBER,
    TO_SANDBOX,
    VERSION,
    Cause,
    Failure,
    Frame,
    FrameDecoder,
    FrameError,
    Kind,
    decode_failure,
    encode,
    encode_failure,
    split_number,
)
from taskworker.sandbox.protocol import CallProtocol, failure_of
from tests.sandbox.bundles import begin, program

HEADS = st.builds(
    lambda kind, length, rest: HEADER.pack(kind, length) + rest,
    st.integers(0, 255),
    st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
    st.binary(max_size=64),
)
FROM_INSIDE = st.lists(st.one_of(st.binary(max_size=200), HEADS), min_size=1, max_size=6)
GREETING = encode(Kind.HELLO, HELLO.pack(VERSION))


@given(
    st.lists(st.tuples(st.sampled_from(sorted(FROM_SANDBOX)), st.binary(max_size=2)), max_size=8),
    st.integers(1, 30),
)
def test_frames_come_back_however_the_stream_is_cut(sent: list[tuple[Kind, bytes]], step: int) -> None:
    stream = b"".join(encode(kind, payload) for kind, payload in sent)
    decoder, got = FrameDecoder(FROM_SANDBOX), []
    for start in range(0, len(stream), step):
        decoder.feed(stream[start : start + step])
        while (frame := decoder.next()) is not None:
            got.append(frame)
    assert got == [Frame(kind, payload) for kind, payload in sent]
    assert decoder.pending == 0


@given(FROM_INSIDE)
@example([b"\x03\xff\xff\xff\xff"])
def test_anything_else_is_a_frame_error(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(FROM_SANDBOX)
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while (frame := decoder.next()) is not None:
                assert len(frame.payload) <= FROM_SANDBOX[frame.kind]
    except FrameError:
        pass


@pytest.mark.parametrize("kind", Kind)
def test_lengths_are_judged_by_the_head_alone(kind: Kind) -> None:
    limits = FROM_SANDBOX if kind in FROM_SANDBOX else TO_SANDBOX
    decoder = FrameDecoder(limits)
    decoder.feed(HEADER.pack(kind, limits[kind] + 1))
    with pytest.raises(FrameError, match="at most"):
        decoder.next()
    with pytest.raises(FrameError, match="at most"):
        encode(kind, bytes(limits[kind] + 1))


@given(st.sampled_from(Cause), st.text(), st.text())
def test_failures_come_back(cause: Cause, type_name: str, text: str) -> None:
    frame = encode_failure(cause, type_name, text)
    said = decode_failure(frame[HEADER.size :])
    assert said.cause is cause
    assert said.type_name == type_name[:200].encode(errors="replace").decode()
    assert said.text == text[:15_000].encode(errors="replace").decode()


def test_a_failure_of_any_length_fits() -> None:
    frame = encode_failure(Cause.RAISED, "\U0001f980" * 10**5, "\U0001f980" * 10**5, number=1)
    assert decode_failure(split_number(frame[HEADER.size :])[1]) == Failure(
        Cause.RAISED, "\U0001f980" * 200, "\U0001f980" * 15_000
    )


@given(st.binary(max_size=100))
def test_failures_that_are_none_are_violations(payload: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        failure_of(Frame(Kind.FAILURE, payload))


@given(FROM_INSIDE, st.booleans())
def test_a_conversation_takes_nothing_but_what_may_come(chunks: list[bytes], greeted: bool) -> None:
    protocol = CallProtocol(result_bytes=100)
    if greeted:
        assert protocol.feed(GREETING)
        protocol.requested()
    try:
        for chunk in chunks:
            for frame in protocol.feed(chunk):
                if frame.kind is Kind.ASK:
                    protocol.answered(split_number(frame.payload)[0])
                    continue
                if frame.kind is Kind.WITHDRAW:
                    continue
                assert frame.kind is Kind.HELLO or len(frame.payload) <= 100 or frame.kind is Kind.FAILURE
    except (ProtocolViolation, LimitExceeded):
        pass


def asked(number: int, size: int = NUMBER.size) -> bytes:
    return encode(Kind.ASK, NUMBER.pack(number) + bytes(size - NUMBER.size))


def withdrawn(number: int) -> bytes:
    return encode(Kind.WITHDRAW, NUMBER.pack(number))


def test_an_ask_may_be_withdrawn_while_its_answer_is_on_its_way() -> None:
    protocol = CallProtocol(result_bytes=100)
    protocol.feed(GREETING)
    protocol.requested()
    protocol.feed(asked(1) + asked(2))
    protocol.answered(1)
    assert protocol.feed(withdrawn(1)) == [Frame(Kind.WITHDRAW, NUMBER.pack(1))]
    protocol.feed(withdrawn(2))
    protocol.answered(2)
    assert protocol.feed(encode(Kind.RESULT, b"r")) == [Frame(Kind.RESULT, b"r")]


def test_what_comes_out_of_turn_is_refused() -> None:
    protocol = CallProtocol(result_bytes=100)
    with pytest.raises(ProtocolViolation, match="before the hello"):
        protocol.feed(encode(Kind.RESULT, b""))
    protocol = CallProtocol(result_bytes=100)
    protocol.feed(GREETING)
    with pytest.raises(ProtocolViolation, match="before the request"):
        protocol.feed(b"\x03")
    protocol.requested()
    assert protocol.feed(asked(7) + asked(8)) == [Frame(Kind.ASK, NUMBER.pack(7)), Frame(Kind.ASK, NUMBER.pack(8))]
    protocol.answered(8)
    assert protocol.feed(encode(Kind.ITEM, b"part")) == [Frame(Kind.ITEM, b"part")]
    protocol.answered(7)
    assert protocol.feed(encode(Kind.RESULT, b"r")) == [Frame(Kind.RESULT, b"r")]
    with pytest.raises(ProtocolViolation, match="after the end"):
        protocol.feed(b"\x03")


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (lambda: asked(1) + asked(1), "a number in use"),
        (lambda: b"".join(map(asked, range(ASKS_MAX + 1))), f"more than {ASKS_MAX} at once"),
        (lambda: asked(1) + encode(Kind.RESULT, b""), "while an ask is being answered"),
        (lambda: asked(1) + withdrawn(1) + encode(Kind.RESULT, b""), "while an ask is being answered"),
        (lambda: asked(1) + withdrawn(1) + asked(1), "a number in use"),
        (lambda: asked(1) + withdrawn(1) + withdrawn(1), "withdraws more than it asked"),
        (lambda: withdrawn(1), "withdraws more than it asked"),
        (lambda: asked(1) + encode(Kind.WITHDRAW, b"abc"), "without its number"),
        (
            lambda: b"".join(asked(one, 5 << 20) for one in range(3)) + HEADER.pack(Kind.ASK, (2 << 20) + 1),
            "more than 17825792 bytes",
        ),
        (lambda: encode(Kind.ASK, b"q"), "without its number"),
        (lambda: encode(Kind.RESULT, b"") + b"x", "after the end"),
    ],
)
def test_asks_are_counted_and_told_apart(sent: Callable[[], bytes], why: str) -> None:
    protocol = CallProtocol(result_bytes=100)
    protocol.feed(GREETING)
    protocol.requested()
    with pytest.raises(ProtocolViolation, match=why):
        protocol.feed(sent())


def test_another_version_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="version"):
        CallProtocol(result_bytes=1).feed(encode(Kind.HELLO, HELLO.pack(VERSION + 1)))


@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.ITEM])
def test_a_result_is_judged_before_its_bytes_come(kind: Kind) -> None:
    protocol = CallProtocol(result_bytes=100)
    protocol.feed(GREETING)
    protocol.requested()
    with pytest.raises(LimitExceeded, match="result limit of 100 bytes"):
        protocol.feed(HEADER.pack(kind, 101))


BABBLE = """
import os

def prepare(document):
    pass

def run(request, channel):
    while request:
        request = request[os.write(3, request):]
    os._exit(0)
"""


@pytest.fixture(scope="module")
def babbling(host: SandboxHost, bundles: Path) -> FunctionImage:
    image = program(bundles, BABBLE, limits=Limits(wall_s=5.0, result_bytes=100))
    host.warm(image)
    return image


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=FROM_INSIDE)
@example(chunks=[HEADER.pack(Kind.RESULT, 0xFFFF_FFFF)])
@example(chunks=[HEADER.pack(Kind.ASK, ASK_BYTES_MAX) + bytes(1000)])
@example(chunks=[encode(Kind.ASK, bytes(ASK_BYTES_MAX))])
@example(chunks=[HEADER.pack(Kind.RESULT, FRAME_BYTES_MAX)])
def test_a_live_host_gives_a_result_or_a_typed_error(
    host: SandboxHost, babbling: FunctionImage, chunks: list[bytes]
) -> None:
    call = begin(host, babbling, b"".join(chunks))
    with contextlib.suppress(SandboxError):
        assert len(call.result()) <= 100
    assert begin(host, babbling, encode(Kind.RESULT, b"fine")).result() == b"fine"
