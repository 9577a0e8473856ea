"""Files made of others, without moving bytes where chunks fit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import (
    ConflictError,
    ErasureProfile,
    FileNotFound,
    FileStorage,
    InvalidArgument,
    QuotaExceeded,
    Version,
    VersionNotFound,
)
from storage.limits import PARTS_MAX
from storage.write.quotas import Quota
from tests.storage.helpers import CHUNK, content, lose_catalog, open_store
from tests.storage.test_encryption import KEY, open_sealed

ADA = "ada"
SIZES = [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7]


def push(store: FileStorage, data: bytes, name: str, **options: Any) -> Version:
    return store.push(data, filename=name, user_id=ADA, **options)


def parts_of(*versions: Version) -> list[tuple[str, str | None]]:
    return [(one.file_id, one.version_id) for one in versions]


@pytest.fixture(scope="module", params=[None, KEY], ids=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_sealed(tmp_path_factory.mktemp("parts") / "store", request.param) as opened:
        yield opened


@given(
    sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=5), verified=st.booleans(), seed=st.integers(0, 1 << 30)
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_whole_is_what_its_parts_are(store: FileStorage, sizes: list[int], verified: bool, seed: int) -> None:
    pieces = [content(seed + at, size) for at, size in enumerate(sizes)]
    parts = [push(store, piece, f"part {at}") for at, piece in enumerate(pieces)]
    whole = b"".join(pieces)
    sha256 = hashlib.sha256(whole).hexdigest() if verified else None
    told: list[tuple[int, int]] = []
    version = store.concatenate(
        parts_of(*parts), filename="whole", user_id=ADA, sha256=sha256, attributes={"at": b"%d" % seed},
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert store.get(version.file_id, user_id=ADA, version_id=version.version_id) == whole
    assert version.attributes == {"at": b"%d" % seed}
    assert told[-1:] == ([(len(whole), len(whole))] if whole else [])
    for part, piece in zip(parts, pieces, strict=True):
        assert store.get(part.file_id, user_id=ADA, version_id=part.version_id) == piece


def test_chunks_that_fit_are_not_stored_again(root: Path) -> None:
    pieces = [content(1, 4 * CHUNK), content(2, 2 * CHUNK), content(3, CHUNK + 5)]
    with open_store(root) as store:
        parts = [push(store, piece, f"part {at}") for at, piece in enumerate(pieces)]
        before = sum(volume.bytes_used for volume in store.stats().volumes)
        version = store.concatenate(parts_of(*parts), filename="whole", user_id=ADA)
        added = sum(volume.bytes_used for volume in store.stats().volumes) - before
        assert added < CHUNK // 2
        for part in parts:
            store.delete(part.file_id, user_id=ADA)
        store.collect(grace_s=0)
        assert store.get(version.file_id, user_id=ADA) == b"".join(pieces)
    lose_catalog(root)
    with open_store(root) as store:
        store.rebuild()
        assert store.get(version.file_id, user_id=ADA) == b"".join(pieces)
        assert not store.scrub().damaged


def test_parts_with_other_chunks_or_another_code(root: Path) -> None:
    with open_store(root) as store:
        pieces = [content(4, 3 * CHUNK), content(5, 4 * CHUNK), content(6, 2 * CHUNK)]
        first = push(store, pieces[0], "a", chunk_size=2 * CHUNK)
        second = push(store, pieces[1], "b", profile=ErasureProfile(2, 5))
        third = push(store, pieces[2], "c")
        version = store.concatenate(parts_of(first, second, third), filename="whole", user_id=ADA)
        assert store.get(version.file_id, user_id=ADA) == b"".join(pieces)
        assert (version.chunk_size, version.profile) == (CHUNK, store.profile)


def test_a_part_may_be_the_former_content_of_the_file(root: Path) -> None:
    with open_store(root) as store:
        base = push(store, content(7, CHUNK), "log")
        more = push(store, content(8, 100), "more")
        version = store.concatenate(
            [(base.file_id, None), (more.file_id, None)], filename="log", user_id=ADA, if_head=base.version_id
        )
        assert version.parent_id == base.version_id
        assert store.get(base.file_id, user_id=ADA) == content(7, CHUNK) + content(8, 100)
        with pytest.raises(ConflictError):
            store.concatenate([(more.file_id, None)], filename="log", user_id=ADA, if_head=base.version_id)
        with pytest.raises(ConflictError):
            store.concatenate([(more.file_id, None)], filename="log", user_id=ADA, if_absent=True)


def test_what_cannot_be_joined(root: Path) -> None:
    with open_store(root) as store:
        mine = push(store, b"mine", "a")
        other = store.push(b"another's", filename="a", user_id="bob")
        refused: list[tuple[Any, type[Exception]]] = [
            ([], InvalidArgument),
            ([(mine.file_id, None)] * (PARTS_MAX + 1), InvalidArgument),
            ([mine.file_id], InvalidArgument),
            ("parts", InvalidArgument),
            ([(other.file_id, None)], FileNotFound),
            ([(mine.file_id, None), ("0" * 32, None)], FileNotFound),
            ([(mine.file_id, other.version_id)], VersionNotFound),
        ]
        for parts, error in refused:
            with pytest.raises(error):
                store.concatenate(parts, filename="whole", user_id=ADA)
        with pytest.raises(InvalidArgument, match="SHA-256"):
            store.concatenate(parts_of(mine), filename="whole", user_id=ADA, sha256="0" * 64)

        def stop(_done: int, _total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.concatenate(parts_of(mine), filename="whole", user_id=ADA, progress=stop)
        assert store.find("whole", user_id=ADA) is None


def test_a_file_of_others_counts_for_the_quota(root: Path) -> None:
    with open_store(root) as store:
        part = push(store, content(9, 4 * CHUNK), "part")
        store.upkeep.policy.quota_of = lambda _user: Quota(bytes=20 * CHUNK, files=None)
        whole = store.concatenate(parts_of(part, part), filename="whole", user_id=ADA)
        assert store.get(whole.file_id, user_id=ADA) == content(9, 4 * CHUNK) * 2
        with pytest.raises(QuotaExceeded):
            store.concatenate(parts_of(whole, whole), filename="larger", user_id=ADA)
        assert store.find("larger", user_id=ADA) is None
