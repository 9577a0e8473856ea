"""Lines cut, deadlines, callers gone: nothing visible, nothing lost, and resuming sends only what is missing."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from storage import FileStorage, StorageError
from taskworker import Client
from taskworker.errors import DeadlineExceeded, StorageUnavailable
from taskworker.protos import store_pb2
from tests.services.conftest import CHUNK, Raw
from tests.services.proxy import Proxy

USER = "u1"
MIB = 1024 * 1024
SIZE = 24 * MIB

Part = store_pb2.PushPart


@pytest.fixture
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture
def proxy(address: str) -> Iterator[Proxy]:
    with Proxy(address) as between:
        yield between


def wait_until_leased(store: FileStorage, chunk_ids: list[bytes]) -> int:
    """How many of the chunks the user has once the server has noticed that the pusher is gone."""
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        have = store.missing_chunks(chunk_ids, user_id=USER).count(False)
        if have:
            return have
        time.sleep(0.05)
    pytest.fail("the server kept nothing of an interrupted push")


def ids_of(content: bytes) -> list[bytes]:
    from blake3 import blake3

    return [blake3(content[at : at + CHUNK]).digest() for at in range(0, len(content), CHUNK)]


def test_a_cut_stream_makes_no_version_and_resuming_sends_what_is_missing(
    store: FileStorage, proxy: Proxy, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "content"
    path.write_bytes(content)
    proxy.cut_after_sent(16 * MIB)

    def once() -> Iterator[bytes]:  # cannot be read again, so the client cannot resume by itself
        for at in range(0, SIZE, MIB):
            yield content[at : at + MIB]

    with Client(proxy.address) as client, pytest.raises(StorageUnavailable):
        client.push(once(), filename="a", user_id=USER)
    assert store.find("a", user_id=USER) is None
    have = wait_until_leased(store, ids_of(content))

    before = proxy.sent
    with Client(proxy.address) as client:
        version = client.push(path, filename="a", user_id=USER)
    missing = SIZE - have * CHUNK
    assert proxy.sent - before < missing + 2 * MIB
    assert store.get(version.file_id, user_id=USER) == content


def test_a_push_that_can_be_read_again_survives_a_cut_line(store: FileStorage, proxy: Proxy, content: bytes) -> None:
    proxy.cut_after_sent(16 * MIB)
    with Client(proxy.address) as client:
        version = client.push(content, filename="a", user_id=USER)
    assert store.get(version.file_id, user_id=USER) == content
    assert len(store.history(version.file_id, user_id=USER)) == 1


def test_pushing_the_same_again_sends_almost_nothing(store: FileStorage, proxy: Proxy, content: bytes) -> None:
    with Client(proxy.address) as client:
        first = client.push(content, filename="a", user_id=USER)
        before = proxy.sent
        again = client.push(content, filename="a", user_id=USER)
        changed = content[: 10 * MIB] + b"!" + content[10 * MIB + 1 :]
        other = client.push(changed, filename="a", user_id=USER)
    assert again == first
    assert proxy.sent - before < MIB
    assert store.get(other.file_id, user_id=USER) == changed


def test_a_get_survives_a_cut_line(store: FileStorage, proxy: Proxy, content: bytes, tmp_path: Path) -> None:
    version = store.push(content, filename="a", user_id=USER)
    proxy.cut_after_received(9 * MIB)
    with Client(proxy.address) as client:
        assert client.get(version.file_id, user_id=USER) == content
        assert proxy.received < SIZE + 9 * MIB
        proxy.cut_after_received(9 * MIB)
        client.download(version.file_id, tmp_path / "out", user_id=USER)
        assert (tmp_path / "out").read_bytes() == content


def test_a_resumed_get_goes_on_with_the_same_version(store: FileStorage, proxy: Proxy, content: bytes) -> None:
    version = store.push(content, filename="a", user_id=USER)
    with Client(proxy.address) as client:
        got = bytearray()

        def moved(done: int, _total: int) -> None:
            if done > 4 * MIB and not got:
                got.append(1)
                store.push(b"another head", filename="a", user_id=USER)
                proxy.cut()

        assert client.get(version.file_id, user_id=USER, progress=moved) == content


def test_a_download_that_fails_leaves_what_was_there(
    store: FileStorage, proxy: Proxy, content: bytes, tmp_path: Path
) -> None:
    version = store.push(content, filename="a", user_id=USER)
    target = tmp_path / "out"
    target.write_bytes(b"before")

    def fail(_done: int, _total: int) -> None:
        raise RuntimeError("stop")

    with Client(proxy.address) as client, pytest.raises(RuntimeError, match="stop"):
        client.download(version.file_id, target, user_id=USER, progress=fail)
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == ["out"]


CHUNKS = [bytes([seed]) * CHUNK for seed in range(20)]


def unfinished(gone: threading.Event) -> Iterator[store_pb2.PushPart]:
    yield Part(header=store_pb2.PushHeader(filename="a", user_id=USER))
    for chunk in CHUNKS:
        yield Part(data=chunk)
    gone.wait(60)


def all_stored(store: FileStorage) -> bool:
    return store.stats().stored_bytes >= len(CHUNKS) * CHUNK * 3 // 2  # 3 shards, 2 of them data


def test_a_cancelled_push_is_aborted_and_its_chunks_kept(raw: Raw, store: FileStorage) -> None:
    gone = threading.Event()
    call = raw.store.PushStream.future(unfinished(gone))
    while not all_stored(store):
        time.sleep(0.01)
    call.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        call.result()
    gone.set()
    assert wait_until_leased(store, ids_of(b"".join(CHUNKS))) == len(CHUNKS)
    assert store.find("a", user_id=USER) is None


def test_a_push_past_its_deadline_is_aborted_and_its_chunks_kept(raw: Raw, store: FileStorage) -> None:
    timeout_s = 0.5
    while not all_stored(store):  # on a busy machine, not before the deadline
        gone = threading.Event()
        call = raw.store.PushStream.future(unfinished(gone), timeout=timeout_s)
        with pytest.raises(grpc.RpcError):
            call.result()
        gone.set()
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        timeout_s *= 2
    assert wait_until_leased(store, ids_of(b"".join(CHUNKS))) == len(CHUNKS)
    assert store.find("a", user_id=USER) is None


def test_the_clients_deadline_holds_for_all_of_a_push(store: FileStorage, client: Client, content: bytes) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)
            time.sleep(0.05)

    with pytest.raises(DeadlineExceeded):
        client.push(endless(), filename="a", user_id=USER, timeout_s=1.0)
    assert store.find("a", user_id=USER) is None


def test_the_deadline_ends_retries() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(StorageError) as raised:
        client.push(bytes(2 * MIB), filename="a", user_id=USER, timeout_s=0.3)
    assert isinstance(raised.value, DeadlineExceeded | StorageUnavailable)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal; a process started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_before_the_end_of_the_input_leaves_no_version(store: FileStorage, client: Client) -> None:
    """Ctrl-C ends a whole pipeline: the end of its output, which comes with it, does not mean that it is whole."""

    def interrupted() -> Iterator[bytes]:
        yield bytes(2 * MIB)
        os.kill(os.getpid(), signal.SIGINT)

    for attempt in range(20):
        with pytest.raises(KeyboardInterrupt):
            client.push(interrupted(), filename=f"cut-{attempt}", user_id=USER)
    assert store.list_files(user_id=USER) == []


def test_an_error_in_the_source_is_raised_as_it_is(store: FileStorage, client: Client) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(2 * MIB)
        raise OSError("the disk is on fire")

    with pytest.raises(OSError, match="on fire"):
        client.push(broken(), filename="a", user_id=USER)
    assert store.find("a", user_id=USER) is None


def test_an_error_in_progress_is_raised_as_it_is(store: FileStorage, client: Client) -> None:
    def fail(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.push(bytes(4 * MIB), filename="a", user_id=USER, progress=fail)
    assert store.find("a", user_id=USER) is None


def test_a_source_that_shrinks_is_refused(store: FileStorage, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "shrinking"
    path.write_bytes(bytes(8 * MIB))

    def shrink(done: int, _total: int) -> None:
        if done:
            with path.open("r+b") as file:
                file.truncate(0)

    with pytest.raises(StorageError, match="shorter"):
        client.push(path, filename="a", user_id=USER, progress=shrink)
    assert store.find("a", user_id=USER) is None


def test_a_revision_cut_off_changes_nothing_and_goes_on_where_it_was(
    store: FileStorage, proxy: Proxy, content: bytes
) -> None:
    base = store.push(bytes(SIZE), filename="a", user_id=USER)
    proxy.cut_after_sent(18 * MIB)
    with Client(proxy.address) as client:
        with pytest.raises(StorageUnavailable):
            client.revise(base.file_id, content, user_id=USER)
        assert store.stat(base.file_id, user_id=USER) == base
        have = wait_until_leased(store, ids_of(content))
        before = proxy.sent
        version = client.revise(base.file_id, content, user_id=USER)
    assert have * CHUNK > MIB
    assert proxy.sent - before < SIZE - have * CHUNK + MIB // 2
    assert store.get(version.file_id, user_id=USER) == content
