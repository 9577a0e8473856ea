"""What servers answer: one thing for what is not there and for what is others', and what a push came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from storage import FileNotFound, FileStorage, ManifestDiff
from taskworker import Client
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.rpc.limits import UNARY_BYTES_MOST
from taskworker.services.files import FileService
from tests.services.conftest import Raw

USER = "ada"


def as_call(error: grpc.RpcError) -> Any:
    """The error with what it tells, which its type does not show."""
    return error


def calls(raw: Raw, file_id: str, base: str) -> Iterator[Callable[[], object]]:
    """Every call that takes a file's id, as another user."""
    other: Any = {"file_id": file_id, "user_id": "eve"}
    state = store_pb2.SyncState(version_id=base, user_id="eve").SerializeToString()
    diff = store_pb2.ManifestDiff(base_version=base, chunk_size=1 << 20).SerializeToString()
    header = store_pb2.ReviseHeader(**other, base_version=base, chunk_size=1 << 20)
    yield lambda: raw.store.Stat(store_pb2.StatRequest(**other))
    yield lambda: raw.store.Stat(store_pb2.StatRequest(**other, version_id=base))
    yield lambda: raw.store.History(store_pb2.HistoryRequest(**other))
    yield lambda: raw.store.GetManifest(store_pb2.GetManifestRequest(**other))
    yield lambda: raw.store.Delete(store_pb2.DeleteRequest(**other))
    yield lambda: raw.store.DeleteVersion(store_pb2.DeleteVersionRequest(**other, version_id=base))
    yield lambda: list(raw.store.GetStream(store_pb2.GetStreamRequest(**other)))
    yield lambda: raw.store.ReviseStream(
        iter((store_pb2.RevisePart(header=header), store_pb2.RevisePart(commit=store_pb2.ReviseCommit())))
    )
    yield lambda: raw.files.Get(taskworker_pb2.GetRequest(**other))
    yield lambda: raw.files.Revise(taskworker_pb2.ReviseRequest(**other, difference=diff))
    yield lambda: raw.files.Synchronous(taskworker_pb2.SynchronousRequest(file_id=file_id, difference=state))


def test_others_files_are_answered_as_if_there_were_none(raw: Raw, store: FileStorage) -> None:
    hers = store.push(b"hers", filename="file", user_id=USER)
    nobodys = "0" * 32
    pairs = zip(calls(raw, hers.file_id, hers.version_id), calls(raw, nobodys, hers.version_id), strict=True)
    for theirs, none in pairs:
        answers = []
        for call, file_id in ((theirs, hers.file_id), (none, nobodys)):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            error = as_call(refused.value)
            metadata = [(key, value) for key, value in error.trailing_metadata() or () if key.endswith("-bin")]
            answers.append((error.code(), (error.details() or "").replace(file_id, "ID"), metadata))
        assert answers[0] == answers[1]
        assert answers[0][0] is grpc.StatusCode.NOT_FOUND
    assert store.get(hers.file_id, user_id=USER) == b"hers"


def test_stat_of_a_name_that_is_not_there(raw: Raw, client: Client) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        raw.store.Stat(store_pb2.StatRequest(user_id=USER, filename="nothing"))
    assert as_call(refused.value).code() is grpc.StatusCode.NOT_FOUND
    assert client.find("nothing", user_id=USER) is None


def test_what_push_takes_get_gives(store: FileStorage) -> None:
    """In process: the largest file whose Push message is below the limit."""
    service = FileService(store)
    data = bytes(UNARY_BYTES_MOST - 100)
    request = taskworker_pb2.PushRequest(file_data=data, filename="f", user_id="u")
    assert request.ByteSize() <= UNARY_BYTES_MOST
    pushed = service.Push(request)
    assert service.Get(taskworker_pb2.GetRequest(file_id=pushed.file_id, user_id="u")).file_data == data


def test_a_push_of_what_is_there_says_so(client: Client, raw: Raw, store: FileStorage) -> None:
    request = taskworker_pb2.PushRequest(file_data=b"content", filename="f", user_id=USER)
    assert [raw.files.Push(request).message for _ in range(2)] == ["stored", "unchanged"]
    first = client.push(b"content", filename="f", user_id=USER)
    assert first.unchanged
    assert not client.push(b"other", filename="f", user_id=USER).unchanged
    assert client.revise(first.file_id, b"other", user_id=USER).unchanged
    assert not client.revise(first.file_id, b"third", user_id=USER).unchanged
    base = store.stat(first.file_id, user_id=USER)
    empty = ManifestDiff(base.version_id, base.size, base.chunk_size, ())
    assert store.revise(first.file_id, empty, user_id=USER).unchanged
    assert client.apply(first.file_id, empty, user_id=USER).unchanged


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_new_note_is_kept_and_the_old_content_is_not_stored_twice(
    client: Client, store: FileStorage, size: int
) -> None:
    data = bytes(size)
    first = client.push(data, filename="f", user_id=USER, note="one")
    again = client.push(data, filename="f", user_id=USER, note="one")
    assert (again, again.unchanged) == (first, True)
    assert client.push(data, filename="f", user_id=USER).unchanged
    second = client.push(data, filename="f", user_id=USER, note="two")
    assert (second.note, second.parent_id, second.unchanged) == ("two", first.version_id, False)
    third = client.revise(first.file_id, data, user_id=USER, note="three")
    assert [version.note for version in store.history(first.file_id, user_id=USER)] == ["three", "two", "one"]
    assert store.synchronize(first.file_id, have_version_id=first.version_id, user_id=USER).patches == ()
    assert store.scrub().clean
    assert store.get(first.file_id, user_id=USER, version_id=third.version_id) == data
    store.delete(first.file_id, user_id=USER)
    store.collect(grace_s=0)
    assert store.scrub().shards_checked < 10


@pytest.mark.parametrize("path", ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/self/status"])
def test_files_that_lie_about_their_size(client: Client, store: FileStorage, path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"this kernel has no {path}")
    version = client.push(path, user_id=USER)
    assert version.size > 0
    if path != "/proc/self/status":  # which is another with every look
        assert client.get(version.file_id, user_id=USER) == Path(path).read_bytes()
        assert client.revise(version.file_id, path, user_id=USER).unchanged
    with pytest.raises(FileNotFound):
        client.get("0" * 32, user_id=USER)
