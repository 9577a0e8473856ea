"""Stripes: objects to shards on volumes, and back, whatever k volumes are left.

Chunks are coded (k, n) as their file's profile says. Metadata (manifest nodes, versions,
tombstones) is coded (1, n), which zfec makes plain copies, so that any one volume tells all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from storage.erasure import ErasureProfile
from storage.fleet.fleet import Fleet
from storage.keys import Kind, StripeKey, stripe_key
from storage.limits import BytesLike
from storage.runtime import Runtime
from storage.shards import Shard
from storage.stripes.checked_reads import CheckedReader
from storage.stripes.encoding import Encoder
from storage.stripes.fast_reads import FastReads
from storage.stripes.healing import StripeHealer, Written
from storage.stripes.hedged_reads import HedgedReads
from storage.stripes.known_content import KnownContent
from storage.stripes.local_reads import LocalReads
from storage.stripes.lookup import Absent, ShardLookup
from storage.stripes.making import Making
from storage.stripes.quarantine import HealRequests, Quarantine
from storage.stripes.reading import StripeReader
from storage.stripes.recovery import Recovery, Unread
from storage.stripes.shard_map import ShardMap, ShardMapper
from storage.stripes.soundness import Soundness
from storage.stripes.writing import StripeWriter

_ASKERS = 16  # threads that ask stores where shards are


class StripeStore:
    """Writes and reads whole objects over a :class:`~storage.fleet.fleet.Fleet`. Thread-safe.

    Attributes:
        volumes: the shard stores.
        shard_mapper: looks for shards of many stripes.
        heal_requests: what reads call to have stripes healed.
    """

    def __init__(self, volumes: Fleet[Any], runtime: Runtime) -> None:
        self.volumes = volumes
        self.heal_requests = HealRequests()
        self._making = Making()
        self._encoder = Encoder()
        self._soundness = Soundness(remembers_reads=volumes.remote)
        self._askers = runtime.executor(_ASKERS, "locate") if volumes.remote else None
        self.shard_mapper = ShardMapper(volumes, self._askers)
        self._lookup = ShardLookup(volumes, self._soundness, self.shard_mapper)
        self._checked = CheckedReader(volumes, self._lookup, self.shard_mapper)
        self._quarantine = Quarantine(volumes, self._soundness, self.heal_requests)
        self._recovery = Recovery(
            volumes, self._checked, self.shard_mapper, self._encoder, self._quarantine, self._soundness
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
        """From now on, what cannot be read is said to be closed, not lost."""
        self._recovery.close()
        self._fast.close()
        if self._askers is not None:
            self._askers.shutdown()

    # -- looking -----------------------------------------------------------------------------------

    def absent_slots(self, stripe: StripeKey) -> list[int]:
        """Slots whose shard is not known to be where it should be put now; with none, the stripe is whole.

        A stripe that could not be read counts as having none until it is written anew.
        """
        return self._lookup.look_for(stripe).slots

    def look_for(self, stripe: StripeKey) -> Absent:
        """:meth:`absent_slots`, and the stores to put them on."""
        return self._lookup.look_for(stripe)

    def absent(self, stripes: Sequence[StripeKey]) -> list[list[int]]:
        """:meth:`absent_slots` of many stripes, asking each store once."""
        return self._lookup.absent(stripes)

    def shard_maps(self, stripes: Sequence[StripeKey]) -> list[ShardMap]:
        """Where the shards of many stripes are, in their places and elsewhere."""
        return self._lookup.shard_maps(stripes)

    def is_new(self, stripe: StripeKey) -> bool:
        """Whether nothing of a stripe is stored, as far as a quick look tells; see :class:`ShardLookup`."""
        return self._lookup.is_new(stripe)

    def object_length(self, stripe: StripeKey) -> int | None:
        """Length of a stored object as its shards' headers tell it, None if no shard can be had."""
        return self._lookup.object_length(stripe)

    # -- writing -----------------------------------------------------------------------------------

    def shards_of(
        self, stripe: StripeKey, data: BytesLike, length: int, *, slots: Collection[int] | None = None
    ) -> list[Shard]:
        """Shards of an object; data shards are views of ``data``.

        Args:
            stripe: its key.
            data: its bytes, zero-padded to a multiple of k where it is longer than ``length``.
            length: its length in bytes.
            slots: those wanted; default all.
        """
        return self._encoder.shards_of(stripe, data, length, slots=slots)

    def by_volume(
        self, stripe: StripeKey, shards: Iterable[Shard], targets: Sequence[int] | None = None
    ) -> dict[int, list[Shard]]:
        """Shards of one stripe grouped by the volume slot to put them on; ``targets`` as in :meth:`put`."""
        return self._writer.by_volume(stripe, shards, targets)

    def put(
        self,
        stripe: StripeKey,
        data: BytesLike,
        length: int,
        slots: Collection[int] | None = None,
        targets: Sequence[int] | None = None,
    ) -> list[Shard]:
        """Append shards of an object to their volumes; not yet durable.

        Args:
            stripe: its key.
            data: its bytes, zero-padded to a multiple of k where it is longer than ``length``.
            length: its length in bytes.
            slots: the shards to append; default all.
            targets: the volume for each shard of the stripe, as :meth:`look_for` told; default where they go now.

        Returns:
            The shards that were taken; this thread's next call overwrites their payloads.
        """
        return self._writer.put(stripe, data, length, slots, targets)

    def put_absent(self, stripe: StripeKey, data: BytesLike, length: int) -> None:
        """:meth:`put` the shards that are still absent once no other thread completes the stripe."""
        self._writer.put_absent(stripe, data, length)

    def note_appended(self, batches: dict[int, list[Shard]], since: tuple[int, ...]) -> None:
        """Count stripes of which all shards were appended as readable again.

        Args:
            batches: the shards, by store.
            since: the stores' epoch before: a store that failed since then may lack its shards.
        """
        self._writer.note_appended(batches, since)

    def was_put_lately(self, stripe: StripeKey) -> bool:
        """Whether :meth:`put` had this stripe among the last few thousand; remembered for remote stores only."""
        return self._writer.was_put_lately(stripe)

    # -- content that is stored already ------------------------------------------------------------

    def is_sound(self, stripe: StripeKey, length: int) -> bool:
        """Whether a stripe whose shards are all said to be there can be counted on without writing it anew."""
        return self._known_content.is_sound(stripe, length)

    def unsound_slots(self, stripe: StripeKey, shards: Sequence[Shard]) -> list[int]:
        """The slots to write anew of a stripe that is not sound; ``shards`` are all of its shards as they should be."""
        return self._known_content.unsound_slots(stripe, shards)

    def put_unsound(self, stripe: StripeKey, data: BytesLike, length: int) -> None:
        """:meth:`put` the :meth:`unsound_slots`, once no other thread completes the stripe."""
        self._known_content.put_unsound(stripe, data, length)

    # -- reading -----------------------------------------------------------------------------------

    def read_into(self, stripe: StripeKey, target: memoryview) -> None:
        """Fill ``target`` (exactly the object's length) with the verified object.

        The healthy path reads the k data shards straight into their places and hashes once.

        Raises:
            DataLossError: fewer than k intact shards are left.
            ShardsUnavailable: too many shards are out of reach for now.
        """
        self._reader.read_into(stripe, target)

    def read_all(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> None:
        """:meth:`read_into` of several objects; stores that cost a round trip are asked for all their shards at once.

        Raises:
            DataLossError: fewer than k intact shards of one of them are left.
            ShardsUnavailable: too many shards of one of them are out of reach for now.
        """
        self._reader.read_all(reads)

    def together(self, object_bytes: int) -> int:
        """How many objects of this size :meth:`read_all` should best be given at a time."""
        return self._fast.together(object_bytes)

    def read(self, stripe: StripeKey) -> bytes:
        """The verified object, its length taken from its shards.

        Raises:
            DataLossError: fewer than k intact shards are left.
            ShardsUnavailable: too many shards are out of reach for now.
        """
        return bytes(self._recovery.recover(stripe, expect=None))

    # -- healing -----------------------------------------------------------------------------------

    def due(self, stripe: StripeKey, where: ShardMap) -> list[int]:
        """The absent slots whose shards are to be made now: those of stores that are expected back can wait."""
        return self._healer.due(stripe, where)

    def heal_all(
        self,
        stripes: Sequence[StripeKey],
        known: Sequence[ShardMap] | None = None,
        note: Callable[[Written], None] | None = None,
        *,
        at_once: bool = False,
    ) -> list[tuple[int, int] | Unread]:
        """Make the absent shards of several stripes again, which are read together.

        Args:
            stripes: to be made whole.
            known: their :meth:`shard_maps` a short while ago, under the same epoch. They are looked up otherwise, and
                where some of the stripes were made whole lately.
            note: told of each shard that was appended.
            at_once: wait for no store that is expected back, see :meth:`due`.

        Returns:
            For each stripe, (shards, bytes) appended, not yet durable, or why it cannot be read.
        """
        return self._healer.heal_all(stripes, known, note, at_once=at_once)

    @property
    def mended_together(self) -> int:
        """How many stripes :meth:`heal_all` should best be given at a time."""
        return self._fast.healed_together


def metadata_stripe(kind: Kind, object_id: bytes, copies: int) -> StripeKey:
    """Key of a metadata object, kept in ``copies`` copies."""
    return stripe_key(kind, object_id, 1, copies)


def chunk_stripe(chunk_id: bytes, profile: ErasureProfile) -> StripeKey:
    """Stripe key of a chunk under a profile."""
    return stripe_key(Kind.CHUNK, chunk_id, profile.k, profile.n)
