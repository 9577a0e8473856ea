"""Small files that several threads get at the same time come by shared calls, each to whoever asked for it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from storage import FileNotFound, FileStorage, KeyRequired, StorageError
from taskworker import Client
from taskworker.errors import CallNotOffered, DeadlineExceeded
from taskworker.protos import store_pb2
from tests.services.conftest import CHUNK, Serve
from tests.services.proxy import Proxy

THREADS = 16
SIZES = [0, 1, 4096, CHUNK, CHUNK + 1, 300_000]


class Calls:
    """Counts a client's calls of GetFiles, and what they ask for."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        get_files = client._channel.store.GetFiles

        def counted(request: store_pb2.GetManyRequest, **options: Any) -> store_pb2.GetManyPart:
            self.asked.append(len(request.files))
            return get_files(request, **options)

        monkeypatch.setattr(client._channel.store, "GetFiles", counted)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as threads:
        yield threads


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls wait until enough of them can go together."""
    monkeypatch.setattr("taskworker.client.coalescing._CALLS_MAX", 0)
    monkeypatch.setattr("taskworker.client.coalescing._WAIT_S", 0.2)


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def outcome(client: Client, file_id: str, user: str = "u") -> bytes | type[StorageError]:
    try:
        return client.get(file_id, user_id=user)
    except StorageError as error:
        return type(error)


@pytest.mark.usefixtures("together")
def test_each_gets_its_own_file_or_error(
    client: Client, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(client, monkeypatch)
    files = {
        client.push(content(at, size), filename=f"日本 {at}", user_id="u").file_id: at for at, size in enumerate(SIZES)
    }
    theirs = client.push(b"secret", filename="s", user_id="other").file_id
    asked = [*files, theirs, "0" * 32, *files, "not an id"]
    answers = list(threads.map(lambda file_id: outcome(client, file_id), asked))
    expected = [content(files[each], SIZES[files[each]]) if each in files else FileNotFound for each in asked]
    assert answers == [
        outcome(client, each) if isinstance(want, type) else want for each, want in zip(asked, expected, strict=True)
    ]
    assert answers[len(files)] is FileNotFound
    assert max(calls.asked) > 4
    assert outcome(client, theirs, "other") == b"secret"


@pytest.mark.usefixtures("together")
def test_a_file_that_is_sealed_is_not_given_to_who_has_no_key(
    client: Client, address: str, threads: ThreadPoolExecutor
) -> None:
    with Client(address, key=bytes(range(32))) as owner:
        sealed = owner.push(b"sealed", filename="a", user_id="u").file_id
        assert owner.get(sealed, user_id="u") == b"sealed"
    clear = client.push(b"clear", filename="b", user_id="u").file_id
    answers = list(threads.map(lambda file_id: outcome(client, file_id), [sealed, clear] * 4))
    assert answers == [KeyRequired, b"clear"] * 4


@pytest.mark.usefixtures("together")
def test_a_deadline_ends_only_its_own_get(store: FileStorage, serve: Serve, threads: ThreadPoolExecutor) -> None:
    with Client(serve(store)) as client:
        file_id = client.push(b"x", filename="a", user_id="u").file_id

        def hurried() -> bool:
            with pytest.raises(DeadlineExceeded):
                client.get(file_id, user_id="u", timeout_s=0.01)
            return True

        in_time = [threads.submit(client.get, file_id, user_id="u") for _ in range(6)]
        late = [threads.submit(hurried) for _ in range(6)]
        assert all(each.result() for each in late)
        assert [each.result() for each in in_time] == [b"x"] * 6


@pytest.mark.usefixtures("together")
def test_a_server_without_the_call_is_asked_for_each_file(
    client: Client, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def unknown(request: object, **_options: Any) -> None:
        asked.append(request)
        raise CallNotOffered("an older server")

    monkeypatch.setattr(client._channel.store, "GetFiles", unknown)
    file_id = client.push(b"x", filename="a", user_id="u").file_id
    for _ in range(2):
        assert list(threads.map(lambda _: client.get(file_id, user_id="u"), range(8))) == [b"x"] * 8
        assert len(asked) == 1


def test_threads_get_what_they_ask_for_also_if_connections_break(store: FileStorage, serve: Serve) -> None:
    with Proxy(serve(store)) as proxy, Client(proxy.address) as client, ThreadPoolExecutor(THREADS) as threads:
        files = [client.push(content(at, 4096), filename=f"{at}", user_id="u").file_id for at in range(50)]
        ended = threading.Event()

        def caller(first: int) -> int:
            count = 0
            while not ended.is_set():
                at = (first * 7 + count) % len(files)
                assert client.get(files[at], user_id="u") == content(at, 4096)
                count += 1
            return count

        callers = [threads.submit(caller, first) for first in range(THREADS)]
        for _ in range(4):
            ended.wait(0.3)
            proxy.cut()
        ended.wait(0.5)
        ended.set()
        assert all(each.result() > 10 for each in callers)
