"""What a get waits for before a worker is asked, and that it waits no longer once it was given up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.keys import shard_key
from storage.shards import VolumeUnavailable
from taskworker.client.deadline import Deadline
from taskworker.client.direct.reader import Reader, reading
from taskworker.client.direct.volume import WorkerVolume
from taskworker.transport.ticketed_volume import Granted
from taskworker.transport.wire.framing import BODY_BYTES_MAX, HEADER_BYTES, pack_welcome
from taskworker.transport.wire.streams import Stream, dial
from tests.services.test_direct_readers import CONTENT, FOREVER_BYTES, FOREVER_S, STRIPE, WAIT_S, in_time
from tests.transport.peers import Peer
from tests.transport.peers import worker as silent_worker


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def begin(volume: WorkerVolume, reader: Reader) -> None:
    granted = {STRIPE: Granted(len(CONTENT), b"ticket", (0,))}
    with reading(reader, granted):
        volume.begin_fetch([(shard_key(STRIPE, 0), len(CONTENT))], [memoryview(bytearray(CONTENT))], lambda _: None)


def ends_when_given_up(work: Callable[[Reader], None]) -> None:
    reader = Reader(Deadline(None))
    threading.Timer(0.2, reader.give_up).start()
    with pytest.raises(VolumeUnavailable, match=r"time was over|given up"):
        in_time(lambda: work(reader))
    with pytest.raises(VolumeUnavailable, match="time was over"):
        in_time(lambda: work(Reader(Deadline(0.2))))


def test_a_get_does_not_wait_for_another_that_connects(threads: ThreadPoolExecutor) -> None:
    dials, ends = threading.Event(), threading.Event()

    def dial_slowly(_address: str, _within_s: float) -> Stream:
        dials.set()
        assert ends.wait(FOREVER_S)
        raise ConnectionRefusedError

    volume = WorkerVolume("127.0.0.1:1", "w1", 0, threads, timeout_s=FOREVER_S, dial=dial_slowly)
    connecting = threads.submit(volume.connect)
    assert dials.wait(WAIT_S)
    try:
        ends_when_given_up(lambda reader: begin(volume, reader))
    finally:
        ends.set()
    assert connecting.exception() is not None
    volume.close()


def test_a_get_does_not_wait_for_room_on_a_connection(threads: ThreadPoolExecutor) -> None:
    asked = threading.Event()

    def take_one_call(peer: Peer) -> None:
        peer.socket.settimeout(None)
        peer.send(pack_welcome(1, BODY_BYTES_MAX, 16))
        peer.take(16 * HEADER_BYTES)
        asked.set()
        peer.take(FOREVER_BYTES)

    with silent_worker(take_one_call) as address:
        volume = WorkerVolume(address, "w1", 0, threads, timeout_s=FOREVER_S, dial=dial)
        first = Reader(Deadline(None))
        for _ in range(16):
            begin(volume, first)
        assert asked.wait(WAIT_S)
        ends_when_given_up(lambda reader: begin(volume, reader))
        volume.close()
