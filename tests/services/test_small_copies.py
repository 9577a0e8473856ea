"""A server that keeps small files as copies: clients notice nothing but the profile, and send no more than before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage
from taskworker import Client
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import profile_to_proto
from tests.services.conftest import CHUNK, Raw, Serve
from tests.services.proxy import Proxy
from tests.storage.helpers import digest

USER = "u1"
CODED, COPIED = ErasureProfile(2, 3), ErasureProfile(1, 2)
MIB = 1 << 20
MESSAGES = 8192
"""More bytes than the messages around the data of one call."""


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStorage]:
    """The server's store, which the fixtures of the other tests serve."""
    with FileStorage.open(tmp_path / "store", profile=CODED, chunk_size=CHUNK, small_copies_bytes=CHUNK) as opened:
        yield opened


def test_files_of_all_sizes(client: Client) -> None:
    sizes = [0, 1, 4096, CHUNK, CHUNK + 1, 3 * MIB]
    files = {f"f{size}": content(size, size) for size in sizes}
    versions = {name: client.push(data, filename=name, user_id=USER) for name, data in files.items()}
    assert [version.profile for version in versions.values()] == [CODED, COPIED, COPIED, COPIED, CODED, CODED]
    for name, data in files.items():
        assert client.get(versions[name].file_id, user_id=USER) == data
        assert client.push(data, filename=name, user_id=USER).unchanged
    outcomes = client.push_many([(f"many/{name}", data) for name, data in files.items()], user_id=USER)
    assert [outcome.result().profile for outcome in outcomes] == [version.profile for version in versions.values()]
    got = client.get_many([f"many/{name}" for name in files], user_id=USER, by_name=True)
    assert [outcome.data for outcome in got] == list(files.values())
    chosen = client.push(b"small", filename="chosen", user_id=USER, profile=CODED)
    assert chosen.profile == CODED


def test_equal_content_of_an_older_server_is_unchanged(tmp_path: Path, serve: Serve) -> None:
    files = [(f"f{size}", content(size, size)) for size in (1, 4096, CHUNK)]
    known = []
    for limit in (0, CHUNK, 4096):
        with (
            FileStorage.open(tmp_path / "store", profile=CODED, chunk_size=CHUNK, small_copies_bytes=limit) as store,
            Client(serve(store)) as client,
        ):
            versions = [outcome.result() for outcome in client.push_many(files, user_id=USER)]
            again = [client.push(data, filename=name, user_id=USER) for name, data in files]
            known.append([(version.version_id, version.profile) for version in versions])
            assert all(version.unchanged for version in again)
            assert [version.unchanged for version in versions] == [bool(len(known) > 1)] * 3
            store.collect(grace_s=0)
            assert [client.get(version.file_id, user_id=USER) for version in versions] == [data for _, data in files]
    assert known == [known[0]] * 3
    assert {profile for _, profile in known[0]} == {CODED}


def test_growing_sends_what_is_new(address: str, store: FileStorage) -> None:
    first, more = content(1, CHUNK), content(2, 1000)
    base = store.push(first, filename="f", user_id=USER)
    assert base.profile == COPIED
    with Proxy(address) as proxy, Client(proxy.address) as client:
        client.stats()
        before = proxy.sent
        version = client.revise(base.file_id, first + more, user_id=USER)
        assert proxy.sent - before <= len(more) + MESSAGES
    assert version.profile == CODED
    assert store.get(version.file_id, user_id=USER) == first + more
    assert store.repair().shards_rebuilt == 0


def test_chunks_of_small_files_are_not_sent_again(address: str, store: FileStorage) -> None:
    chunks = [content(seed, CHUNK) for seed in range(40)]
    for number, chunk in enumerate(chunks):
        store.push(chunk, filename=f"small/{number}", user_id=USER)
    base = store.push(b"base", filename="revised", user_id=USER)
    whole = b"".join(chunks)
    with Proxy(address) as proxy, Client(proxy.address) as client:
        client.stats()
        before = proxy.sent
        pushed = client.push(whole, filename="pushed", user_id=USER)
        revised = client.revise(base.file_id, whole, user_id=USER)
        assert proxy.sent - before <= 4 * MESSAGES
    for version in (pushed, revised):
        assert version.profile == CODED
        assert store.get(version.file_id, user_id=USER) == whole


def test_a_large_revision_of_a_small_file(client: Client, store: FileStorage) -> None:
    base = client.push(b"small", filename="f", user_id=USER)
    data = content(1, 20 * MIB + 5)
    version = client.revise(base.file_id, data, user_id=USER)
    assert version.profile == CODED
    assert client.get(version.file_id, user_id=USER) == data
    assert client.collect().objects_removed == 0  # nothing was stored with the profile of copies


def test_a_file_that_is_synced_grows_and_shrinks(client: Client, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    base = client.push(content(1, 100), filename="f", user_id=USER)
    for path in (mine, theirs):
        path.write_bytes(content(1, 100))
    sizes = [(4096, COPIED), (CHUNK, COPIED), (3 * CHUNK + 1, CODED), (CHUNK, CODED), (10, CODED)]
    for size, profile in sizes:
        mine.write_bytes(content(1, size))
        pushed = client.sync(base.file_id, mine, user_id=USER, base_version_id=base.version_id)
        pulled = client.sync(base.file_id, theirs, user_id=USER, base_version_id=base.version_id)
        assert pushed.version == pulled.version
        assert (theirs.read_bytes(), pulled.version.profile) == (content(1, size), profile)
        base = pushed.version
    assert client.push(content(1, 10), filename="f", user_id=USER).unchanged


def test_chunks_are_found_with_either_profile(raw: Raw, store: FileStorage) -> None:
    copied, coded = content(1, CHUNK), content(2, CHUNK)
    store.push(copied, filename="copied", user_id=USER)
    store.push(coded, filename="coded", user_id=USER, profile=CODED)
    ids = [digest(copied), digest(coded), digest(b"?")]
    for profile in (None, CODED, COPIED):
        request = store_pb2.MissingChunksRequest(
            user_id=USER, chunk_ids=ids, profile=None if profile is None else profile_to_proto(profile)
        )
        assert list(raw.store.MissingChunks(request).missing) == [False, False, True]
        parts = [
            store_pb2.PushPart(
                header=store_pb2.PushHeader(filename="f", user_id=USER, profile=request.profile)
                if profile
                else store_pb2.PushHeader(filename="f", user_id=USER)
            ),
            store_pb2.PushPart(reuse=store_pb2.ChunkList(chunk_ids=ids[:2])),
            store_pb2.PushPart(commit=store_pb2.PushCommit(size=2 * CHUNK)),
        ]
        version = raw.store.PushStream(iter(parts)).version
        assert store.get(version.file_id, user_id=USER) == copied + coded
        assert store.stat(version.file_id, user_id=USER).profile == (profile or CODED)
