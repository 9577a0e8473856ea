"""Large files that clients read from workers themselves: what they get, and when the pool steps in."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from storage import ErasureProfile, FileNotFound, FileReader, Version
from storage.errors import KeyRequired, PermissionDenied
from taskworker import Client
from taskworker.apps.pool_server import PoolServer
from taskworker.auth.owner_context import keep_owner_context
from taskworker.auth.server_certificates import TlsOptions
from taskworker.client.deadline import Deadline
from taskworker.client.direct.page import page_of
from taskworker.client.pool import PoolClient
from taskworker.errors import CallNotOffered, ServerFault, StorageUnavailable
from taskworker.pool.direct_reads import DirectReads, Page
from taskworker.pool.options import PoolOptions
from taskworker.protos import store_pb2
from taskworker.worker.clients_port import ClientsOptions
from taskworker.worker.member import enroll
from taskworker.worker.volume import VolumeWorker

MIB = 1 << 20
CHUNK = 64 << 10
SIZE = 5 * MIB + 12_345
WAIT_S = 60.0


class Stand:
    """A 2-of-4 pool with four workers, users, TLS and encryption."""

    def __init__(self, directory: Path, options: PoolOptions | None = None) -> None:
        self.directory = directory
        self.server = PoolServer(
            directory / "pool",
            profile=ErasureProfile(2, 4),
            chunk_size=CHUNK,
            joins_by_token=True,
            authenticates=True,
            options=options,
        )
        port = self.server.start("127.0.0.1:0", "127.0.0.1:0", tls=TlsOptions())
        self.address = f"127.0.0.1:{port}"
        assert self.server.tls is not None
        keep_owner_context(self.server.users, self.server.pool.pool_id, self.address, trust=self.server.tls.trust)
        self.workers = [self._start(f"w{number}") for number in range(4)]
        await_members(self.server, 4)

    def _start(self, name: str) -> VolumeWorker:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        with PoolClient(self.address) as operator:
            token, address = operator.new_join_token(name)
        member = enroll(directory, address, token, name)
        worker = VolumeWorker(name, self.address, directory, scrub_bytes_per_s=0, member=member)
        worker.start("127.0.0.1:0")
        return worker

    def client(self, token: str | None = None, *, direct: bool | None = None) -> Counted:
        return Counted(Client(self.address, token=token, direct=direct))

    def close(self) -> None:
        for worker in self.workers:
            worker.stop(0.0)
        self.server.stop(0.0)


def await_members(server: PoolServer, count: int) -> None:
    """Wait until files can be stored on so many workers."""
    give_up = time.monotonic() + WAIT_S
    while len(server.pool.layouts) != 1 or len(server.pool.layouts[0].members) < count:
        assert time.monotonic() < give_up
        time.sleep(0.02)


class Counted:
    """A client, and how often it has read through the pool."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.through_pool = 0
        get = client._channel.get

        def counted(*arguments: object) -> object:
            self.through_pool += 1
            return get(*arguments)  # type: ignore[arg-type]

        client._channel.get = counted  # type: ignore[method-assign,assignment]

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        stand = Stand(tmp_path_factory.mktemp("stand"), PoolOptions(direct_pushes=False))
        yield stand
        stand.close()


CONTENT = random.Random(1).randbytes(SIZE)


@pytest.fixture(scope="module")
def version(stand: Stand) -> Version:
    with stand.client() as pushing:
        return pushing.client.push(CONTENT, user_id="ann", filename="large")


def test_large_files_come_from_the_workers_whole_and_in_parts(stand: Stand, version: Version, tmp_path: Path) -> None:
    file = version.file_id
    with stand.client() as reading:
        client = reading.client
        assert client.get(file, user_id="ann") == CONTENT
        told: list[tuple[int, int]] = []
        buffer = bytearray(SIZE + 10)
        assert client.get_into(file, buffer, user_id="ann", progress=lambda *done: told.append(done)) == SIZE
        assert bytes(buffer) == CONTENT + bytes(10)
        assert told[-1] == (SIZE, SIZE)
        client.download(file, tmp_path / "copy", user_id="ann")
        assert (tmp_path / "copy").read_bytes() == CONTENT
        with client.open(file, user_id="ann") as opened:
            opened.seek(100)
            assert opened.read(4 * MIB) == CONTENT[100 : 100 + 4 * MIB]
        assert reading.through_pool == 1  # the version of the opened file
    with stand.client(direct=False) as reading:
        assert reading.client.get(file, user_id="ann") == CONTENT
        assert reading.through_pool == 1


@given(offset=st.integers(0, SIZE - 4 * MIB), more=st.integers(0, SIZE))
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range(stand: Stand, version: Version, offset: int, more: int) -> None:
    length = 4 * MIB + more
    with stand.client() as reading:
        got = reading.client.get(version.file_id, user_id="ann", offset=offset, length=length)
        assert got == CONTENT[offset : offset + length]
        assert reading.through_pool == 0


class Stuck(io.RawIOBase):
    """A target that takes nothing after the first piece before it may go on."""

    def __init__(self, go_on: threading.Event) -> None:
        self._go_on = go_on
        self.begun = threading.Event()
        self.taken = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        self.begun.set()
        assert self._go_on.wait(3 * WAIT_S)
        self.taken.update(data)
        return memoryview(data).nbytes


def resident() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


def test_many_downloads_at_a_time_share_their_memory(stand: Stand) -> None:
    """Each of few may read 24 MiB ahead. If each of 30 did so, it would be 720 MiB."""
    data = random.Random(40).randbytes(24 * MIB)
    with stand.client(direct=True) as counted, ThreadPoolExecutor(30) as threads:
        file_id = counted.client.push(data, filename="downloaded", user_id="ann", chunk_size=MIB).file_id
        counted.client.get(file_id, user_id="ann")
        before, go_on = resident(), threading.Event()
        targets = [Stuck(go_on) for _ in range(30)]
        running = [
            threads.submit(counted.client.download, file_id, cast(BinaryIO, one), user_id="ann") for one in targets
        ]
        try:
            assert all(one.begun.wait(WAIT_S) for one in targets)
            time.sleep(1)  # what they read ahead comes
            assert resident() - before < 250 * MIB
        finally:
            go_on.set()
        for one in running:
            one.result(WAIT_S)
        assert {one.taken.digest() for one in targets} == {hashlib.sha256(data).digest()}
        assert counted.through_pool == 0


def test_small_files_and_ranges_come_through_the_pool(stand: Stand, version: Version) -> None:
    with stand.client() as reading:
        assert reading.client.get(version.file_id, user_id="ann", offset=7, length=MIB) == CONTENT[7 : 7 + MIB]
        assert reading.through_pool == 1


def test_the_environment_turns_it_off(stand: Stand, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKWORKER_DIRECT", "0")
    with stand.client() as reading:
        assert reading.client.get(version.file_id, user_id="ann") == CONTENT
        assert reading.through_pool == 1


def test_what_lying_workers_send_is_made_good_with_parity(stand: Stand) -> None:
    content = random.Random(2).randbytes(SIZE)
    with stand.client() as client:
        file = client.client.push(content, user_id="ann", filename="to be damaged", chunk_size=MIB).file_id
    liars = stand.workers[:2]
    with damaged([worker.directory for worker in liars]), stand.client() as reading:
        assert reading.client.get(file, user_id="ann") == content
        assert reading.through_pool == 0


@contextmanager
def damaged(directories: list[Path]) -> Iterator[None]:
    """Change the payloads that workers hold."""
    files = [path for directory in directories for path in (directory / "volume").glob("*.seg")]
    assert files
    before = {path: path.read_bytes() for path in files}
    for path, raw in before.items():
        with path.open("r+b") as file:
            for at in range(10_000, len(raw) - 1, 10_000):
                file.seek(at)
                file.write(bytes([raw[at] ^ 1]))
    try:
        yield
    finally:
        for path, raw in before.items():
            with path.open("r+b") as file:
                file.write(raw)


def test_a_share_that_ends_meanwhile_ends_the_read(stand: Stand) -> None:
    users = stand.server.users
    for name in ("ann", "bob"):
        users.add(name)
    content = random.Random(3).randbytes(34 * MIB)  # three pages of 256 chunks
    with stand.client(users.create_token("ann").text) as ann, stand.client(users.create_token("bob").text) as bob:
        file = ann.client.push(content, user_id="ann", filename="shared").file_id
        ann.client.share("shared", with_user="bob")
        target = Ending(lambda: ann.client.unshare("shared", with_user="bob"))
        with pytest.raises((FileNotFound, PermissionDenied)):
            bob.client.download(file, target, user_id="ann")
        assert 0 < target.size < len(content)
        with pytest.raises((FileNotFound, PermissionDenied)):
            bob.client.get(file, user_id="ann")


class Ending(io.BytesIO):
    """A file to write to; when it is first written to, something happens."""

    def __init__(self, first: Callable[[], object]) -> None:
        super().__init__()
        self._first = first
        self.size = 0

    def write(self, data: Buffer, /) -> int:
        if not self.size:
            self._first()
        self.size += memoryview(data).nbytes
        return super().write(data)


def test_a_public_link_is_enough(stand: Stand, version: Version) -> None:
    with stand.client() as operator:
        link = operator.client.create_link(version.file_id, user_id="ann")
    with stand.client(link.text) as reading:
        assert reading.client.get(version.file_id, user_id="ann") == CONTENT
        assert reading.through_pool == 0


def test_a_download_by_a_link_stays_on_its_version_when_a_newer_one_is_stored(stand: Stand) -> None:
    before = random.Random(6).randbytes(34 * MIB)  # three pages, the last of which is asked for afterwards
    with stand.client() as ann:
        file = ann.client.push(before, user_id="ann", filename="linked").file_id
        link = ann.client.create_link(file, user_id="ann")
        target = Ending(lambda: ann.client.push(b"newer", user_id="ann", filename="linked"))
        with stand.client(link.text) as reading:
            reading.client.download(file, target, user_id="ann")
            assert target.getvalue() == before
            assert reading.through_pool == 0
            assert reading.client.get(file, user_id="ann") == b"newer"


@contextmanager
def counted_questions(client: Client) -> Iterator[list[store_pb2.LocateShardsRequest]]:
    """What the client asks for where shards are."""
    asked: list[store_pb2.LocateShardsRequest] = []
    locate = client._channel.store.LocateShards

    def noted(request: store_pb2.LocateShardsRequest, *arguments: Any, **options: Any) -> object:
        asked.append(request)
        return locate(request, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client._channel.store, "LocateShards", noted)
        yield asked


def test_a_server_without_workers_is_asked_once(client: Client) -> None:
    files = [client.push(CONTENT, user_id="ann", filename=name).file_id for name in "ab"]
    with counted_questions(client) as asked:
        for file in files:
            assert client.get(file, user_id="ann") == CONTENT
    assert len(asked) == 1
    assert client._direct is not None
    assert not client._direct.may_read(files[0])


def test_a_pool_whose_workers_let_no_clients_in_is_asked_once_for_a_while(tmp_path: Path) -> None:
    server = PoolServer(tmp_path / "pool", profile=ErasureProfile(1, 2), options=PoolOptions(encrypts=False))
    address = f"127.0.0.1:{server.start('127.0.0.1:0')}"
    workers = []
    for name in ("w1", "w2"):
        (tmp_path / name).mkdir()
        options = ClientsOptions(offered=False)
        workers.append(VolumeWorker(name, address, tmp_path / name, scrub_bytes_per_s=0, clients=options))
        workers[-1].start("127.0.0.1:0")
    try:
        await_members(server, 2)
        with Client(address) as client:
            files = [client.push(CONTENT, user_id="ann", filename=name).file_id for name in "ab"]
            with counted_questions(client) as asked:
                for file in files:
                    assert client.get(file, user_id="ann") == CONTENT
            assert len(asked) == 1
    finally:
        for worker in workers:
            worker.stop(0.0)
        server.stop(0.0)


def test_a_get_begins_again_while_the_pool_restarts(
    stand: Stand, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = [1, 2]

    def unavailable_at_first(request: store_pb2.LocateShardsRequest, *arguments: Any, **options: Any) -> object:
        if refused:
            refused.pop()
            raise StorageUnavailable("the pool restarts")
        return locate(request, *arguments, **options)

    with stand.client() as reading:
        locate = reading.client._channel.store.LocateShards
        monkeypatch.setattr(reading.client._channel.store, "LocateShards", unavailable_at_first)
        assert reading.client.get(version.file_id, user_id="ann") == CONTENT
        assert not refused
        assert reading.through_pool == 0


def test_a_pool_that_fails_to_say_where_shards_are_is_read_from_itself(
    stand: Stand, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(DirectReads, "page", fail)
    with stand.client() as reading:
        assert reading.client.get(version.file_id, user_id="ann") == CONTENT
        assert reading.through_pool == 1


def page_and_version(stand: Stand, version: Version) -> store_pb2.ShardsPage:
    with stand.client() as asking:
        request = store_pb2.LocateShardsRequest(file_id=version.file_id, user_id="ann")
        return asking.client._channel.store.LocateShards(request).page


def test_nobody_writes_to_workers_if_the_pool_is_told_so(stand: Stand) -> None:
    with stand.client() as pushing:
        channel = pushing.client._channel
        assert not channel.describe(Deadline(None)).has_direct_pushes
        request = store_pb2.PrepareChunksRequest(user_id="ann", push_id=bytes(16))
        with pytest.raises(CallNotOffered):
            channel.unary(channel.store.PrepareChunks, request, Deadline(None))


def test_a_page_opens_its_own_chunks_only(stand: Stand, version: Version) -> None:
    raw = page_and_version(stand, version)
    page = page_of(raw, version, 0)
    assert len(page.stripes) == version.chunk_count
    assert len(raw.ticket) < 16 << 10
    assert b"ann" not in raw.ticket
    assert not any(one.name.startswith("w") for one in raw.holders)  # their ids are nobody's business
    assert page.keys is not None
    (epoch,) = (each.epoch for each in raw.keys)
    with pytest.raises(KeyRequired):
        page.keys.openers(epoch, 1, bytes(32))


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_wrong_page_is_refused(stand: Stand, version: Version, data: st.DataObject) -> None:
    raw = page_and_version(stand, version)
    field = data.draw(st.sampled_from(["ids", "placed", "k", "n", "first", "valid_ms", "keys", "holders"]))
    if field in ("ids", "placed"):
        setattr(raw, field, data.draw(st.binary(max_size=100)))
    elif field == "valid_ms":
        raw.valid_ms = data.draw(st.integers(0, 2000))
    elif field in ("k", "n", "first"):
        setattr(raw, field, data.draw(st.sampled_from([0, 3, 5, 257, 1 << 20])))
    elif field == "keys":
        raw.keys.add(epoch=9, keys=data.draw(st.binary(max_size=100)))
    else:
        del raw.holders[data.draw(st.integers(0, 3)) :]
    with suppress(ServerFault):
        page = page_of(raw, version, 0)
        assert len(page.placed) == len(page.stripes) == len(page.lengths)
        assert all(at is None or at < len(page.holders) for placed in page.placed for at in placed)
        assert page.valid_s >= 1


def test_a_file_without_pages_keeps_no_other_from_being_read_directly(
    stand: Stand, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, asked = DirectReads.page, []

    def page_at_first(direct: DirectReads, reader: FileReader, user: str, start: int, stop: int) -> Page | None:
        asked.append(reader.version.file_id)
        found = page(direct, reader, user, start, stop)
        return found if reader.version.file_id == version.file_id or not start else None

    content = random.Random(7).randbytes(18 * MIB)  # two pages
    with stand.client() as reading:
        other = reading.client.push(content, user_id="ann", filename="without pages").file_id
        monkeypatch.setattr(DirectReads, "page", page_at_first)
        for times in (1, 2):
            assert reading.client.get(other, user_id="ann") == content
            assert reading.through_pool == times
            assert reading.client.get(version.file_id, user_id="ann") == CONTENT
            assert reading.through_pool == times
        assert asked.count(other) == 2  # only the first get of it has asked


def test_what_workers_cannot_give_comes_through_the_pool(stand: Stand, version: Version) -> None:
    """Some of four, then all, do not let clients in; the pool itself reaches them. Nobody waits for them again."""
    for stopped in (stand.workers[:3], stand.workers[3:]):
        for worker in stopped:
            assert worker._clients is not None
            worker._clients.stop(0.0)
        with stand.client() as reading:
            for times in (1, 2):
                assert reading.client.get(version.file_id, user_id="ann") == CONTENT
                assert reading.through_pool == times
            assert reading.client._direct is not None
            assert not reading.client._direct.may_read(version.file_id)
            assert reading.client._direct.may_read("another") == (len(stopped) == 3)
