"""The parts of an open store, and the checks that they may be used."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from storage.activity import Activity
from storage.budget import Budget
from storage.catalog import Catalog, StoreSettings
from storage.diff.manifest_diff import ManifestDiff
from storage.erasure import ErasureProfile
from storage.errors import FormatError, StorageError, StoreClosed
from storage.figures import Figures
from storage.files import Files
from storage.fleet.fleet import Fleet
from storage.formats.authenticity import Authority
from storage.formats.sealed_nodes import VersionReader
from storage.formats.versions import Version
from storage.keys import Kind, StripeKey, kind_of, object_id_of
from storage.maintenance.context import MaintenanceContext
from storage.maintenance.heal import Healer
from storage.maintenance.live import node_loader
from storage.maintenance.walks import Walks
from storage.options import PushOptions
from storage.progress import Progress
from storage.read.reader import AHEAD_BYTES_ALL
from storage.read.small_chunks import small_chunks
from storage.runtime import Runtime
from storage.sealing.master_keys import MasterKeys
from storage.stripes.contents import Contents
from storage.stripes.stripes import StripeStore
from storage.system.forks import HomeProcess
from storage.write import revising
from storage.write.commit import GroupCommit
from storage.write.condition import require_now
from storage.write.context import PushContext
from storage.write.copies import SmallCopies
from storage.write.lineage import Lineage
from storage.write.pins import Pins, Readings
from storage.write.quotas import Quotas
from storage.write.registry import Uploads
from storage.write.target import PushTarget, push_target
from storage.write.unverified import ClaimedOrigins
from storage.write.user_keys import UserKeyStore

log = logging.getLogger(__name__)

_COMMITTERS = 4  # of pushes of many files; their batches are committed together


class StoreParts:
    """The parts of an open store.

    Args:
        path: the store directory.
        settings: the settings in the catalog.
        catalog: the open catalog.
        volumes: the shard stores.
        needs_rebuild: whether the catalog is empty and must be rebuilt from the volumes.
        runtime: threads, clocks and random bytes.
        opening_s: see :class:`~storage.write.registry.Uploads`.
        hot_bytes: memory for small objects that were read lately, in bytes.
        pushed_bytes: memory for small objects of files that were pushed just now, in bytes.
        small_copies_bytes: files up to this size are kept as copies; 0: none are.
        masters: the master keys of an encrypted store; None: none were given.
        seals: whether new files are encrypted.

    Attributes:
        home: the process that opened the store.
        needs_rebuild: the argument, until a rebuild has ended; False after that.
        closed: whether the store is closed, or being closed.
    """

    def __init__(
        self, path: Path, settings: StoreSettings, catalog: Catalog, volumes: Fleet[Any],
        *, needs_rebuild: bool, runtime: Runtime, opening_s: float, hot_bytes: int = 0, pushed_bytes: int = 0,
        small_copies_bytes: int = 0, masters: MasterKeys | None = None, seals: bool = False,
    ) -> None:  # fmt: skip
        self.home = HomeProcess(f"the store at {path}")
        self.path = path
        self.settings = settings
        self.profile = ErasureProfile(settings.k, settings.n)
        self.copies = SmallCopies(self.profile, small_copies_bytes)
        self.catalog = catalog
        self.volumes = volumes
        self.runtime = runtime
        self.needs_rebuild = needs_rebuild
        self.closed = False
        self.keys = UserKeyStore(catalog, volumes, self.profile, masters, runtime, seals=seals, is_lost=needs_rebuild)
        self.files = Files(catalog, self.keys)
        self.figures = Figures(catalog, volumes, settings)
        self.stripes = StripeStore(
            volumes, runtime, hot_bytes=hot_bytes, pushed_bytes=pushed_bytes, origins=ClaimedOrigins(catalog)
        )
        self.contents = Contents(self.stripes)
        self._recount()
        self.healer = Healer(self.stripes, runtime, self._is_needed)
        self.stripes.heal_requests.damaged = self.healer.request
        self.stripes.heal_requests.missing = self.healer.request_missing
        pins = Pins()
        volumes.is_pinned = pins.pinned
        self.uploads = Uploads(catalog, runtime.monotonic_s, opening_s=opening_s)
        self.readings = Readings()
        self.activity = Activity(runtime.monotonic_s)
        self.ahead = Budget(AHEAD_BYTES_ALL)
        self.load_node = node_loader(catalog, self.stripes, settings.n)
        self.authority = Authority()
        self.lineage = Lineage(catalog, volumes, self.profile, self.authority, runtime)
        threads = max(2, os.cpu_count() or 1)
        self.readers = runtime.executor(threads, "read-chunks")
        self.quotas = Quotas(catalog, self.uploads, self.keys, settings.n)
        self.pushing = PushContext(
            catalog=catalog,
            stripes=self.stripes,
            contents=self.contents,
            pins=pins,
            uploads=self.uploads,
            commits=GroupCommit(
                catalog, self.stripes, pins, settings.n, runtime, self.lineage, self.authority, self.keys, self.quotas
            ),
            workers=runtime.executor(threads, "store-chunks"),
            flusher=runtime.executor(1, "flush"),
            committer=runtime.executor(_COMMITTERS, "commit-many"),
            metadata_copies=settings.n,
            runtime=runtime,
            activity=self.activity,
            quotas=self.quotas,
        )
        self.maintenance = MaintenanceContext(
            catalog=catalog,
            stripes=self.stripes,
            pins=pins,
            uploads=self.uploads,
            readings=self.readings,
            versions=VersionReader(self.keys, self.load_node),
            metadata_copies=settings.n,
            scratch=path / "scratch",
            runtime=runtime,
            walks=Walks(lambda: catalog.counters().sequence),
        )

    def check_usable(self) -> None:
        """Check that the store is open, and that this process opened it.

        Raises:
            UsedAfterFork: another process opened it.
            StoreClosed: it is closed.
        """
        self.home.check()
        if self.closed:
            raise StoreClosed(f"the store at {self.path} is closed")

    def check_open(self) -> None:
        """Check what :meth:`check_usable` does, and that there is a catalog.

        Raises:
            UsedAfterFork, StoreClosed: see :meth:`check_usable`.
            FormatError: the catalog is gone.
        """
        self.check_usable()
        if self.needs_rebuild:
            raise FormatError(f"the catalog of {self.path} is missing; run rebuild to restore it from the volumes")

    def check_writable(self) -> None:
        """Check what :meth:`check_open` does, and that the catalog has everything that the volumes have.

        Raises:
            UsedAfterFork, StoreClosed, FormatError: see :meth:`check_open`.
            CatalogBehind: the catalog is older than the volumes.
        """
        self.check_open()
        self.lineage.check_current()
        self.volumes.check_present()

    def push_target(self, options: PushOptions) -> PushTarget:
        """Check that a push may begin, and return its target.

        Raises:
            UsedAfterFork, StoreClosed, FormatError, CatalogBehind: see :meth:`check_writable`.
            InsufficientWorkers, StoreFull: too few volumes take writes.
            ConflictError, FileNotFound: the options have a condition that is not so.
        """
        self.check_writable()
        chunk_size = self.settings.chunk_size if options.chunk_size is None else options.chunk_size
        profile = options.profile or self.profile
        if profile != self.profile:
            self.quotas.policy.check_profile(profile)
        self.volumes.require_writable(profile)
        target = self.target(options, profile, chunk_size, seals=self.keys.seals)
        if target.condition is not None:
            require_now(target.condition, target.filename, target.name, self.catalog)
        return target

    def target(self, options: PushOptions, profile: ErasureProfile, chunk_size: int, *, seals: bool) -> PushTarget:
        """Return the target of a push or revision that begins now; ``seals``: whether it is sealed.

        Raises:
            InsufficientWorkers: the owner has no key yet, and a new one could not be stored safely.
        """
        key = self.keys.current(options.user_id) if seals else None
        return push_target(options, profile, self.copies, chunk_size, self.volumes.epoch(), self.runtime, key)

    def revise(
        self,
        file_id: str,
        diff: ManifestDiff,
        options: PushOptions,
        *,
        may_exceed_quota: bool = False,
        progress: Progress | None = None,
    ) -> Version:
        """Apply a diff to the head of a file; see :meth:`storage.FileStorage.revise`.

        Args:
            file_id: the file; its name stays, whatever the options say.
            diff: what changes.
            options: of the new version.
            may_exceed_quota: see :class:`~storage.write.target.PushTarget`.
            progress: see :meth:`storage.FileStorage.revise`.
        """
        self.check_writable()
        filename, base = self.files.base(file_id, options.user_id, diff.base_version_id)
        profile = self.copies.profile_after(base.root.profile, base.root.size, diff.new_size)
        self.volumes.require_writable(profile)
        seals = self.keys.seals or base.root.is_sealed
        target = self.target(replace(options, filename=filename), profile, base.root.chunk_size, seals=seals)
        target = replace(target, may_exceed_quota=may_exceed_quota)
        return revising.revise(self.pushing, target, base, diff, self.load_node, progress)

    def forget(self, file_ids: Collection[bytes]) -> None:
        """Drop these files, which were deleted, or versions of which were, from what is kept of files used lately."""
        self.stripes.pushed.forget_files(file_ids)
        for version in self.files.forget(file_ids):
            self.stripes.hot.forget(small_chunks(version.root))

    def stop(self) -> None:
        """Wait for running work to end, and stop the threads."""
        self.keys.close()
        self.stripes.close()
        self.healer.close()
        self.pushing.workers.shutdown()
        self.pushing.flusher.shutdown()
        self.pushing.committer.shutdown()
        self.readers.shutdown()

    def _recount(self) -> None:
        try:
            self.catalog.recount()
        except StorageError as error:
            log.warning("totals and profiles of the catalog are counted on each request: %s", error)

    def _is_needed(self, stripe: StripeKey) -> bool:
        """Whether a chunk or node may still be part of a file. A collect drops its entry before its shards."""
        if kind_of(stripe) == Kind.CHUNK:
            return self.catalog.is_held(stripe)
        return kind_of(stripe) != Kind.NODE or self.catalog.node(object_id_of(stripe)) is not None
