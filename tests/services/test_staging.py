"""Chunks of pushes that are not committed yet: no collect takes them before their sender is done, or gave up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import ErasureProfile, FileStorage, ManifestDiff, Version
from taskworker.protos.store_pb2 import Patch, ReviseHeader
from taskworker.rpc.binding import InProcess
from taskworker.services.file_server import FileServer
from taskworker.services.revision import Revision, Revisions
from tests.storage.helpers import CHUNK, copy_store, digest

CHUNKS = [random.Random(seed).randbytes(CHUNK) for seed in range(130)]  # more than is held in memory


class Collecting(FileStorage):
    """Collects right before each revision, and tells what that took."""

    removed = 0

    def revise(self, file_id: str, diff: ManifestDiff, **keywords: Any) -> Version:
        self.removed += self.collect(grace_s=0).objects_removed
        return super().revise(file_id, diff, **keywords)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Collecting]:
    with Collecting.open(tmp_path / "store", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as opened:
        assert isinstance(opened, Collecting)
        yield opened


def test_a_collect_between_staging_and_applying(store: Collecting) -> None:
    base = store.push(b"base" * CHUNK, filename="f", user_id="u")
    header = ReviseHeader(
        file_id=base.file_id,
        user_id="u",
        base_version=base.version_id,
        new_size=len(CHUNKS) * CHUNK,
        chunk_size=CHUNK,
    )
    with Revision(store, header, Revisions(), InProcess()) as revision:
        for index, chunk in enumerate(CHUNKS):
            revision.add([Patch(index=index, chunk_id=digest(chunk), data=chunk)])
        assert store.collect(grace_s=0).objects_removed == 0
        version = revision.commit(len(CHUNKS))
    assert store.removed == 0
    assert store.get(version.file_id, user_id="u") == b"".join(CHUNKS)
    store.delete(version.file_id, user_id="u")
    store.collect(grace_s=0)
    assert store.missing_chunks([digest(chunk) for chunk in CHUNKS], user_id="u") == [True] * len(CHUNKS)


def test_pushes_that_a_restart_of_the_server_cut_off_wait_for_their_senders(store: Collecting, tmp_path: Path) -> None:
    """Without any grace, too: those who pushed are elsewhere, and are about to try again."""
    ids = [digest(chunk) for chunk in CHUNKS[:3]]
    upload = store.upload(filename="f", user_id="u")
    upload.write(b"".join(CHUNKS[:3]))
    upload.claim()
    with FileStorage.open(copy_store(tmp_path / "store", tmp_path / "restarted")) as restarted:
        FileServer(restarted)
        restarted.collect(grace_s=0)
        assert restarted.missing_chunks(ids, user_id="u") == [False] * 3
    with FileStorage.open(copy_store(tmp_path / "store", tmp_path / "embedded")) as embedded:
        embedded.collect(grace_s=0)
        assert embedded.missing_chunks(ids, user_id="u") == [True] * 3
