"""The client: what an embedded store offers, over the wire."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from storage import (
    ConflictError,
    ErasureProfile,
    FileNotFound,
    FileStorage,
    InvalidArgument,
    ManifestDiff,
    Patch,
    Version,
    VersionNotFound,
)
from taskworker import Client
from taskworker.client.connection import Connection
from taskworker.client.scope import CallScope
from taskworker.errors import MessageTooLarge, StorageUnavailable
from taskworker.protos import store_pb2
from tests.services.conftest import CHUNK, Raw
from tests.services.proxy import Proxy

USER = "u1"
MIB = 1024 * 1024
CONTENT = random.Random(2).randbytes(20 * CHUNK + 17)


class Unseekable(io.RawIOBase):
    """As a pipe is; gives what it has in odd pieces."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        return self._inner.readinto(memoryview(buffer)[:777])


def as_path(data: bytes, directory: Path) -> object:
    path = directory / "source.bin"
    path.write_bytes(data)
    return path


def as_fifo(data: bytes, directory: Path) -> object:
    path = directory / "fifo"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(data,)).start()
    return path


def after_a_header(data: bytes, _directory: Path) -> object:
    file = io.BytesIO(b"header" + data)
    file.seek(6)
    return file


class OnlyRead:
    """Has nothing but read()."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._stream.read(size)


class Generous(io.BytesIO):
    """Gives more bytes than it is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None or size < 0 else 2 * size)


SOURCES: dict[str, Callable[[bytes, Path], object]] = {
    "bytes": lambda data, _: data,
    "bytearray": lambda data, _: bytearray(data),
    "memoryview": lambda data, _: memoryview(data),
    "path": as_path,
    "text path": lambda data, directory: str(as_path(data, directory)),
    "fifo": as_fifo,
    "file": after_a_header,
    "pipe": lambda data, _: Unseekable(data),
    "only read": lambda data, _: OnlyRead(data),
    "every second byte": lambda data, _: memoryview(bytes(byte for each in data for byte in (each, 0)))[::2],
    "one-byte pieces": lambda data, _: (data[at : at + 1] for at in range(len(data))),
    "one large piece": lambda data, _: iter([memoryview(data)]),
    "odd pieces": lambda data, _: [data[:5], b"", bytearray(data[5:100_000]), data[100_000:]],
}


@pytest.mark.parametrize("size", [0, 1, CHUNK, len(CONTENT)])
@pytest.mark.parametrize("kind", SOURCES)
def test_push_of_all_kinds_of_sources(kind: str, size: int, client: Client, store: FileStorage, tmp_path: Path) -> None:
    source = SOURCES[kind](CONTENT[:size], tmp_path)
    version = client.push(source, filename="a", user_id=USER)  # type: ignore[arg-type]
    assert version == store.stat(version.file_id, user_id=USER)
    assert store.get(version.file_id, user_id=USER) == CONTENT[:size]


@pytest.mark.parametrize(
    "source",
    [12, None, ["text"], io.StringIO("text"), "no\0path", "\ud800", Generous(CONTENT)],
    ids=["int", "None", "list of text", "text file", "NUL", "surrogate", "more than asked for"],
)
def test_what_holds_no_bytes_is_refused(source: object, client: Client) -> None:
    with pytest.raises(InvalidArgument):
        client.push(source, filename="a", user_id=USER)  # type: ignore[arg-type]


def test_a_pipe_without_data_is_not_taken_for_ended(client: Client) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.write(write, b"hello")
    with os.fdopen(read, "rb", buffering=0) as stream, pytest.raises(InvalidArgument, match="non-blocking"):
        client.push(stream, filename="a", user_id=USER)
    os.close(write)
    assert client.find("a", user_id=USER) is None


def test_push_options_reach_the_store(client: Client) -> None:
    version = client.push(
        CONTENT,
        filename="a",
        user_id=USER,
        profile=ErasureProfile(1, 2),
        chunk_size=2 * CHUNK,
        time_ms=-5,
        note="why",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    assert (version.profile, version.chunk_size, version.time_ms) == (ErasureProfile(1, 2), 2 * CHUNK, -5)
    assert (version.note, version.sha256) == ("why", hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(InvalidArgument, match="SHA-256"):
        client.push(CONTENT, filename="b", user_id=USER, sha256="0" * 64)


def test_a_path_gives_its_own_name(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "名.bin"
    path.write_bytes(b"x")
    assert client.push(path, user_id=USER).filename == "名.bin"
    with pytest.raises(InvalidArgument, match="filename"):
        client.push(b"x", user_id=USER)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.push(b"x", filename="\ud800", user_id=USER),
        lambda client: client.push(b"x", filename="a", user_id="\udfff"),
        lambda client: client.push(bytes(MIB), filename="a", user_id="\udfff"),
        lambda client: client.push(b"x", filename="a", user_id=USER, time_ms=1 << 64),
        lambda client: client.push(b"x", filename="a", user_id=USER, chunk_size=-1),
        lambda client: client.find("\ud800", user_id=USER),
        lambda client: client.get("f", user_id=USER, offset=-1),
        lambda client: client.get("f", user_id=USER, length=-1),
        lambda client: client.get("f", user_id=USER, offset=1 << 65),
        lambda client: client.apply("f", ManifestDiff("0" * 64, -1, CHUNK, ()), user_id=USER),
        lambda client: client.apply("f", ManifestDiff("0" * 64, 0, CHUNK, (Patch(-1, b""),)), user_id=USER),
    ],
)
def test_arguments_no_message_can_hold(call: Callable[[Client], object], client: Client) -> None:
    with pytest.raises(InvalidArgument):
        call(client)


@pytest.mark.parametrize("timeout_s", [1e10, 1e12, 1e300])
def test_a_time_limit_beyond_all_clocks_is_none(timeout_s: float, client: Client) -> None:
    assert client.find("absent", user_id=USER, timeout_s=timeout_s) is None


def test_progress_of_push_get_and_download(client: Client) -> None:
    data = CONTENT * 3
    for action in ("push", "get", "download"):
        seen: list[tuple[int, int]] = []

        def progress(done: int, total: int, seen: list[tuple[int, int]] = seen) -> None:
            seen.append((done, total))

        if action == "push":
            version = client.push(data, filename="a", user_id=USER, progress=progress)
        elif action == "get":
            client.get(version.file_id, user_id=USER, progress=progress)
        else:
            client.download(version.file_id, io.BytesIO(), user_id=USER, progress=progress)
        assert seen[-1] == (len(data), len(data))
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})


RANGES = [(0, None), (0, 0), (5, 10), (CHUNK - 1, 2), (3 * CHUNK, CHUNK), (100, 10**9), (len(CONTENT), None)]


@pytest.mark.parametrize(("offset", "length"), RANGES)
def test_ranges(offset: int, length: int | None, client: Client, store: FileStorage, tmp_path: Path) -> None:
    file_id = store.push(CONTENT, filename="a", user_id=USER).file_id
    expected = CONTENT[offset:] if length is None else CONTENT[offset : offset + length]
    assert client.get(file_id, user_id=USER, offset=offset, length=length) == expected
    client.download(file_id, tmp_path / "out", user_id=USER, offset=offset, length=length)
    assert (tmp_path / "out").read_bytes() == expected


def test_old_versions_stay_readable(client: Client, tmp_path: Path) -> None:
    old = client.push(b"old", filename="a", user_id=USER)
    client.push(b"new", filename="a", user_id=USER)
    assert client.get(old.file_id, user_id=USER) == b"new"
    assert client.get(old.file_id, user_id=USER, version_id=old.version_id) == b"old"
    assert client.download(old.file_id, tmp_path / "o", user_id=USER, version_id=old.version_id) == old
    with client.open(old.file_id, user_id=USER, version_id=old.version_id) as file:
        assert file.read() == b"old"


def test_a_download_replaces_a_file_as_a_whole(client: Client, tmp_path: Path) -> None:
    file_id = client.push(CONTENT, filename="a", user_id=USER).file_id
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"before")
    target.chmod(0o640)
    link.symlink_to(target)
    with target.open("rb") as before:
        client.download(file_id, link, user_id=USER)
        assert before.read() == b"before"
    assert target.read_bytes() == CONTENT
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert link.is_symlink()
    with pytest.raises(FileNotFound):
        client.download("0" * 32, tmp_path / "none", user_id=USER)
    assert not (tmp_path / "none").exists()


def test_a_download_to_what_is_no_regular_file(client: Client, tmp_path: Path) -> None:
    file_id = client.push(CONTENT, filename="a", user_id=USER).file_id
    client.download(file_id, "/dev/null", user_id=USER)
    assert not Path("/dev/null").is_file()
    with pytest.raises(IsADirectoryError):
        client.download(file_id, tmp_path, user_id=USER)
    with pytest.raises(FileNotFoundError):
        client.download(file_id, tmp_path / "no" / "such" / "place", user_id=USER)


class Reluctant(io.RawIOBase):
    """Takes at most 1,000 bytes at a time, as a raw file may."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self.taken += data[:1000]
        return min(1000, len(data))


def test_a_download_to_a_raw_file(client: Client) -> None:
    file_id = client.push(CONTENT, filename="a", user_id=USER).file_id
    target = Reluctant()
    client.download(file_id, cast(BinaryIO, target), user_id=USER)
    assert target.taken == CONTENT


def test_an_open_file_reads_like_a_local_one(client: Client, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(3 * MIB)
    (tmp_path / "local").write_bytes(data)
    version = client.push(data, filename="a", user_id=USER)
    randomness = random.Random(4)
    with client.open(version.file_id, user_id=USER) as remote, (tmp_path / "local").open("rb") as local:
        assert (remote.version, remote.size) == (version, len(data))
        for _ in range(60):
            if randomness.random() < 0.5:
                at = randomness.randrange(len(data) + 1000)
                assert remote.seek(at) == local.seek(at)
            count = randomness.choice([1, 100, 70_000, 400_000])
            assert remote.read(count) == local.read(count)
            assert remote.tell() == local.tell()
        assert remote.seek(-10, io.SEEK_END) == local.seek(-10, io.SEEK_END)
        assert remote.read() == local.read()
        with pytest.raises(ValueError, match="negative"):
            remote.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        remote.read(1)


def test_calls_of_a_closed_client_say_so(raw: Raw) -> None:
    """Of all kinds: gRPC says it in several ways."""
    connection = Connection("pool", channel=raw.channel)
    raw.channel.close()
    request = store_pb2.GetStreamRequest()
    calls: list[Callable[[], object]] = [
        lambda: connection.unary(raw.store.Stat, store_pb2.StatRequest(), None),
        lambda: connection.unary(raw.store.Stat, store_pb2.StatRequest(), None, CallScope()),
        lambda: connection.receive(raw.store.GetStream, request, None),
        lambda: connection.exchange(raw.store.PushMany, iter([]), None),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailable, match="this client is closed"):
            call()


def test_an_open_file_keeps_its_version(client: Client) -> None:
    old = client.push(CONTENT, filename="a", user_id=USER)
    with client.open(old.file_id, user_id=USER) as file:
        client.push(b"new", filename="a", user_id=USER)
        assert file.read() == CONTENT


# Revisions


def test_a_revision_sends_the_changed_chunk(address: str, store: FileStorage, tmp_path: Path) -> None:
    data = random.Random(5).randbytes(400 * CHUNK)
    base = store.push(data, filename="a", user_id=USER)
    path = tmp_path / "local"
    changed = data[: 7 * CHUNK] + bytes([data[7 * CHUNK] ^ 1]) + data[7 * CHUNK + 1 :]
    path.write_bytes(changed)
    with Proxy(address) as proxy, Client(proxy.address) as client:
        client.stats()
        before_sent, before_received = proxy.sent, proxy.received
        version = client.revise(base.file_id, path, user_id=USER, changed=[(7 * CHUNK, 1)])
        assert proxy.sent - before_sent <= CHUNK + 8192
        assert proxy.received - before_received <= 8192
    assert (version.parent_id, version.size) == (base.version_id, base.size)
    assert store.get(base.file_id, user_id=USER) == changed


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: data,
    "first byte": lambda data: b"!" + data[1:],
    "last byte": lambda data: data[:-1] + b"!",
    "appended": lambda data: data + b"more",
    "appended chunks": lambda data: data + bytes(3 * CHUNK),
    "cut inside a chunk": lambda data: data[: 5 * CHUNK + 3],
    "cut at a chunk": lambda data: data[: 5 * CHUNK],
    "emptied": lambda _: b"",
    "all": lambda data: bytes(byte ^ 255 for byte in data),
    "swapped": lambda data: data[CHUNK : 2 * CHUNK] + data[:CHUNK] + data[2 * CHUNK :],
    "repeated": lambda data: data[:CHUNK] * 20,
}


@pytest.mark.parametrize("edit", EDITS)
def test_revisions_of_all_kinds(edit: str, client: Client, store: FileStorage, tmp_path: Path) -> None:
    base = store.push(CONTENT, filename="a", user_id=USER)
    path = tmp_path / "local"
    changed = EDITS[edit](CONTENT)
    path.write_bytes(changed)
    version = client.revise(base.file_id, path, user_id=USER, note="edit", sha256=hashlib.sha256(changed).hexdigest())
    assert store.get(base.file_id, user_id=USER) == changed
    assert version.version_id == store.stat(base.file_id, user_id=USER).version_id
    assert version.sha256 == hashlib.sha256(changed).hexdigest() or changed == CONTENT


@pytest.mark.parametrize("edit", ["first byte", "appended", "appended chunks", "cut inside a chunk", "cut at a chunk"])
def test_revisions_with_the_changes_given(edit: str, client: Client, store: FileStorage) -> None:
    base = store.push(CONTENT, filename="a", user_id=USER)
    changed = EDITS[edit](CONTENT)
    places = [(0, 1)] if edit == "first byte" else []
    client.revise(base.file_id, changed, user_id=USER, changed=places)
    assert store.get(base.file_id, user_id=USER) == changed


def test_a_revision_of_an_empty_file(client: Client, store: FileStorage) -> None:
    base = store.push(b"", filename="a", user_id=USER)
    client.revise(base.file_id, CONTENT, user_id=USER)
    assert store.get(base.file_id, user_id=USER) == CONTENT


def test_a_revision_that_holds_more_than_memory_should(client: Client, store: FileStorage) -> None:
    base = store.push(bytes(40 * MIB), filename="a", user_id=USER)
    changed = random.Random(6).randbytes(40 * MIB + 5)
    client.revise(base.file_id, changed, user_id=USER)
    assert store.get(base.file_id, user_id=USER) == changed
    assert client.collect().objects_removed == 0


def test_a_revision_needs_content_that_can_be_read_anywhere(client: Client) -> None:
    base = client.push(b"x", filename="a", user_id=USER)
    with pytest.raises(InvalidArgument, match="read anywhere"):
        client.revise(base.file_id, cast(BinaryIO, Unseekable(b"y")), user_id=USER)
    with pytest.raises(InvalidArgument, match="outside 0"):
        client.revise(base.file_id, b"y", user_id=USER, changed=[(-1, 5)])


def test_diff_and_apply(client: Client, store: FileStorage) -> None:
    base = client.push(CONTENT, filename="a", user_id=USER)
    changed = EDITS["swapped"](EDITS["last byte"](CONTENT))
    diff = client.diff(base.file_id, changed, user_id=USER)
    assert [(patch.index, patch.data is None) for patch in diff.patches] == [(0, True), (1, True), (20, False)]
    version = client.apply(base.file_id, diff, user_id=USER, note="n")
    assert (version.note, version.parent_id) == ("n", base.version_id)
    assert store.get(base.file_id, user_id=USER) == changed
    with pytest.raises(ConflictError) as conflict:
        client.apply(base.file_id, diff, user_id=USER)
    assert conflict.value.head == version.version_id


# Synchronizing


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "local"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def base(store: FileStorage) -> Version:
    return store.push(CONTENT, filename="a", user_id=USER)


def test_sync_of_equal_copies(client: Client, base: Version, local: Path) -> None:
    result = client.sync(base.file_id, local, user_id=USER, base_version_id=base.version_id)
    assert (result.outcome, result.version) == ("equal", base)


def test_sync_carries_local_changes_over(client: Client, base: Version, local: Path, store: FileStorage) -> None:
    local.write_bytes(EDITS["appended"](CONTENT))
    result = client.sync(base.file_id, local, user_id=USER, base_version_id=base.version_id)
    assert (result.outcome, result.version.parent_id) == ("pushed", base.version_id)
    assert store.get(base.file_id, user_id=USER) == local.read_bytes()


@pytest.mark.parametrize("edit", EDITS)
def test_sync_brings_the_head(edit: str, client: Client, base: Version, local: Path, store: FileStorage) -> None:
    local.chmod(0o604)
    head = store.push(EDITS[edit](CONTENT), filename="a", user_id=USER)
    result = client.sync(base.file_id, local, user_id=USER, base_version_id=base.version_id)
    assert result.outcome == ("pulled" if head != base else "equal")
    assert result.version == head
    assert local.read_bytes() == EDITS[edit](CONTENT)
    assert stat.S_IMODE(local.stat().st_mode) == 0o604
    assert [path.name for path in local.parent.iterdir() if path.name != "store"] == ["local"]


def test_sync_brings_a_head_of_other_chunks(client: Client, base: Version, local: Path, store: FileStorage) -> None:
    store.push(b"new" + CONTENT, filename="a", user_id=USER, chunk_size=2 * CHUNK)
    result = client.sync(base.file_id, local, user_id=USER, base_version_id=base.version_id)
    assert result.outcome == "pulled"
    assert local.read_bytes() == b"new" + CONTENT


def test_sync_of_both_moved_touches_neither(client: Client, base: Version, local: Path, store: FileStorage) -> None:
    head = store.push(b"theirs", filename="a", user_id=USER)
    local.write_bytes(b"ours")
    with pytest.raises(ConflictError) as conflict:
        client.sync(base.file_id, local, user_id=USER, base_version_id=base.version_id)
    assert (conflict.value.head, conflict.value.base) == (head.version_id, base.version_id)
    assert (local.read_bytes(), store.get(base.file_id, user_id=USER)) == (b"ours", b"theirs")


def test_sync_of_both_moved_alike_is_equal(client: Client, base: Version, local: Path, store: FileStorage) -> None:
    head = store.push(b"same", filename="a", user_id=USER)
    local.write_bytes(b"same")
    result = client.sync(base.file_id, local, user_id=USER, base_version_id=base.version_id)
    assert (result.outcome, result.version) == ("equal", head)


def test_synchronize_fetches_only_the_change(address: str, store: FileStorage) -> None:
    data = random.Random(7).randbytes(400 * CHUNK)
    old = store.push(data, filename="a", user_id=USER)
    new = store.push(data[: 9 * CHUNK] + b"!" + data[9 * CHUNK + 1 :], filename="a", user_id=USER)
    with Proxy(address) as proxy, Client(proxy.address) as client:
        client.stats()
        before = proxy.received
        answer = client.synchronize(old.file_id, user_id=USER, have_version_id=old.version_id)
        assert proxy.received - before <= CHUNK + 8192
    assert answer.version_id == new.version_id
    assert answer.diff is not None
    assert [patch.index for patch in answer.diff.patches] == [9]


def test_a_diff_too_large_for_one_call_names_the_others(client: Client, base: Version) -> None:
    patches = tuple(Patch(index, bytes(32), bytes(CHUNK)) for index in range(1100))
    diff = ManifestDiff(base.version_id, 1100 * CHUNK, CHUNK, patches)
    with pytest.raises(MessageTooLarge, match="apply"):
        client.synchronize(base.file_id, user_id=USER, have_version_id=base.version_id, diff=diff)


# Finding and listing


def test_find_stat_history_and_delete(client: Client) -> None:
    versions = [client.push(bytes([n]), filename="a", user_id=USER) for n in range(5)]
    file_id = versions[0].file_id
    assert client.find("a", user_id=USER) == versions[-1]
    assert client.find("b", user_id=USER) is None
    assert client.find("a", user_id="u2") is None
    assert client.stat(file_id, user_id=USER) == versions[-1]
    assert client.stat(file_id, user_id=USER, version_id=versions[1].version_id) == versions[1]
    assert client.history(file_id, user_id=USER) == versions[::-1]
    assert client.history(file_id, user_id=USER, limit=2) == versions[:-3:-1]
    assert client.history(file_id, user_id=USER, limit=2, before=versions[2].version_id) == versions[1::-1]
    with pytest.raises(VersionNotFound):
        client.stat(file_id, user_id=USER, version_id="0" * 64)
    with pytest.raises(FileNotFound):
        client.delete(file_id, user_id="u2")
    client.delete(file_id, user_id=USER)
    with pytest.raises(FileNotFound):
        client.stat(file_id, user_id=USER)


def test_listing_page_by_page(client: Client, store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskworker.services import store as service

    monkeypatch.setattr(service, "PAGE_MAX", 3)
    names = sorted(["文", "a", "b/1", "b/2", "b/3", "b/4", "c"], key=lambda name: name.encode())
    heads = [store.push(b"x", filename=name, user_id=USER) for name in names]
    store.push(b"x", filename="other", user_id="u2")
    assert client.list_files(user_id=USER) == heads
    assert list(client.iter_files(user_id=USER)) == heads
    assert [version.filename for version in client.list_files(user_id=USER, prefix="b/")] == names[1:5]
    assert client.list_files(user_id=USER, limit=5) == heads[:5]
    assert client.list_files(user_id=USER, after="b/3", limit=2) == heads[4:6]
    assert client.list_files(user_id=USER, limit=0) == []
    versions = [store.push(bytes([n]), filename="long", user_id=USER) for n in range(8)]
    assert client.history(versions[0].file_id, user_id=USER) == versions[::-1]


def test_content_is_read_into_the_callers_memory(client: Client) -> None:
    version = client.push(CONTENT, filename="f", user_id=USER)
    buffer = bytearray(b"x" * (len(CONTENT) + 5))
    assert client.get_into(version.file_id, buffer, user_id=USER) == len(CONTENT)
    assert buffer == CONTENT + b"x" * 5
    told: list[tuple[int, int]] = []
    part = memoryview(bytearray(1000))[100:300]
    assert (
        client.get_into(
            version.file_id, part, user_id=USER, version_id=version.version_id, offset=7,
            progress=lambda done, total: told.append((done, total)),
        )
        == 200
    )  # fmt: skip
    assert part == CONTENT[7:207]
    assert told == [(200, 200)]
    assert client.get_into(version.file_id, bytearray(0), user_id=USER) == 0
    assert client.get_into(version.file_id, bytearray(9), user_id=USER, offset=len(CONTENT) - 2) == 2
    with pytest.raises(InvalidArgument):
        client.get_into(version.file_id, bytearray(9), user_id=USER, offset=len(CONTENT) + 1)
    wrongs: list[Any] = [b"read-only", "text", 5, memoryview(bytearray(9))[::2]]
    for wrong in wrongs:
        with pytest.raises(InvalidArgument, match="buffer"):
            client.get_into(version.file_id, wrong, user_id=USER)


def test_a_version_and_its_content_come_in_one_call(client: Client) -> None:
    first = client.push(b"first", filename="f", user_id=USER)
    second = client.push(b"second", filename="f", user_id=USER)
    empty = client.push(b"", filename="empty", user_id=USER)
    large = client.push(bytes(2 * MIB), filename="large", user_id=USER)
    assert client.get_small("f", user_id=USER, by_name=True, bytes_max=6) == (second, b"second")
    assert client.get_small("f", user_id=USER, by_name=True, bytes_max=5) == (second, None)
    found = client.get_small(first.file_id, user_id=USER, version_id=first.version_id, bytes_max=99)
    assert (found[0].version_id, found[1]) == (first.version_id, b"first")
    assert client.get_small("empty", user_id=USER, by_name=True, bytes_max=0) == (empty, b"")
    assert client.get_small("large", user_id=USER, by_name=True, bytes_max=4 * MIB) == (large, None)
    with pytest.raises(FileNotFound):
        client.get_small("none", user_id=USER, by_name=True, bytes_max=1)
    with pytest.raises(FileNotFound):
        client.get_small("f", user_id="eve", by_name=True, bytes_max=9)
    with pytest.raises(InvalidArgument):
        client.get_small("f", user_id=USER, by_name=True, bytes_max=-1)


def test_memory_that_a_source_uses_again_is_copied(client: Client) -> None:
    buffer = bytearray(300_000)

    def pieces() -> Iterator[memoryview]:
        for number in range(9):
            buffer[:] = bytes([number]) * len(buffer)
            yield memoryview(buffer)

    version = client.push(pieces(), filename="f", user_id=USER)
    assert client.get(version.file_id, user_id=USER) == b"".join(bytes([n]) * len(buffer) for n in range(9))


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, MIB, 3 * MIB])
def test_get_of_any_size_reports_its_progress(client: Client, size: int) -> None:
    content = random.Random(size).randbytes(size)
    version = client.push(content, filename="f", user_id=USER)
    told: list[tuple[int, int]] = []
    found = client.get(version.file_id, user_id=USER, progress=lambda done, total: told.append((done, total)))
    assert found == content
    assert told[-1:] == ([(size, size)] if size else [])
