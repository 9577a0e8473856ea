"""One message can make a file of ten thousand large ones, which costs the server much: others go first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage
from taskworker.auth.rights import Principal, Role
from taskworker.protos import store_pb2
from taskworker.rpc.admission import DEFAULT_LIMITS
from taskworker.rpc.authorization import KnownCaller
from taskworker.rpc.binding import Caller, InProcess
from taskworker.services.revision import Revisions
from taskworker.services.store import StoreService

CHUNK = 64 * 1024
CHUNKS = 8
PARTS = 4
WITHIN_S = 30.0


class Others:
    """Whether others call; asked by each step of expensive work."""

    def __init__(self) -> None:
        self.asked = 0
        self.asking = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def has_others(self, _user: str, _within_s: float) -> bool:
        self.asked += 1
        self.asking.set()
        assert self.may_go_on.wait(WITHIN_S)
        return False


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStorage]:
    with FileStorage.open(tmp_path / "store", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as opened:
        yield opened


@pytest.fixture
def service(store: FileStorage, others: Others) -> StoreService:
    return StoreService(store, DEFAULT_LIMITS, revisions=Revisions(has_others=others.has_others))


def joined(service: StoreService, store: FileStorage, filename: str) -> bytes:
    part = store.push(bytes(CHUNK * CHUNKS), filename=f"part of {filename}", user_id="ann")
    header = store_pb2.PushHeader(filename=filename, user_id="ann")
    request = store_pb2.ConcatenateRequest(
        header=header, parts=[store_pb2.ConcatenatePart(file_id=part.file_id)] * PARTS
    )
    caller: Caller = KnownCaller(InProcess(), Principal("ann", Role.USER))
    *_, last = service.Concatenate(request, caller)
    return store.get(last.stored.version.file_id, user_id="ann")


def test_others_are_given_way_to_at_each_chunk(service: StoreService, store: FileStorage, others: Others) -> None:
    assert joined(service, store, "whole") == bytes(CHUNK * CHUNKS * PARTS)
    assert others.asked >= CHUNKS * PARTS


def test_a_user_makes_one_file_of_others_at_a_time(service: StoreService, store: FileStorage, others: Others) -> None:
    others.may_go_on.clear()
    threads = [threading.Thread(target=joined, args=(service, store, f"whole {number}")) for number in range(2)]
    for thread in threads:
        thread.start()
    assert others.asking.wait(WITHIN_S)
    threads[1].join(0.5)  # time for the other one to begin, if it may
    assert others.asked == 1
    others.may_go_on.set()
    for thread in threads:
        thread.join(WITHIN_S)
    assert {"whole 0", "whole 1"} < {version.filename for version in store.list_files(user_id="ann")}
