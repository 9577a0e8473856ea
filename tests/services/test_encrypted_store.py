"""A server whose store is encrypted: clients notice nothing, and learn nothing about other users."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage
from taskworker import Client
from tests.services.conftest import CHUNK
from tests.storage.helpers import digest

ADA, EVE = "ada", "eve"


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStorage]:
    """The server's store, which the fixtures of the other tests serve."""
    profile = ErasureProfile(2, 3)
    with FileStorage.open(
        tmp_path / "store", profile=profile, chunk_size=CHUNK, small_copies_bytes=CHUNK // 2, key=bytes(32)
    ) as opened:
        yield opened


def test_files_of_all_sizes_and_their_revisions(client: Client) -> None:
    sizes = [0, 1, 4096, CHUNK // 2, CHUNK, CHUNK + 1, 5 * CHUNK]
    files = {f"f{size}": content(size, size) for size in sizes}
    versions = {name: client.push(data, filename=name, user_id=ADA) for name, data in files.items()}
    for name, data in files.items():
        assert client.get(versions[name].file_id, user_id=ADA) == data
        assert client.push(data, filename=name, user_id=ADA).unchanged
    got = client.get_many(list(files), user_id=ADA, by_name=True)
    assert [outcome.data for outcome in got] == list(files.values())
    for size in sizes[1:]:
        version, changed = versions[f"f{size}"], content(99, 3 * CHUNK) + files[f"f{size}"]
        client.revise(version.file_id, changed, user_id=ADA)
        assert client.get(version.file_id, user_id=ADA) == changed
        assert client.get(version.file_id, user_id=ADA, version_id=version.version_id) == files[f"f{size}"]


def test_chunks_are_known_by_their_content_to_their_user_only(client: Client, store: FileStorage) -> None:
    data = content(1, 4 * CHUNK)
    ids = [digest(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
    assert store.missing_chunks(ids, user_id=EVE) == [True] * 4
    first = client.push(data, filename="first", user_id=ADA)
    assert store.chunk_ids(first.file_id, user_id=ADA) == ids
    assert store.missing_chunks(ids, user_id=ADA) == [False] * 4
    assert store.missing_chunks(ids, user_id=EVE) == [True] * 4
    claims = store.upkeep.documents.claims()
    client.push(data, filename="second", user_id=ADA)
    assert store.upkeep.documents.claims() == claims
    client.push(data, filename="third", user_id=EVE)
    assert store.upkeep.documents.claims() == claims + 4
