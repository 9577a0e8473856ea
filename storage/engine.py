"""FileStorage: the embeddable store. Files in, verified bytes out, whatever k volumes are left."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from storage.activity import Activity
from storage.arguments import checked
from storage.budget import Budget
from storage.catalog import (
    Catalog,
    Counters,
    FileEntry,
    ProfileCount,
    StoreSettings,
    user_key,
)
from storage.catalog.port import DamagedSettings
from storage.diff.manifest_diff import ManifestDiff
from storage.erasure import ErasureProfile, accelerator_name
from storage.errors import (
    ConflictError,
    FormatError,
    InvalidArgument,
    StorageError,
    StoreClosed,
    StoreFull,
    StoreUnavailable,
)
from storage.figures import Figures
from storage.files import Files, name_of, parsed_id, permitted
from storage.fleet.fleet import Fleet
from storage.fleet.volumes import VolumeOptions
from storage.formats.authenticity import Authority
from storage.formats.manifest import Manifest
from storage.formats.versions import Version
from storage.formats.voices import agreement_quorum, voices
from storage.keys import Kind, StripeKey, kind_of, object_id_of
from storage.limits import (
    MIB,
)
from storage.maintenance.agreement import Agreement
from storage.maintenance.belief import Belief
from storage.maintenance.collect import collect, missed_stores
from storage.maintenance.context import MaintenanceContext
from storage.maintenance.heal import Healer, Pace
from storage.maintenance.live import node_loader
from storage.maintenance.readback import ReadBack
from storage.maintenance.rebuild import rebuild
from storage.maintenance.repair import Watch, repair
from storage.maintenance.scrub import scrub
from storage.opening import opened_parts
from storage.options import PushOptions
from storage.read.reader import AHEAD_BYTES_ALL, FileReader, VersionStream
from storage.reports import (
    CollectReport,
    HealingState,
    Progress,
    RebuildReport,
    RepairReport,
    ScrubReport,
    StoreStats,
)
from storage.runtime import Runtime
from storage.settings import with_incomplete
from storage.shards import ShardStore
from storage.stripes.stripes import StripeStore, chunk_stripe
from storage.system.forks import HomeProcess
from storage.system.locking import StoreLock
from storage.write import revising
from storage.write.commit import GroupCommit
from storage.write.context import PushContext
from storage.write.known import usable_stripes
from storage.write.lineage import Lineage
from storage.write.pins import Pins, Readings
from storage.write.registry import Uploads
from storage.write.small import push_small
from storage.write.sources import Source, feed, source_size
from storage.write.target import PushTarget, push_target
from storage.write.upload import INLINE_BYTES_MAX, Upload

log = logging.getLogger(__name__)

_SYNC_DATA_BYTES_MAX = 64 * MIB
_ALL = 1 << 62
COLLECT_GRACE_S = 86400.0
_OPENING_S = 3600.0  # of the store's time: a command opens it for moments only, and what it left must lapse some time


class FileStorage:
    """A store of files in one directory, erasure-coded over its volumes.

    Thread-safe: all methods may be called from any number of threads at once. One process at a time
    owns a store directory; in a process forked from it, all methods but ``close``, which does nothing,
    raise UsedAfterFork. When a push or revise returns, its version survives power loss; when it
    raises, nothing of it is visible. Readers see a version as it was when they opened it.

    Use :meth:`open`; close it, or use it as a context manager.

    Attributes:
        path: the store directory.
        profile: erasure profile of new files.
        chunk_size: bytes of the chunks of new files.
        needs_rebuild: the catalog is gone; only :meth:`rebuild`, :meth:`stats` and :meth:`close` work.
        behind: the catalog is older than the volumes, as if restored from a backup: files can be read, but nothing
            is written or freed until a :meth:`rebuild` has taken in what only the volumes know.
        on_collected: called with what each :meth:`collect` came to.
        on_rebuilt: called when a :meth:`rebuild` has ended well.
        on_closing: called by :meth:`close` when nothing is under way any more and what waits for repair has been kept,
            before the catalog is closed.
        read_patience_s: how long, after a store went away without which a chunk cannot be read, reads wait for it.
    """

    def __init__(
        self, path: Path, settings: StoreSettings, catalog: Catalog, volumes: Fleet[Any], lock: StoreLock,
        *, needs_rebuild: bool, runtime: Runtime | None = None, opening_s: float = 0.0,
    ) -> None:  # fmt: skip
        self._home = HomeProcess(f"the store at {path}")
        self.path = path
        self.profile = ErasureProfile(settings.k, settings.n)
        self.chunk_size = settings.chunk_size
        self.needs_rebuild = needs_rebuild
        self._settings = settings
        self._catalog = catalog
        self._files = Files(catalog)
        self._figures = Figures(catalog, volumes, settings)
        self._volumes = volumes
        self._lock = lock
        self._runtime = runtime = runtime or Runtime()
        self._stripes = StripeStore(volumes, runtime)
        self._recount()
        self.read_patience_s = 0.0
        self._healer = Healer(self._stripes, runtime, self._is_needed)
        self._stripes.heal_requests.damaged = self._healer.request
        self._stripes.heal_requests.missing = self._healer.request_missing
        self._pins = Pins()
        volumes.is_pinned = self._pins.pinned
        self._uploads = Uploads(catalog, runtime.monotonic_s, opening_s=opening_s)
        self._readings = Readings()
        self._activity = Activity(runtime.monotonic_s)
        self._ahead = Budget(AHEAD_BYTES_ALL)
        self._load_node = node_loader(catalog, self._stripes, settings.n)
        self._authority = Authority()
        self._lineage = Lineage(catalog, volumes, self.profile, self._authority, runtime)
        threads = max(2, os.cpu_count() or 1)
        self._readers = runtime.executor(threads, "read-chunks")
        self._context = PushContext(
            catalog=catalog,
            stripes=self._stripes,
            pins=self._pins,
            uploads=self._uploads,
            commits=GroupCommit(
                catalog, self._stripes, self._pins, settings.n, runtime, self._lineage, self._authority
            ),
            workers=runtime.executor(threads, "store-chunks"),
            flusher=runtime.executor(1, "flush"),
            metadata_copies=settings.n,
            runtime=runtime,
            activity=self._activity,
        )
        self._maintenance = MaintenanceContext(
            catalog=catalog,
            stripes=self._stripes,
            pins=self._pins,
            uploads=self._uploads,
            readings=self._readings,
            load_node=self._load_node,
            metadata_copies=settings.n,
            scratch=path / "scratch",
            runtime=runtime,
        )
        self.on_rebuilt: Callable[[], None] = lambda: None
        self.on_closing: Callable[[], None] = lambda: None
        self.on_collected: Callable[[CollectReport], None] = lambda report: None
        self._closing = threading.Lock()
        self._closed = False

    # -- opening and closing ---------------------------------------------------------------------

    @classmethod
    @checked
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        profile: ErasureProfile | None = None,
        volumes: Sequence[str | os.PathLike[str]] | None = None,
        chunk_size: int | None = None,
        create: bool = True,
        volume_options: VolumeOptions | None = None,
        runtime: Runtime | None = None,
    ) -> FileStorage:
        """Open the store at ``path``, creating it if there is none.

        Args:
            path: the store directory.
            profile: default (k, n) of a new store: 4-of-6. An existing store keeps its own.
            volumes: directories of the volumes, in slot order, ideally one per disk; default
                ``path/volumes/0`` … ``n-1``. For an existing store: where they are now.
            chunk_size: default chunk size of a new store, 64 KiB…16 MiB; 1 MiB by default.
            create: make a new store if there is none.
            volume_options: how volumes do their disk access; for tests and tuning.
            runtime: threads, clocks and random bytes; the machine's own by default.

        Raises:
            StoreLocked: another process has it open.
            FormatError: not a store, of a newer format, or a volume belongs elsewhere.
            StoreUnavailable: its catalog is gone, and so are volumes to make it again from; or it cannot be read now.
            InvalidArgument: no store there and ``create`` is False, or bad arguments.
        """
        with opened_parts(
            Path(path),
            profile=profile,
            volumes=None if volumes is None else [Path(volume) for volume in volumes],
            chunk_size=chunk_size,
            create=create,
            options=volume_options or VolumeOptions(),
        ) as parts:
            store = cls(
                parts.root,
                parts.settings,
                parts.catalog,
                parts.volumes,
                parts.lock,
                needs_rebuild=parts.needs_rebuild,
                runtime=runtime,
                opening_s=_OPENING_S,
            )
            parts.volumes.on_attached = store._meet_again
            if not parts.needs_rebuild:
                store._lineage.meet_all()
                store._write_down()
        return store

    def _meet_again(self, slot: int) -> None:
        """A volume came back while the store was open: it may be a copy that was put there meanwhile."""
        if not self.needs_rebuild:
            self._lineage.meet_again(slot)

    def _write_down(self) -> None:
        """Write down what was found when the volumes were opened, if that can be done now."""
        try:
            self.save_incomplete()
            self._catch_up()
        except (StoreUnavailable, StoreFull) as error:
            log.warning("the store at %s can only be read for now: %s", self.path, error)

    @classmethod
    def over(
        cls, path: Path, settings: StoreSettings, catalog: Catalog, volumes: Fleet[Any], lock: StoreLock,
        runtime: Runtime | None = None, *, needs_rebuild: bool = False,
    ) -> FileStorage:  # fmt: skip
        """A store whose shards are kept by a fleet of the caller's making, such as a pool's workers.

        The store closes what it is given.

        Args:
            path: a directory of its own, for scratch files.
            settings: as kept in ``catalog``.
            catalog: the open catalog.
            volumes: the shard stores.
            lock: held on ``path``.
            runtime: threads, clocks and random bytes; the machine's own by default.
            needs_rebuild: the catalog is empty, and is to be made again from the volumes.
        """
        return cls(path, settings, catalog, volumes, lock, needs_rebuild=needs_rebuild, runtime=runtime)

    def close(self) -> None:
        """Finish what is under way, bring the indexes to disk and let go of the directory.

        In a forked child this does nothing: all of it is the parent's.
        """
        if not self._home.is_here:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._stripes.close()
        self._healer.close()
        self._context.workers.shutdown()
        self._context.flusher.shutdown()
        self._readers.shutdown()
        if not self.needs_rebuild:
            try:
                self.save_incomplete()
                self.keep_time()
            except (StoreUnavailable, StoreFull) as error:
                log.warning("which volumes of %s wait for repair could not be kept: %s", self.path, error)
            self._lineage.end(self._context.commits.sequence)
        self.on_closing()
        self._volumes.close()
        self._catalog.close()
        self._lock.release()

    def __enter__(self) -> FileStorage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def volume_paths(self) -> list[Path]:
        """Directories of the volumes, by slot; none where the shards are on workers."""
        return self._volumes.directories()

    # -- writing ---------------------------------------------------------------------------------

    @checked
    def push(
        self,
        source: Source,
        *,
        filename: str,
        user_id: str,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        time_ms: int | None = None,
        note: str = "",
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> Version:
        """Store content under (user, filename); an existing name gets a new version, equal content none.

        Equal content with another note gets one as well; what is returned says if it is ``unchanged``.

        Args:
            source: bytes, a path, a binary file object (read from its position), or an iterable of bytes.
            filename: 1…1024 bytes of UTF-8.
            user_id: the owner.
            profile: erasure profile, default the store's.
            chunk_size: default the store's.
            time_ms: author's clock, default now.
            note: free text kept in the version; given with equal content, it makes a version of its own.
            sha256: hex SHA-256 of the content, checked before anything becomes visible.
            progress: called with (bytes stored, bytes in all or 0).

        Raises:
            InvalidArgument: an argument is malformed or out of bounds.
            StoreFull: a disk or quota is full; nothing was stored.
            InsufficientWorkers: too few volumes or workers are there to store it safely.
            OSError: ``source`` cannot be read.
            CatalogBehind: see :attr:`behind`.
        """
        target = self._push_target(PushOptions(filename, user_id, profile, chunk_size, time_ms, note, sha256))
        if type(source) is bytes and 0 < len(source) <= INLINE_BYTES_MAX and sha256 is None and progress is None:
            return push_small(self._context, target, source)
        upload = Upload(self._context, target, progress, source_size(source))
        try:
            feed(source, upload, in_order=sha256 is not None)
            return upload.commit()
        except BaseException:
            upload.abort(keep_chunks=False)
            raise

    @checked
    def upload(
        self,
        *,
        filename: str,
        user_id: str,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        time_ms: int | None = None,
        note: str = "",
        sha256: str | None = None,
        size_hint: int | None = None,
        progress: Progress | None = None,
    ) -> Upload:
        """Begin a push whose bytes come piece by piece; arguments as for :meth:`push`."""
        target = self._push_target(PushOptions(filename, user_id, profile, chunk_size, time_ms, note, sha256))
        return Upload(self._context, target, progress, size_hint or 0)

    @checked
    def missing_chunks(
        self, chunk_ids: Sequence[bytes], *, user_id: str, profile: ErasureProfile | None = None
    ) -> list[bool]:
        """Which chunks must be sent in a push: True for those this user has no whole copy of here.

        Chunks that only other users have count as missing.
        """
        self._check_open()
        chosen = profile or self.profile
        stripes = [chunk_stripe(chunk_id, chosen) for chunk_id in chunk_ids]
        usable = usable_stripes(self._context, user_key(user_id.encode()), stripes)
        return [stripe not in usable for stripe in stripes]

    @checked
    def revise(
        self,
        file_id: str,
        diff: ManifestDiff,
        *,
        user_id: str,
        sha256: str | None = None,
        time_ms: int | None = None,
        note: str = "",
    ) -> Version:
        """Apply a diff to the head of a file, atomically.

        Args:
            file_id: the file.
            diff: from :meth:`diff`, or from outside; checked wholly before anything is kept.
            user_id: the owner.
            sha256: hex SHA-256 of the whole resulting content, checked (this reads the whole file).
            time_ms: author's clock, default now.
            note: free text kept in the version.

        Raises:
            ConflictError: the diff's base is not the head.
            InvalidArgument: the diff is malformed; nothing was kept.
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            StoreFull: a disk or quota is full; nothing was stored.
            InsufficientWorkers: too few volumes or workers are there to store it safely.
            CatalogBehind: see :attr:`behind`.
        """
        self._check_open()
        self._lineage.check_current()
        self._volumes.check_present()
        identifier, entry = self._files.entry(file_id, user_id)
        base = self._files.stored(identifier, entry, diff.base_version_id)
        if base.version_id != entry.head:
            raise ConflictError(
                f"head is {entry.head.hex()}, the change was made against {diff.base_version_id}; "
                "synchronize, make the change again and retry",
                head=entry.head.hex(),
                base=diff.base_version_id,
            )
        self._volumes.require_writable(base.root.profile)
        options = PushOptions(entry.filename, entry.user_id, time_ms=time_ms, note=note, sha256=sha256)
        target = self._target(options, base.root.profile, base.root.chunk_size)
        return revising.revise(self._context, target, base, diff, self._load_node)

    @checked
    def delete(self, file_id: str, *, user_id: str) -> None:
        """End a file: its name is free at once, its space after the next :meth:`collect`.

        Raises:
            FileNotFound: no such file, or another user's.
            CatalogBehind: see :attr:`behind`.
        """
        self.delete_files([file_id], user_id=user_id)

    @checked
    def delete_files(self, file_ids: Sequence[str], *, user_id: str) -> None:
        """End many files at once, as by :meth:`delete`: all of them, or none if one is not there.

        A few hundred together take hardly longer than one.

        Raises:
            FileNotFound: no such file, or another user's; names it.
            CatalogBehind: see :attr:`behind`.
        """
        self._check_open()
        self._lineage.check_current()
        self._volumes.check_present()
        identifiers = dict.fromkeys(self._files.entry(file_id, user_id)[0] for file_id in file_ids)

        def check(identifier: bytes, entry: FileEntry | None) -> FileEntry:
            return permitted(entry, identifier.hex(), user_id)

        if identifiers:
            self._context.commits.delete(list(identifiers), check, partial(name_of, user_key(user_id.encode())))

    # -- reading ---------------------------------------------------------------------------------

    @checked
    def get(self, file_id: str, *, user_id: str, version_id: str | None = None) -> bytes:
        """The whole content in memory; for large files use :meth:`open_file`.

        Raises:
            FileNotFound: no such file, or another user's.
            VersionNotFound: the file has no such version.
            DataLossError: too few intact shards are left.
        """
        with self._stream(file_id, user_id, version_id) as stream:
            return stream.readall()

    @checked
    def open_file(self, file_id: str, *, user_id: str, version_id: str | None = None) -> FileReader:
        """A seekable, buffered binary stream over a version (default the head), verified as it is read."""
        return FileReader(self._stream(file_id, user_id, version_id))

    def _stream(self, file_id: str, user_id: str, version_id: str | None) -> VersionStream:
        self._check_open()
        self._volumes.check_present()
        # Said to be read before it is looked up: a collect that misses this has seen the file alive.
        done = self._readings.begin(parsed_id(file_id) or b"")
        try:
            stored = self._files.version(file_id, user_id, version_id)
            manifest = Manifest(stored.root, self._load_node)
            return VersionStream(
                self._stripes,
                self._readers,
                stored.public(),
                manifest,
                done,
                self._activity,
                self._ahead,
                self.read_patience_s,
            )
        except BaseException:
            done()
            raise

    @checked
    def find(self, filename: str, *, user_id: str) -> Version | None:
        """The head of the file with this name, None if there is none."""
        self._check_open()
        found = self._files.find(filename, user_id)
        return None if found is None else found.public()

    @checked
    def stat(self, file_id: str, *, user_id: str, version_id: str | None = None) -> Version:
        """A version's description, default the head's."""
        self._check_open()
        return self._files.version(file_id, user_id, version_id).public()

    @checked
    def chunk_ids(
        self,
        file_id: str,
        *,
        user_id: str,
        version_id: str | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> list[bytes]:
        """Ids of chunks start…stop-1 of a version."""
        self._check_open()
        stored = self._files.version(file_id, user_id, version_id)
        if start < 0 or (stop is not None and stop < start):
            raise InvalidArgument(f"chunk range {start}…{stop} is not a range")
        return list(Manifest(stored.root, self._load_node).chunk_ids(start, stop))

    @checked
    def diff(self, file_id: str, source: Source, *, user_id: str, base_version_id: str | None = None) -> ManifestDiff:
        """What takes a stored version (default the head) to the content of ``source``, for :meth:`revise`.

        The diff holds the changed chunks in memory.
        """
        self._check_open()
        base = self._files.version(file_id, user_id, base_version_id)
        return revising.diff_source(base, self._load_node, source)

    @checked
    def synchronize(
        self, file_id: str, *, have_version_id: str, user_id: str, data_bytes_max: int = _SYNC_DATA_BYTES_MAX
    ) -> ManifestDiff:
        """What takes a copy at ``have_version_id`` to the head; costs grow with the change.

        Args:
            file_id: the file.
            have_version_id: the version the caller has.
            user_id: the owner.
            data_bytes_max: patches past this many bytes of data come without it; read those ranges.

        Raises:
            VersionNotFound: the file never had that version.
        """
        self._check_open()
        identifier, entry = self._files.entry(file_id, user_id)
        old = self._files.stored(identifier, entry, have_version_id)
        new = self._files.stored(identifier, entry, None)
        return revising.diff_versions(self._context, old, new, self._load_node, data_bytes_max)

    @checked
    def history(
        self, file_id: str, *, user_id: str, limit: int | None = None, before: str | None = None
    ) -> list[Version]:
        """Versions from newest to oldest.

        Args:
            file_id: the file.
            user_id: the owner.
            limit: at most this many.
            before: continue after this version.
        """
        self._check_open()
        return list(islice(self._files.history(file_id, user_id, before), limit))

    @checked
    def list_files(
        self, *, user_id: str, prefix: str = "", after: str | None = None, limit: int | None = None
    ) -> list[Version]:
        """Heads of a user's files, ordered by the UTF-8 bytes of their names (the first 440 of them).

        Args:
            user_id: the owner.
            prefix: only names that start with this.
            after: continue after this name.
            limit: at most this many.
        """
        self._check_open()
        return self._files.heads(user_id, prefix, after, _ALL if limit is None else limit)

    # -- maintenance -----------------------------------------------------------------------------

    @checked
    def scrub(self, *, progress: Progress | None = None) -> ScrubReport:
        """Verify everything stored; rotten shards are quarantined for :meth:`repair` to make anew."""
        self._check_open()
        self._volumes.check_present()
        report = scrub(self._maintenance, progress)
        if not self.behind:
            self._lineage.restore_marks()
        return report

    @checked
    def repair(
        self,
        *,
        progress: Progress | None = None,
        pace: Callable[[float], None] | None = None,
        watch: Watch | None = None,
    ) -> RepairReport:
        """Bring back offline volumes and make every missing shard again. May be interrupted and repeated.

        Args:
            progress: called with (objects done, objects in all).
            pace: called with the seconds that each object took; may sleep, to leave room for others.
            watch: told how far it is in more detail than ``progress``.
        """
        self._check_open()
        self._volumes.check_present(at_once=True)
        self._volumes.reattach()
        if not self.behind:
            self._context.commits.write_pending_tombstones()
        waiting = set(self._volumes.incomplete)
        report = repair(self._maintenance, progress, pace, watch)
        if self.behind:
            self._volumes.incomplete |= waiting  # they may lack what this catalog knows nothing of
        else:
            self._lineage.plant(waiting - self._volumes.incomplete, anew=True)
        self.save_incomplete()
        return report

    def read_back(self) -> ReadBack:
        """Compares what stores give back with what they say they hold."""
        return ReadBack(self._stripes, self._maintenance.collecting.locked)

    def any_stripe(self, near: bytes) -> StripeKey | None:
        """A chunk's stripe, the first at or after this id; None if there is none."""
        found = next(self._catalog.holdings(near), None) or next(self._catalog.holdings(), None)
        return None if found is None else found.stripe

    @checked
    def collect(
        self,
        *,
        progress: Progress | None = None,
        grace_s: float = COLLECT_GRACE_S,
        pace: Callable[[float], None] | None = None,
    ) -> CollectReport:
        """Free the space of deleted files and of pushes that never committed, beside pushes in flight.

        Args:
            progress: called with (steps done, steps in all).
            grace_s: how long chunks of interrupted pushes are kept to be resumed, counted while the store is open.
            pace: called with the seconds that each step took; may sleep, to leave room for others.

        Raises:
            CatalogBehind: what the catalog does not know may be needed all the same; see :attr:`behind`.
        """
        self._check_open()
        self._lineage.check_current()
        self._lineage.renew_witnessed()
        report = collect(self._maintenance, grace_s, progress, pace)
        self.on_collected(report)
        return report

    def stores_away(self) -> list[str] | None:
        """The stores for which a collect had better wait, by name; None: no store is there at all."""
        if not self._volumes.online():
            return None
        return [self._volumes.name(slot) for slot in self._volumes.away()]

    def is_collect_owed(self) -> bool:
        """Whether a store is there that the latest collects have missed, so that what it holds is not freed yet.

        Stores that are not trusted are swept by none, and are owed none until they are trusted again.
        """
        self._check_open()
        missed = missed_stores(self._catalog, self._volumes.slots)
        return any(slot in missed and self._volumes.trusts(slot) for slot, _ in self._volumes.online())

    @checked
    def rebuild(self, *, progress: Progress | None = None) -> RebuildReport:
        """Make the catalog again from the volumes alone, when it is gone, or take in what only they know.

        Where volumes are out of reach that may hold more, the report names what is ``undecided``. The store stays
        :attr:`behind` then, so that nothing is written or freed, until another rebuild has examined all of them.

        Raises:
            InvalidArgument: the catalog is there, and not behind. To make it again anyway, close the store and
                move its ``catalog`` directory away.
            InsufficientWorkers: what the store has signed cannot be told; run it again when more volumes are there.
        """
        self._check_usable()
        self._volumes.check_present(at_once=True)
        if not self.needs_rebuild and not self.behind:
            raise InvalidArgument(
                f"the catalog of {self.path} is there, and knows all that the volumes know; to make it again from "
                "them, close the store and move its 'catalog' directory away first"
            )
        self._lineage.recover()
        # Also of stores that are away: were they not counted, the few that are there could agree on anything.
        owners = {slot: self._volumes.owner(slot) for slot in self._volumes.slots}
        voice_of = voices(owners, self.profile.n - self.profile.k + 1)
        quorum = agreement_quorum(self.profile, len({*voice_of.values()})) if self._volumes.remote else 1
        belief = Belief(self._authority, Agreement(quorum, self._maintenance.scratch, voice_of))
        liars_max = self.profile.n - self.profile.k if self._volumes.remote else 0
        copies, now_s = self._settings.n, self._runtime.monotonic_s
        report = rebuild(self._catalog, self._stripes, copies, belief, liars_max, now_s, progress)
        if report.undecided:
            self._lineage.left_unfinished(report.undecided)  # before the settings: without them, it must be run anyway
        self._catalog.save_settings(self._settings)
        if not report.undecided:
            self._lineage.rebuilt()
        self.needs_rebuild = False
        self.save_incomplete()
        self.on_rebuilt()
        return report

    @property
    def behind(self) -> bool:
        """See the class."""
        return self._lineage.behind

    @property
    def unfinished(self) -> str:
        """What the latest rebuild could not examine, and what to do; empty if it was finished."""
        return self._lineage.unfinished

    def counts(self) -> Counters:
        """Numbers of files and versions and their bytes, without asking the volumes."""
        self._check_usable()
        return self._catalog.counters()

    def profiles(self) -> list[ProfileCount]:
        """The erasure profiles that are in use; the store's own one, with no files, while there are none.

        Metadata counts as a profile of its own, as files cannot be read without it.
        """
        self._check_usable()
        return self._figures.profiles()

    def survivable(self, losses: Callable[[ErasureProfile], int], *, verified: bool = False) -> int:
        """How many losses all files survive, given how many a profile does.

        No more than 0 while the catalog is behind, because what it knows of may have been deleted and collected,
        unless a repair has ``verified`` since that all of it is there.
        """
        self._check_usable()
        survivable = self._figures.survivable(losses)
        return min(0, survivable) if self.behind and not verified else survivable

    @property
    def accelerator(self) -> str:
        """What computes the erasure code: ``"isa-l"`` or ``"zfec"``."""
        return accelerator_name(self.profile)

    def stats(self) -> StoreStats:
        """The store at a glance; cheap at any size."""
        self._check_usable()
        self._volumes.check_present()
        return self._figures.stats(behind=self.behind, unfinished=self.unfinished, needs_rebuild=self.needs_rebuild)

    def trouble(self) -> str:
        """Why the catalog cannot be used now, tried again if it could not be lately; empty if it can."""
        self._home.check()
        return self._catalog.trouble()

    @checked
    def is_busy(self, within_s: float = 0.25) -> bool:
        """Whether users' data moved within the last ``within_s`` seconds."""
        self._home.check()
        return self._activity.is_busy(within_s)

    def pace_healing(self, pace: Pace) -> None:
        """Let the healing of what reads find missing make way for users."""
        self._healer.pace = pace

    def healing(self) -> HealingState:
        """How far the healing of damage that reads have met is."""
        self._home.check()
        return self._healer.state()

    def wait_for_healing(self) -> None:
        """Return when the damage that reads have met so far has been dealt with."""
        self._home.check()
        self._healer.drain()

    # -- inside ----------------------------------------------------------------------------------

    def _is_needed(self, stripe: StripeKey) -> bool:
        """Whether a chunk or node may still be part of a file: a collect forgets it before its shards."""
        if kind_of(stripe) == Kind.CHUNK:
            return self._catalog.is_held(stripe)
        return kind_of(stripe) != Kind.NODE or self._catalog.node(object_id_of(stripe)) is not None

    def _check_usable(self) -> None:
        self._home.check()
        if self._closed:
            raise StoreClosed(f"the store at {self.path} is closed")

    def _recount(self) -> None:
        try:
            self._catalog.recount()
        except StorageError as error:
            log.warning("totals and profiles of the catalog are counted whenever they are asked for: %s", error)

    def _check_open(self) -> None:
        self._check_usable()
        if self.needs_rebuild:
            raise FormatError(f"the catalog of {self.path} is missing; run rebuild to make it again from the volumes")

    def keep_time(self) -> None:
        """Keep in the catalog how long the store has been open, by which interrupted pushes lapse. Cheap."""
        try:
            self._uploads.keep()
        except StoreFull:
            log.warning("no space to note for how long the store was open")

    @checked
    def keep_interrupted(self, resume_s: float) -> None:
        """Let senders who are elsewhere take up, for a while, the pushes that the last end of the store cut off.

        Args:
            resume_s: for how many seconds from the opening on no collect takes what they left, whatever its grace.
        """
        self._uploads.resume_s = resume_s

    def meet(self, slot: int | None, volume: ShardStore, name: str, owner: str = "") -> bool:
        """Compare a volume with the catalog before it is taken into use; see :class:`Lineage`.

        Args:
            slot: which one it is; None for one that was never here.
            volume: to be asked.
            name: of whoever offers it.
            owner: likewise, if that is told.

        Returns:
            Whether it is an older copy, which lacks what it should have.

        Raises:
            StorageError: it could not be asked.
        """
        if self.needs_rebuild:
            return False
        stale = self._lineage.meet(slot, volume, name, owner)
        if not self.behind:
            # Tombstones wait for the next repair: written now, they would go to stand-ins for whoever joins later.
            self._context.commits.catch_up(self._lineage.latest_shown)
        return stale

    def mark(self, slot: int, *, anew: bool = False) -> None:
        """Mark a volume that was taken into use, unless it has a mark; ``anew``: also then. See :class:`Lineage`."""
        if not self.needs_rebuild and not self.behind:
            self._lineage.plant([slot], anew=anew)

    def _catch_up(self) -> None:
        if not self.behind:
            self._context.commits.catch_up(self._lineage.latest_shown)
            self._context.commits.write_pending_tombstones()

    def save_incomplete(self) -> None:
        """Keep in the catalog which volumes wait for repair; for fleets whose stores come and go."""
        try:
            kept = self._catalog.settings()
        except DamagedSettings:
            kept = None  # they were made again when the store was opened
        if kept is None:
            self._catalog.save_settings(with_incomplete(self._settings, self._volumes.incomplete))
        elif kept.incomplete != sorted(self._volumes.incomplete):
            # Looked at in there once more: a commit may enter another one just now, which must not be undone.
            self._catalog.transact(lambda txn: txn.keep_incomplete(self._volumes.incomplete))

    def _push_target(self, options: PushOptions) -> PushTarget:
        """Check that a push may begin, and what it is given."""
        self._check_open()
        self._lineage.check_current()
        self._volumes.check_present()
        chunk_size = self.chunk_size if options.chunk_size is None else options.chunk_size
        target = self._target(options, options.profile or self.profile, chunk_size)
        self._volumes.require_writable(target.profile)
        return target

    def _target(self, options: PushOptions, profile: ErasureProfile, chunk_size: int) -> PushTarget:
        return push_target(options, profile, chunk_size, self._volumes.epoch(), self._runtime)
