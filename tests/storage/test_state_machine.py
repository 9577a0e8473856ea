"""Any sequence of operations, losses, rot and crashes, compared with a dictionary.

As long as no more than n-k volumes are damaged between two repairs, every version of every file reads
exactly, and a scrub after a repair is clean.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage import ConflictError, FileNotFound, FileStorage, ManifestDiff, Version, VersionNotFound
from tests.storage.helpers import CHUNK, content, copy_store, flip_bytes, lose, lose_catalog, open_store, volume_dir

PROFILES = ((1, 1), (1, 3), (2, 3), (4, 6), (3, 5))
USERS = ("ada", "bob")
NAMES = ("a", "b/c", "数据 📦")
SIZES = (0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5, 3 * CHUNK + 1)
MEMORY = Path("/dev/shm")

contents = st.builds(content, st.integers(0, 3), st.sampled_from(SIZES))
segment_sizes = st.sampled_from((32 * 1024, 128 * 1024, None))


class Kept(NamedTuple):
    """An acknowledged version and its content."""

    version: Version
    data: bytes


@dataclass(slots=True)
class File:
    """A file in the model, with its versions from first to last."""

    user: str
    name: str
    versions: list[Kept] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    @property
    def head(self) -> Kept:
        return self.versions[-1]


def _patched(old: bytes, diff: ManifestDiff, chunk_of: Callable[[bytes], bytes]) -> bytes:
    """Apply a diff to the old content, as a client does."""
    result = bytearray(old[: diff.new_size].ljust(diff.new_size, b"\0"))
    for patch in diff.patches:
        data = chunk_of(patch.chunk_id) if patch.data is None else patch.data
        result[patch.index * diff.chunk_size : patch.index * diff.chunk_size + len(data)] = data
    return bytes(result)


class StoreMachine(RuleBasedStateMachine):
    """The state machine; ``files`` and ``deleted`` are the model."""

    def __init__(self) -> None:
        super().__init__()
        home = MEMORY if os.access(MEMORY, os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="taskworker-machine-", dir=home))
        self.root = self.directory / "store"
        self.files: dict[str, File] = {}
        self.deleted: list[str] = []
        self.damaged: set[int] = set()
        self.segment_bytes_max: int | None = None
        self.k = self.n = 1
        self.store: FileStorage

    @initialize(profile=st.sampled_from(PROFILES), segment_bytes_max=segment_sizes)
    def create(self, profile: tuple[int, int], segment_bytes_max: int | None) -> None:
        self.k, self.n = profile
        self.segment_bytes_max = segment_bytes_max
        self.store = self._opened()

    def _opened(self) -> FileStorage:
        return open_store(self.root, k=self.k, n=self.n, segment_bytes_max=self.segment_bytes_max)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def _pick(self, choice: int) -> tuple[str, File]:
        """Pick a file by age, as ids are random but runs must be repeatable."""
        return list(self.files.items())[choice % len(self.files)]

    def _damageable(self, choice: int) -> int:
        """Return a volume that may be damaged now without loss."""
        if len(self.damaged) == self.n - self.k:
            return sorted(self.damaged)[choice % len(self.damaged)]
        return choice % self.n

    # -- use -------------------------------------------------------------------------------------

    @rule(user=st.sampled_from(USERS), name=st.sampled_from(NAMES), data=contents)
    def push(self, user: str, name: str, data: bytes) -> None:
        version = self.store.push(data, filename=name, user_id=user)
        known = self._named(user, name)
        if known is None:
            assert version.parent_id is None
            self.files[version.file_id] = File(user, name, [Kept(version, data)])
        elif known.head.data == data:
            assert version == known.head.version
        else:
            self._follow(known, version, data)

    def _named(self, user: str, name: str) -> File | None:
        return next((file for file in self.files.values() if (file.user, file.name) == (user, name)), None)

    @staticmethod
    def _follow(file: File, version: Version, data: bytes) -> None:
        assert version.file_id == file.head.version.file_id
        assert version.parent_id == file.head.version.version_id
        assert version.sequence > file.head.version.sequence
        file.versions.append(Kept(version, data))

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 99), data=contents)
    def revise_to(self, choice: int, data: bytes) -> None:
        self._revise(*self._pick(choice), data)

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 99), place=st.integers(0, 3 * CHUNK), byte=st.binary(min_size=1, max_size=1))
    def revise_one_byte(self, choice: int, place: int, byte: bytes) -> None:
        file_id, file = self._pick(choice)
        data = bytearray(file.head.data)
        if data:
            data[place % len(data) : place % len(data) + 1] = byte
        self._revise(file_id, file, bytes(data))

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 99), size=st.sampled_from(SIZES))
    def revise_size(self, choice: int, size: int) -> None:
        file_id, file = self._pick(choice)
        self._revise(file_id, file, file.head.data[:size].ljust(size, b"+"))

    def _revise(self, file_id: str, file: File, data: bytes) -> None:
        diff = self.store.diff(file_id, data, user_id=file.user)
        version = self.store.revise(file_id, diff, user_id=file.user)
        if data == file.head.data:
            assert version == file.head.version
        else:
            self._follow(file, version, data)

    @precondition(lambda self: any(len(file.versions) > 1 for file in self.files.values()))
    @rule(choice=st.integers(0, 99), data=contents)
    def revise_from_an_old_base(self, choice: int, data: bytes) -> None:
        file_id, file = self._pick(choice)
        if len(file.versions) < 2:
            return
        base = file.versions[-2].version.version_id
        diff = self.store.diff(file_id, data, user_id=file.user, base_version_id=base)
        with pytest.raises(ConflictError) as caught:
            self.store.revise(file_id, diff, user_id=file.user)
        assert caught.value.head == file.head.version.version_id

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 99), which=st.integers(0, 99), data_bytes_max=st.sampled_from((0, CHUNK, 1 << 20)))
    def synchronize(self, choice: int, which: int, data_bytes_max: int) -> None:
        file_id, file = self._pick(choice)
        have = file.versions[which % len(file.versions)]
        diff = self.store.synchronize(
            file_id, have_version_id=have.version.version_id, user_id=file.user, data_bytes_max=data_bytes_max
        )
        head = file.head.data
        ids = self.store.chunk_ids(file_id, user_id=file.user)
        chunks = {chunk_id: head[i * CHUNK : (i + 1) * CHUNK] for i, chunk_id in enumerate(ids)}
        assert diff.target_version_id == file.head.version.version_id
        assert diff.wire_bytes <= data_bytes_max
        assert _patched(have.data, diff, chunks.__getitem__) == head

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 99))
    def delete(self, choice: int) -> None:
        file_id, file = self._pick(choice)
        self.store.delete(file_id, user_id=file.user)
        del self.files[file_id]
        self.deleted.append(file_id)

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 99), which=st.integers(0, 99))
    def delete_version(self, choice: int, which: int) -> None:
        file_id, file = self._pick(choice)
        gone = file.versions.pop(which % len(file.versions)).version
        head = self.store.delete_version(file_id, gone.version_id, user_id=file.user)
        if file.versions:
            assert head == file.head.version
            file.deleted.append(gone.version_id)
        else:
            assert head is None
            del self.files[file_id]
            self.deleted.append(file_id)

    @rule(data=contents, keep=st.booleans())
    def abandon_an_upload(self, data: bytes, keep: bool) -> None:
        upload = self.store.upload(filename="never", user_id=USERS[0])
        upload.write(data)
        upload.abort(keep_chunks=keep)

    # -- maintenance ----------------------------------------------------------------------------------

    @rule(reopened=st.booleans())
    def collect(self, reopened: bool) -> None:
        if reopened:
            self.reopen()
        self.store.collect(grace_s=0)

    @rule()
    def scrub(self) -> None:
        report = self.store.scrub()
        assert report.clean or self.damaged

    @rule()
    def repair(self) -> None:
        assert self.store.repair().complete

    @rule()
    def mend(self) -> None:
        self.store.scrub()
        assert self.store.repair().complete
        assert self.store.scrub().clean
        assert [volume.state for volume in self.store.stats().volumes] == ["ok"] * self.n
        self.damaged.clear()

    # -- damage ----------------------------------------------------------------------------------

    @precondition(lambda self: self.n > self.k)
    @rule(choice=st.integers(0, 99), seed=st.integers(0, 999), count=st.integers(1, 30))
    def flip_bytes(self, choice: int, seed: int, count: int) -> None:
        slot = self._damageable(choice)
        if self.store.stats().volumes[slot].bytes_live:
            self.store.wait_for_healing()
            self._flip(slot, random.Random(seed), count)

    def _flip(self, slot: int, rng: random.Random, count: int) -> None:
        try:
            flip_bytes(volume_dir(self.root, slot), rng, count)
        except IndexError:
            return  # the segment has no records
        self.damaged.add(slot)

    @precondition(lambda self: self.n > self.k)
    @rule(choice=st.integers(0, 99))
    def lose_volume_closed(self, choice: int) -> None:
        slot = self._damageable(choice)
        self.store.close()
        lose(self.root, slot)
        self.damaged.add(slot)
        self.store = self._opened()

    @precondition(lambda self: self.n > self.k)
    @rule(choice=st.integers(0, 99), read_first=st.booleans())
    def lose_volume_open(self, choice: int, read_first: bool) -> None:
        slot = self._damageable(choice)
        self.store.wait_for_healing()
        lose(self.root, slot)
        self.damaged.add(slot)
        if read_first:
            self.everything_reads_exactly()
        assert self.store.repair().complete

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self._opened()

    @rule()
    def crash(self) -> None:
        """Go on with the store as another process would find it if this one were killed now."""
        self.store.wait_for_healing()
        copy_store(self.root, self.directory / "copy")
        self.store.close()
        shutil.rmtree(self.root)
        (self.directory / "copy").rename(self.root)
        self.store = self._opened()

    @rule()
    def rebuild(self) -> None:
        self.store.close()
        lose_catalog(self.root)
        self.store = self._opened()
        if self.store.needs_rebuild:  # otherwise nothing was ever stored
            report = self.store.rebuild()
            assert report.files == len(self.files)
            assert report.versions == sum(len(file.versions) for file in self.files.values())

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def everything_reads_exactly(self) -> None:
        for file_id, file in self.files.items():
            for kept in file.versions:
                got = self.store.get(file_id, user_id=file.user, version_id=kept.version.version_id)
                assert got == kept.data
            assert self.store.get(file_id, user_id=file.user) == file.head.data

    @invariant()
    def chains_are_whole(self) -> None:
        for file_id, file in self.files.items():
            assert self.store.history(file_id, user_id=file.user) == [kept.version for kept in reversed(file.versions)]

    @invariant()
    def lists_match(self) -> None:
        for user in USERS:
            heads = [file.head.version for file in self.files.values() if file.user == user]
            assert self.store.list_files(user_id=user) == sorted(heads, key=lambda head: head.filename.encode())
        stats = self.store.stats()
        assert stats.files == len(self.files)
        assert stats.logical_bytes == sum(len(file.head.data) for file in self.files.values())
        assert stats.versions >= sum(len(file.versions) for file in self.files.values())

    @invariant()
    def deleted_versions_stay_deleted(self) -> None:
        for file_id, file in self.files.items():
            for version_id in file.deleted:
                with pytest.raises(VersionNotFound):
                    self.store.stat(file_id, user_id=file.user, version_id=version_id)

    @invariant()
    def deleted_files_stay_deleted(self) -> None:
        for file_id in self.deleted:
            with pytest.raises(FileNotFound):
                self.store.stat(file_id, user_id=USERS[0])


def _run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_any_sequence_of_uses_and_damage() -> None:
    _run(examples=25, steps=30)


@pytest.mark.campaign
@pytest.mark.timeout(4 * 3600)
def test_any_sequence_of_uses_and_damage_at_length() -> None:
    _run(examples=1500, steps=60)
