"""Frames of the shard transport: what one end writes the other reads, and nothing else is taken for a frame."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from storage.errors import InvalidArgument
from storage.keys import SHARD_KEY_BYTES, Kind, ShardKey, shard_key, stripe_key
from storage.shards import LocalVolume, Location, Shard
from storage.shards.identity import VolumeIdentity
from taskworker.errors import WorkerRestarted
from taskworker.transport.frames import (
    ABSENT,
    CORRUPT,
    FLAG_SYNC,
    FLAG_URGENT,
    KEYS_MAX,
    MESSAGE_BYTES_MAX,
    OBJECT_BYTES_MAX,
    PRESENT,
    UNREADABLE,
    Append,
    AppendFrame,
    Call,
    FrameError,
    Wanted,
    fetched_bytes,
    join_keys,
    pack_found,
    pack_locations,
    pack_positions,
    pack_shards,
    pack_wanted,
    parse_append,
    parse_fetched,
    parse_found,
    parse_keys,
    parse_locations,
    parse_positions,
    parse_shards,
    parse_wanted,
    split_keys,
)
from taskworker.transport.shard_service import ShardService
from taskworker.transport.wire.outgoing import FilePart, Parts
from taskworker.transport.wire.serving import Style

HEAD_BYTES = 2
ENTRY_BYTES = 80
LOCATION_BYTES = 25
WANTED_BYTES = 40
FOUND_BYTES = 45


@st.composite
def keys(draw: st.DrawFn) -> ShardKey:
    n = draw(st.integers(1, 256))
    k = draw(st.integers(1, n))
    stripe = stripe_key(draw(st.sampled_from(Kind)), draw(st.binary(min_size=32, max_size=32)), k, n)
    return shard_key(stripe, draw(st.integers(0, n - 1)))


shards = st.builds(
    Shard,
    keys(),
    st.integers(0, OBJECT_BYTES_MAX),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=50) | st.binary(max_size=50).map(lambda payload: memoryview(bytearray(payload))),
)
locations = st.builds(
    Location,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, OBJECT_BYTES_MAX),
    st.integers(0, OBJECT_BYTES_MAX),
)
wants = st.builds(Wanted, keys(), st.integers(0, 1000))

KEY = shard_key(stripe_key(Kind.CHUNK, b"\1" * 32, 4, 6), 2)
SHARD = Shard(KEY, 11, blake3(b"abc").digest(), b"abc")


def plain(found: list[Shard]) -> list[Shard]:
    """With payloads as bytes, to be compared."""
    return [shard._replace(payload=bytes(shard.payload)) for shard in found]


def frame_of(sent: list[Shard], flags: int = 0, instance: bytes = b"") -> bytes:
    frame = AppendFrame(instance)
    for shard in sent:
        frame.add(shard)
    return b"".join(frame.parts(flags))


def append_of(raw: bytes) -> Append:
    return parse_append(memoryview(raw))


def fetched_of(raw: bytes, wanted: list[Wanted]) -> list[memoryview | None]:
    return parse_fetched(memoryview(raw), wanted)


def found_of(raw: bytes, asked: list[ShardKey]) -> list[Shard | int | None]:
    return parse_found(memoryview(raw), asked)


# -- round trips -----------------------------------------------------------------------------------


@given(
    sent=st.lists(shards, max_size=5),
    flags=st.integers(0, FLAG_URGENT | FLAG_SYNC),
    instance=st.binary(max_size=255),
)
def test_append(sent: list[Shard], flags: int, instance: bytes) -> None:
    received = append_of(frame_of(sent, flags, instance))
    assert (received.flags, received.instance) == (flags, instance)
    assert plain(received.shards) == plain(sent)


@given(sent=st.lists(shards, max_size=5), instance=st.binary(max_size=255))
def test_an_append_frame_knows_its_keys_and_its_size(sent: list[Shard], instance: bytes) -> None:
    frame = AppendFrame(instance)
    for shard in sent:
        frame.add(shard)
    assert (
        frame.size
        == HEAD_BYTES + len(instance) + sum(ENTRY_BYTES + len(shard.payload) for shard in sent)
        == len(b"".join(frame.parts(0)))
    )
    assert set(frame.keys) == {shard.key for shard in sent}
    for key, place in frame.keys.items():
        last = [shard for shard in sent if shard.key == key][-1]
        assert place == Location(0, 0, len(last.payload), last.object_length)


def test_an_append_frame_takes_any_shard_but_no_more_than_a_message_holds() -> None:
    frame = AppendFrame(b"instance")
    largest = SHARD._replace(payload=bytes(OBJECT_BYTES_MAX))
    assert frame.takes(largest)
    frame.add(largest)
    assert not frame.takes(largest)
    rest = MESSAGE_BYTES_MAX - frame.size - ENTRY_BYTES
    assert frame.takes(SHARD._replace(payload=bytes(rest)))
    assert not frame.takes(SHARD._replace(payload=bytes(rest + 1)))


def test_an_append_frame_sends_large_payloads_from_where_they_are_and_small_ones_together() -> None:
    frame = AppendFrame()
    small, large = memoryview(bytearray(b"small")), memoryview(bytearray(100_000))
    sent = [SHARD._replace(payload=payload) for payload in (*[small] * 100, large, *[small] * 100)]
    for shard in sent:
        frame.add(shard)
    parts = frame.parts(0)
    assert [part is large for part in parts].count(True) == 1
    assert len(parts) < 10
    assert plain(append_of(b"".join(parts)).shards) == plain(sent)


@given(sent=st.lists(shards, max_size=5))
def test_shards(sent: list[Shard]) -> None:
    assert plain(parse_shards(pack_shards(sent))) == plain(sent)


@given(sent=st.lists(keys(), max_size=20))
def test_keys(sent: list[ShardKey]) -> None:
    assert parse_keys(join_keys(sent)) == sent


@given(sent=st.sets(st.integers(0, 40)), more=st.integers(1, 5))
def test_positions(sent: set[int], more: int) -> None:
    count = max(sent, default=0) + more
    assert parse_positions(pack_positions(sorted(sent)), count) == sorted(sent)


@pytest.mark.parametrize(
    "raw",
    [b"\0", pack_positions([3]), pack_positions([1, 0]), pack_positions([1, 1]), pack_positions([0, 1, 2, 3])],
    ids=["part of one", "beyond the keys", "descending", "twice", "too many"],
)
def test_what_are_no_positions_among_three_keys(raw: bytes) -> None:
    with pytest.raises(FrameError):
        parse_positions(raw, 3)


@given(sent=st.lists(st.binary(min_size=SHARD_KEY_BYTES, max_size=SHARD_KEY_BYTES), max_size=20))
def test_keys_that_need_be_none(sent: list[bytes]) -> None:
    assert split_keys(b"".join(sent)) == sent
    for raw in (KEY[:-1], KEY * (KEYS_MAX + 1)):
        with pytest.raises(FrameError):
            split_keys(raw)


@given(sent=st.lists(st.none() | locations, max_size=20))
def test_locations(sent: list[Location | None]) -> None:
    assert parse_locations(pack_locations(sent), len(sent)) == sent


@given(sent=st.lists(wants, max_size=20))
def test_wanted(sent: list[Wanted]) -> None:
    assert parse_wanted(pack_wanted(sent)) == sent


@given(sent=st.lists(st.tuples(keys(), st.none() | st.binary(max_size=50)), max_size=8))
def test_fetched(sent: list[tuple[ShardKey, bytes | None]]) -> None:
    wanted = [Wanted(key, 9 if payload is None else len(payload)) for key, payload in sent]
    there = [payload for _, payload in sent if payload is not None]
    states = bytes(ABSENT if payload is None else PRESENT for _, payload in sent)
    received = fetched_of(b"".join(there) + states, wanted)
    assert [payload if payload is None else bytes(payload) for payload in received] == [payload for _, payload in sent]


@given(sent=st.lists(st.tuples(keys(), st.binary(max_size=50), st.booleans()), max_size=8))
def test_fetched_with_room_for_payloads_that_could_not_be_read(sent: list[tuple[ShardKey, bytes, bool]]) -> None:
    """The length of an answer is told before its payloads are read from their files."""
    wanted = [Wanted(key, len(payload)) for key, payload, _ in sent]
    payloads = [payload if good else bytes(len(payload)) for _, payload, good in sent]
    raw = b"".join(payloads) + bytes(PRESENT if good else ABSENT for _, _, good in sent)
    assert len(raw) == fetched_bytes(wanted)
    received = fetched_of(raw, wanted)
    assert [payload if payload is None else bytes(payload) for payload in received] == [
        payload if good else None for _, payload, good in sent
    ]


@given(sent=st.lists(shards | st.none() | st.sampled_from([CORRUPT, UNREADABLE]), max_size=8))
def test_found(sent: list[Shard | int | None]) -> None:
    asked = [shard.key if isinstance(shard, Shard) else KEY for shard in sent]
    received = found_of(pack_found(sent), asked)
    assert [plain([each]) if isinstance(each, Shard) else each for each in received] == [
        plain([each]) if isinstance(each, Shard) else each for each in sent
    ]


# -- what is no frame ------------------------------------------------------------------------------

PARSERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "append": (frame_of([SHARD, SHARD], FLAG_SYNC), append_of),
    "shards": (pack_shards([SHARD, SHARD]), parse_shards),
    "keys": (join_keys([KEY, KEY]), parse_keys),
    "locations": (pack_locations([None, Location(1, 2, 3, 4)]), lambda raw: parse_locations(raw, 2)),
    "wanted": (pack_wanted([Wanted(KEY, 3)]), parse_wanted),
    "fetched": (b"abc\1\0", lambda raw: fetched_of(raw, [Wanted(KEY, 3)] * 2)),
    "found": (pack_found([SHARD, None, CORRUPT]), lambda raw: found_of(raw, [KEY] * 3)),
}
each_parser = pytest.mark.parametrize(("good", "parse"), PARSERS.values(), ids=PARSERS)


@each_parser
def test_the_frames_to_be_spoilt_are_good(good: bytes, parse: Callable[[bytes], Any]) -> None:
    parse(good)


@each_parser
@given(raw=st.binary(max_size=300))
@example(raw=b"")
def test_arbitrary_bytes(good: bytes, parse: Callable[[bytes], Any], raw: bytes) -> None:
    _parse_or_refuse(parse, raw)


@each_parser
@given(data=st.data())
def test_frames_with_a_few_bytes_changed(good: bytes, parse: Callable[[bytes], Any], data: st.DataObject) -> None:
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    _parse_or_refuse(parse, bytes(raw))


@each_parser
def test_frames_cut_anywhere_or_too_long(good: bytes, parse: Callable[[bytes], Any]) -> None:
    shard_bytes = ENTRY_BYTES + 3
    whole = {len(join_keys([KEY])), shard_bytes, HEAD_BYTES, HEAD_BYTES + shard_bytes}  # what is a frame as well
    whole |= {0} if parse is not append_of else set()
    for length in range(len(good)):
        if length not in whole:
            with pytest.raises(FrameError):
                parse(good[:length])
    with pytest.raises(FrameError):
        parse(good + b"\0")


def _parse_or_refuse(parse: Callable[[bytes], Any], raw: bytes) -> None:
    with suppress(FrameError):
        parse(raw)


@pytest.mark.parametrize(
    "key",
    [
        KEY[:32] + b"\0" + KEY[33:],
        KEY[:32] + bytes([max(Kind) + 1]) + KEY[33:],
        KEY[:33] + b"\6\5\0",
        KEY[:33] + b"\3\5\6",
    ],
    ids=["no kind", "an unknown kind", "k above n", "slot above n"],
)
def test_what_is_no_key(key: bytes) -> None:
    for parse, raw in (
        (parse_keys, key),
        (parse_wanted, key + bytes(4)),
        (append_of, bytes(HEAD_BYTES) + key + bytes(ENTRY_BYTES - SHARD_KEY_BYTES)),
    ):
        with pytest.raises(FrameError, match="no shard key"):
            parse(raw)


def test_flags_of_a_newer_sender() -> None:
    with pytest.raises(FrameError, match="newer"):
        append_of(b"\4\0")


def test_objects_larger_than_any() -> None:
    too_large = SHARD._replace(object_length=OBJECT_BYTES_MAX + 1)
    payload_too_large = SHARD._replace(payload=bytes(OBJECT_BYTES_MAX + 1))
    for parse, raw in (
        (append_of, frame_of([too_large])),
        (append_of, frame_of([payload_too_large])),
        (lambda raw: found_of(raw, [KEY]), pack_found([too_large])),
        (lambda raw: parse_locations(raw, 1), pack_locations([Location(0, 0, 0, OBJECT_BYTES_MAX + 1)])),
        (lambda raw: parse_locations(raw, 1), pack_locations([Location(0, 0, OBJECT_BYTES_MAX + 1, 0)])),
    ):
        with pytest.raises(FrameError, match="larger than any chunk"):
            parse(raw)


def test_more_keys_than_are_taken() -> None:
    assert len(parse_keys(KEY * KEYS_MAX)) == KEYS_MAX
    with pytest.raises(FrameError, match=f"at most {KEYS_MAX}"):
        parse_keys(KEY * (KEYS_MAX + 1))
    with pytest.raises(FrameError):
        parse_wanted(pack_wanted([Wanted(KEY, 0)]) * (KEYS_MAX + 1))


def test_more_wanted_than_fits_into_a_message() -> None:
    assert parse_wanted(pack_wanted([Wanted(KEY, MESSAGE_BYTES_MAX - 1)]))
    with pytest.raises(FrameError, match="ask for less"):
        parse_wanted(pack_wanted([Wanted(KEY, MESSAGE_BYTES_MAX)]))
    with pytest.raises(FrameError, match="ask for less"):
        parse_wanted(pack_wanted([Wanted(KEY, MESSAGE_BYTES_MAX // 4)] * 5))


HUGE = struct.pack("<I", 2**32 - 1)


@pytest.mark.parametrize(
    ("parse", "raw"),
    [
        (append_of, frame_of([SHARD])[: HEAD_BYTES + ENTRY_BYTES - 4] + HUGE + b"abc"),
        (parse_shards, pack_shards([SHARD])[: ENTRY_BYTES - 4] + HUGE + b"abc"),
        (parse_wanted, KEY + HUGE),
        (parse_wanted, (KEY + HUGE) * KEYS_MAX),
        (lambda raw: found_of(raw, [KEY]), pack_found([SHARD])[: FOUND_BYTES - 4] + HUGE + b"abc"),
        (lambda raw: fetched_of(raw, [Wanted(KEY, 2**32 - 1)]), b"abc" + bytes([PRESENT])),
        (lambda raw: fetched_of(raw, [Wanted(KEY, 2**32 - 1)] * 2), bytes([PRESENT, ABSENT])),
        (lambda raw: parse_locations(raw, 2**40), bytes(LOCATION_BYTES)),
    ],
)
def test_claimed_lengths_cost_no_memory(parse: Callable[[bytes], Any], raw: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            parse(raw)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# -- the service behind the frames -----------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardService]:
    volume = LocalVolume(
        tmp_path_factory.mktemp("volume"), VolumeIdentity(store_id="0" * 32, slot=0, volumes=1, key="1" * 64)
    )
    volume.append([SHARD])
    yield ShardService(volume, "")
    volume.close()


REQUESTS = st.one_of(
    st.binary(max_size=120),
    st.binary(max_size=60).map(lambda raw: KEY + raw),
    st.binary(max_size=60).map(lambda raw: bytes([len(raw) // 2]) + raw),
    st.sampled_from([good for good, _ in PARSERS.values()]),
)


class Waiting:
    """A caller that waits for its answer."""

    def is_active(self) -> bool:
        return True


OF_MEMBERS = [call for call in Call if call not in (Call.TAKE, Call.PUT)]  # which the port of clients serves


@pytest.mark.parametrize("call", OF_MEMBERS, ids=[call.name.lower() for call in OF_MEMBERS])
@given(raw=REQUESTS)
@example(raw=b"")
@example(raw=KEY)
@example(raw=b"\xff" * 1000)
@example(raw=b"\x00\x02\x00\x00")  # the start of a worker: not this one
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_method_answers_or_refuses_whatever_it_is_sent(service: ShardService, call: Call, raw: bytes) -> None:
    if call is Call.VERIFY:
        raw = b""  # it takes none, and reads all there is
    method = service.methods()[call]
    style = method.style_of(memoryview(raw))
    # A well-formed request may name another start of the worker, which is refused as such.
    with suppress(InvalidArgument, WorkerRestarted):
        answer = method.serve(memoryview(raw), Waiting())
        messages = [answer] if style is not Style.STREAM else list(answer)
        assert all(_are_sendable(cast(Parts, parts)) for parts in messages)


def _are_sendable(parts: Parts) -> bool:
    return all(isinstance(part, bytes | bytearray | memoryview | FilePart) for part in parts)
