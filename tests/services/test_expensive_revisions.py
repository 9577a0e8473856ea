"""Revisions that cost a server more than their caller: how many there may be, and that they end with their caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from storage import ErasureProfile, FileStorage, ManifestDiff, Version
from storage.errors import InvalidArgument
from taskworker.apps.pool_server import PoolServer
from taskworker.errors import CallAbandoned, ServerBusy
from taskworker.protos import pool_pb2, store_pb2, taskworker_pb2
from taskworker.protos.pool_pb2_grpc import PoolServiceStub
from taskworker.rpc.admission import ServerLimits
from taskworker.services.revision import Patches
from tests.services.conftest import CHUNK, Raw, Serve, text_of
from tests.storage.helpers import digest

USER = "u1"
PIECE = b"x" * CHUNK


class Watched(FileStorage):
    """Lets a test wait in the middle of a check."""

    reached = threading.Event()
    go_on = threading.Event()
    ended = threading.Event()
    outcome: Exception | None = None

    def revise(self, file_id: str, diff: ManifestDiff, *, progress: Any = None, **options: Any) -> Version:
        """Stop at the first report of progress."""

        def watched(done: int, total: int) -> None:
            self.reached.set()
            self.go_on.wait(60)
            if progress is not None:
                progress(done, total)

        try:
            return super().revise(file_id, diff, progress=watched, **options)
        except Exception as error:
            self.outcome = error
            raise
        finally:
            self.ended.set()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Watched]:
    with Watched.open(tmp_path / "store", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as opened:
        assert isinstance(opened, Watched)
        for event in (opened.reached, opened.go_on, opened.ended):
            event.clear()
        yield opened


def revision(base: Version, said: str, count: int = 64) -> taskworker_pb2.ReviseRequest:
    """A file of equal chunks, made with a few bytes for each."""
    patches = [store_pb2.Patch(index=index, chunk_id=digest(PIECE)) for index in range(1, count)]
    diff = store_pb2.ManifestDiff(
        base_version=base.version_id, new_size=count * CHUNK, chunk_size=CHUNK, patches=patches
    )
    return taskworker_pb2.ReviseRequest(
        file_id=base.file_id, user_id=USER, sha256=said, difference=diff.SerializeToString()
    )


def test_a_check_ends_with_its_caller(store: Watched, raw: Raw) -> None:
    base = store.push(PIECE, filename="a", user_id=USER)
    call: Any = raw.files.Revise.future(revision(base, "0" * 64))
    assert store.reached.wait(60)
    call.cancel()
    store.go_on.set()
    assert store.ended.wait(60)
    assert isinstance(store.outcome, CallAbandoned)
    assert store.stat(base.file_id, user_id=USER).version_id == base.version_id


def test_equal_chunks_are_checked_like_others(store: Watched, raw: Raw) -> None:
    store.go_on.set()
    base = store.push(PIECE, filename="a", user_id=USER)
    with pytest.raises(grpc.RpcError) as refused:
        raw.files.Revise(revision(base, "0" * 64))
    assert sha256(PIECE * 64).hexdigest() in text_of(refused.value)
    raw.files.Revise(revision(base, sha256(PIECE * 64).hexdigest()))
    assert store.get(base.file_id, user_id=USER) == PIECE * 64


def test_more_checks_than_allowed_are_turned_away(store: Watched, serve: Serve) -> None:
    base = store.push(PIECE, filename="a", user_id=USER)
    with grpc.insecure_channel(serve(store, ServerLimits(checks=1))) as channel:
        revise: Any = channel.unary_unary(
            "/taskworker.FileService/Revise",
            request_serializer=taskworker_pb2.ReviseRequest.SerializeToString,
            response_deserializer=taskworker_pb2.ReviseResponse.FromString,
        )
        first = revise.future(revision(base, sha256(PIECE * 64).hexdigest()))
        assert store.reached.wait(60)
        with pytest.raises(grpc.RpcError) as refused:
            revise(revision(base, "0" * 64))
        assert "1 revisions are being checked" in text_of(refused.value)
        store.go_on.set()
        assert first.result(timeout=60).status


def test_users_share_the_memory_for_patches() -> None:
    patches = Patches(100)
    patches.take("mallory", 45)
    with pytest.raises(ServerBusy, match="PushStream"):
        patches.take("mallory", 10)
    patches.take("ann", 20)
    patches.give_back("mallory", 45)
    patches.take("mallory", 30)


def test_a_preview_of_too_many_workers_is_refused(tmp_path: Path) -> None:
    server = PoolServer(tmp_path / "pool")
    port = server.start("127.0.0.1:0")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
            PoolServiceStub(channel).PreviewLayout(
                pool_pb2.PreviewLayoutRequest(
                    add=[pool_pb2.LayoutMember(worker_id=f"p{one}", capacity=1 + one) for one in range(129)]
                )
            )
        assert "at most 128" in text_of(refused.value)
    finally:
        server.stop(0.0)


def test_progress_that_raises_ends_a_revision(store: Watched) -> None:
    store.go_on.set()
    base = store.push(PIECE, filename="a", user_id=USER)

    def stop(_done: int, _total: int) -> None:
        raise InvalidArgument("enough")

    diff = ManifestDiff(base.version_id, base.size, CHUNK, ())
    with pytest.raises(InvalidArgument, match="enough"):
        store.revise(base.file_id, diff, user_id=USER, sha256="0" * 64, progress=stop)
