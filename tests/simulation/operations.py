"""Operations of users and operators, each checked against the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from storage import FileStorage, Version
from storage.errors import DataLossError, FileNotFound, InsufficientWorkers, StorageError, StoreFull
from storage.keys import STRIPE_KEY_BYTES, Kind, StripeKey
from storage.write.upload import Upload
from tests.simulation.invariants import check_durable, check_in_place, check_spread, enough, require
from tests.simulation.model import (
    NAMES,
    File,
    Kept,
    Model,
    Name,
    NothingToDo,
    edited,
    large_content,
    new_content,
    small_content,
)
from tests.simulation.pool import CHUNK_BYTES, Cluster

_UPLOADS_MAX = 2


@dataclass(slots=True)
class Flying:
    """An operation under way on a name.

    Attributes:
        name: the name.
        content: the new content; None: its file is being deleted.
        unchanged: stripes of the previous version, which are not written again.
    """

    name: Name
    content: bytes | None
    unchanged: frozenset[StripeKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Commit:
    """An acknowledged commit: a version, by its id, or a delete (a tombstone), by the file's id."""

    kind: Kind
    identifier: bytes


@dataclass(slots=True)
class Uploading:
    """An upload that takes several steps."""

    name: Name
    upload: Upload
    content: bytes
    sent: int = 0


@dataclass(slots=True)
class Users:
    """Users and operators of the pool.

    Attributes:
        commits: acknowledged versions and deletes.
        sent: all contents that were ever sent as a version.
    """

    cluster: Cluster
    model: Model
    rng: Random
    flying: Flying | None = None
    uploads: list[Uploading] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    sent: set[tuple[Name, bytes]] = field(default_factory=set)

    @property
    def store(self) -> FileStorage:
        """The engine of the running pool."""
        return self.cluster.pool.store

    # -- writing ---------------------------------------------------------------------------------

    def push_small(self) -> str:
        return self._push(small_content(self.rng))

    def push_large(self) -> str:
        return self._push(large_content(self.rng))

    def push_again(self) -> str:
        """Push what already is the head."""
        name, file = self._some_file()
        return self._push(file.head.content, name)

    def _push(self, content: bytes, name: Name | None = None) -> str:
        name = name or self.rng.choice(NAMES)
        return self._write(name, content, lambda: self.store.push(content, filename=name.filename, user_id=name.user))

    def revise(self) -> str:
        name, file = self._some_file()
        content = edited(file.head.content, self.rng)
        diff = self.store.diff(file.file_id, content, user_id=name.user)
        unchanged = frozenset(file.head.stripes)
        return self._write(name, content, lambda: self.store.revise(file.file_id, diff, user_id=name.user), unchanged)

    def begin_upload(self) -> str:
        if len(self.uploads) == _UPLOADS_MAX:
            raise NothingToDo
        name, content = self.rng.choice(NAMES), self.rng.choice((large_content, new_content))(self.rng)
        try:
            upload = self.store.upload(filename=name.filename, user_id=name.user)
        except (InsufficientWorkers, StoreFull) as error:
            return self._refused(name, error)
        self.uploads.append(Uploading(name, upload, content))
        return f"{name} {len(content)} bytes"

    def go_on_uploading(self) -> str:
        if not self.uploads:
            raise NothingToDo
        uploading = self.rng.choice(self.uploads)
        name, upload, content = uploading.name, uploading.upload, uploading.content
        if uploading.sent < len(content):
            boundary = (uploading.sent // CHUNK_BYTES + 1) * CHUNK_BYTES
            until = self.rng.choice((uploading.sent + 1000, boundary, uploading.sent + 100_000))
            try:
                upload.write(content[uploading.sent : until])
                if min(until, len(content)) % CHUNK_BYTES == 0:
                    upload.claim()  # as an upload of many chunks does, so that chunks are not pinned any more
            except StorageError as error:
                self._drop(uploading)
                return self._refused(name, error)
            uploading.sent = until
            return f"{name} up to {until}"
        self.uploads.remove(uploading)
        return self._write(name, content, upload.commit)

    def upload_beside_collects(self) -> str:
        """Upload a content that no other file has, with collects without a grace period in between."""
        self.cluster.calm()
        name, content = self.rng.choice(NAMES), new_content(self.rng)
        try:
            upload = self.store.upload(filename=name.filename, user_id=name.user)
        except (InsufficientWorkers, StoreFull) as error:
            return self._refused(name, error)
        try:
            for at in range(0, len(content), CHUNK_BYTES):
                upload.write(content[at : at + CHUNK_BYTES])
                upload.claim()
                self._collect(0.0)
        except StorageError as error:
            upload.abort()
            return self._refused(name, error)
        return self._write(name, content, upload.commit)

    def abort_upload(self) -> str:
        if not self.uploads:
            raise NothingToDo
        self._drop(self.uploads[0])
        return "gone"

    def _drop(self, uploading: Uploading) -> None:
        self.uploads.remove(uploading)
        uploading.upload.abort(keep_chunks=self.rng.random() < 0.5)

    def _write(
        self, name: Name, content: bytes, work: Callable[[], Version], unchanged: frozenset[StripeKey] = frozenset()
    ) -> str:
        self.flying = Flying(name, content, unchanged)
        self.sent.add((name, content))
        try:
            version = work()
        except StorageError as error:
            return self._refused(name, error)
        self._acknowledged(self.flying, version)
        return f"{name} {len(content)} bytes -> {version.version_id[:8]}"

    def _acknowledged(self, flying: Flying, version: Version) -> None:
        assert flying.content is not None
        self.flying = None
        known = self.model.files.get(flying.name)
        unchanged = flying.unchanged
        if known is not None and known.head.version_id == version.version_id:
            unchanged |= {known.head.stripes[-1]}  # a version that already is the head is not written again
        else:
            same = known is not None and known.head.content == flying.content and len(flying.content) <= CHUNK_BYTES
            require(not same, f"{flying.name} got a new version of the same content")
            self.commits.append(Commit(Kind.VERSION, bytes.fromhex(version.version_id)))
        kept = self.model.acknowledged(flying.name, version, flying.content)
        for worker in self.cluster.honest():  # shards that were dropped when unneeded, and are written again
            for key in worker.volume.durable & self.cluster.dropped.keys():
                if key[:STRIPE_KEY_BYTES] in kept.stripes:
                    del self.cluster.dropped[key]
        check_durable(self.cluster, kept.stripes)
        check_spread(self.cluster, (stripe for stripe in kept.stripes if stripe not in unchanged))

    def _refused(self, name: Name, error: StorageError) -> str:
        """Check that a refused operation had no effect."""
        require(isinstance(error, InsufficientWorkers | StoreFull), f"{name}: {error!r}")
        self.flying = None
        self.check_head(name)
        return f"{name}: {type(error).__name__}: {error}"

    def delete(self) -> str:
        name, file = self._some_file()
        self.flying = Flying(name, None)
        try:
            self.store.delete(file.file_id, user_id=name.user)
        except StorageError as error:
            return self._refused(name, error)
        self.flying = None
        self.commits.append(Commit(Kind.TOMBSTONE, bytes.fromhex(file.file_id)))
        del self.model.files[name]
        return f"{name}"

    # -- reading ---------------------------------------------------------------------------------

    def get(self) -> str:
        name, file = self._some_file()
        return self.read(name, file, self.rng.choice(file.versions))

    def get_part(self) -> str:
        name, file = self._some_file()
        kept = file.head
        start = self.rng.randrange(len(kept.content) + 1)
        length = self.rng.randrange(len(kept.content) + 1 - start)
        return self.read(name, file, kept, start, start + length)

    def read(self, name: Name, file: File, kept: Kept, start: int = 0, stop: int | None = None) -> str:
        """Read a version. It must be correct, and readable if enough shards are within reach."""
        chunks = kept.stripes[:-1]
        within_reach, failures = self._all_enough(chunks), self.cluster.process.failures
        try:
            with self.store.open_file(file.file_id, user_id=name.user, version_id=kept.version_id) as reader:
                reader.seek(start)
                got = reader.read(-1 if stop is None else stop - start)
        except (DataLossError, InsufficientWorkers) as error:
            # A worker that failed a call may have come back too late for this reader.
            within_reach = within_reach and failures == self.cluster.process.failures and self._all_enough(chunks)
            require(not within_reach, f"{name} {kept.version_id[:8]} cannot be read: {error}")
            return f"{name} {kept.version_id[:8]} is out of reach"
        require(got == kept.content[start:stop], f"{name} {kept.version_id[:8]} was read wrong")
        return f"{name} {kept.version_id[:8]} {start}-{stop}"

    def _all_enough(self, stripes: tuple[StripeKey, ...]) -> bool:
        volumes = self.cluster.usable_volumes()
        return all(enough(stripe, volumes) for stripe in stripes)

    def _some_file(self) -> tuple[Name, File]:
        if not self.model.files:
            raise NothingToDo
        return self.rng.choice(list(self.model.files.items()))

    # -- maintenance ----------------------------------------------------------------------------------

    def scrub(self) -> str:
        try:
            report = self.store.scrub()
        except StorageError as error:
            return self._upkeep_failed(error)
        return f"{report.rotten} rotten, {report.missing} missing"

    def mend(self) -> str:
        """Do what the repair scheduler's thread does when it is woken."""
        pool = self.cluster.pool
        try:
            done = pool.repair_scheduler.mend()
        except StorageError as error:
            return self._upkeep_failed(error)
        self.check_kept()
        return f"{done}, {len(pool.layouts)} layouts, {pool.repair_scheduler.views()[0].note}"

    def repair(self) -> str:
        try:
            report = self.store.repair()
        except StorageError as error:
            return self._upkeep_failed(error)
        self.check_kept()
        return f"made {report.shards_rebuilt}, lost {report.lost_count}"

    def collect(self) -> str:
        return self._collect(self.rng.choice((0.0, 86400.0)))

    def _collect(self, grace_s: float) -> str:
        try:
            report = self.store.collect(grace_s=grace_s)
        except StorageError as error:
            return self._upkeep_failed(error)
        self.check_kept()
        return f"removed {report.shards_removed} shards"

    def heal(self) -> str:
        done = self.cluster.runtime.background.run()
        self.check_kept()
        return f"{done} stripes"

    def check_kept(self) -> None:
        """Check that everything acknowledged is durable."""
        check_durable(self.cluster, self.stripes())

    def stripes(self) -> dict[StripeKey, None]:
        """Return the stripes that must exist. Those of a file being deleted may have been collected already."""
        flying = self.flying
        return self.model.stripes(flying.name if flying is not None and flying.content is None else None)

    def _upkeep_failed(self, error: StorageError) -> str:
        require(isinstance(error, InsufficientWorkers | StoreFull), f"maintenance failed: {error!r}")
        self.check_kept()
        return f"{type(error).__name__}: {error}"

    # -- after the pool's process was gone -------------------------------------------------------

    def find_out(self) -> str:
        """After a restart of the pool, find out whether the operation under way took effect."""
        self.uploads.clear()
        flying, self.flying = self.flying, None
        if flying is not None:
            self._find_out(flying)
        for name in NAMES:
            self.check_head(name)
        self.check_kept()
        return "" if flying is None else f"{flying.name} was under way"

    def _find_out(self, flying: Flying) -> None:
        name, known = flying.name, self.model.files.get(flying.name)
        head = self.store.find(name.filename, user_id=name.user)
        if flying.content is None:
            if head is None:
                del self.model.files[name]
        elif head is not None and (known is None or head.version_id != known.head.version_id):
            self._acknowledged(flying, head)

    def check_head(self, name: Name) -> None:
        """Check that a name's head is the version acknowledged last."""
        known = self.model.files.get(name)
        head = self.store.find(name.filename, user_id=name.user)
        told, is_there = known and known.head.version_id, head and head.version_id
        require(told == is_there, f"the head of {name} is {is_there}, not {told}")

    def check_everything(self) -> None:
        """Check that all shards are in their places and all versions can be read. All workers must be well."""
        check_in_place(self.cluster, self.model)
        for name, file, kept in self.model.versions():
            self.read(name, file, kept)
            require(self._all_enough(kept.stripes), "all is there")

    def check_gone(self, file_id: str, user: str) -> None:
        """Check that a deleted file is gone."""
        try:
            self.store.stat(file_id, user_id=user)
        except FileNotFound:
            return
        require(False, f"{file_id} is still there")
