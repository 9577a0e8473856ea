"""Every failure has its status code, a text that says what to do, and is the engine's error again in the client."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from storage import (
    ConflictError,
    DataLossError,
    ErasureProfile,
    FileNotFound,
    FileStorage,
    FormatError,
    InsufficientWorkers,
    InvalidArgument,
    PermissionDenied,
    StorageError,
    StoreClosed,
    StoreFull,
    StoreLocked,
    VersionNotFound,
)
from taskworker import Client
from taskworker.errors import (
    CallAbandoned,
    CallNotOffered,
    DeadlineExceeded,
    MessageTooLarge,
    ServerBusy,
    ServerFault,
    StorageUnavailable,
)
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.rpc import status
from tests.services.conftest import Raw, Serve, text_of

CODE = grpc.StatusCode
HEAD, BASE = "a" * 64, "b" * 64

ERRORS: list[tuple[StorageError, grpc.StatusCode]] = [
    (FileNotFound("no such file; list"), CODE.NOT_FOUND),
    (VersionNotFound("no such version; history"), CODE.NOT_FOUND),
    (PermissionDenied("not yours"), CODE.PERMISSION_DENIED),
    (ConflictError("both moved", head=HEAD, base=BASE), CODE.ABORTED),
    (InvalidArgument("bad"), CODE.INVALID_ARGUMENT),
    (MessageTooLarge("too large; PushStream"), CODE.RESOURCE_EXHAUSTED),
    (DataLossError("c" * 64, 3, 4, filename="名.txt", file_id="f" * 32), CODE.DATA_LOSS),
    (InsufficientWorkers("too few"), CODE.UNAVAILABLE),
    (StoreFull("disk full"), CODE.RESOURCE_EXHAUSTED),
    (StoreLocked("locked"), CODE.UNAVAILABLE),
    (FormatError("rebuild"), CODE.FAILED_PRECONDITION),
    (StoreClosed("closed"), CODE.UNAVAILABLE),
    (ServerBusy("busy"), CODE.RESOURCE_EXHAUSTED),
    (CallNotOffered("an older server"), CODE.UNIMPLEMENTED),
    (DeadlineExceeded("late"), CODE.DEADLINE_EXCEEDED),
    (CallAbandoned("gone"), CODE.CANCELLED),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_each_error_travels_whole(
    error: StorageError,
    code: grpc.StatusCode,
    raw: Raw,
    client: Client,
    store: FileStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(store, "stat", fail)
    with pytest.raises(grpc.RpcError) as refused:
        raw.store.Stat(store_pb2.StatRequest(file_id="f", user_id="u"))
    assert refused.value.code() is code
    assert str(error) in text_of(refused.value)
    with pytest.raises(type(error)) as raised:
        client.stat("f", user_id="u")
    assert type(raised.value) is type(error)
    assert str(error) in str(raised.value)


def test_a_conflict_names_both_versions_in_text_metadata_and_error() -> None:
    failure = status.encode(ConflictError("both moved", head=HEAD, base=BASE))
    metadata = dict(failure.metadata)
    assert HEAD in failure.text
    assert (metadata["head-version"], metadata["base-version"]) == (HEAD, BASE)


def test_conflict_in_the_client_has_head_and_base(client: Client) -> None:
    old = client.push(b"one", filename="a", user_id="u")
    new = client.push(b"two", filename="a", user_id="u")
    with pytest.raises(ConflictError) as conflict:
        client.revise(old.file_id, b"three", user_id="u", base_version_id=old.version_id)
    assert (conflict.value.head, conflict.value.base) == (new.version_id, old.version_id)


def test_data_loss_in_the_client_has_its_figures(
    client: Client, store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = DataLossError("c" * 64, 3, 4, filename="名.txt", file_id="f" * 32)

    def fail(*_: object, **__: object) -> None:
        raise lost

    monkeypatch.setattr(store, "get_small", fail)
    with pytest.raises(DataLossError) as raised:
        client.get("f", user_id="u")
    found = raised.value
    assert (found.chunk, found.found, found.needed) == (lost.chunk, 3, 4)
    assert (found.filename, found.file_id) == (lost.filename, lost.file_id)


@pytest.mark.parametrize("unforeseen", [OSError(5, "Input/output error", "/secret/path"), StorageError("/secret/path")])
def test_what_nobody_foresaw_is_internal_and_tells_strangers_nothing(
    unforeseen: Exception,
    raw: Raw,
    client: Client,
    store: FileStorage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise unforeseen

    monkeypatch.setattr(store, "stat", fail)
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.RpcError) as refused:
        raw.store.Stat(store_pb2.StatRequest(file_id="f", user_id="u"))
    assert refused.value.code() is CODE.INTERNAL
    assert "secret" not in text_of(refused.value)
    named = re.search(r"reference ([0-9a-f]{8}) ", text_of(refused.value))
    assert named is not None
    reference = named[1]
    [record] = [each for each in caplog.records if reference in each.getMessage()]
    assert record.exc_info is not None
    assert record.exc_info[1] is unforeseen
    with pytest.raises(ServerFault):
        client.stat("f", user_id="u")


def test_paths_of_the_store_are_not_told(raw: Raw, store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreFull(f"no space left in {store.volume_paths[1]} of {store.path}; free some")

    monkeypatch.setattr(store, "upload", fail)
    with pytest.raises(grpc.RpcError) as refused:
        raw.store.PushStream(iter([store_pb2.PushPart(header=store_pb2.PushHeader(filename="a", user_id="u"))]))
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    assert str(store.path) not in text_of(refused.value)
    assert "free some" in text_of(refused.value)


def test_a_store_at_a_relative_path_garbles_no_text(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with FileStorage.open(".", profile=ErasureProfile(1, 1)) as store, Client(serve(store)) as client:

        def fail(*_: object, **__: object) -> None:
            raise StoreFull(f"e.g. {store.path.absolute()}/volumes is full.")

        monkeypatch.setattr(store, "stat", fail)
        with pytest.raises(StoreFull, match=r"^e\.g\. <store>/volumes is full\.$"):
            client.stat("f", user_id="u")


@pytest.mark.parametrize("text", ["é" * 100_000, "\n\0😀" * 5000, "%" * 100_000])
def test_long_texts_are_cut_to_what_a_header_takes(
    text: str, client: Client, store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InvalidArgument(text)

    monkeypatch.setattr(store, "stat", fail)
    with pytest.raises(InvalidArgument) as raised:
        client.stat("f", user_id="u")
    assert str(raised.value).endswith("…")
    assert text.startswith(str(raised.value)[:-1])


Call = Callable[[Raw, str, str], object]

CALLS: dict[str, Call] = {
    "Get": lambda raw, file, user: raw.files.Get(taskworker_pb2.GetRequest(file_id=file, user_id=user)),
    "Revise": lambda raw, file, user: raw.files.Revise(
        taskworker_pb2.ReviseRequest(
            file_id=file,
            user_id=user,
            difference=store_pb2.ManifestDiff(base_version=HEAD, chunk_size=65536).SerializeToString(),
        )
    ),
    "Synchronous": lambda raw, file, user: raw.files.Synchronous(
        taskworker_pb2.SynchronousRequest(
            file_id=file, difference=store_pb2.SyncState(version_id=HEAD, user_id=user).SerializeToString()
        )
    ),
    "GetStream": lambda raw, file, user: list(
        raw.store.GetStream(store_pb2.GetStreamRequest(file_id=file, user_id=user))
    ),
    "LocateShards": lambda raw, file, user: raw.store.LocateShards(
        store_pb2.LocateShardsRequest(file_id=file, user_id=user)
    ),
    "GetManifest": lambda raw, file, user: raw.store.GetManifest(
        store_pb2.GetManifestRequest(file_id=file, user_id=user)
    ),
    "ReviseStream": lambda raw, file, user: raw.store.ReviseStream(
        iter(
            [
                store_pb2.RevisePart(
                    header=store_pb2.ReviseHeader(file_id=file, user_id=user, base_version=HEAD, chunk_size=65536),
                    commit=store_pb2.ReviseCommit(),
                )
            ]
        )
    ),
    "Stat": lambda raw, file, user: raw.store.Stat(store_pb2.StatRequest(file_id=file, user_id=user)),
    "History": lambda raw, file, user: raw.store.History(store_pb2.HistoryRequest(file_id=file, user_id=user)),
    "Delete": lambda raw, file, user: raw.store.Delete(store_pb2.DeleteRequest(file_id=file, user_id=user)),
    "DeleteVersion": lambda raw, file, user: raw.store.DeleteVersion(
        store_pb2.DeleteVersionRequest(file_id=file, user_id=user, version_id=HEAD)
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_file_and_anothers_file_are_one_answer(name: str, raw: Raw, store: FileStorage) -> None:
    file_id = store.push(b"mine", filename="a", user_id="u1").file_id
    with pytest.raises(grpc.RpcError) as unknown:
        CALLS[name](raw, "0" * 32, "u1")
    assert unknown.value.code() is CODE.NOT_FOUND
    assert "list the files" in text_of(unknown.value)
    with pytest.raises(grpc.RpcError) as foreign:
        CALLS[name](raw, file_id, "u2")
    assert foreign.value.code() is CODE.NOT_FOUND  # whether others have a file does not show
    assert store.get(file_id, user_id="u1") == b"mine"


VERSION_CALLS: dict[str, Callable[[Raw, str], object]] = {
    "Get": lambda raw, file: raw.files.Get(taskworker_pb2.GetRequest(file_id=file, user_id="u1", version_id=HEAD)),
    "GetStream": lambda raw, file: list(
        raw.store.GetStream(store_pb2.GetStreamRequest(file_id=file, user_id="u1", version_id=HEAD))
    ),
    "LocateShards": lambda raw, file: raw.store.LocateShards(
        store_pb2.LocateShardsRequest(file_id=file, user_id="u1", version_id=HEAD)
    ),
    "GetManifest": lambda raw, file: raw.store.GetManifest(
        store_pb2.GetManifestRequest(file_id=file, user_id="u1", version_id=HEAD)
    ),
    "Stat": lambda raw, file: raw.store.Stat(store_pb2.StatRequest(file_id=file, user_id="u1", version_id=HEAD)),
    "History": lambda raw, file: raw.store.History(store_pb2.HistoryRequest(file_id=file, user_id="u1", before=HEAD)),
    "Synchronous": lambda raw, file: CALLS["Synchronous"](raw, file, "u1"),
    "Revise": lambda raw, file: CALLS["Revise"](raw, file, "u1"),
    "ReviseStream": lambda raw, file: CALLS["ReviseStream"](raw, file, "u1"),
}


@pytest.mark.parametrize("name", VERSION_CALLS)
def test_unknown_version(name: str, raw: Raw, store: FileStorage) -> None:
    file_id = store.push(b"mine", filename="a", user_id="u1").file_id
    with pytest.raises(grpc.RpcError) as unknown:
        VERSION_CALLS[name](raw, file_id)
    assert unknown.value.code() is CODE.NOT_FOUND
    assert "history" in text_of(unknown.value)


def test_nobody_there_is_told_with_what_to_do() -> None:
    with Client("127.0.0.1:1", timeout_s=20) as client, pytest.raises(StorageUnavailable) as raised:
        client.stats()
    assert "127.0.0.1:1" in str(raised.value)
    assert "taskworker serve" in str(raised.value)


@pytest.mark.parametrize(
    "address", ["", "localhost", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:0", "http://h:1", "unix:"]
)
def test_malformed_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidArgument, match="address"):
        Client(address)


def test_a_stranger_server_is_told_from_ours() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with Client(f"127.0.0.1:{port}") as client, pytest.raises(StorageError, match="TaskWorker server"):
                client.stats()
        finally:
            server.stop(None).wait()


def test_a_call_that_is_cut_off_may_be_made_again() -> None:
    """By the server, or as another thread had the channel made anew."""
    from concurrent.futures import ThreadPoolExecutor

    def stats(_request: store_pb2.StatsRequest, context: grpc.ServicerContext) -> store_pb2.StoreStats:
        context.cancel()
        return store_pb2.StoreStats()

    handler = grpc.unary_unary_rpc_method_handler(
        stats, store_pb2.StatsRequest.FromString, store_pb2.StoreStats.SerializeToString
    )
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        server.add_registered_method_handlers("taskworker.store.StoreService", {"Stats": handler})
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with (
                Client(f"127.0.0.1:{port}", timeout_s=2) as client,
                pytest.raises(StorageUnavailable, match=r"was cut off: .* try again"),
            ):
                client.stats()
        finally:
            server.stop(None).wait()


def test_a_closed_client_says_so(address: str) -> None:
    client = Client(address)
    client.close()
    with pytest.raises(StorageUnavailable, match="closed"):
        client.stats()
