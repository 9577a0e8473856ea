"""Files that a client seals with its user's own key: a real server, which sees only what it may, and may lie."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import FileStorage, Version
from storage.errors import (
    ConflictError,
    FileNotFound,
    InvalidArgument,
    KeyRequired,
    PermissionDenied,
    SealBroken,
    VersionNotFound,
)
from storage.sealing.master_keys import new_key_file
from taskworker import AsyncClient, Client
from taskworker.client.sources import Pushable
from taskworker.errors import PoolIsBlind
from tests.services.conftest import CHUNK
from tests.services.proxy import Proxy
from tests.services.test_sharing import Served

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
USER = "ann"
NAME = "报告/季度 计划.txt"
SIZES = (0, 1, 1000, CHUNK - 17, CHUNK - 16, CHUNK - 15, CHUNK, 3 * CHUNK - 200, 5 * CHUNK + 77)


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def sealing(address: str) -> Iterator[Client]:
    with Client(address, key=KEY) as connected:
        yield connected


class Hostile:
    """What a pool can do to a user's files: it reads and stores what it likes under their sealed names."""

    def __init__(self, store: FileStorage) -> None:
        self._store = store

    def bytes_of(self, version: Version) -> bytes:
        return self._store.get(version.file_id, user_id=USER, version_id=version.version_id)

    def put(self, name: str, raw: bytes, note: str = "") -> None:
        self._store.push(raw, filename=name, user_id=USER, note=note)

    def name_of(self, version: Version) -> str:
        return self._store.stat(version.file_id, user_id=USER).filename


@pytest.fixture
def hostile(store: FileStorage) -> Hostile:
    return Hostile(store)


# -- what works ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_file_comes_back_in_whole_and_in_parts(sealing: Client, size: int) -> None:
    data = content(size)
    pushed = sealing.push(data, filename=NAME, user_id=USER, note="备注")
    assert (pushed.filename, pushed.size, pushed.note) == (NAME, size, "备注")
    assert sealing.push(data, filename=NAME, user_id=USER, note="备注").unchanged
    found = sealing.find(NAME, user_id=USER)
    assert found == sealing.stat(pushed.file_id, user_id=USER) == pushed
    assert sealing.get(pushed.file_id, user_id=USER) == data
    for offset, length in ((0, 1), (size // 2, CHUNK), (max(0, size - 3), 10), (CHUNK - 17, 2), (size + 5, 1)):
        assert sealing.get(pushed.file_id, user_id=USER, offset=offset, length=length) == data[offset : offset + length]
    with sealing.open(pushed.file_id, user_id=USER) as file:
        assert file.read() == data
        file.seek(size // 3)
        assert file.read(2 * CHUNK) == data[size // 3 : size // 3 + 2 * CHUNK]
    target = io.BytesIO()
    assert sealing.download(pushed.file_id, target, user_id=USER) == pushed
    assert target.getvalue() == data


def test_streams_are_sealed_like_files(sealing: Client, hostile: Hostile) -> None:
    data = content(5 * CHUNK + 77)
    stored = set()
    sources: list[Pushable] = [data, io.BytesIO(data), (data[at : at + 7001] for at in range(0, len(data), 7001))]
    for number, source in enumerate(sources):
        version = sealing.push(source, filename="same", user_id=USER)
        assert version.unchanged == (number > 0)
        stored.add(hostile.bytes_of(version))
    assert len(stored) == 1


def test_the_server_has_nothing_to_read(sealing: Client, client: Client, store: FileStorage, tmp_path: Path) -> None:
    planted = "种下的词".encode()
    pushed = sealing.push(planted * 40_000, filename="种下的词.txt", user_id=USER, note="种下的词")
    sealing.revise(pushed.file_id, planted * 40_001, user_id=USER, note="种下的词")
    assert all(one.error is None for one in sealing.push_many([("种下的词2", planted)], user_id=USER, note="种下的词"))
    shown = client.list_files(user_id=USER)
    assert len(shown) == 2
    assert all(one.filename.startswith("sealed1.") and one.filename.isascii() for one in shown)
    store.close()
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > len(planted) * 40_000
    assert not any(planted in path.read_bytes() for path in files)


def test_listings_show_clear_names_to_the_key_only(sealing: Client, client: Client, address: str) -> None:
    names = ["乙", "甲/1", "甲/2", "甲/10", "z", "a" * 737]
    for name in names:
        sealing.push(b"1", filename=name, user_id=USER)
    client.push(b"plain", filename="甲/plain", user_id=USER)
    listed = [one.filename for one in sealing.list_files(user_id=USER)]
    assert listed == sorted(names, key=str.encode)
    assert [one.filename for one in sealing.iter_files(user_id=USER, prefix="甲/")] == ["甲/1", "甲/10", "甲/2"]
    assert [one.filename for one in sealing.list_files(user_id=USER, after="甲/1", limit=1)] == ["甲/10"]
    assert sealing.find("甲/plain", user_id=USER) is None
    assert sealing.list_files(user_id="eve") == []
    with Client(address, key=OTHER_KEY) as other, pytest.raises(KeyRequired, match=r"sealed with the key .*given"):
        other.list_files(user_id=USER)


def test_history_and_former_versions(sealing: Client) -> None:
    first = sealing.push(b"first", filename=NAME, user_id=USER, note="one")
    second = sealing.push(b"second!", filename=NAME, user_id=USER, note="two")
    history = sealing.history(first.file_id, user_id=USER)
    assert [(one.version_id, one.note, one.size) for one in history] == [
        (second.version_id, "two", 7),
        (first.version_id, "one", 5),
    ]
    assert sealing.get(first.file_id, user_id=USER, version_id=first.version_id) == b"first"
    with pytest.raises(VersionNotFound):
        sealing.get(first.file_id, user_id=USER, version_id="0" * 64)
    sealing.delete(first.file_id, user_id=USER)
    with pytest.raises(FileNotFound):
        sealing.get(first.file_id, user_id=USER)


def test_a_hash_is_checked_here_and_kept_sealed(sealing: Client, client: Client) -> None:
    data = content(3 * CHUNK)
    sha256 = hashlib.sha256(data).hexdigest()
    for source in (data, iter([data])):
        with pytest.raises(InvalidArgument, match="SHA-256"):
            sealing.push(source, filename=NAME, user_id=USER, sha256="00" * 32)
    assert sealing.find(NAME, user_id=USER) is None
    for source in (data, iter([data])):
        assert sealing.push(source, filename=NAME, user_id=USER, sha256=sha256).sha256 == sha256
    (stored,) = client.list_files(user_id=USER)
    assert stored.sha256 is None
    assert sha256 not in stored.note


def test_names_and_notes_have_shorter_limits(sealing: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"738 bytes of UTF-8, at most 737"):
        sealing.push(b"", filename="计" * 246, user_id=USER)
    sealing.push(b"", filename="计" * 245, user_id=USER, note="n" * 3016)
    with pytest.raises(InvalidArgument, match=r"note has 3017 bytes, at most 3016"):
        sealing.push(b"", filename="计", user_id=USER, note="n" * 3017)


# -- keys ----------------------------------------------------------------------------------------------


def test_another_key_and_no_key_get_nothing(sealing: Client, client: Client, address: str, tmp_path: Path) -> None:
    small, large = (sealing.push(content(size), filename=f"{size}", user_id=USER) for size in (100, 5 * CHUNK))
    target = tmp_path / "out"
    with Client(address, key=OTHER_KEY) as other:
        for reader in (other, client):
            for version in (small, large):
                with pytest.raises(KeyRequired, match="key"):
                    reader.get(version.file_id, user_id=USER)
                with pytest.raises(KeyRequired):
                    reader.download(version.file_id, target, user_id=USER)
                with pytest.raises(KeyRequired):
                    reader.open(version.file_id, user_id=USER).read()
                assert not target.exists()
        assert other.find("100", user_id=USER) is None
    with pytest.raises(SealBroken, match="not sealed"):
        sealing.get(client.push(b"plain", filename="plain", user_id=USER).file_id, user_id=USER)


def test_a_key_file_gives_the_key(address: str, tmp_path: Path) -> None:
    new_key_file(tmp_path / "key")
    with Client(address, key=tmp_path / "key") as one, Client(address, key=str(tmp_path / "key")) as two:
        pushed = one.push(b"x", filename=NAME, user_id=USER)
        assert two.get(pushed.file_id, user_id=USER) == b"x"
    (tmp_path / "key").write_text((tmp_path / "key").read_text() * 2)
    with pytest.raises(InvalidArgument, match="twice"):
        Client(address, key=tmp_path / "key")
    with pytest.raises(KeyRequired, match="no key file"):
        Client(address, key=tmp_path / "none")
    with pytest.raises(InvalidArgument, match="32"):
        Client(address, key=b"short")


# -- a server that lies ----------------------------------------------------------------------------------


def mixes(first: bytes, second: bytes, other: bytes) -> dict[str, bytes]:
    """What a pool could make of two versions of a file, and of another file of the same size."""
    blocks = [second[at : at + CHUNK] for at in range(0, len(second), CHUNK)]
    return {
        "a block of an earlier version": first[:CHUNK] + second[CHUNK:],
        "the end of an earlier version": second[: 2 * CHUNK] + first[2 * CHUNK :],
        "two blocks in the wrong order": b"".join([blocks[1], blocks[0], *blocks[2:]]),
        "a block twice": b"".join([blocks[0], blocks[0], *blocks[2:]]),
        "another file": other,
        "a block of another file": other[:CHUNK] + second[CHUNK:],
        "a block less": b"".join(blocks[1:]),
        "the end cut off": second[:-1],
        "only the beginning": second[:CHUNK],
        "nothing": b"",
        "one more byte": second + b"\0",
        "plain content": content(len(second)),
    }


@pytest.mark.parametrize("lie", list(mixes(*[bytes(2 * CHUNK)] * 3)))
def test_lies_about_content_are_noticed(sealing: Client, hostile: Hostile, lie: str) -> None:
    first = sealing.push(content(3 * CHUNK, 1), filename=NAME, user_id=USER)
    second = sealing.push(content(3 * CHUNK, 2), filename=NAME, user_id=USER)
    other = sealing.push(content(3 * CHUNK, 2), filename="other", user_id=USER)
    raw = mixes(*map(hostile.bytes_of, (first, second, other)))[lie]
    hostile.put(hostile.name_of(first), raw)
    got = bytearray()
    for read in reading(sealing, first.file_id):
        with pytest.raises(SealBroken):
            got += read()
    assert sealing.get(first.file_id, user_id=USER, version_id=second.version_id) == content(3 * CHUNK, 2)


def reading(client: Client, file_id: str) -> list[Callable[[], bytes]]:
    """All ways to read a whole file."""
    return [
        lambda: client.get(file_id, user_id=USER),
        lambda: client.open(file_id, user_id=USER).read(),
        lambda: next(client.get_many([file_id], user_id=USER)).result(),
        lambda: bytes(client.download(file_id, io.BytesIO(), user_id=USER).size),
    ]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 3 * CHUNK), place=st.integers(0, 1 << 30), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed(sealing: Client, hostile: Hostile, size: int, place: int, flip: int) -> None:
    version = sealing.push(content(size), filename=f"{size}", user_id=USER)
    raw = bytearray(hostile.bytes_of(version))
    raw[place % len(raw)] ^= flip
    hostile.put(hostile.name_of(version), bytes(raw))
    with pytest.raises(SealBroken):
        sealing.get(version.file_id, user_id=USER)


def test_other_names_notes_and_owners_are_noticed(address: str, hostile: Hostile, store: FileStorage) -> None:
    with Client(address, key=KEY) as writer:
        one = writer.push(b"one", filename="one", user_id=USER, note="draft")
        two = writer.push(b"two", filename="two", user_id=USER, note="final")
        eve = writer.push(b"eve's", filename="one", user_id="eve")

    def fresh() -> Client:  # which remembers nothing that it was told
        return Client(address, key=KEY)

    noted = {version.file_id: store.stat(version.file_id, user_id=USER).note for version in (one, two)}
    hostile.put(hostile.name_of(one), hostile.bytes_of(one), noted[two.file_id])
    with fresh() as reader, pytest.raises(SealBroken, match="note"):
        reader.get(one.file_id, user_id=USER)
    hostile.put(hostile.name_of(one), hostile.bytes_of(one), "made up")
    with fresh() as reader, pytest.raises(SealBroken, match="note"):
        reader.stat(one.file_id, user_id=USER)
    raw = hostile.bytes_of(two)
    hostile.put(hostile.name_of(two), b"")
    hostile.put(hostile.name_of(two), raw)  # without the note
    with fresh() as reader, pytest.raises(SealBroken):
        reader.get(two.file_id, user_id=USER)
    of_eve = store.stat(eve.file_id, user_id="eve")
    store.push(store.get(eve.file_id, user_id="eve"), filename=of_eve.filename, user_id="bob")
    with fresh() as reader, pytest.raises(SealBroken, match="another user's"):
        reader.list_files(user_id="bob")


def test_what_was_said_before_is_remembered(sealing: Client, store: FileStorage, hostile: Hostile) -> None:
    version = sealing.push(b"content", filename="one", user_id=USER)
    assert sealing.find("one", user_id=USER) == version
    files = sealing.sealed_files
    assert files is not None
    two = files.keys.current.sealed_name(USER, "two")
    other = store.push(b"x" * 1000, filename=two, user_id=USER)
    with pytest.raises(SealBroken, match="something else"):
        files.opened(replace(other, file_id=version.file_id), USER)
    stored = store.stat(version.file_id, user_id=USER)
    with pytest.raises(SealBroken, match="something else"):
        files.opened(replace(stored, size=stored.size - 1), USER)


def test_an_old_version_as_the_newest_is_not_noticed_without_memory(sealing: Client, hostile: Hostile) -> None:
    """docs/security.md says so."""
    first = sealing.push(b"first", filename=NAME, user_id=USER)
    sealing.push(b"second", filename=NAME, user_id=USER)
    hostile.put(hostile.name_of(first), hostile.bytes_of(first))
    assert sealing.get(first.file_id, user_id=USER) == b"first"


# -- many files --------------------------------------------------------------------------------------------


def test_many_files_at_once(sealing: Client, client: Client, address: str, tmp_path: Path) -> None:
    files = {f"多/{number}": content(size, number) for number, size in enumerate((0, 5, 9_000, CHUNK, 700_000))}
    (tmp_path / "large").write_bytes(content(1_300_000))
    outcomes = list(
        sealing.push_many([*files.items(), tmp_path / "large", ("stream", iter([b"a", b"b"]))], user_id=USER, note="N")
    )
    files |= {"large": content(1_300_000), "stream": b"ab"}
    assert [one.filename for one in outcomes] == list(files)
    assert [(one.result().filename, one.result().size, one.result().note) for one in outcomes] == [
        (name, len(data), "N") for name, data in files.items()
    ]
    got = list(sealing.get_many([*files, "none"], user_id=USER, by_name=True))
    assert [one.file for one in got] == [*files, "none"]
    assert [one.result() for one in got[:-1]] == list(files.values())
    assert isinstance(got[-1].error, FileNotFound)
    ids = [one.result().file_id for one in outcomes]
    some = list(sealing.get_many(ids, user_id=USER, bytes_max=9_000))
    assert [one.data for one in some] == [data if len(data) <= 9_000 else None for data in files.values()]
    assert [one.version and one.version.size for one in some] == [len(data) for data in files.values()]
    with Client(address, key=OTHER_KEY) as other:
        assert all(isinstance(one.error, KeyRequired) and one.data is None for one in other.get_many(ids, user_id=USER))
    assert all(isinstance(one.error, KeyRequired) and one.data is None for one in client.get_many(ids, user_id=USER))
    again = list(sealing.push_many(files.items(), user_id=USER))
    assert [one.result().unchanged for one in again] == [False] * len(files)  # without the note
    assert [one.result().unchanged for one in sealing.push_many(files.items(), user_id=USER)] == [True] * len(files)
    assert all(one.error is None for one in sealing.delete_many(ids, user_id=USER))
    assert sealing.list_files(user_id=USER) == []


# -- what cannot work ----------------------------------------------------------------------------------------


def test_what_the_server_cannot_do_says_so(sealing: Client) -> None:
    version = sealing.push(b"x", filename=NAME, user_id=USER)
    with pytest.raises(PoolIsBlind, match=r"revise\(\)"):
        sealing.diff(version.file_id, b"y", user_id=USER)
    with pytest.raises(PoolIsBlind, match=r"sync\(\)"):
        sealing.synchronize(version.file_id, user_id=USER, have_version_id=version.version_id)
    with pytest.raises(PoolIsBlind, match="key"):
        sealing.create_link(version.file_id, user_id=USER)
    with pytest.raises(PoolIsBlind, match="one by one"):
        sealing.share("报告/", with_user="bob", user_id=USER)


# -- revisions -----------------------------------------------------------------------------------------------


@pytest.fixture
def counted(address: str) -> Iterator[tuple[Client, Proxy]]:
    with Proxy(address) as proxy, Client(proxy.address, key=KEY, token="none") as client:
        yield client, proxy


BLOCK = CHUNK - 16


@pytest.mark.parametrize("told", [False, True])
def test_a_revision_sends_what_changed(counted: tuple[Client, Proxy], told: bool) -> None:
    client, proxy = counted
    data = bytearray(content(60 * CHUNK))
    version = client.push(data, filename=NAME, user_id=USER)
    data[20 * CHUNK] ^= 1
    before = proxy.sent
    revised = client.revise(
        version.file_id, bytes(data), user_id=USER, note="新", changed=[(20 * CHUNK, 1)] if told else None
    )
    assert proxy.sent - before < 3 * CHUNK  # a block, and the last chunk
    assert (revised.parent_id, revised.note) == (version.version_id, "新")
    assert client.get(version.file_id, user_id=USER) == data
    again = client.revise(version.file_id, bytes(data), user_id=USER)
    assert again.unchanged
    noted = client.revise(version.file_id, bytes(data), user_id=USER, note="newer")
    assert noted.version_id != revised.version_id
    assert client.get(version.file_id, user_id=USER) == data


sizes = st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 40, 2 * BLOCK, 3 * BLOCK + 7])


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=sizes, after=sizes, places=st.lists(st.integers(0, 3 * BLOCK), max_size=2))
def test_any_revision_gives_the_new_content(sealing: Client, before: int, after: int, places: list[int]) -> None:
    old = bytearray(content(max(before, after)))
    new = bytearray(old)
    for place in places:
        if place < after:
            new[place] ^= 1
    version = sealing.push(bytes(old[:before]), filename="r", user_id=USER)
    changed = [(place, 1) for place in places if place < after]
    sealing.revise(version.file_id, bytes(new[:after]), user_id=USER, changed=changed)
    assert sealing.get(version.file_id, user_id=USER) == new[:after]
    sealing.revise(version.file_id, bytes(old[:before]), user_id=USER)
    assert sealing.get(version.file_id, user_id=USER) == old[:before]


def test_a_local_copy_is_synchronized_both_ways(sealing: Client, counted: tuple[Client, Proxy], tmp_path: Path) -> None:
    elsewhere, proxy = counted
    data = bytearray(content(40 * CHUNK + 5))
    path = tmp_path / "copy"
    path.write_bytes(data)
    base = sealing.push(path, filename=NAME, user_id=USER)
    outcome = elsewhere.sync(base.file_id, path, user_id=USER, base_version_id=base.version_id)
    assert outcome.outcome == "equal"
    data[3 * CHUNK] ^= 1
    theirs = sealing.revise(base.file_id, bytes(data) + b"more", user_id=USER)
    before = proxy.received
    pulled = elsewhere.sync(base.file_id, path, user_id=USER, base_version_id=base.version_id)
    assert (pulled.outcome, pulled.version) == ("pulled", theirs)
    assert path.read_bytes() == bytes(data) + b"more"
    assert proxy.received - before < 6 * CHUNK
    path.write_bytes(bytes(data[:-1]))
    pushed = elsewhere.sync(base.file_id, path, user_id=USER, base_version_id=theirs.version_id)
    assert pushed.outcome == "pushed"
    assert sealing.get(base.file_id, user_id=USER) == data[:-1]
    path.write_bytes(b"mine")
    with pytest.raises(ConflictError):
        elsewhere.sync(base.file_id, path, user_id=USER, base_version_id=theirs.version_id)
    assert path.read_bytes() == b"mine"
    path.write_bytes(bytes(data[:-1]))
    same = elsewhere.sync(base.file_id, path, user_id=USER, base_version_id=theirs.version_id)
    assert same.outcome == "equal"


def test_a_lie_about_the_newest_version_does_not_reach_a_copy(
    sealing: Client, hostile: Hostile, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    path.write_bytes(content(3 * CHUNK))
    base = sealing.push(path, filename=NAME, user_id=USER)
    theirs = sealing.push(content(3 * CHUNK, 1), filename=NAME, user_id=USER)
    for place in (CHUNK, -60):  # in a block, and in the list of blocks
        raw = bytearray(hostile.bytes_of(theirs))
        raw[place] ^= 1
        hostile.put(hostile.name_of(base), bytes(raw))
        with pytest.raises(SealBroken):
            sealing.sync(base.file_id, path, user_id=USER, base_version_id=base.version_id)
        assert path.read_bytes() == content(3 * CHUNK)


async def _asynchronous(address: str) -> None:
    async with AsyncClient(address, key=KEY) as client:
        version = await client.push(b"content", filename=NAME, user_id=USER, note="n")
        assert [one async for one in client.iter_files(user_id=USER)] == [version]
        await client.revise(version.file_id, b"changed", user_id=USER)
        assert await client.get(version.file_id, user_id=USER) == b"changed"
        outcomes = [one async for one in client.push_many([("二", b"2")], user_id=USER)]
        assert [one.result().filename for one in outcomes] == ["二"]


def test_the_asynchronous_client_does_the_same(address: str) -> None:
    asyncio.run(_asynchronous(address))


def test_who_has_the_key_can_share_the_file(tmp_path: Path) -> None:
    with closing(Served(tmp_path / "served")) as served:
        ann, bob, eve = (Client(served.address, token=served.tokens[user], key=KEY) for user in ("ann", "bob", "eve"))
        keyless = served.client("bob")
        with ann, bob, eve:
            version = ann.push(b"of ann", filename=NAME, user_id="ann")
            made = ann.share(NAME, with_user="bob", user_id="ann", write=True)
            assert made.name == NAME
            assert [one.name for one in bob.shares(user_id="bob").received] == [NAME]
            assert bob.find(NAME, user_id="ann") == version
            revised = bob.revise(version.file_id, b"of bob", user_id="ann", note="改")
            assert revised.note == "改 (by bob)"
            assert bob.push(b"of bob again", filename=NAME, user_id="ann").note == "(by bob)"
            assert ann.get(version.file_id, user_id="ann") == b"of bob again"
            assert ann.get(version.file_id, user_id="ann", version_id=revised.version_id) == b"of bob"
            with pytest.raises(SealBroken, match="give user_id"):
                bob.get(version.file_id, user_id="bob")
            with pytest.raises(KeyRequired):
                keyless.get(version.file_id, user_id="ann")
            with pytest.raises(PermissionDenied):
                eve.find(NAME, user_id="ann")
            assert [one.name for one in ann.unshare(NAME, user_id="ann")] == [NAME]
