"""Uploads, collects, clocks and restarts in any order: acknowledged files can be read, unneeded data is freed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from storage import ErasureProfile, FileStorage, Upload, Version
from tests.storage.helpers import CHUNK, content, copy_store, digest, file_shards
from tests.storage.test_clocks import YEAR_S, Clocks

CONTENT = [content(seed, CHUNK) for seed in range(4)]
IDS = [digest(chunk) for chunk in CONTENT]
USERS = ("ada", "bob")
DAY_S = 86_400.0


class Pushing:
    """An upload and the content it was given."""

    def __init__(self, upload: Upload, user: str) -> None:
        self.upload, self.user = upload, user
        self.given = b""


ANY = st.integers(0, 11)
CHUNKS = st.lists(st.integers(0, 3), min_size=1, max_size=3)
going_on = precondition(lambda self: bool(self.live))


class UploadsMachine(RuleBasedStateMachine):
    """The state machine. The store's time only passes in its rules."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.scratch = Path(tempfile.mkdtemp(prefix="taskworker-uploads-", dir=memory if memory.is_dir() else None))
        self.clocks = Clocks()
        self.opened = 0
        self.live: list[Pushing] = []
        self.model: dict[Version, bytes] = {}
        self.names = 0
        self.store = self._open()

    def teardown(self) -> None:
        try:
            for pushing in self.live:
                pushing.upload.abort(keep_chunks=False)
            self.clocks.elapsed_s += 2 * DAY_S
            self.store.collect()
            self._check_nothing_is_left_over()
        finally:
            self.store.close()
            shutil.rmtree(self.scratch)

    def _one(self, which: int) -> Pushing:
        return self.live[which % len(self.live)]

    def _root(self) -> Path:
        return self.scratch / str(self.opened)

    def _open(self) -> FileStorage:
        return FileStorage.open(self._root(), profile=ErasureProfile(1, 1), chunk_size=CHUNK, runtime=self.clocks)

    def _check_nothing_is_left_over(self) -> None:
        chunks = {chunk for version in self.model for chunk in self._ids(version)}
        tombstones = len(list(self.store._catalog.tombstones()))
        assert file_shards(self.store) == len(chunks) + len(self.model) + tombstones
        assert self.store._catalog.uploads() == {}

    def _ids(self, version: Version) -> list[bytes]:
        return self.store.chunk_ids(version.file_id, user_id=version.user_id)

    # -- pushes ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.live) < 4)
    @rule(user=st.sampled_from(USERS), chunks=CHUNKS)
    def begin(self, user: str, chunks: list[int]) -> None:
        self.names += 1
        self.live.append(Pushing(self.store.upload(filename=f"f{self.names}", user_id=user), user))
        self.go_on(-1, chunks)

    @going_on
    @rule(which=ANY, chunks=CHUNKS)
    def go_on(self, which: int, chunks: list[int]) -> None:
        """Continue an upload, reusing chunks where possible; its chunks so far are claimed and not pinned any more."""
        pushing = self._one(which)
        for chunk in chunks:
            if self.store.missing_chunks([IDS[chunk]], user_id=pushing.user) == [False]:
                pushing.upload.reuse([IDS[chunk]])
            else:
                pushing.upload.write(CONTENT[chunk])
            pushing.given += CONTENT[chunk]
        pushing.upload.claim()

    @going_on
    @rule(which=ANY, while_collecting=st.sampled_from((0, 1, 130)))
    def commit(self, which: int, while_collecting: int) -> None:
        """Commit an upload, at once or during a collect."""
        pushing = self._one(which)
        done: list[Version] = []

        def progress(steps: int, _total: int) -> None:
            if steps >= while_collecting and not done:
                done.append(pushing.upload.commit())

        if while_collecting:
            self.store.collect(grace_s=0, progress=progress)
        progress(while_collecting, 0)
        self.live.remove(pushing)
        self.model[done[0]] = pushing.given

    @going_on
    @rule(which=ANY, keep=st.booleans())
    def abort(self, which: int, keep: bool) -> None:
        pushing = self._one(which)
        pushing.upload.abort(keep_chunks=keep)
        self.live.remove(pushing)

    @precondition(lambda self: bool(self.model))
    @rule(which=ANY)
    def delete(self, which: int) -> None:
        version = list(self.model)[which % len(self.model)]
        self.store.delete(version.file_id, user_id=version.user_id)
        del self.model[version]

    # -- maintenance, time and ends -------------------------------------------------------------------

    @rule(grace_s=st.sampled_from((0.0, 3600.0, DAY_S)))
    def collect(self, grace_s: float) -> None:
        self.store.collect(grace_s=grace_s)

    @rule(jump_s=st.sampled_from((25 * 3600.0, -25 * 3600.0, 100.0 * YEAR_S, -100.0 * YEAR_S)))
    def set_clock(self, jump_s: float) -> None:
        self.clocks.wall_s += jump_s

    @rule(seconds=st.sampled_from((60.0, 3600.0, DAY_S)))
    def wait(self, seconds: float) -> None:
        self.clocks.elapsed_s += seconds

    @precondition(lambda self: self.opened < 3)
    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        """Restart the store: in an orderly close, uploads are interrupted; otherwise the process ends as if killed."""
        if orderly:
            for pushing in self.live:
                pushing.upload.abort(keep_chunks=True)
        else:
            copy_store(self._root(), self.scratch / str(self.opened + 1))
        self.store.close()
        self.opened += not orderly
        self.live = []
        self.store = self._open()

    @invariant()
    def acknowledged_content_can_be_read(self) -> None:
        for version, data in self.model.items():
            assert self.store.get(version.file_id, user_id=version.user_id) == data
            assert not any(self.store.missing_chunks(self._ids(version), user_id=version.user_id))


TestUploads = UploadsMachine.TestCase
TestUploads.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
