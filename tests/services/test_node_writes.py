"""Revisions that make a store write far more than is sent: how many of them a user may have while others call."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage, ManifestDiff, Patch, Version
from taskworker.auth.rights import Principal, Role
from taskworker.errors import CallAbandoned, ServerBusy
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.rpc.admission import Gate
from taskworker.rpc.authorization import KnownCaller
from taskworker.rpc.binding import Caller, InProcess
from taskworker.services import node_writes
from taskworker.services.files import FileService
from taskworker.services.node_writes import BURST, RATE, NodeWrites, amplified_bytes
from taskworker.services.revision import Revisions
from tests.storage.helpers import digest

CHUNK = 65536
LEAF = 1024 * 64
ID = "0" * 64


def diff(*places: int, count: int, data: bytes | None = None) -> ManifestDiff:
    patches = tuple(Patch(place, bytes(32), data) for place in places)
    return ManifestDiff(base_version_id=ID, new_size=count * CHUNK, chunk_size=CHUNK, patches=patches)


class Users:
    """Users that revise, by a clock that waiting moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.waits: list[float] = []
        self.active = True
        self.gate = Gate(8, "too many", clock_s=lambda: self.now_s)
        self.writes = NodeWrites(self.gate.has_others, lambda: self.now_s, self._wait)

    def is_active(self) -> bool:
        return self.active

    def revise(self, user: str, revision: ManifestDiff) -> None:
        with self.gate.place(user):
            self.writes.take(KnownCaller(self, Principal(user, Role.USER)), revision)

    def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_s += seconds


@pytest.fixture
def users() -> Users:
    return Users()


def test_what_a_diff_writes_is_about_what_it_changes_of_the_tree() -> None:
    assert amplified_bytes(diff(0, count=1, data=bytes(CHUNK))) == 0
    assert amplified_bytes(diff(5, count=1000)) == pytest.approx(LEAF, rel=0.05)
    assert amplified_bytes(diff(5, count=1000, data=bytes(LEAF))) == 0
    assert amplified_bytes(diff(5, 6, 7, count=1 << 19)) == pytest.approx(LEAF + 512 * 64, rel=0.05)
    scattered = diff(*range(0, 1 << 19, 1024), count=1 << 19)
    assert amplified_bytes(scattered) == pytest.approx(512 * LEAF, rel=0.05)
    assert amplified_bytes(diff(count=1000)) == pytest.approx(LEAF, rel=0.05), "a file that is cut or grows"
    odd = ManifestDiff(base_version_id=ID, new_size=1 << 62, chunk_size=0, patches=(Patch(1 << 62, bytes(32)),))
    assert amplified_bytes(odd) > 0


def test_one_user_writes_no_more_than_the_rate_while_others_call(users: Users) -> None:
    small = diff(5, count=1000)
    cost = amplified_bytes(small)
    users.revise("bob", diff(0, count=1, data=bytes(CHUNK)))
    for _ in range(BURST // cost + 1):
        users.revise("ann", small)
    assert not users.waits
    for _ in range(20):
        users.revise("bob", small)
        users.revise("ann", small)
    assert len(users.waits) == 20
    assert users.waits[1:] == pytest.approx([cost / RATE] * 19)
    users.now_s += 3600
    users.revise("bob", small)
    users.revise("ann", small)
    assert len(users.waits) == 20, "it was paid back"


def test_a_user_who_would_wait_too_long_is_refused_and_told_how_long(users: Users) -> None:
    large = diff(*range(0, 1 << 20, 1024), count=1 << 20)  # 64 MiB
    users.revise("bob", diff(5, count=1000))
    users.revise("ann", large)
    with pytest.raises(ServerBusy, match="try again in 56 s"):
        users.revise("ann", diff(5, count=1000))
    users.revise("ann", diff(0, count=1, data=bytes(CHUNK)))  # other revisions go on
    users.revise("bob", diff(5, count=1000))
    users.now_s += 56
    users.revise("bob", diff(5, count=1000))
    users.revise("ann", diff(5, count=1000))


def test_a_user_alone_is_not_limited_and_owes_little_to_who_comes(users: Users) -> None:
    for _ in range(5):
        users.revise("ann", diff(*range(0, 1 << 20, 1024), count=1 << 20))
    assert not users.waits
    users.revise("bob", diff(5, count=1000))
    users.revise("ann", diff(5, count=1000))
    assert users.waits == pytest.approx([1.0])


def test_a_caller_who_leaves_does_not_revise(users: Users) -> None:
    users.revise("bob", diff(5, count=1000))
    for _ in range(BURST // amplified_bytes(diff(5, count=1000)) + 1):
        users.revise("ann", diff(5, count=1000))
    users.active = False
    with pytest.raises(CallAbandoned):
        users.revise("ann", diff(5, count=1000))


def test_revisions_of_a_server_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of revisions by one message."""
    monkeypatch.setattr(node_writes, "BURST", 1024)
    monkeypatch.setattr(node_writes, "RATE", 1)
    piece = b"x" * CHUNK

    def changed(base: Version, count: int) -> store_pb2.ManifestDiff:
        patches = [store_pb2.Patch(index=index, chunk_id=digest(piece)) for index in range(1, count)]
        return store_pb2.ManifestDiff(
            base_version=base.version_id, new_size=count * CHUNK, chunk_size=CHUNK, patches=patches
        )

    with FileStorage.open(tmp_path / "store", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as store:
        service = FileService(store, 1 << 20, Revisions(has_others=lambda _user, _within: True))
        caller: Caller = KnownCaller(InProcess(), Principal("ann", Role.USER))
        base = store.push(piece, filename="a", user_id="ann")
        difference = changed(base, 64).SerializeToString()
        request = taskworker_pb2.ReviseRequest(file_id=base.file_id, user_id="ann", difference=difference)
        assert service.Revise(request, caller).status
        head = store.stat(base.file_id, user_id="ann")
        request.difference = changed(head, 65).SerializeToString()
        with pytest.raises(ServerBusy, match="costs the server much"):
            service.Revise(request, caller)
        state = store_pb2.SyncState(version_id=head.version_id, user_id="ann", diff=changed(head, 65))
        request_sync = taskworker_pb2.SynchronousRequest(file_id=base.file_id, difference=state.SerializeToString())
        with pytest.raises(ServerBusy):
            service.Synchronous(request_sync, caller)
        assert store.stat(base.file_id, user_id="ann") == head
