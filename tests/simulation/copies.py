"""Catalogs and volumes that are restored from old copies, or lost. The pool must notice, and add what they lack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from random import Random

from storage import CatalogBehind, FileStorage, RebuildReport, Version
from storage.errors import DataLossError, FormatError, InsufficientWorkers, InvalidArgument, ShardsUnavailable
from storage.formats.authenticity import sharing_threshold
from storage.formats.tombstones import decode_tombstone
from storage.keys import ID_BYTES, STRIPE_KEY_BYTES, Kind, ShardKey, StripeKey
from tests.simulation.catalog import Database
from tests.simulation.invariants import can_do_without, require, shard_keys, spare
from tests.simulation.model import NAMES, File, Model, Name, NothingToDo, chunks_of
from tests.simulation.operations import Users
from tests.simulation.pool import LEASE_S, Cluster
from tests.simulation.workers import Worker

_REBUILDS_MAX = 5
_TOO_SOON = 0.5
_EVENTS = 20  # latest events to search: the return of a worker causes some, and others occur at the same time


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy of the catalog, and what had been acknowledged when it was made."""

    database: Database
    versions: frozenset[str]
    commits: int


@dataclass(slots=True)
class Copies:
    """Makes copies and restores them."""

    cluster: Cluster
    model: Model
    rng: Random
    users: Users
    _copy: _Copy | None = None

    @property
    def _store(self) -> FileStorage:
        return self.cluster.pool.store

    def copy_catalog(self) -> str:
        """Back up the catalog while the pool runs."""
        versions = frozenset(kept.version_id for _, _, kept in self.model.versions())
        self._copy = _Copy(deepcopy(self.cluster.database), versions, len(self.users.commits))
        return f"{len(versions)} versions"

    def restore_catalog(self) -> str:
        """Start the pool with an old copy of its catalog, and rebuild it after a while."""
        copy = self._copy
        if copy is None or not self._is_proven(copy):
            raise NothingToDo
        self._copy = None
        self._start_over(copy.database)
        self.cluster.network.injected["catalog restored"] += 1
        require(self._store.behind, "a catalog that was restored from a copy is not noticed")
        self._check_refusals()
        for name, file, kept in self.model.versions():
            if kept.version_id in copy.versions:
                self.users.read(name, file, kept)
        for work in (self.users.heal, self.users.mend, self.users.scrub, self.users.repair, self._collect_if_due):
            work()
            self.cluster.pass_time(1.0)
        return self._rebuild()

    def _is_proven(self, copy: _Copy) -> bool:
        """Whether an honest worker has a record which proves that the catalog was newer than the copy.

        A version proves the commits before its own; a tombstone also proves its own. The first version committed after
        the copy looks like one that a crash kept out of the catalog; see docs/format.md. If no worker in the layout
        could be told of a delete, only the catalog knows of it. Then an old copy cannot be recognised as old, and the
        file, of which nothing is lost, is back.
        """
        later = self.users.commits[copy.commits :]
        versions = {commit.identifier for commit in later[1:] if commit.kind is Kind.VERSION}
        deleted = {commit.identifier for commit in later if commit.kind is Kind.TOMBSTONE}
        durable = {key for worker in self.cluster.honest() for key in worker.volume.durable}
        told = any(key[ID_BYTES] == Kind.VERSION and key[:ID_BYTES] in versions for key in durable)
        return told or bool(deleted & self._buried())

    def lose_catalog(self) -> str:
        """Lose the pool's disk, and rebuild the catalog from what the workers hold."""
        profile = self.model.profile
        if not self.model.files or len(self.cluster.honest()) < sharing_threshold(profile.k, profile.n, remote=True):
            raise NothingToDo  # fewer cannot recover the secret
        self._copy = None
        self._start_over(Database(), self.cluster.pool.pool_id)
        self.cluster.network.injected["catalog lost"] += 1
        return self._rebuild()

    def age_volume(self) -> str:
        """Restore a worker's directory from an old copy while it is stopped; the pool must notice."""
        pool = self.cluster.pool
        slots = {record.worker: record.slot for record in pool.membership.records}
        honest = self.cluster.honest()
        copies = {one.name: one.volume.copied() for one in honest if one.reachable and one.name in slots}
        before = {kept.version_id for _, _, kept in self.model.versions()}
        for _ in range(self.rng.randint(1, 4)):
            self.rng.choice((self.users.push_small, self.users.push_small, self.users.mend))()
        later = [kept.stripes[-1] for _, _, kept in self.model.versions() if kept.version_id not in before]
        able = [one for one in honest if one.name in copies and self._can_do_without(one)]
        telling = [one for one in able if self._tells(one, slots[one.name], copies[one.name], later)]
        if not able:
            raise NothingToDo
        worker = self.rng.choice(telling or able)
        worker.stop()
        worker.volume.put_back(copies[worker.name])
        worker.start()
        worker.beat(pool)
        self.cluster.network.injected["volume stale"] += 1
        if worker in telling and worker.joined:
            latest = pool.view().events[-_EVENTS:]
            noticed = any(event.kind == "stale" and worker.name in event.text for event in latest)
            # If the worker missed a collect, the pool may have forgotten what it knew of the worker.
            forgotten = slots[worker.name] not in pool.fleet.witnesses
            require(noticed or forgotten, f"{worker.name} came with an older volume, and counts as complete")
        return f"{worker.name}{', which tells' if worker in telling else ''}"

    def _can_do_without(self, worker: Worker) -> bool:
        return can_do_without(self.cluster, [worker], self.users.stripes())

    def _tells(self, worker: Worker, slot: int, copy: Mapping[ShardKey, object], later: Iterable[StripeKey]) -> bool:
        """Whether the pool can notice that a copy is old.

        This is so if the copy lacks versions that were made durable on the worker later, all in their places.
        """
        durable = worker.volume.durable - copy.keys()
        lacking = [key for stripe in later for key in shard_keys(stripe) if key in durable]
        # The pool only remembers what commits have put on the worker, not what mending has.
        known = self.cluster.pool.fleet.witnesses.get(slot)
        return known in lacking and all(self._is_in_place(slot, key) for key in lacking)

    def _is_in_place(self, slot: int, key: ShardKey) -> bool:
        """Whether the layout places a shard on this worker, rather than the worker standing in for another one."""
        return self.cluster.pool.fleet.holders(StripeKey(key[:STRIPE_KEY_BYTES]))[key[STRIPE_KEY_BYTES]] == slot

    def _start_over(self, database: Database, rebuild: str = "") -> None:
        """End all faults, and start the pool with another catalog."""
        self.cluster.calm()
        self.users.heal()
        if self.rng.random() < 0.5:
            self.cluster.crash_pool()
        else:
            for uploading in self.users.uploads:
                uploading.upload.abort()
            self.cluster.pool.close()
        self.users.uploads.clear()
        self.cluster.database = database
        self.cluster.start_pool(rebuild)
        self.cluster.pass_time(4.0)

    def _check_refusals(self) -> None:
        """Check that a pool with an old catalog refuses to write and to free."""
        writes: tuple[Callable[[], object], ...] = (
            lambda: self._store.push(b"x", filename="x", user_id="ada"),
            lambda: self._store.collect(grace_s=0.0),
        )
        for write in writes:
            try:
                write()
            except CatalogBehind:
                continue
            require(False, "a pool whose catalog is behind writes or frees")

    def _collect_if_due(self) -> None:
        self.cluster.pool.collector.collect_if_due()
        self.users.check_kept()

    def _rebuild_without_some(self) -> None:
        """Rebuild and collect too early, while some workers are away. This must not lose anything they hold."""
        away = self.rng.sample(self.cluster.workers, self.rng.randint(1, len(self.cluster.workers) - 1))
        for worker in away:
            worker.stop()
        self.cluster.pass_time(LEASE_S + 1.0)
        self.cluster.network.injected["rebuilt too soon"] += 1
        for work in (self._store.rebuild, lambda: self._store.collect(grace_s=0.0), self.users.mend):
            with suppress(InsufficientWorkers, CatalogBehind, FormatError, InvalidArgument):
                work()
        for worker in away:
            worker.start()
        self.cluster.calm()
        self.users.heal()

    def _forget_again(self) -> None:
        """Forget workers that the older catalog still knows, but that have been removed since."""
        living = {worker.name for worker in self.cluster.workers}
        for record in list(self.cluster.pool.membership.records):
            if record.worker not in living:
                with suppress(InvalidArgument):
                    self.cluster.pool.forget(record.worker)

    def _rebuild(self) -> str:
        if self.rng.random() < _TOO_SOON:
            self._rebuild_without_some()
        for _ in range(_REBUILDS_MAX):
            if not (self._store.needs_rebuild or self._store.behind):
                report = RebuildReport(0, 0, [], [])  # the early rebuild did everything
            else:
                try:
                    report = self._store.rebuild()
                except InsufficientWorkers:
                    self.cluster.pass_time(2.0)
                    continue
            if report.undecided:
                self._forget_again()
                self.cluster.pass_time(2.0)
                continue
            for name in NAMES:
                self._compare(name, report)
            self.users.mend()
            self.users.collect()
            return f"{report.files} files, {report.versions} versions, {len(report.skipped)} left out"
        raise AssertionError("the catalog cannot be rebuilt")

    # -- what became of names --------------------------------------------------------------------

    def _compare(self, name: Name, report: RebuildReport) -> None:
        """Check that all acknowledged versions of a name exist, and beyond them only versions that users sent."""
        known, head = self.model.files.get(name), self._store.find(name.filename, user_id=name.user)
        if head is None:
            require(known is None, f"{name} is gone after a rebuild: {report.skipped}")
            return
        found = [*self._store.history(head.file_id, user_id=name.user)]
        if known is not None:
            require(head.file_id == known.file_id, f"{name} is another file after a rebuild")
            told = [kept.version_id for kept in reversed(known.versions)]
            ids = [version.version_id for version in found]
            require(ids[-len(told) :] == told, f"{name} has versions {ids} after a rebuild, not {told}")
            found = found[: -len(told)]
        else:
            require(bytes.fromhex(head.file_id) not in self._buried(), f"{name} was deleted, and is back")
        try:
            contents = [
                self._store.get(head.file_id, user_id=name.user, version_id=version.version_id) for version in found
            ]
            for version, content in zip(found, contents, strict=True):
                if any(
                    spare(self.cluster, stripe) < 0
                    for stripe in chunks_of(content, version.profile, self.model.key_of(name.user))
                ):
                    raise DataLossError(head.version_id, 0, 1)  # what a liar holds counts as lost
        except (DataLossError, ShardsUnavailable):
            # This version was never acknowledged, or was deleted: a worker claimed to have its missing shards.
            if known is not None:
                for kept in known.versions:
                    self.users.read(name, known, kept)
            self._store.delete(head.file_id, user_id=name.user)
            self.model.files.pop(name, None)
            return
        for version, content in zip(reversed(found), reversed(contents), strict=True):
            self._adopt(name, version, content)

    def _buried(self) -> set[bytes]:
        """Return the files of which an honest worker has the tombstone."""
        volumes = [worker.volume for worker in self.cluster.honest()]
        shards = [
            shard for volume in volumes for page in volume.records(frozenset({Kind.TOMBSTONE})) for shard in page
            if volume.is_good(shard.key)
        ]  # fmt: skip
        return {decode_tombstone(bytes(shard.payload)).file_id for shard in shards}

    def _adopt(self, name: Name, version: Version, content: bytes) -> None:
        """Treat a version that came back, unacknowledged or deleted, like all others from now on."""
        require((name, content) in self.users.sent, f"{name} has a version that nobody sent")
        if name not in self.model.files:
            self.model.files[name] = File(version.file_id)
        kept = self.model.acknowledged(name, version, content)
        durable = [worker.volume.durable for worker in self.cluster.honest()]
        keys = {key for stripe in kept.stripes for key in shard_keys(stripe)}
        self.cluster.wounds.update(keys.difference(*durable))  # its push was interrupted before they were written
