"""The volumes of a store: tracks which are usable, and writes to and syncs all of them in parallel."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.catalog import StoreSettings
from storage.clocks import monotonic_s, wall_ms
from storage.erasure import ErasureProfile
from storage.errors import (
    FormatError,
    InsufficientWorkers,
    StorageError,
    StoreClosed,
    StoreFull,
    StoreUnavailable,
)
from storage.fleet.fleet import Fleet
from storage.fleet.placement import FixedLayout
from storage.keys import StripeKey, shard_count
from storage.shards import LocalVolume, Shard, ShardStore, VolumeFailed, VolumeUnavailable
from storage.shards.durability import PendingSync
from storage.shards.filesystem import FileSystem, LocalFileSystem
from storage.shards.identity import VolumeIdentity, new_volume_key, read_identity
from storage.system.backoff import Backoff
from storage.system.flushing import Flusher, new_flusher
from storage.system.private_paths import make_root_directory

log = logging.getLogger(__name__)

_PRESENCE_CHECK_S = 1.0
_NAMED_MAX = 12  # volumes listed in a message
# Errors of opening a volume that do not affect the others.
_PASSING = (VolumeFailed, StoreUnavailable, StoreFull)


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """Options for opening volumes; tests inject faults here."""

    filesystem: FileSystem | None = None
    segment_bytes_max: int | None = None


class VolumeSet(Fleet[LocalVolume]):
    """All volumes of a store on this machine, by slot.

    A slot that was found empty (a lost or swapped disk), or missed acknowledged data, is ``incomplete``. A volume that
    failed is reopened, with pauses between attempts. Writes skip a full or read-only volume like an offline one, but it
    is still read; each write tries it again.

    Args:
        root: the store directory.
        settings: the store's settings.
        options: how to open the volumes.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        root: Path,
        settings: StoreSettings,
        options: VolumeOptions,
        clock_s: Callable[[], float] = monotonic_s,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        super().__init__(clock_s, now_ms)
        self.vacant: set[int] = set()  # offline, as their directories were empty when they were to be opened
        self._settings = settings
        self.store_id = settings.store_id
        self.paths = [root / path for path in settings.volumes]
        self.layout = FixedLayout(len(self.paths))
        self.incomplete = set(settings.incomplete)
        self._options = options
        self._stores = dict.fromkeys(range(len(self.paths)))
        self._moves = dict.fromkeys(range(len(self.paths)), 0)
        self._full: set[int] = set()  # had no space at the last write
        self._checked_s = 0.0
        self._attaching = threading.Lock()
        self._retries = {slot: Backoff(clock_s=clock_s) for slot in range(len(self.paths))}
        self._flusher: Flusher

    @property
    def placement(self) -> FixedLayout:
        """The placement, fixed when the store was created."""
        return self.layout

    def holders(self, stripe: StripeKey) -> tuple[int, ...]:
        """See :meth:`Fleet.holders`."""
        return self.layout.volumes(stripe, shard_count(stripe))

    def name(self, slot: int) -> str:
        """Slot and directory."""
        return f"{slot} at {self.paths[slot]}"

    def place(self, slot: int) -> str:
        """The volume's directory."""
        return str(self.paths[slot])

    def directories(self) -> list[Path]:
        """All volumes' directories, by slot."""
        return list(self.paths)

    def losses_survivable(self, profile: ErasureProfile) -> int:
        """See :meth:`Fleet.losses_survivable`."""
        absent = sum(self.state(slot) in ("incomplete", "offline") for slot in self.slots)
        return max(0, self.layout.losses_survivable(profile.k, profile.n) - absent)

    # -- opening ---------------------------------------------------------------------------------

    def open_all(self, *, expect_data: bool, is_in_use: Callable[[], bool] = lambda: False) -> None:
        """Open every volume; create those that are missing or empty.

        If so many volumes of a store in use are missing that it cannot be read, they are probably not mounted, rather
        than lost, and shards written to their mount points would be hidden later. So they stay offline, and the store
        refuses writes, until they are mounted or a repair creates new ones.

        Args:
            expect_data: whether the store has been used: if so, a volume created now waits for repair, and one whose
                disk fails stays offline.
            is_in_use: whether there are files.

        Raises:
            FormatError: a directory holds a volume of another store or slot. Nothing is changed.
        """
        tolerate = _PASSING if expect_data else ()
        identities: dict[int, VolumeIdentity | None] = {}
        try:
            for slot in range(len(self.paths)):
                with self._unusable(slot, tolerate):
                    identities[slot] = self._identify(slot)
            self._find_vacant([slot for slot, identity in identities.items() if identity is None], is_in_use)
            for slot, identity in identities.items():
                with self._unusable(slot, tolerate):
                    if slot in self.vacant:
                        raise self._nothing_in(slot)
                    self._open(slot, identity, expect_data=expect_data)
        except BaseException:
            self._close_stores()
            raise
        self._flusher = new_flusher(len(self.paths))

    def _find_vacant(self, absent: list[int], is_in_use: Callable[[], bool]) -> None:
        if len(absent) > self.layout.losses_survivable(self._settings.k, self._settings.n) and is_in_use():
            self.vacant.update(absent)

    def _nothing_in(self, slot: int) -> VolumeUnavailable:
        return VolumeUnavailable(
            f"there is no volume in {self.paths[slot]}; mount its disk, or run repair to create a new one"
        )

    def reattach(self) -> list[int]:
        """Reopen offline volumes, creating missing ones; returns the slots that are back."""
        with self._attaching:
            return [slot for slot in self._offline() if self._attach(slot, may_be_new=True)]

    def revive(self) -> bool:
        """Reopen offline volumes that are back and whose next attempt is due.

        A directory without a volume may be a mount point whose disk is missing, so nothing is created in it.
        """
        if not self._offline() or not self._attaching.acquire(blocking=False):
            return False
        try:
            due = [slot for slot in self._offline() if self._retries[slot].due()]
            back = [slot for slot in due if self._attach(slot, may_be_new=False)]
            return bool(back)
        finally:
            self._attaching.release()

    def set_offline(self, slot: int, reason: str, failed: ShardStore | None = None) -> None:
        """See :meth:`Fleet.set_offline`. A volume that was reopened only recently is not retried at once."""
        was_open = self._stores.get(slot) is not None
        super().set_offline(slot, reason, failed)
        if was_open and self._stores.get(slot) is None:
            self._retries[slot].relapsed()

    def _offline(self) -> list[int]:
        return [slot for slot, volume in self._stores.items() if volume is None]

    def _attach(self, slot: int, *, may_be_new: bool) -> bool:
        if self._closed:
            return False
        with self._unusable(slot, _PASSING):
            identity = self._identify(slot)
            if identity is None and not may_be_new:
                raise self._nothing_in(slot)
            self._open(slot, identity, expect_data=True)
            self._note_move(slot)
            log.info("volume %s is back", self.name(slot))
            self.on_attached(slot)
        return self._stores[slot] is not None

    @contextmanager
    def _unusable(self, slot: int, errors: tuple[type[Exception], ...]) -> Iterator[None]:
        """Keep a volume offline if opening it fails with one of these errors; the others carry on."""
        try:
            yield
        except errors as error:
            self._retries[slot].failed()
            if self._reasons.get(slot) != str(error):
                log.error("volume %d at %s cannot be opened: %s", slot, self.paths[slot], error)
                self._reasons[slot] = str(error)
                self.report("offline", b"", slot, str(error))

    def _identify(self, slot: int) -> VolumeIdentity | None:
        path = self.paths[slot]
        identity = read_identity(path, self._options.filesystem)
        if identity is None:
            return None
        if identity.store_id != self.store_id:
            raise FormatError(
                f"{path} holds a volume of another store ({identity.store_id}, slot {identity.slot}); "
                f"put slot {slot} of store {self.store_id} there, or an empty directory to have it rebuilt"
            )
        if identity.slot != slot or identity.volumes != len(self.paths):
            raise FormatError(
                f"{path} holds slot {identity.slot} of {identity.volumes} of this store, but slot {slot} of "
                f"{len(self.paths)} belongs there; put the directories back in order"
            )
        return identity

    def _open(self, slot: int, identity: VolumeIdentity | None, *, expect_data: bool) -> None:
        path = self.paths[slot]
        if identity is None:
            self._make_directory(path)
            identity = self._new_identity(slot)
            if expect_data:
                log.warning("volume %d at %s is empty; run repair to rebuild its shards", slot, path)
                self.incomplete.add(slot)
        options = self._options
        if options.filesystem is None:
            make_root_directory(path)  # older releases made it with the rights that the umask left
        keywords = {} if options.segment_bytes_max is None else {"segment_bytes_max": options.segment_bytes_max}
        volume = LocalVolume(
            path,
            identity,
            filesystem=options.filesystem,
            clock_s=self._clock_s,
            now_ms=self._now_ms,
            **keywords,
        )
        if volume.shrank:
            self.incomplete.add(slot)
        self._stores[slot] = volume
        self.vacant.discard(slot)
        self._reasons.pop(slot, None)
        self._full.discard(slot)
        self._retries[slot].succeeded()

    def _make_directory(self, path: Path) -> None:
        try:
            (self._options.filesystem or LocalFileSystem()).make_directory(path)
        except OSError as error:
            raise VolumeUnavailable(f"volume {path} cannot be created: {error}") from error

    def _new_identity(self, slot: int) -> VolumeIdentity:
        settings = self._settings
        return VolumeIdentity(
            store_id=settings.store_id,
            slot=slot,
            volumes=len(self.paths),
            key=new_volume_key(),
            k=settings.k,
            n=settings.n,
            chunk_size=settings.chunk_size,
        )

    # -- access ----------------------------------------------------------------------------------

    def check_present(self, *, at_once: bool = False) -> None:
        """Detect volumes that were removed or are back, at most once a second unless ``at_once``.

        Also detects volumes that accept writes again, which nothing else would try while there is nothing to store.
        """
        now = self._clock_s()
        if not at_once and now - self._checked_s < _PRESENCE_CHECK_S:
            return
        self._checked_s = now
        for slot, volume in self.online():
            is_there, takes_writes = volume.present(), volume.can_be_written()
            state, cause = volume.state
            if state == "failed":
                self.set_offline(slot, cause, volume)
            elif not is_there:
                self.set_offline(slot, f"{self.paths[slot]} was removed or unmounted", volume)
            elif takes_writes and state == "ok":
                self._full.discard(slot)
                if self._reasons.pop(slot, None) is not None:
                    log.info("volume %s answers again", self.name(slot))
        self.revive()

    def state(self, slot: int) -> str:
        """See :meth:`Fleet.state`; also ``"read-only"`` and ``"full"``."""
        volume = self._stores.get(slot)
        found = super().state(slot)
        if volume is None or found != "ok":
            return found
        own = volume.state[0]
        return own if own in ("read-only", "full") else "ok"

    def takes_no_writes(self, slot: int) -> bool:
        """See :meth:`Fleet.takes_no_writes`."""
        volume = self._stores.get(slot)
        return volume is not None and volume.state[0] in ("read-only", "full")

    def reason(self, slot: int) -> str:
        """See :meth:`Fleet.reason`."""
        volume = self._stores.get(slot)
        return (volume.state[1] if volume is not None else "") or super().reason(slot)

    # -- writing ---------------------------------------------------------------------------------

    def append(self, batches: dict[int, list[Shard]], *, urgent: bool = False) -> Collection[int]:
        """See :meth:`Fleet.append`. No other volume stands in: shards that a volume did not take wait for repair."""
        missed = []
        for slot, shards in batches.items():
            volume = self._stores[slot]
            if volume is not None:
                try:
                    volume.append(shards, urgent=urgent)
                    continue
                except (VolumeFailed, VolumeUnavailable, StoreFull) as error:
                    self._missed(slot, volume, error)
            missed.append(slot)
        if urgent and len(missed) < len(batches):  # the caller does not check whether enough volumes have it
            self.incomplete.update(missed)
        return missed

    def _missed(self, slot: int, volume: LocalVolume, error: VolumeFailed | VolumeUnavailable | StoreFull) -> None:
        """Note that a volume did not take its shards, so that the running write must do without it."""
        if isinstance(error, StoreFull):
            self._note_full(slot, str(error))
        if not isinstance(error, VolumeFailed):
            self._note_move(slot)
        if not isinstance(error, StoreFull):
            self.failed(slot, volume, error)

    def _note_move(self, slot: int) -> None:
        with self._lock:  # so that concurrent updates are not lost
            self._moves[slot] += 1

    def _note_full(self, slot: int, reason: str) -> None:
        """Log once that a volume is full, until it is no longer full."""
        if slot not in self._full:
            self._full.add(slot)
            log.warning("volume %s takes no writes for now; repair will add what it lacks: %s", self.name(slot), reason)
            self.report("full", b"", slot, reason)
        self._reasons[slot] = reason

    def note_whole(self, slots: Collection[int], since: tuple[int, ...]) -> None:
        """See :meth:`Fleet.note_whole`. Only a volume that itself refused something may lack it."""
        with self._lock:
            now = self.epoch()
            self.incomplete.difference_update(slot for slot in slots if now[slot] == since[slot])

    def sync(self) -> None:
        """Sync all online volumes in parallel."""
        begun: list[_BegunSync] = []
        failures: list[StorageError] = []
        try:
            for slot, volume in self.online():
                self._begin_sync(slot, volume, begun)
            self._flush_together(begun)
        finally:
            # Every begun sync must be ended, whatever happens to the others.
            for sync in begun:
                self._end_sync(sync, failures)
        if failures:
            raise failures[0]

    def _begin_sync(self, slot: int, volume: LocalVolume, begun: list[_BegunSync]) -> None:
        try:
            pending = volume.begin_sync()
        except (VolumeFailed, VolumeUnavailable) as error:
            self._missed(slot, volume, error)
            return
        if pending is not None:
            begun.append(_BegunSync(slot, volume, pending))

    def _end_sync(self, sync: _BegunSync, failures: list[StorageError]) -> None:
        try:
            if sync.flushed:
                sync.volume.end_sync(sync.pending, sync.error)
            else:
                sync.volume.cancel_sync(sync.pending)
        except (VolumeFailed, VolumeUnavailable) as error:
            self._missed(sync.slot, sync.volume, error)
        except StorageError as error:
            failures.append(error)

    def _flush_together(self, begun: list[_BegunSync]) -> None:
        """Flush files with descriptors in parallel, then the rest (directories, after a new segment)."""
        files = [(sync, file.descriptor()) for sync in begun for file in sync.pending.files.values()]
        together = [(sync, descriptor) for sync, descriptor in files if descriptor >= 0]
        outcomes = self._flusher.flush([descriptor for _, descriptor in together])
        for (sync, _), outcome in zip(together, outcomes, strict=True):
            sync.error = sync.error or outcome
        for sync in begun:
            sync.error = sync.error or sync.volume.flush(sync.pending, files=len(together) < len(files))
            sync.flushed = True

    def sync_each(self) -> None:
        """Sync all online volumes one after another, leaving the parallel flusher to commits."""
        for slot, volume in self.online():
            try:
                volume.sync()
            except (VolumeFailed, VolumeUnavailable) as error:
                self._missed(slot, volume, error)

    def require_writable(self, profile: ErasureProfile, since: tuple[int, ...] | None = None) -> None:
        """See :meth:`Fleet.require_writable`."""
        if self._closed:
            raise StoreClosed("the store was closed during the push")
        if since is None:
            lacking = [slot for slot, volume in self._stores.items() if volume is None or not volume.can_be_written()]
        else:
            lacking = self._lacking(since)
        if lacking:
            self._require_bearable(profile, lacking)
            if since is not None:
                self.incomplete.update(lacking)

    def require_taken(self, profile: ErasureProfile, since: tuple[int, ...]) -> None:
        """See :meth:`Fleet.require_taken`."""
        lacking = self._lacking(since)
        if lacking:
            self._require_bearable(profile, lacking)

    def _lacking(self, since: tuple[int, ...]) -> list[int]:
        """Volumes that may lack something written since that epoch."""
        now = self.epoch()
        if since == now and None not in self._stores.values():
            return []
        return [slot for slot, volume in self._stores.items() if volume is None or now[slot] != since[slot]]

    def _require_bearable(self, profile: ErasureProfile, lacking: list[int]) -> None:
        full = [slot for slot in lacking if slot in self._full and self._stores[slot] is not None]
        short = self._next_to_full(full, lacking)
        troubles = [self.reason(slot) or f"{self.paths[slot]} can be written now" for slot in lacking]
        troubles += [f"{self.paths[slot]} has no space for it either" for slot in short]
        full, lacking = full + short, lacking + short
        per_volume = -(-profile.n // len(self._stores))
        shards = profile.n - min(profile.n, len(lacking) * per_volume)
        if shards >= min(profile.n, profile.k + 1):
            return
        text = (
            f"{len(lacking)} of {len(self._stores)} volumes take no writes now, or did not while this was stored "
            f"({_listed(troubles, '; ')}): the {profile} file would not survive one more loss"
        )
        if full:
            room = _listed([str(self.paths[slot]) for slot in full], ", ")
            others = ", and bring the others back" if len(full) < len(lacking) else ""
            raise StoreFull(f"{text}; delete files and run collect, or add room to {room}{others}, then try again")
        raise InsufficientWorkers(f"{text}; bring them back, run repair and try again")

    def _next_to_full(self, full: list[int], lacking: list[int]) -> list[int]:
        """Other volumes that have no space either for what full ones refused, usually because they share a disk.

        Such a store is full, and refuses a push that does not fit, instead of storing it less safely.
        """
        wanted = max((volume.wanted for slot in full if (volume := self._stores[slot]) is not None), default=0)
        others = [(slot, volume) for slot, volume in self.online() if slot not in lacking] if wanted else []
        return [slot for slot, volume in others if not volume.has_room(wanted)]

    # -- closing ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all volumes and end the flush threads."""
        self._closed = True
        self._flusher.close()
        self._close_stores()


def _listed(texts: list[str], separator: str) -> str:
    more = len(texts) - _NAMED_MAX
    return separator.join(texts[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


class _BegunSync:
    """A volume's sync that was begun and not yet ended."""

    __slots__ = ("error", "flushed", "pending", "slot", "volume")

    def __init__(self, slot: int, volume: LocalVolume, pending: PendingSync) -> None:
        self.slot = slot
        self.volume = volume
        self.pending = pending
        self.error: Exception | None = None
        self.flushed = False
