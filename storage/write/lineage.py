"""Detects catalogs and volumes that were restored from old copies, by comparing them with each other.

- The records of the newest commits on the volumes say how far the catalog had come when they were made. A catalog that
  has not come that far is older than its volumes: it does not know what was stored since.
- For each volume, the catalog knows shards that it must have: its mark, and its shard of the version committed last. A
  volume without them is older than the catalog: it lacks shards, and waits for repair.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from storage.catalog import COPIED_IN_USE, Catalog, CatalogTransaction
from storage.erasure import ErasureProfile
from storage.errors import CatalogBehind, FormatError, InsufficientWorkers, StorageError, StoreFull
from storage.fleet.fleet import Fleet
from storage.formats.authenticity import (
    NONCE_BYTES,
    Authority,
    Mark,
    decode_mark,
    decode_secret,
    encode_mark,
    new_mark,
    new_secret,
    recover_secret,
    sharing_threshold,
)
from storage.formats.manifest import object_id
from storage.formats.tombstones import decode_tombstone, is_signed_tombstone, version_key
from storage.formats.version_records import FILE_ID_BYTES
from storage.formats.versions import checked_outline, is_signed
from storage.formats.voices import Voice, voices
from storage.keys import (
    ID_BYTES,
    Kind,
    ShardKey,
    kind_of,
    object_id_of,
    shard_key,
    slot_of,
    stripe_of,
)
from storage.runtime import Runtime
from storage.shards import CorruptShard, Shard, ShardStore, VolumeUnavailable
from storage.stripes.stripes import metadata_stripe
from storage.write.known_volumes import KnownVolume, read_known, save_known

log = logging.getLogger(__name__)

_SECRET = "store-secret"
_BEHIND = "catalog-behind"
_UNFINISHED = "rebuild-unfinished"
# Ids of marks begin with zeros, so that they can be found without a full scan. No hash begins with so many zeros.
_MARK_PREFIX = bytes(ID_BYTES - NONCE_BYTES)
_MARK_IDS = (_MARK_PREFIX, bytes(ID_BYTES - NONCE_BYTES - 1) + b"\1")
_UNDECIDED_NAMED = 10
_MARKS_READ_MAX = 64  # a volume has one mark, and briefly two while it gets a new one


class Shown(NamedTuple):
    """What a record proves: its sequence number, and up to which one the catalog had committed when it was made."""

    sequence: int
    committed: int


class Lineage:
    """Compares a store's catalog with its volumes. Thread-safe.

    Args:
        catalog: the store's catalog.
        volumes: the store's volumes.
        profile: the store's own erasure profile.
        authority: verifies what the store has signed; it gets its secret here.
        runtime: source of random bytes.

    Attributes:
        latest_shown: the highest sequence number proved by volumes; later commits must have higher ones.
    """

    def __init__(
        self, catalog: Catalog, volumes: Fleet[Any], profile: ErasureProfile, authority: Authority, runtime: Runtime
    ) -> None:
        self._catalog = catalog
        self._volumes = volumes
        self._profile = profile
        self._authority = authority
        self._runtime = runtime
        self._lock = threading.Lock()
        self._begun = False
        self._claims: dict[str, tuple[str, Shown]] = {}  # volume → (owner, what its unsigned record says)
        self.latest_shown = 0
        self._planting: set[ShardKey] = set()  # marks that are being written to volumes now
        self._asked: frozenset[str] = frozenset()  # volumes that the latest rebuild asked for all records
        self._damage = ""  # why it is unknown whether the catalog is current
        self._behind = self._read_behind()
        self._unexamined = (catalog.document(_UNFINISHED) or b"").decode(errors="replace")
        self._use_secret()
        self._known = read_known(catalog)

    def _read_behind(self) -> int:
        if self._catalog.document(COPIED_IN_USE):
            self._damage = "the catalog was copied while it was in use, or after a crash, and may lack entries"
            log.error("%s: run rebuild", self._damage)
        raw = self._catalog.document(_BEHIND) or b"0"
        if raw.isdigit():
            return int(raw)
        self._damage = "the catalog's note of what only the volumes know is damaged"
        log.error("%s: run rebuild", self._damage)
        return 0

    def _use_secret(self) -> None:
        raw = self._catalog.document(_SECRET)
        try:
            if raw is not None:
                self._authority.use(decode_secret(raw))
        except FormatError as error:
            self._damage = str(error)
            log.error("%s: run rebuild", self._damage)

    # -- a catalog that is older than the volumes ------------------------------------------------

    @property
    def behind(self) -> bool:
        """Whether the volumes have, or may have, commits that the catalog does not know."""
        return bool(self._behind or self._damage)

    @property
    def unfinished(self) -> str:
        """What the latest rebuild could not examine, and what to do about it; empty if it was complete."""
        if not self._unexamined:
            return ""
        if self._volumes.remote:
            back = "start the workers that are away again, or give those up that are gone for good (forget)"
        else:
            back = "bring the volumes that are away back, or give those up that are gone for good (repair)"
        return f"the latest rebuild is not finished ({self._unexamined}): {back}, then run rebuild again"

    def check_current(self) -> None:
        """Check that the catalog is current, before an operation that could lose commits known only to the volumes.

        Raises:
            CatalogBehind: it is not.
        """
        if self._unexamined:
            raise CatalogBehind(f"{self.unfinished}. Until then files can be read, but nothing is written or freed")
        if self._damage:
            raise CatalogBehind(
                f"{self._damage}: run rebuild, which learns it from the volumes. Until then files can be read, but "
                "nothing is written or freed"
            )
        if self._behind:
            raise CatalogBehind(
                "the catalog is older than the volumes, as if it were restored from a backup: they hold commits up to "
                f"{self._behind}, the catalog ends at {self._catalog.counters().sequence}; what was stored since is "
                "not lost: run rebuild to take it in. Until then files can be read, but nothing is written or freed"
            )

    def _compare(self, slot: int | None, name: str, newest: Shard | None, owner: str = "") -> None:
        """Check whether a volume's newest record proves commits that the catalog does not know."""
        self._claims.pop(name, None)  # forget its former record: the volume may be another one
        if newest is None:
            return
        shown, vouched = self._read(newest)
        if shown is None:
            return
        if not vouched and self._volumes.remote:
            self._claims[name] = owner, shown
            agreed = self._agreed()
            if agreed is None:
                return
            shown = Shown(agreed, agreed)
        counters = self._catalog.counters()
        self.latest_shown = max(self.latest_shown, shown.sequence)
        # A version that a crash kept out of the catalog proves nothing; after a clean close there is none. The
        # catalog's own sequence may have been raised to that of such a version, so `reached` is compared.
        if shown.committed > counters.reached or (counters.closed and shown.sequence > counters.sequence):
            if slot is not None and name in self._asked:
                # Otherwise a single store could stop all writing again after each rebuild.
                self._volumes.note_lie(slot, b"", "shows a commit that it withheld when the catalog was rebuilt")
                return
            with self._lock:
                self._behind = max(self._behind, shown.sequence)
            log.error("the catalog is older than volume %s: it must be rebuilt", name)
            try:
                self._catalog.save_document(_BEHIND, b"%d" % self._behind)
            except StorageError as error:
                log.warning("could not note that the catalog is old; the next opening notices it again: %s", error)

    def _agreed(self) -> int | None:
        """Return the sequence number that the catalog has reached according to enough owners; None if too few agree."""
        quorum = self._profile.n - self._profile.k + 1  # one more than may lie at once
        by_voice: dict[Voice, int] = {}
        owners = {self._volumes.name(slot): self._volumes.owner(slot) for slot in self._volumes.slots}
        voice_of = voices(owners | {name: owner for name, (owner, _) in self._claims.items()}, quorum)
        for name, (_, shown) in self._claims.items():
            by_voice[voice_of[name]] = max(by_voice.get(voice_of[name], 0), shown.committed)
        agreeing = sorted(by_voice.values(), reverse=True)
        return agreeing[quorum - 1] if len(agreeing) >= quorum else None

    def _read(self, shard: Shard) -> tuple[Shown | None, bool]:
        """Return what a version or tombstone proves, and whether it has the store's MAC."""
        raw, identifier = bytes(shard.payload), object_id_of(shard.key)
        try:
            if kind_of(shard.key) == Kind.VERSION:
                found = checked_outline(raw, identifier)
                return Shown(found.sequence, found.committed), is_signed(found, self._authority)
            if kind_of(shard.key) == Kind.TOMBSTONE and object_id(raw) == identifier:
                tombstone = decode_tombstone(raw)
                # A tombstone is written after the catalog has committed it.
                shown = Shown(tombstone.sequence, tombstone.sequence)
                return shown, is_signed_tombstone(raw, tombstone, self._authority)
        except FormatError:
            pass  # rot or a lie: proves nothing
        return None, False

    # -- volumes that are older than the catalog -------------------------------------------------

    def meet(self, slot: int | None, volume: ShardStore, name: str, owner: str = "") -> bool:
        """Compare a volume that was opened or has joined with the catalog.

        Args:
            slot: slot of the volume; None for a volume never seen before.
            volume: the volume.
            name: name of the volume.
            owner: owner of the volume.

        Returns:
            Whether it is an old copy, which lacks shards that the catalog knows to be on it.

        Raises:
            StorageError: the volume did not answer.
        """
        newest = volume.newest()
        self._compare(slot, name, newest, owner)
        expected = self._expected(slot) if slot is not None else []
        return bool(expected and volume.missing(expected))

    def meet_all(self) -> None:
        """Compare all online volumes with the catalog. Old copies wait for repair from now on."""
        for slot, _ in self._volumes.online():
            self.meet_again(slot)

    def meet_again(self, slot: int) -> None:
        """Like :meth:`meet_all`, for one volume that has just been opened."""
        volume = self._volumes.volume(slot)
        if volume is None:
            return
        with self._volumes.guard(slot, volume):
            name, owner = self._volumes.name(slot), self._volumes.owner(slot)
            if self.meet(slot, volume, name, owner) and slot not in self._volumes.incomplete:
                self._volumes.incomplete.add(slot)
                what = "lacks what the catalog expects" if self.behind else "is an older copy of itself"
                then = "rebuild, then repair" if self.behind else "repair to make it whole"
                text = f"volume {self._volumes.name(slot)} {what}; run {then}"
                log.warning("%s", text)
                self._volumes.report("stale", b"", slot, text)

    def _expected(self, slot: int) -> list[ShardKey]:
        """Return shards that a volume must have."""
        known = self._known.get(slot, KnownVolume(b""))
        witnesses = [ShardKey(known.mark), self._volumes.witnesses.get(slot, ShardKey(known.witness))]
        latest = self._latest_on(slot)
        if latest is not None:
            witnesses.append(latest)
        return [key for key in witnesses if key and self._belongs(slot, key)]

    def _belongs(self, slot: int, key: ShardKey) -> bool:
        """Whether a shard belongs on this volume, as the layout may have changed."""
        if kind_of(key) == Kind.MARK:
            return True
        try:
            return self._volumes.holders(stripe_of(key))[slot_of(key)] == slot
        except InsufficientWorkers:
            return False  # there is no layout yet

    def renew_witnessed(self) -> None:
        """At the begin of a collect, which may remove known versions, give new marks to the volumes that have them.

        A collect removes nothing from absent volumes, so what is known of them stays valid.
        """
        slots = set(self._volumes.witnesses) | {slot for slot, known in self._known.items() if known.witness}
        there = {slot for slot in slots if self._volumes.volume(slot) is not None}
        for slot in there:
            self._volumes.witnesses.pop(slot, None)
        if there:
            self.plant(there, anew=True)

    def _latest_on(self, slot: int) -> ShardKey | None:
        """Return this volume's shard of the version committed last, unless a collect may have removed it."""
        latest = self._catalog.counters().latest
        file_id, version_id = latest[:FILE_ID_BYTES], latest[FILE_ID_BYTES:]
        if self._volumes.stand_ins or not latest or self._catalog.file(file_id) is None:
            return None
        if self._catalog.tombstone(version_key(file_id, version_id)) is not None:
            return None
        stripe = metadata_stripe(Kind.VERSION, version_id, self._profile.n)
        holders = self._volumes.holders(stripe)
        return shard_key(stripe, holders.index(slot)) if slot in holders else None

    # -- marks -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before a commit, check that the catalog is current. Before the first one, also put marks on the volumes.

        Raises:
            CatalogBehind: the catalog is not current.
        """
        self.check_current()
        if self._begun:
            return
        self._ensure_secret()
        self.plant(slot for slot, _ in self._volumes.online())
        if self._catalog.counters().closed:
            self._catalog.transact(_reopen)
        self._begun = True

    def _ensure_secret(self) -> None:
        with self._lock:
            if self._authority.secret is None:
                threshold = sharing_threshold(self._profile.k, self._profile.n, remote=self._volumes.remote)
                secret = new_secret(threshold, self._runtime.token_bytes)
                self._catalog.save_document(_SECRET, secret.encoded())
                self._authority.use(secret)

    def plant(self, slots: Iterable[int], *, anew: bool = False) -> None:
        """Put marks on volumes that have none. Several threads may do so at the same time.

        Args:
            slots: slots of the volumes.
            anew: whether to replace existing marks, as after a repair.
        """
        self._ensure_secret()
        marks = {
            slot: self._new_mark(slot)
            for slot in slots
            if self._volumes.volume(slot) is not None and (anew or slot not in self._known)
        }
        with self._lock:
            self._planting.update(mark.key for mark in marks.values())
        try:
            self._plant({slot: mark for slot, mark in marks.items() if self._put(slot, mark)}, anew=anew)
        finally:
            with self._lock:
                self._planting.difference_update(mark.key for mark in marks.values())

    def _plant(self, marks: Mapping[int, Shard], *, anew: bool) -> None:
        if marks:
            with self._lock:
                for slot, mark in marks.items():
                    self._known[slot] = KnownVolume(mark.key)
                    self._volumes.witnesses.pop(slot, None)
                save_known(self._catalog, self._known)
        if anew:
            self._remove_former(marks)

    def _put(self, slot: int, mark: Shard) -> bool:
        """Write a mark durably to a volume; return False if the volume cannot take it now."""
        volume = self._volumes.volume(slot)
        if volume is None:
            return False
        taken = False
        with self._volumes.guard(slot, volume):
            try:
                volume.append([mark], urgent=True)
                volume.sync()
                taken = True
            except (StoreFull, VolumeUnavailable) as error:
                log.warning("volume %s could not be given a mark yet: %s", self._volumes.name(slot), error)
                self._volumes.note_write_refused(slot, error)  # the sync may also have failed for shards of a push
        return taken and self._volumes.volume(slot) is volume

    def _remove_former(self, slots: Iterable[int]) -> None:
        for slot in slots:
            volume = self._volumes.volume(slot)
            if volume is not None and self._volumes.trusts(slot):  # a liar could list marks for ever
                with self._volumes.guard(slot, volume):
                    found = [*islice(volume.keys(*_MARK_IDS), _MARKS_READ_MAX)]
                    with self._lock:
                        kept = {self._known.get(slot, KnownVolume(b"")).mark, *self._planting}
                    volume.remove([key for key in found if kind_of(key) == Kind.MARK and key not in kept])

    def restore_marks(self) -> None:
        """Put new marks on volumes that have lost theirs by rot."""
        lacking: list[int] = []
        for slot, volume in self._volumes.online():
            known = self._known.get(slot)
            if known is not None and self._volumes.trusts(slot):
                with self._volumes.guard(slot, volume):
                    lacking += [slot] if volume.missing([ShardKey(known.mark)]) else []
        self.plant(lacking, anew=True)

    def _new_mark(self, slot: int) -> Shard:
        secret = self._authority.secret
        assert secret is not None
        nonce = self._runtime.token_bytes(NONCE_BYTES)
        raw = encode_mark(new_mark(slot, secret, nonce))
        key = shard_key(metadata_stripe(Kind.MARK, _MARK_PREFIX + nonce, 1), 0)
        return Shard(key, len(raw), blake3(raw).digest(), raw)

    # -- rebuild ---------------------------------------------------------------------------------

    def recover(self) -> None:
        """For a rebuild, recover the store's secret from the shares on the volumes, unless the catalog has it."""
        if self._authority.secret is not None:
            return
        marks = [(slot, mark) for slot, volume in self._volumes.online() for mark in self._marks_on(slot, volume)]
        threshold_min = sharing_threshold(self._profile.k, self._profile.n, remote=self._volumes.remote)
        owners = {slot: self._volumes.owner(slot) for slot, _ in self._volumes.online()}
        secret = recover_secret(marks, threshold_min=threshold_min, voice_of=voices(owners, threshold_min))
        if secret is not None:
            self._catalog.save_document(_SECRET, secret.encoded())
            self._authority.use(secret)

    def _marks_on(self, slot: int, volume: ShardStore) -> list[Mark]:
        found: list[Mark] = []
        with self._volumes.guard(slot, volume):
            for key in islice(volume.keys(*_MARK_IDS), _MARKS_READ_MAX):
                try:
                    shard = volume.read(key) if kind_of(key) == Kind.MARK else None
                    if shard is not None:
                        found.append(decode_mark(bytes(shard.payload)))
                except (CorruptShard, FormatError) as error:
                    log.warning("a mark on volume %s is ignored: %s", self._volumes.name(slot), error)
        return found

    def left_unfinished(self, undecided: Sequence[str]) -> None:
        """Note that a rebuild could not examine everything, so that volumes may have commits unknown to the catalog."""
        more = len(undecided) - _UNDECIDED_NAMED
        text = "; ".join(undecided[:_UNDECIDED_NAMED]) + (f"; {more:,} more" if more > 0 else "")
        with self._lock:
            self._behind = max(self._behind, self._catalog.counters().sequence, 1)
            self._unexamined = text
        self._catalog.save_documents({_BEHIND: b"%d" % self._behind, _UNFINISHED: text.encode()})

    def rebuilt(self) -> None:
        """Note that the catalog was rebuilt from the volumes, and knows everything that they know."""
        with self._lock:
            self._behind, self._damage, self._unexamined = 0, "", ""
            self._claims.clear()
            self._known = {}
            if self._volumes.remote:
                self._asked = frozenset(self._volumes.name(slot) for slot, _ in self._volumes.online())
        self._catalog.save_documents({_BEHIND: b"", _UNFINISHED: b"", COPIED_IN_USE: b""})
        self.plant([slot for slot, _ in self._volumes.online()], anew=True)

    # -- the end ---------------------------------------------------------------------------------

    def end(self, sequence: int) -> None:
        """Note in the catalog that the store is closed in good order.

        Args:
            sequence: the sequence number given last.
        """
        if not self._begun or self.behind:
            return

        def work(txn: CatalogTransaction) -> None:
            counters = txn.counters()
            closed = msgspec.structs.replace(counters, sequence=max(counters.sequence, sequence), closed=True)
            txn.set_counters(closed)

        try:
            with self._lock:
                witnesses = self._volumes.witnesses
                self._known |= {
                    slot: KnownVolume(known.mark, witnesses.get(slot, known.witness))
                    for slot, known in self._known.items()
                }
                if witnesses:
                    save_known(self._catalog, self._known)
            self._catalog.transact(work)
        except StorageError as error:
            log.warning("could not note that the store was closed in good order: %s", error)


def _reopen(txn: CatalogTransaction) -> None:
    txn.set_counters(msgspec.structs.replace(txn.counters(), closed=False))
