"""FileStorage: the embeddable store. Files can be read and verified as long as any k volumes are left."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from storage.arguments import checked
from storage.catalog import Catalog, StoreSettings, user_key
from storage.diff.manifest_diff import ManifestDiff
from storage.engine.parts import StoreParts
from storage.engine.reporting import ReportingStore
from storage.engine.upkeep import Upkeep
from storage.erasure import ErasureProfile
from storage.fleet.fleet import Fleet
from storage.fleet.volumes import VolumeOptions
from storage.formats.versions import Version
from storage.maintenance.repair import Watch
from storage.opening import opened_parts
from storage.options import Attributes, PushOptions
from storage.progress import Progress
from storage.reports import CollectReport, RebuildReport, RepairReport, ScrubReport, ShredReport
from storage.runtime import Runtime
from storage.sealing.master_keys import MasterKeys, store_keys
from storage.system.locking import StoreLock
from storage.write.known import usable_chunks
from storage.write.small import push_small
from storage.write.sources import Source, feed, source_size
from storage.write.upload import INLINE_BYTES_MAX, Upload

COLLECT_GRACE_S = 86400.0
_OPENING_S = 3600.0  # added to the store's time: commands open it only briefly, yet interrupted pushes must lapse


class FileStorage(ReportingStore):
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
        on_closing: called by :meth:`close` after all work has ended and the list of volumes that wait for repair has
            been saved, before the catalog is closed.
        upkeep: does the maintenance, and handles shard stores that join, leave and come back.
        read_patience_s: if a chunk cannot be read because a shard store went away, reads wait this long for it.
    """

    def __init__(
        self, path: Path, settings: StoreSettings, catalog: Catalog, volumes: Fleet[Any], lock: StoreLock,
        *, needs_rebuild: bool, runtime: Runtime | None = None, opening_s: float = 0.0, hot_bytes: int = 0,
        pushed_bytes: int = 0, small_copies_bytes: int = 0, keys: MasterKeys | None = None, seals: bool = False,
    ) -> None:  # fmt: skip
        parts = StoreParts(
            path,
            settings,
            catalog,
            volumes,
            needs_rebuild=needs_rebuild,
            runtime=runtime or Runtime(),
            opening_s=opening_s,
            hot_bytes=hot_bytes,
            pushed_bytes=pushed_bytes,
            small_copies_bytes=small_copies_bytes,
            masters=keys,
            seals=seals,
        )
        super().__init__(parts)
        self.path = path
        self.profile = parts.profile
        self.chunk_size = settings.chunk_size
        self.upkeep = Upkeep(parts)
        self.on_closing: Callable[[], None] = lambda: None
        self._catalog = catalog
        self._volumes = volumes
        self._context = parts.pushing
        self._lock = lock
        self._closing = threading.Lock()

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
        small_copies_bytes: int = 0,
        key: bytes | str | os.PathLike[str] | MasterKeys | None = None,
        volume_options: VolumeOptions | None = None,
        runtime: Runtime | None = None,
    ) -> FileStorage:
        """Open the store at ``path``, creating it if there is none.

        Args:
            path: the store directory.
            profile: the erasure profile of a new store, 4-of-6 by default. An existing store keeps its own.
            volumes: directories of the volumes, in slot order, ideally one per disk; default
                ``path/volumes/0`` … ``n-1``. For an existing store: where they are now.
            chunk_size: the chunk size of a new store, 64 KiB…16 MiB; 1 MiB by default.
            create: whether to create a store if there is none.
            small_copies_bytes: keep files up to this size, at most 64 KiB, as n - k + 1 whole copies instead of n
                shards, if no profile is chosen for them. They survive as many losses, and take n - k + 1 times their
                size instead of n / k times. This is faster only if volumes answer slowly.
            key: encrypts what is stored from now on, and opens what is encrypted: 32 random bytes, or a file that has
                them in base64 (see :func:`~storage.sealing.master_keys.new_key_file`). Without it nothing can be read:
                keep a copy elsewhere. What was stored before without a key stays as it is, and readable.
            volume_options: how volumes access their disks; for tests and tuning.
            runtime: threads, clocks and random bytes; the machine's own by default.

        Raises:
            KeyRequired: the store is encrypted, and its key was not given, or another one was.
            StoreLocked: another process has it open.
            FormatError: this is not a store, its format is newer, or a volume belongs elsewhere.
            StoreUnavailable: the catalog is gone, and volumes to rebuild it from are missing; or it cannot be read now.
            InvalidArgument: there is no store and ``create`` is False, or the arguments are invalid.
        """
        runtime = runtime or Runtime()
        keys = store_keys(key)
        with opened_parts(
            Path(path),
            profile=profile,
            volumes=None if volumes is None else [Path(volume) for volume in volumes],
            chunk_size=chunk_size,
            create=create,
            options=volume_options or VolumeOptions(),
            runtime=runtime,
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
                small_copies_bytes=small_copies_bytes,
                keys=keys,
                seals=keys is not None,
            )
            parts.volumes.on_attached = store.upkeep.meet_again
            store.upkeep.meet_all()
        return store

    @classmethod
    def over(
        cls, path: Path, settings: StoreSettings, catalog: Catalog, volumes: Fleet[Any], lock: StoreLock,
        runtime: Runtime | None = None, *, needs_rebuild: bool = False, hot_bytes: int = 0, pushed_bytes: int = 0,
        small_copies_bytes: int = 0, keys: MasterKeys | None = None, seals: bool = False,
    ) -> FileStorage:  # fmt: skip
        """A store that keeps its shards on a fleet given by the caller, such as a pool's workers.

        Closing the store closes its catalog and volumes, and releases the lock.

        Args:
            path: a directory for its scratch files, used by nothing else.
            settings: the settings in ``catalog``.
            catalog: the open catalog.
            volumes: the shard stores.
            lock: the lock on ``path``, held.
            runtime: threads, clocks and random bytes; the machine's own by default.
            needs_rebuild: whether the catalog is empty and must be rebuilt from the volumes.
            hot_bytes: memory for small objects that were read lately, in bytes; see
                :class:`~storage.stripes.hot_objects.HotObjects`.
            pushed_bytes: memory for small objects of files that were pushed just now, in bytes; see
                :class:`~storage.stripes.pushed_objects.PushedObjects`.
            small_copies_bytes: see :meth:`open`.
            keys: the master keys, if there are any.
            seals: whether to encrypt what is stored from now on.
        """
        return cls(
            path,
            settings,
            catalog,
            volumes,
            lock,
            needs_rebuild=needs_rebuild,
            runtime=runtime,
            hot_bytes=hot_bytes,
            pushed_bytes=pushed_bytes,
            small_copies_bytes=small_copies_bytes,
            keys=keys,
            seals=seals,
        )

    def close(self) -> None:
        """Finish running work, write the indexes to disk and release the directory.

        In a forked child this does nothing, since the store belongs to the parent.
        """
        if not self._parts.home.is_here:
            return
        with self._closing:
            if self._parts.closed:
                return
            self._parts.closed = True
        self._parts.stop()
        self.upkeep.end()
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
        """Directories of the volumes, by slot; empty if the shards are on workers."""
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
        attributes: Attributes | None = None,
        if_absent: bool = False,
        if_head: str | None = None,
        progress: Progress | None = None,
    ) -> Version:
        """Store content under a user's filename. An existing file gets a new version, unless the content is equal.

        Equal content with another note or other attributes makes a new version, too. If no version was made, the result
        is ``unchanged``.

        Args:
            source: bytes, a path, a binary file object (read from its position), or an iterable of bytes.
            filename: 1…1024 bytes of UTF-8.
            user_id: the owner.
            profile: erasure profile; default: the store's.
            chunk_size: bytes of a chunk; default: the store's.
            time_ms: the author's clock; default: now.
            note: free text kept in the version.
            sha256: hex SHA-256 of the content, checked before anything becomes visible.
            attributes: kept with the version: bytes by names of 1…128 bytes, 16 KiB in all; or a function that returns
                them, called once ``source`` was read. Default: none, but a head with equal content keeps its own.
            if_absent: store nothing if there is a file of this name when the push would be committed.
            if_head: store nothing unless this version is the head then.
            progress: called with (bytes stored, total bytes or 0).

        Raises:
            InvalidArgument: an argument is malformed or out of bounds.
            ConflictError: there is a file, or another head, other than ``if_absent`` or ``if_head`` says.
            FileNotFound: ``if_head`` is given, and there is no file of this name.
            StoreFull: a disk or quota is full; nothing was stored.
            InsufficientWorkers: too few volumes or workers are available to store it safely.
            OSError: ``source`` cannot be read.
            CatalogBehind: see :attr:`behind`.
        """
        given = None if callable(attributes) else attributes
        options = PushOptions(
            filename, user_id, profile, chunk_size, time_ms, note, sha256, given, if_absent, if_head
        )  # fmt: skip
        target = self._parts.push_target(options)
        is_plain = sha256 is None and progress is None and not callable(attributes)
        if is_plain and type(source) is bytes and 0 < len(source) <= INLINE_BYTES_MAX:
            return push_small(self._context, target, source)
        upload = Upload(self._context, target, progress, source_size(source))
        try:
            feed(source, upload, in_order=sha256 is not None)
            return upload.commit(attributes=attributes() if callable(attributes) else None)
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
        attributes: Mapping[str, bytes] | None = None,
        if_absent: bool = False,
        if_head: str | None = None,
        size_hint: int | None = None,
        progress: Progress | None = None,
    ) -> Upload:
        """Begin a push whose bytes arrive in pieces; the arguments are those of :meth:`push`."""
        options = PushOptions(
            filename, user_id, profile, chunk_size, time_ms, note, sha256, attributes, if_absent, if_head
        )  # fmt: skip
        target = self._parts.push_target(options)
        return Upload(self._context, target, progress, size_hint or 0)

    @checked
    def missing_chunks(
        self, chunk_ids: Sequence[bytes], *, user_id: str, profile: ErasureProfile | None = None
    ) -> list[bool]:
        """Which chunks a push must send: True for those that the store does not have complete for this user.

        Chunks that belong only to other users count as missing.
        """
        self._parts.check_open()
        chosen = profile or self.profile
        profiles = (chosen, *self._parts.copies.others(chosen))
        key = self._parts.keys.keys_of(user_id).current if self._parts.keys.seals else None
        if key is None and self._parts.keys.seals:
            return [True] * len(chunk_ids)
        usable = usable_chunks(self._context, user_key(user_id.encode()), chunk_ids, profiles, key)
        return [chunk_id not in usable for chunk_id in chunk_ids]

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
        attributes: Mapping[str, bytes] | None = None,
        progress: Progress | None = None,
    ) -> Version:
        """Apply a diff to the head of a file, atomically.

        Args:
            file_id: the file.
            diff: from :meth:`diff`, or from outside; checked completely before anything is stored.
            user_id: the owner.
            sha256: hex SHA-256 of the whole resulting content, checked (this reads the whole file).
            time_ms: the author's clock; default: now.
            note: free text kept in the version.
            attributes: kept with the version; default: none, as those of the base are of other content.
            progress: called with (bytes read, total bytes) while ``sha256`` is checked; may raise.

        Raises:
            ConflictError: the diff's base is not the head.
            InvalidArgument: the diff is malformed; nothing was stored.
            FileNotFound, VersionNotFound: there is no such file or version, or it is another user's.
            StoreFull: a disk or quota is full; nothing was stored.
            InsufficientWorkers: too few volumes or workers are available to store it safely.
            CatalogBehind: see :attr:`behind`.
        """
        options = PushOptions("", user_id, time_ms=time_ms, note=note, sha256=sha256, attributes=attributes)
        return self._parts.revise(file_id, diff, options, progress=progress)

    def profile_after(self, base: Version, new_size: int) -> ErasureProfile:
        """The erasure profile of a revision of ``base`` with this size; chunks for it are best stored with it."""
        return self._parts.copies.profile_after(base.profile, base.size, new_size)

    @checked
    def rotate_key(self, *, user_id: str) -> int:
        """Give a user a new key, which encrypts what is stored from now on. Former keys still open what they encrypted.

        Content that is stored already counts as new, so a push of it stores it again, under the new key.

        Returns:
            The epoch of the new key: the number of keys that the user has had.

        Raises:
            KeyRequired: the store is not encrypted.
            InvalidArgument: the user has had 1,000 keys.
            InsufficientWorkers: the key could not be stored so that it survives losses.
            CatalogBehind: see :attr:`behind`.
        """
        self._parts.check_writable()
        return self._parts.keys.rotate(user_id).epoch

    @checked
    def shred(self) -> ShredReport:
        """Destroy the secrets of all versions that were deleted so far, which were encrypted by this release or later.

        Nobody can read what is left of them any more, on whichever disk, once the store's key is replaced as well (open
        it with ``MasterKeys(new, (former,))``), and all copies of the former key are destroyed: disks and copies of
        volumes that are elsewhere have the secrets sealed with it. Content that other versions have as well stays
        readable in these. Copies of the catalog show names and sizes. Copies from before are of no use afterwards.

        Files may be stored, read and deleted meanwhile. If it is interrupted, nothing is lost; do it again. It reads
        the whole catalog, but no content.

        Raises:
            InvalidArgument: the store does not encrypt.
            InsufficientWorkers: the secrets of what stays could not be stored so that they survive losses.
            FormatError: a version cannot be read, so that it is not known what has to stay. Nothing was destroyed.
            CatalogBehind: see :attr:`behind`.
        """
        return self.upkeep.shred()

    # -- maintenance -----------------------------------------------------------------------------

    @checked
    def scrub(self, *, progress: Progress | None = None) -> ScrubReport:
        """Verify everything stored, and quarantine corrupt shards so that :meth:`repair` rebuilds them."""
        return self.upkeep.scrub(progress)

    @checked
    def repair(
        self,
        *,
        progress: Progress | None = None,
        pace: Callable[[float], None] | None = None,
        watch: Watch | None = None,
    ) -> RepairReport:
        """Reopen offline volumes and rebuild all missing shards. May be interrupted and repeated.

        Args:
            progress: called with (objects examined, objects expected).
            pace: called with the seconds that each object took; may sleep, to leave resources for others.
            watch: called with more details than ``progress``.
        """
        return self.upkeep.repair(progress, pace, watch)

    @checked
    def collect(
        self,
        *,
        progress: Progress | None = None,
        grace_s: float = COLLECT_GRACE_S,
        pace: Callable[[float], None] | None = None,
    ) -> CollectReport:
        """Free the space of deleted files and of pushes that never committed. Pushes may run meanwhile.

        Args:
            progress: called with (steps done, total steps).
            grace_s: how long the chunks of an interrupted push are kept so that it can be resumed, in seconds during
                which the store was open.
            pace: called with the seconds that each step took; may sleep, to leave resources for others.

        Raises:
            CatalogBehind: data that the catalog does not know may still be needed; see :attr:`behind`.
        """
        return self.upkeep.collect(progress, grace_s, pace)

    @checked
    def rebuild(self, *, progress: Progress | None = None) -> RebuildReport:
        """Rebuild a lost catalog from the volumes alone, or add what an outdated one lacks.

        If unreachable volumes may hold more, the report lists what is ``undecided``. The store then stays
        :attr:`behind`, so that nothing is written or freed, until another rebuild has examined all volumes.

        Raises:
            InvalidArgument: the catalog exists and is not behind. To rebuild it anyway, close the store and move its
                ``catalog`` directory away.
            InsufficientWorkers: the store's signatures cannot be verified; run it again when more volumes are back.
        """
        return self.upkeep.rebuild(progress)
