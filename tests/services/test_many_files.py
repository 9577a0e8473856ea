"""Calls on many files over the wire: results one by one, resumable, and safe against what no honest client sends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import ConflictError, ErasureProfile, FileNotFound, FileStorage, InvalidArgument, StorageError, Version
from storage.write import upload
from storage.write.known import content_of_held
from taskworker import AsyncClient, Client
from taskworker.client import many
from taskworker.errors import DeadlineExceeded, ServerBusy, StorageUnavailable
from taskworker.protos import store_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.rpc.admission import ServerLimits
from taskworker.rpc.status import file_error_from
from taskworker.services.file_server import FileServer
from tests.services.conftest import CHUNK, Guarded, Raw, Serve, text_of
from tests.services.proxy import Proxy

USER = "u1"
CODE = grpc.StatusCode
MIB = 1 << 20
NAMES = ["a", "häuser/日本語.txt", "x" * 1024, " ", "a\nb", "-rf", "\u202egnp.exe"]
SIZES = [0, 1, 4096, CHUNK, CHUNK + 1, 512 * 1024, 512 * 1024 + 1, MIB + 1, 3 * MIB + 7]


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def part(*files: tuple[str, bytes], **fields: Any) -> store_pb2.PushManyPart:
    return store_pb2.PushManyPart(
        files=[store_pb2.WholeFile(filename=name, data=data) for name, data in files], **fields
    )


HEADER = store_pb2.PushManyHeader(user_id=USER)


def large(name: str, data: bytes | None = None, commit: int | None = None, **fields: Any) -> store_pb2.PushPart:
    return store_pb2.PushPart(
        header=store_pb2.PushHeader(filename=name, **fields),
        data=data or b"",
        commit=None if commit is None else store_pb2.PushCommit(size=commit),
    )


def results(raw: Raw, *parts: store_pb2.PushManyPart) -> list[store_pb2.PushResult]:
    return [result for message in raw.store.PushMany(iter(parts)) for result in message.results]


def pushed(client: Client, files: Any) -> list[Version]:
    return [outcome.result() for outcome in client.push_many(files, user_id=USER)]


def test_files_of_all_sizes_and_names_come_back(client: Client, store: FileStorage, tmp_path: Path) -> None:
    path = tmp_path / "from disk"
    path.write_bytes(content(1, 2 * MIB))
    files: list[Any] = [(f"s{size}", content(size, size)) for size in SIZES]
    files += [(name, name.encode()) for name in NAMES]
    expected = [data for _, data in files] + [path.read_bytes(), b"pieces", b"open"]
    files += [path, ("pieces", iter([b"pie", b"ces"])), ("open", io.BytesIO(b"open"))]
    outcomes = list(client.push_many(files, user_id=USER, note="n", time_ms=5))
    assert [outcome.position for outcome in outcomes] == list(range(len(files)))
    versions = [outcome.result() for outcome in outcomes]
    assert {(version.note, version.time_ms, version.profile.k) for version in versions} == {("n", 5, 2)}
    ids = [version.file_id for version in versions]
    names = [version.filename for version in versions]
    assert names == [outcome.filename for outcome in outcomes]
    for by_name, asked in (False, ids), (True, names):
        found = list(client.get_many(asked, user_id=USER, by_name=by_name))
        assert [each.result() for each in found] == expected
        assert [(each.position, each.file, each.version) for each in found] == list(
            zip(range(len(asked)), asked, versions, strict=True)
        )
    bounded = list(client.get_many(ids, user_id=USER, bytes_max=4096))
    assert [each.data for each in bounded] == [data if len(data) <= 4096 else None for data in expected]
    assert all(each.error is None for each in bounded)
    assert [each.result() for each in store.get_many(ids, user_id=USER)] == expected


def test_profile_and_chunk_size_are_those_given(client: Client) -> None:
    files = [("small", b"x" * 5000), ("large", content(1, 2 * MIB))]
    outcomes = client.push_many(files, user_id=USER, profile=ErasureProfile(1, 2), chunk_size=2 * CHUNK)
    assert {(each.result().profile, each.result().chunk_size) for each in outcomes} == {
        (ErasureProfile(1, 2), 2 * CHUNK)
    }


def test_an_error_of_one_file_is_its_outcome(client: Client, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * (2 * MIB)
        raise OSError("broken pipe")

    files: list[Any] = [
        ("first", b"1"),
        ("", b"no name"),
        ("a/../b", b"dots"),
        ("lone \ud800", b"surrogate"),
        tmp_path / "missing",
        tmp_path / "nul\0" / "name",
        tmp_path / "lone \ud800" / "name",
        ("text", 5),
        ("broken", broken()),
        ("same", b"1"),
        ("same", content(1, 2 * MIB)),
        ("same", b"3"),
        tmp_path,
    ]
    outcomes = list(client.push_many(files, user_id=USER))
    assert [outcome.position for outcome in outcomes] == list(range(len(files)))
    kinds = [type(outcome.error) for outcome in outcomes]
    assert kinds[1:4] == [InvalidArgument] * 3
    assert kinds[4:9] == [FileNotFoundError, InvalidArgument, InvalidArgument, InvalidArgument, OSError]
    assert kinds[0] is kinds[9] is kinds[10] is kinds[11] is type(None)
    assert kinds[12] is IsADirectoryError
    same = [outcome.result() for outcome in outcomes[9:12]]
    assert client.history(same[0].file_id, user_id=USER) == same[::-1]
    assert [each.filename for each in client.list_files(user_id=USER)] == ["first", "same"]


def test_what_is_not_there_is_an_outcome(client: Client, store: FileStorage) -> None:
    mine = pushed(client, [("mine", b"1")])[0]
    theirs = store.push(b"2", filename="theirs", user_id="eve")
    asked = [mine.file_id, "0" * 32, "no id", theirs.file_id, mine.file_id]
    got = list(client.get_many(asked, user_id=USER))
    assert [type(each.error) for each in got] == [type(None), *[FileNotFound] * 3, type(None)]
    deleted = list(client.delete_many(asked, user_id=USER))
    assert [type(each.error) for each in deleted] == [type(None), *[FileNotFound] * 4]
    assert [each.file for each in deleted] == asked
    assert store.get(theirs.file_id, user_id="eve") == b"2"


def test_thousands_of_files(client: Client, store: FileStorage) -> None:
    files = [(f"f{number}", b"%d" % number) for number in range(5000)]
    versions = pushed(client, iter(files))
    ids = [version.file_id for version in versions]
    assert [each.result() for each in client.get_many(iter(ids), user_id=USER)] == [data for _, data in files]
    assert all(version.unchanged for version in pushed(client, files))
    assert store.counts().versions == 5000
    assert all(each.error is None for each in client.delete_many(iter(ids), user_id=USER))
    assert store.counts().files == 0


def test_outcomes_come_while_files_are_still_being_given(client: Client) -> None:
    """A caller who gives the next file only after the outcome of the one before is served."""
    seen, last = threading.Semaphore(1), 5

    def files() -> Iterator[tuple[str, bytes]]:
        for number in range(last):
            assert seen.acquire(timeout=30)
            yield f"f{number}", b"%d" % number

    for outcome in client.push_many(files(), user_id=USER):
        outcome.result()
        seen.release()
    assert len(client.list_files(user_id=USER)) == last


def test_errors_of_the_call_are_raised(client: Client, address: str) -> None:
    def files() -> Iterator[tuple[str, bytes]]:
        yield "first", b"1"
        raise KeyError("of the caller")

    outcomes = client.push_many(files(), user_id=USER)
    assert next(outcomes).result().filename == "first"
    with pytest.raises(KeyError, match="of the caller"):
        next(outcomes)
    wrongs: list[Any] = [[5], [("a", b"", 1)], [b"bytes"]]
    for wrong in wrongs:
        with pytest.raises(InvalidArgument, match="pairs"):
            list(client.push_many(wrong, user_id=USER))
    with pytest.raises(InvalidArgument, match="user_id"):
        client.push_many([], user_id="")
    assert not list(client.push_many([], user_id=USER))
    assert not list(client.get_many([], user_id=USER))
    assert not list(client.delete_many([], user_id=USER))
    with Client(address, timeout_s=0.3) as hurried, pytest.raises(DeadlineExceeded):
        list(hurried.push_many(_endless(), user_id=USER))


def test_the_error_of_a_file_that_is_being_sent_is_the_callers(client: Client) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * (2 * MIB)
        raise KeyError("of the caller")

    outcomes = client.push_many([("first", b"1"), ("broken", broken())], user_id=USER)
    assert next(outcomes).result().filename == "first"
    with pytest.raises(KeyError, match="of the caller"):
        next(outcomes)
    assert [each.filename for each in client.list_files(user_id=USER)] == ["first"]


def test_what_was_asked_for_before_an_error_of_the_iterator_comes_before_it(client: Client) -> None:
    ids = [version.file_id for version in pushed(client, [("a", b"1"), ("b", b"2"), ("c", b"3")])]

    def asked() -> Iterator[str]:
        yield from ids[:2]
        raise KeyError("of the caller")

    reading, deleting = client.get_many(asked(), user_id=USER), client.delete_many(asked(), user_id=USER)
    assert [next(reading).result(), next(reading).result()] == [b"1", b"2"]
    with pytest.raises(KeyError, match="of the caller"):
        next(reading)
    assert [next(deleting).error, next(deleting).error] == [None, None]
    with pytest.raises(KeyError, match="of the caller"):
        next(deleting)
    assert [each.filename for each in client.list_files(user_id=USER)] == ["c"]


class Given:
    """Files to push, of which it is counted how many were asked for."""

    def __init__(self, files: Iterable[Any]) -> None:
        self.count = 0
        self._files = files

    def __iter__(self) -> Iterator[Any]:
        for file in self._files:
            self.count += 1
            yield file


def test_files_that_cannot_be_read_wait_for_their_outcomes_to_be_taken(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "_UNANSWERED_MAX", 64)
    given = Given(tmp_path / f"missing {number}" for number in range(1000))
    outcomes = client.push_many(given, user_id=USER)
    assert isinstance(next(outcomes).error, FileNotFoundError)
    assert given.count < 200
    positions = [each.position for each in outcomes if isinstance(each.error, FileNotFoundError)]
    assert positions == list(range(1, 1000))


def test_a_caller_that_pauses_is_given_all_outcomes_also_of_files_that_cannot_be_read(
    address: str, store: FileStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "_UNANSWERED_MAX", 64)
    missing = tmp_path / "missing"
    files: list[Any] = [("first", b""), ("second", b""), missing, *((f"f{number}", b"") for number in range(62))]
    files += [missing, ("last", b"")]
    with Client(address, timeout_s=60) as client:
        outcomes = client.push_many(iter(files), user_id=USER)
        next(outcomes).result()
        deadline = time.monotonic() + 60
        while store.counts().files < 64:  # nothing is on its way any more
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [each.position for each in outcomes] == list(range(1, len(files)))


def _endless() -> Iterator[tuple[str, bytes]]:
    number = 0
    while True:
        yield f"f{number}", b"%d" % number
        number += 1


def test_a_caller_that_leaves_keeps_nothing_busy(client: Client, store: FileStorage) -> None:
    outcomes = client.push_many(_endless(), user_id=USER)
    first = next(outcomes).result()
    outcomes.close()  # type: ignore[attr-defined]
    got = client.get_many([first.file_id] * 3000, user_id=USER)
    next(got)
    got.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 30
    while any(thread.name == "push-many" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for file in client.iter_files(user_id=USER):
        client.delete(file.file_id, user_id=USER)
    store.collect(grace_s=0)
    assert store.scrub().clean


def test_async(address: str) -> None:
    async def work() -> None:
        async with AsyncClient(address) as client:
            files = [(f"f{number}", b"%d" % number) for number in range(300)]
            versions = [each.result() async for each in client.push_many(files, user_id=USER)]
            ids = [version.file_id for version in versions]
            assert [each.result() async for each in client.get_many(ids, user_id=USER)] == [data for _, data in files]
            assert len([each async for each in client.delete_many(ids, user_id=USER)]) == 300
            endless = client.push_many(_endless(), user_id=USER)
            await anext(endless)
            await endless.aclose()

    asyncio.run(work())


def test_servers_turn_away_more_transfers_than_they_allow(store: FileStorage, serve: Serve) -> None:
    address = serve(store, ServerLimits(calls=4, streams=1))
    with Client(address) as client:
        first = client.push_many(_endless(), user_id=USER)
        next(first)
        with pytest.raises(ServerBusy):
            list(client.push_many([("a", b"")], user_id=USER))
        first.close()  # type: ignore[attr-defined]


# -- messages that no honest client sends ---------------------------------------------------------------


def test_the_wrong_order_ends_the_call_after_the_results_before(raw: Raw, store: FileStorage) -> None:
    begun = part(header=HEADER)
    wrong = {
        "header": [part(("a", b"1"))],
        "second header": [begun, part(("a", b"1")), part(("b", b"2"), header=HEADER)],
        "before the end": [begun, part(part=large("l", b"x")), part(("a", b"1"))],
        "one header": [begun, part(part=large("l", b"x")), part(part=large("m", b"x"))],
        "with a commit": [begun, part(part=store_pb2.PushPart(data=b"x"))],
        "in the middle": [begun, part(("a", b"1")), part(part=large("l", b"x"))],
        "one owner": [begun, part(part=large("l", b"x", user_id="eve"))],
        "at most": [begun, part(*[("f", b"")] * 4097)],
        "chunk ids": [begun, part(part=large("l")), part(part=_reusing(b"x" * 32, 16385))],
        "user_id": [part(header=store_pb2.PushManyHeader())],
    }
    for text, parts in wrong.items():
        with pytest.raises(grpc.RpcError) as caught:
            results(raw, *parts)
        assert (caught.value.code(), text in text_of(caught.value)) == (CODE.INVALID_ARGUMENT, True), text
    assert [file.filename for file in store.list_files(user_id=USER)] == ["a"]
    with pytest.raises(grpc.RpcError) as caught:
        results(raw)
    assert caught.value.code() is CODE.INVALID_ARGUMENT


def _reusing(chunk_id: bytes, count: int) -> store_pb2.PushPart:
    return store_pb2.PushPart(reuse=store_pb2.ChunkList(chunk_ids=[chunk_id] * count))


def test_results_before_an_error_of_the_call_arrive(raw: Raw) -> None:
    call = raw.store.PushMany(iter([part(header=HEADER), part(("a", b"1")), part(header=HEADER)]))
    assert [result.version.filename for result in next(call).results] == ["a"]
    with pytest.raises(grpc.RpcError):
        next(call)


def test_messages_that_are_too_large_are_refused(raw: Raw, store: FileStorage) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        results(raw, part(header=HEADER), part(("a", b"x" * (2 * MIB))))
    assert caught.value.code() is CODE.RESOURCE_EXHAUSTED
    assert "limit of 2 MiB" in text_of(caught.value)
    for call in (
        lambda: list(raw.store.GetMany(_asking(["x"] * 4097))),
        lambda: raw.store.GetFiles(_asking(["x"] * 65)),
        lambda: list(raw.store.DeleteMany(store_pb2.DeleteManyRequest(user_id=USER, file_ids=["x"] * 4097))),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is CODE.INVALID_ARGUMENT
    assert not store.list_files(user_id=USER)


def _asking(ids: list[str]) -> store_pb2.GetManyRequest:
    return store_pb2.GetManyRequest(user_id=USER, files=[store_pb2.FileReference(file_id=one) for one in ids])


def test_small_files_come_in_one_message(raw: Raw, client: Client) -> None:
    files = [("a", b"1"), ("empty", b""), ("large", content(1, CHUNK + 1)), ("日本語", content(2, CHUNK))]
    ids = [version.file_id for version in pushed(client, files)]
    found = raw.store.GetFiles(_asking([*ids[:2], "0" * 32, *ids[2:]])).results
    assert [one.position for one in found] == list(range(5))
    assert [one.version.filename for one in found] == ["a", "empty", "", "large", "日本語"]
    assert [one.data for one in found] == [b"1", b"", b"", b"", content(2, CHUNK)]
    assert [one.HasField("error") for one in found] == [False, False, True, False, False]
    bounded = _asking(ids)
    bounded.bytes_max = 1
    assert [one.data for one in raw.store.GetFiles(bounded).results] == [b"1", b"", b"", b""]
    bounded.bytes_max = MIB
    assert [len(one.data) for one in raw.store.GetFiles(bounded).results] == [1, 0, 0, CHUNK]
    many = raw.store.GetFiles(_asking(ids[3:] * 64))
    assert 30 < len(many.results) < 64  # the rest is asked for again
    assert many.ByteSize() < 2 * MIB + 2 * CHUNK


def test_errors_of_large_files_are_their_results(raw: Raw, store: FileStorage) -> None:
    found = results(
        raw,
        part(("before", b"1"), header=HEADER, part=large("", b"x" * MIB)),
        part(part=store_pb2.PushPart(data=b"y", commit=store_pb2.PushCommit(size=MIB + 1))),
        part(part=large("size", b"x", commit=2)),
        part(part=large("sha", b"x", commit=1, sha256="0" * 64)),
        part(part=large("profile", b"x", commit=1, profile=store_pb2.ErasureProfile(k=3, n=2))),
        part(part=large("reuse")),
        part(part=_reusing(b"x" * 32, 1)),
        part(part=store_pb2.PushPart(commit=store_pb2.PushCommit(size=CHUNK))),
        part(part=large("good", b"x", commit=1, user_id=USER, note="own")),
        part(("after", b"2")),
    )
    assert [result.position for result in found] == list(range(8))
    kinds = [result.error.detail.kind for result in found]
    assert kinds == ["", *["InvalidArgument"] * 5, "", ""]
    assert {result.error.code for result in found[1:6]} == {CODE.INVALID_ARGUMENT.value[0]}
    assert found[6].version.note == "own"
    assert [file.filename for file in store.list_files(user_id=USER)] == ["after", "before", "good"]


def test_conditions_of_large_files_are_decided(raw: Raw, store: FileStorage) -> None:
    head, data = store.push(b"first", filename="there", user_id=USER), content(1, CHUNK + 1)
    found = results(
        raw,
        part(header=HEADER),
        part(part=large("there", data, len(data), if_absent=True)),
        part(part=large("there", data, len(data), if_head="0" * 64)),
        part(part=large("new", data, len(data), if_absent=True)),
        part(part=large("there", data, len(data), if_head=head.version_id)),
    )
    errors = [file_error_from(each.error, "") if each.HasField("error") else None for each in found]
    assert [type(error) for error in errors] == [ConflictError, ConflictError, type(None), type(None)]
    assert [one.size for one in store.history(head.file_id, user_id=USER)] == [len(data), len(b"first")]


@pytest.mark.parametrize("ways", [("stream", "many"), ("many", "many")])
def test_chunks_of_a_user_s_pushes_with_a_sha256_are_read_one_after_another(
    store: FileStorage, guarded: Any, monkeypatch: pytest.MonkeyPatch, ways: tuple[str, str]
) -> None:
    """However many of them there are, of either kind: each may name a chunk of 16 MiB thousands of times."""
    site: Guarded = guarded(ServerLimits())
    shown, data = site.shown(USER), content(1, CHUNK)
    store.push(data, filename="there", user_id=USER)
    chunk_id = blake3(data).digest()
    lock, another, entered, most = threading.Lock(), threading.Event(), 0, 0

    def counted(*arguments: Any) -> bytes:
        nonlocal entered, most
        with lock:
            entered += 1
            most = max(most, entered)
            if entered > 1:
                another.set()
        another.wait(0.2)
        try:
            return content_of_held(*arguments)
        finally:
            with lock:
                entered -= 1

    monkeypatch.setattr(upload, "content_of_held", counted)

    def push(way: str, name: str) -> None:
        header = store_pb2.PushHeader(filename=name, user_id=USER, sha256=hashlib.sha256(data * 4).hexdigest())
        parts = [store_pb2.PushPart(header=header), _reusing(chunk_id, 4)]
        parts.append(store_pb2.PushPart(commit=store_pb2.PushCommit(size=4 * CHUNK)))
        with grpc.insecure_channel(site.address) as channel:
            stub = StoreServiceStub(channel)
            if way == "stream":
                stub.PushStream(iter(parts), metadata=shown)
            else:
                [*stub.PushMany(iter([part(header=HEADER), *(part(part=one) for one in parts)]), metadata=shown)]

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(push, ways, "ab"))
    assert [(one.filename, one.size) for one in store.list_files(user_id=USER)][:2] == [
        ("a", 4 * CHUNK),
        ("b", 4 * CHUNK),
    ]
    assert most == 1


def test_paths_of_the_store_are_not_shown(raw: Raw, store: FileStorage) -> None:
    (result,) = results(raw, part((f"{store.path}/../x", b"1"), header=HEADER))
    assert str(store.path) not in result.error.text


PARTS = st.builds(
    store_pb2.PushManyPart,
    header=st.none() | st.builds(store_pb2.PushManyHeader, user_id=st.sampled_from([USER, "", "x" * 300])),
    files=st.lists(
        st.builds(store_pb2.WholeFile, filename=st.sampled_from(["a", "b", "", ".."]), data=st.binary(max_size=9)),
        max_size=3,
    ),
    part=st.none()
    | st.builds(
        store_pb2.PushPart,
        header=st.none() | st.builds(store_pb2.PushHeader, filename=st.sampled_from(["l", ""])),
        data=st.binary(max_size=9),
        reuse=st.none() | st.builds(store_pb2.ChunkList, chunk_ids=st.lists(st.binary(max_size=33), max_size=2)),
        commit=st.none() | st.builds(store_pb2.PushCommit, size=st.integers(0, 9)),
    ),
)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServiceStub]:
    """A plain stub for a server of this module."""
    with FileStorage.open(tmp_path_factory.mktemp("many") / "store", profile=ErasureProfile(2, 3)) as store:
        server = FileServer(store)
        port = server.start("127.0.0.1:0")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield StoreServiceStub(channel)
        server.stop(1.0)


@settings(max_examples=150, deadline=None)
@given(st.lists(PARTS, max_size=5), st.booleans())
def test_any_order_of_messages(stranger: StoreServiceStub, parts: list[store_pb2.PushManyPart], begun: bool) -> None:
    """Each file has one result, in order; what is wrong with the order ends the call with INVALID_ARGUMENT."""
    sent = [part(header=HEADER), *parts] if begun else parts
    found: list[store_pb2.PushResult] = []
    try:
        for message in stranger.PushMany(iter(sent), timeout=30):
            found += message.results
    except grpc.RpcError as error:
        assert error.code() is CODE.INVALID_ARGUMENT  # noqa: PT017 - the call may also succeed
    assert [result.position for result in found] == list(range(len(found)))
    assert all(bool(result.version.file_id) != bool(result.error.text) for result in found)


# -- interruptions ------------------------------------------------------------------------------------------

SERVER = """
import sys
from storage import ErasureProfile, FileStorage
from taskworker.services.file_server import FileServer
with FileStorage.open(sys.argv[1], profile=ErasureProfile(2, 3)) as store:
    server = FileServer(store)
    print(server.start("127.0.0.1:0"), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def serving(root: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server in a process of its own, and its address."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}", process
    finally:
        process.kill()
        process.communicate()


def test_a_server_killed_half_way_keeps_what_it_reported_and_the_rest_can_be_pushed_again(tmp_path: Path) -> None:
    files = [(f"f{number}", content(number, 500)) for number in range(3000)]
    files.insert(1500, ("large", content(7, 3 * MIB)))
    reported: list[Version] = []
    with serving(tmp_path / "store") as (address, process), Client(address) as client:
        outcomes = client.push_many(files, user_id=USER)
        reported += [outcome.result() for outcome in islice(outcomes, 700)]
        process.send_signal(signal.SIGKILL)
        with pytest.raises(StorageUnavailable):
            reported += (outcome.result() for outcome in outcomes)
    assert 700 <= len(reported) < len(files)
    with serving(tmp_path / "store") as (address, process), Client(address) as client:
        there = {file.version_id for file in client.iter_files(user_id=USER)}
        assert {version.version_id for version in reported} <= there
        again = [outcome.result() for outcome in client.push_many(files, user_id=USER)]
        assert all(version.unchanged for version in again[: len(reported)])
        assert again[: len(reported)] == reported
        found = list(client.get_many([version.file_id for version in again], user_id=USER))
        assert [outcome.result() for outcome in found] == [data for _, data in files]
        assert len(client.history(again[0].file_id, user_id=USER)) == 1


def test_a_get_that_is_cut_off_goes_on_where_it_was(tmp_path: Path, store: FileStorage, serve: Serve) -> None:
    files = [(f"f{number}", content(number, 4000)) for number in range(2000)] + [("large", content(1, 8 * MIB))]
    ids = [outcome.result().file_id for outcome in store.push_many(files, user_id=USER)]
    with Proxy(serve(store)) as proxy, Client(proxy.address) as client:
        got: list[bytes] = []
        for outcome in client.get_many(ids, user_id=USER):
            got.append(outcome.result())
            if len(got) in (10, 1500):
                proxy.cut()
        assert got == [data for _, data in files]


def test_nothing_of_a_large_file_that_broke_off_is_visible(raw: Raw, client: Client, store: FileStorage) -> None:
    gate = threading.Event()

    def parts() -> Iterator[store_pb2.PushManyPart]:
        yield part(("small", b"1"), header=HEADER, part=large("large", b"x" * MIB))
        gate.wait(30)

    call = raw.store.PushMany(parts())
    assert [result.version.filename for result in next(call).results] == ["small"]
    call.cancel()
    gate.set()
    with pytest.raises(grpc.RpcError):
        next(call)
    assert [file.filename for file in store.list_files(user_id=USER)] == ["small"]
    (version,) = pushed(client, [("large", b"x" * MIB)])
    assert version.size == MIB


def test_an_error_from_an_unknown_server_is_still_typed() -> None:
    """A result whose detail this client does not know becomes the error of its code."""
    known = file_error_from(store_pb2.FileError(code=CODE.NOT_FOUND.value[0], text="gone"), "address")
    assert isinstance(known, FileNotFound)
    assert isinstance(file_error_from(store_pb2.FileError(code=999, text="?"), "address"), StorageError)
