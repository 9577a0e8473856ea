"""Storing objects as stripes of shards on volumes, and reading them from any k volumes.

Chunks are coded (k, n) by their file's profile. Metadata (manifest nodes, versions, tombstones) is coded (1, n), which
means plain copies, so that any single volume has all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from storage.erasure import ErasureProfile
from storage.fleet.fleet import Fleet
from storage.keys import Kind, StripeKey, slot_of, stripe_key, stripe_of
from storage.limits import BytesLike
from storage.runtime import Runtime
from storage.shards import Location, Shard
from storage.stripes.checked_reads import CheckedReader
from storage.stripes.delegation import Written
from storage.stripes.encoding import Encoder
from storage.stripes.fast_reads import FastReads
from storage.stripes.healing import StripeHealer
from storage.stripes.hedged_reads import HedgedReads
from storage.stripes.hot_objects import HotObjects
from storage.stripes.known_content import KnownContent
from storage.stripes.local_reads import LocalReads
from storage.stripes.lookup import Absent, ShardLookup
from storage.stripes.making import Making
from storage.stripes.origins import Origins, WrittenByStore, WrittenWrongLog
from storage.stripes.pushed_objects import PushedObjects
from storage.stripes.quarantine import HealRequests, Quarantine
from storage.stripes.reading import StripeReader
from storage.stripes.recovery import Recovery, Unread
from storage.stripes.shard_map import ShardMap, ShardMapper
from storage.stripes.soundness import Soundness
from storage.stripes.writing import StripeWriter

_ASKERS = 16  # threads for looking up shards in stores


class StripeStore:
    """Writes and reads whole objects on a :class:`~storage.fleet.fleet.Fleet`. Thread-safe.

    Attributes:
        volumes: the shard stores.
        shard_mapper: looks up shards of many stripes.
        heal_requests: called by reads to request healing.
        hot: small objects that users read lately.
        pushed: small objects of files that were pushed just now.
        origins: knows what clients wrote.
    """

    def __init__(
        self,
        volumes: Fleet[Any],
        runtime: Runtime,
        *,
        hot_bytes: int = 0,
        pushed_bytes: int = 0,
        origins: Origins | None = None,
    ) -> None:
        self.origins = origins or WrittenByStore()
        told = WrittenWrongLog(runtime.monotonic_s)
        self.volumes = volumes
        self.hot = HotObjects(hot_bytes)
        self.pushed = PushedObjects(pushed_bytes)
        self.heal_requests = HealRequests()
        self._making = Making()
        self._encoder = Encoder()
        self._soundness = Soundness(remembers_reads=volumes.remote)
        self._askers = runtime.executor(_ASKERS, "locate") if volumes.remote else None
        self.shard_mapper = ShardMapper(volumes, self._askers)
        self._lookup = ShardLookup(volumes, self._soundness, self.shard_mapper)
        self._checked = CheckedReader(volumes, self._lookup, self.shard_mapper)
        self._quarantine = Quarantine(volumes, self._soundness, self.heal_requests, told)
        self._recovery = Recovery(
            volumes,
            self._checked,
            self.shard_mapper,
            self._encoder,
            self._quarantine,
            self._soundness,
            self.origins,
            told,
        )
        self._fast: FastReads = (
            HedgedReads(volumes, self._soundness, self.heal_requests, runtime)
            if volumes.remote
            else LocalReads(volumes, self._lookup, self._checked, self._quarantine, self._recovery, self.heal_requests)
        )
        self._reader = StripeReader(self._fast, self._recovery, self._soundness)
        self._writer = StripeWriter(volumes, self._encoder, self._lookup, self._making, self._soundness)
        self._known_content = KnownContent(
            volumes,
            self._lookup,
            self._reader,
            self._checked,
            self._encoder,
            self._writer,
            self._making,
            self._soundness,
        )
        self._healer = StripeHealer(volumes, self._lookup, self._fast, self._recovery, self._writer, self._making)

    def close(self) -> None:
        """End threads. From now on, failed reads raise that the store was closed, not that data is lost."""
        self._recovery.close()
        self._fast.close()
        if self._askers is not None:
            self._askers.shutdown()

    # -- looking -----------------------------------------------------------------------------------

    def absent_slots(self, stripe: StripeKey) -> list[int]:
        """Return the slots whose shard is not known to be in its place. Without any, the stripe is complete.

        A stripe that could not be read counts as having no shards until it is written again.
        """
        return self._lookup.look_for(stripe).slots

    def look_for(self, stripe: StripeKey) -> Absent:
        """Like :meth:`absent_slots`, with the target stores; see :meth:`ShardLookup.look_for`."""
        return self._lookup.look_for(stripe)

    def absent(self, stripes: Sequence[StripeKey]) -> list[list[int]]:
        """Return the :meth:`absent_slots` of many stripes, asking each store only once."""
        return self._lookup.absent(stripes)

    def shard_maps(self, stripes: Sequence[StripeKey]) -> list[ShardMap]:
        """Return where the shards of many stripes are, in their places and elsewhere."""
        return self._lookup.shard_maps(stripes)

    def whereabouts(self, stripes: Sequence[StripeKey]) -> list[tuple[int | None, ...]]:
        """Return the store that has each shard of stripes that somebody is going to read by other means.

        See :meth:`ShardLookup.whereabouts`. Shards that no store has are made again, as if the stripes were read here.
        """
        found = self._lookup.whereabouts(stripes)
        for stripe, holders in zip(stripes, found, strict=True):
            if None in holders:
                targets = self.volumes.targets(stripe)
                lacking = [store for store, holder in zip(targets, holders, strict=True) if holder is None]
                if any(self.volumes.volume(store) is not None for store in lacking):
                    self.heal_requests.missing(stripe)
        return found

    def is_new(self, stripe: StripeKey) -> bool:
        """Whether a stripe is not stored, by a quick check; see :meth:`ShardLookup.is_new`."""
        return self._lookup.is_new(stripe)

    def object_length(self, stripe: StripeKey) -> int | None:
        """Return the length of a stored object according to a shard's header; None if no shard is found."""
        return self._lookup.object_length(stripe)

    # -- writing -----------------------------------------------------------------------------------

    def shards_of(
        self, stripe: StripeKey, data: BytesLike, length: int, *, slots: Collection[int] | None = None
    ) -> list[Shard]:
        """Make the shards of an object. Data shards are views of ``data``.

        Args:
            stripe: stripe key of the object.
            data: bytes of the object, zero-padded to a multiple of k if longer than ``length``.
            length: length of the object in bytes.
            slots: slots of the wanted shards; default all.
        """
        return self._encoder.shards_of(stripe, data, length, slots=slots)

    def by_volume(
        self, stripe: StripeKey, shards: Iterable[Shard], targets: Sequence[int] | None = None
    ) -> dict[int, list[Shard]]:
        """Group shards of one stripe by the slot of their target volume; ``targets`` as in :meth:`put`."""
        return self._writer.by_volume(stripe, shards, targets)

    def put(
        self,
        stripe: StripeKey,
        data: BytesLike,
        length: int,
        slots: Collection[int] | None = None,
        targets: Sequence[int] | None = None,
    ) -> list[Shard]:
        """Append shards of an object to their volumes. They are not durable yet.

        Args:
            stripe: stripe key of the object.
            data: bytes of the object, zero-padded to a multiple of k if longer than ``length``.
            length: length of the object in bytes.
            slots: slots of the shards to append; default all.
            targets: target volume of each shard of the stripe, from :meth:`look_for`; default the current targets.

        Returns:
            The shards that volumes accepted. This thread's next call overwrites their payloads.
        """
        return self._writer.put(stripe, data, length, slots, targets)

    def put_absent(self, stripe: StripeKey, data: BytesLike, length: int) -> None:
        """Append the shards that are still absent, once no other thread is completing the stripe."""
        self._writer.put_absent(stripe, data, length)

    def note_appended(self, batches: dict[int, list[Shard]], since: tuple[int, ...]) -> None:
        """Note that stripes of which all shards were appended are readable again.

        Args:
            batches: the appended shards, by store.
            since: epoch of the fleet before; a store that failed since then may lack its shards.
        """
        self._writer.note_appended(batches, since)

    def was_put_lately(self, stripe: StripeKey) -> bool:
        """Whether this stripe is among the last few thousand of :meth:`put`; only known for remote stores."""
        return self._writer.was_put_lately(stripe)

    # -- content that is stored already ------------------------------------------------------------

    def is_sound(self, stripe: StripeKey, length: int) -> bool:
        """Whether a stripe whose shards all seem to be stored can be reused without writing it again."""
        return self._known_content.is_sound(stripe, length)

    def unsound_slots(self, stripe: StripeKey, shards: Sequence[Shard]) -> list[int]:
        """Return the slots of an unsound stripe to write again; see :meth:`KnownContent.unsound_slots`."""
        return self._known_content.unsound_slots(stripe, shards)

    def put_unsound(self, stripe: StripeKey, data: BytesLike, length: int) -> None:
        """Write the :meth:`unsound_slots` of a stripe again, once no other thread is completing it."""
        self._known_content.put_unsound(stripe, data, length)

    # -- reading -----------------------------------------------------------------------------------

    def read_into(self, stripe: StripeKey, target: memoryview) -> None:
        """Fill ``target`` (exactly the object's length) with the verified object.

        For a healthy stripe, the k data shards are read straight into ``target``, which is hashed once.

        Raises:
            DataLossError: fewer than k intact shards are left.
            ShardsUnavailable: too many shards are out of reach for now.
        """
        self._reader.read_into(stripe, target)

    def read_unverified(self, stripe: StripeKey, target: memoryview) -> bool:
        """Fill ``target`` (exactly the object's length) with what stores return; whether enough shards could be read.

        The caller verifies it by other means than the hash. If it is wrong, :meth:`read_into` finds out why.
        """
        return self._fast.read(stripe, target)

    def read_all(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> None:
        """Like :meth:`read_into` for several objects. Remote stores are asked for all their shards at once.

        Those that are :attr:`hot` or :attr:`pushed` are not read from stores.

        Raises:
            DataLossError: fewer than k intact shards of one of them are left.
            ShardsUnavailable: too many shards of one of them are out of reach for now.
        """
        left = self.hot.fill(self.pushed.fill(reads))
        if left:
            self._reader.read_all(left)
            self.hot.keep(left)

    def forget(self, stripes: Iterable[StripeKey]) -> None:
        """Keep none of these objects in memory: they are being removed from the stores."""
        gone = list(stripes)
        self.hot.forget(gone)
        self.pushed.forget(gone)

    def together(self, object_bytes: int) -> int:
        """Return how many objects of this size to pass to :meth:`read_all` at a time."""
        return self._fast.together(object_bytes)

    def read(self, stripe: StripeKey) -> bytes:
        """Return the verified object, with the length from its shards.

        Raises:
            DataLossError: fewer than k intact shards are left.
            ShardsUnavailable: too many shards are out of reach for now.
        """
        return bytes(self._recovery.recover(stripe, expect=None))

    # -- healing -----------------------------------------------------------------------------------

    def set_aside(self, shard: Shard, store: int, place: Location | None) -> None:
        """Set a wrong shard aside for which its store is not to blame, and request that it is made again.

        Args:
            shard: the shard.
            store: slot of the store.
            place: where it is in the store.
        """
        slot, why = slot_of(shard.key), "content differs from what the stripe decodes to"
        self._quarantine.set_aside(stripe_of(shard.key), {slot: (store, place)}, why, wrong=True, is_blamed=False)

    def due(self, stripe: StripeKey, where: ShardMap) -> list[int]:
        """Return the absent slots whose shards have to be made now; see :meth:`StripeHealer.due`."""
        return self._healer.due(stripe, where)

    def heal_all(
        self,
        stripes: Sequence[StripeKey],
        known: Sequence[ShardMap] | None = None,
        note: Callable[[Written], None] | None = None,
        *,
        at_once: bool = False,
    ) -> list[tuple[int, int] | Unread]:
        """Make the absent shards of several stripes again; see :meth:`StripeHealer.heal_all`.

        Args:
            stripes: the stripes.
            known: their :meth:`shard_maps` of a short while ago, in the same epoch. If None, or if some of the stripes
                were completed recently, the shards are looked up.
            note: called with each appended shard.
            at_once: whether to make all absent shards, without waiting for stores; see :meth:`due`.

        Returns:
            For each stripe, the number of appended shards and bytes, which are not durable yet, or why it cannot be
            read.
        """
        return self._healer.heal_all(stripes, known, note, at_once=at_once)

    @property
    def mended_together(self) -> int:
        """How many stripes to pass to :meth:`heal_all` at a time."""
        return self._healer.together


def metadata_stripe(kind: Kind, object_id: bytes, copies: int) -> StripeKey:
    """Return the stripe key of a metadata object that is kept in ``copies`` copies."""
    return stripe_key(kind, object_id, 1, copies)


def chunk_stripe(chunk_id: bytes, profile: ErasureProfile) -> StripeKey:
    """Return the stripe key of a chunk with a profile."""
    return stripe_key(Kind.CHUNK, chunk_id, profile.k, profile.n)
