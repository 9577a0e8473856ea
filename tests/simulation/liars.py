"""Workers that lie: a volume whose answers may be false but are well-formed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from blake3 import blake3

from storage.errors import FormatError, KeyRequired, StoreFull
from storage.formats.authenticity import Authority, new_secret
from storage.formats.manifest import ROOT_FORMAT, TRANSFORM_IDENTITY, RootNode, encode_root, object_id
from storage.formats.tombstones import Tombstone, encode_tombstone, sign_tombstone
from storage.formats.version_records import NO_MAC, RECORD_FORMAT, SIGNED_FORMAT, SignedRecord, VersionRecord
from storage.formats.versions import outline, read_version, seal, seal_signed
from storage.keys import ID_BYTES, STRIPE_KEY_BYTES, Kind, ShardKey, shard_key
from storage.limits import CHUNK_SIZE_MIN
from storage.shards import CorruptShard, Location, Shard, VolumeUsage
from storage.shards.port import Verdict
from storage.stripes.stripes import metadata_stripe
from taskworker.transport.frames import OBJECT_BYTES_MAX
from tests.simulation.disk import MemoryVerification, MemoryVolume

_HUGE = 1 << 62
_SEGMENTS = 1000
_SEGMENTS_MAX = (1 << 32) - 1
_LATE = 1 << 60


class LyingVolume(MemoryVolume):
    """Answers for another volume, sharing its state, and lies half of the time.

    Args:
        truth: the volume for which it answers.
        rng: determines its answers.
    """

    __slots__ = ("_rng",)

    def __init__(self, truth: MemoryVolume, rng: Random) -> None:
        self.__dict__ = truth.__dict__
        self._rng = rng

    def _lies(self) -> bool:
        return self._rng.random() < 0.5

    # -- writing ---------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        kept = [shard for shard in shards if not self._lies()]
        if len(kept) < len(shards) and self._rng.random() < 0.05:
            raise StoreFull("a lie")
        super().append([self._forged(shard) if self._rng.random() < 0.2 else shard for shard in kept], urgent=urgent)

    def _forged(self, shard: Shard) -> Shard:
        payload = bytearray(shard.payload)
        if payload:
            payload[self._rng.randrange(len(payload))] ^= 1 << self._rng.randrange(8)
        length = self._rng.choice((shard.object_length, shard.object_length + 1))
        return Shard(shard.key, length, blake3(payload).digest(), bytes(payload))

    def sync(self) -> None:
        if not self._lies():
            super().sync()

    # -- what is there ---------------------------------------------------------------------------

    def locate(self, key: ShardKey) -> Location | None:
        if not self._lies():
            return super().locate(key)
        length = self._rng.choice((0, 1, 100, 16384, 65536, OBJECT_BYTES_MAX))
        lie = Location(self._rng.randrange(_SEGMENTS), self._rng.randrange(1 << 20), length, length)
        return self._rng.choice((None, lie))

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        if not self._lies():
            return super().missing(keys)
        return self._rng.choice(([], list(range(len(keys))), [at for at in range(len(keys)) if self._lies()]))

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        true = list(super().keys(start, stop))
        if not self._lies():
            return iter(true)
        invented = [self._invented(key) for key in true for _ in range(2)]
        within = sorted(key for key in invented if key >= start and (stop is None or key < stop))
        return iter(self._rng.choice(([], true[::2], within)))

    def _invented(self, key: ShardKey) -> ShardKey:
        return ShardKey(self._rng.randbytes(ID_BYTES) + key[ID_BYTES:])

    # -- reading ---------------------------------------------------------------------------------

    def fetch(self, key: ShardKey, length: int) -> memoryview | None:
        true = super().fetch(key, length)
        if not self._lies():
            return true
        told = self._rng.choice((None, memoryview(bytes(length)), memoryview(self._rng.randbytes(length))))
        if told is not None:
            self.made_up.add((key, blake3(told).digest()))
        return told

    def read(self, key: ShardKey) -> Shard | None:
        true = super().read(key)
        if not self._lies():
            return true
        if self._rng.random() < 0.2:
            raise CorruptShard("a lie")
        return None if true is None or self._lies() else self._forged(true)

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        true = [shard for page in super().records(kinds) for shard in page]
        told = [self._forged(shard) if self._lies() else shard for shard in true if not self._lies()]
        versions = [shard for shard in true if shard.key[ID_BYTES] == Kind.VERSION and self._lies()]
        made_up = [forgery for shard in versions for forgery in forgeries(shard)]
        return iter([told + [shard for shard in made_up if shard.key[ID_BYTES] in kinds]])

    def newest(self) -> Shard | None:
        true = super().newest()
        if true is None or true.key[ID_BYTES] != Kind.VERSION or not self._lies():
            return true
        return self._rng.choice([true, *forgeries(true)])

    # -- maintenance ----------------------------------------------------------------------------------

    def remove(self, keys: Iterable[ShardKey]) -> int:
        doomed = list(keys)
        return self._rng.randrange(len(doomed) + 1) if self._lies() else super().remove(doomed)

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        return self._rng.random() < 0.5 if self._lies() else super().discard(key, location)

    def verify(self, progress: Callable[[int], None]) -> MemoryVerification:
        return _LyingVerification(self, self._rng)

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        return _verdicts(len(keys), self._rng)

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        return self._rng.choice(((0, 0), (_SEGMENTS_MAX, _HUGE)))

    def usage(self) -> VolumeUsage:
        return VolumeUsage(*(self._rng.choice((0, 1, _HUGE)) for _ in range(5)))


class _LyingVerification(MemoryVerification):
    def __init__(self, volume: LyingVolume, rng: Random) -> None:
        super().__init__(volume)
        self._rng = rng

    def judge(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        return _verdicts(len(keys), self._rng)

    def quarantine_rest(self) -> Iterator[ShardKey]:
        rest = list(super().quarantine_rest())
        return iter([] if self._rng.random() < 0.5 else rest)


def forgeries(shard: Shard) -> list[Shard]:
    """Make records that would replace a version or delete its file.

    They have no MAC, or one with the liars' own secret. All liars make the same ones.
    """
    try:
        true = outline(bytes(shard.payload), shard.key[:ID_BYTES])
        root = read_version(bytes(shard.payload), shard.key[:ID_BYTES]).root
    except KeyRequired:
        root = RootNode(ROOT_FORMAT, 0, CHUNK_SIZE_MIN, 1, 1, TRANSFORM_IDENTITY, 0, b"")
    except FormatError:
        return []  # already a forgery
    known = true.record
    user, filename = ("ada", "a") if known is None else (known.user_id, known.filename)
    root_raw = encode_root(root)
    fields = (true.version_id, object_id(root_raw), root.size, user, filename, 0, _LATE, None, "forged")
    own = Authority()
    own.use(new_secret(1, Random(1).randbytes))
    versions = (
        seal(VersionRecord(RECORD_FORMAT, true.file_id, *fields), root, root_raw),
        seal_signed(SignedRecord(SIGNED_FORMAT, true.file_id, *fields, _LATE, NO_MAC), root, root_raw, own),
    )
    tombstones = (
        encode_tombstone(Tombstone(RECORD_FORMAT, true.file_id, _LATE)),
        sign_tombstone(true.file_id, _LATE, own),
    )
    objects = [(Kind.VERSION, stored.version_id, stored.raw) for stored in versions]
    objects += [(Kind.TOMBSTONE, object_id(raw), raw) for raw in tombstones]
    slot, n = shard.key[STRIPE_KEY_BYTES], shard.key[STRIPE_KEY_BYTES - 1] + 1
    return [
        Shard(shard_key(metadata_stripe(kind, identifier, n), slot), len(raw), blake3(raw).digest(), raw)
        for kind, identifier, raw in objects
    ]


def _verdicts(count: int, rng: Random) -> list[Verdict]:
    """Return random verdicts; mostly the same one for all, which is the worst case."""
    if rng.random() < 0.7:
        return [rng.choice(list(Verdict))] * count
    return rng.choices(list(Verdict), k=count)
