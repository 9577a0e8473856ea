"""Shared helpers of the storage tests: small stores, content made from seeds, and damage to volumes."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from storage import ErasureProfile, FileStorage, ManifestDiff, Patch, Version
from storage.fleet.placement import FixedLayout
from storage.fleet.volumes import VolumeOptions
from storage.keys import Kind, ShardKey, StripeKey, shard_key, split_stripe_key, stripe_key
from storage.runtime import Runtime
from storage.shards import LocalVolume, Shard
from storage.shards.filesystem import LocalFileSystem
from storage.shards.identity import read_identity
from storage.shards.record import HEADER_BYTES, SEGMENT_HEADER_BYTES
from storage.shards.scan import ScannedRecord, scan_records
from tests.same_disk import as_the_same_disk

CHUNK = 64 * 1024
USER = "ada"
SEGMENT = 256 * 1024


def content(seed: int, size: int) -> bytes:
    """Return bytes that depend on the seed; a smaller size gives a prefix."""
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> bytes:
    """Return the id of a chunk or another object."""
    return blake3(data).digest()


class PutForward(Runtime):
    """The machine's clocks, of which the monotonic one is put forward instead of waiting."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic_s(self) -> float:
        return time.monotonic() + self.ahead_s

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Let time pass until something holds; threads get a moment each time."""
        give_up = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < give_up
            self.ahead_s += 0.5
            time.sleep(0.002)


def open_store(
    root: Path,
    *,
    k: int = 4,
    n: int = 6,
    volumes: Sequence[Path] | None = None,
    segment_bytes_max: int | None = None,
    create: bool = True,
    volume_options: VolumeOptions | None = None,
    runtime: Runtime | None = None,
) -> FileStorage:
    """Open a store with the smallest chunks."""
    return FileStorage.open(
        root,
        profile=ErasureProfile(k, n),
        chunk_size=CHUNK,
        volumes=volumes,
        create=create,
        volume_options=volume_options or VolumeOptions(segment_bytes_max=segment_bytes_max),
        runtime=runtime,
    )


def file_shards(store: FileStorage) -> int:
    """Count the shards on all volumes, without the marks that the first commit puts on each volume."""
    volumes = store.stats().volumes
    marked = sum(any(record.key[32] == Kind.MARK for record in records(volume.path)) for volume in volumes)
    return sum(volume.shards for volume in volumes) - marked


def push(store: FileStorage, data: bytes, name: str = "file", user: str = USER) -> Version:
    """Push as the test user."""
    return store.push(data, filename=name, user_id=user)


def get(store: FileStorage, version: Version) -> bytes:
    """Return the content of this version."""
    return store.get(version.file_id, user_id=version.user_id, version_id=version.version_id)


def push_many(store: FileStorage, sizes: Iterable[int]) -> dict[str, tuple[Version, bytes]]:
    """Push files of these sizes with different contents; return them by name."""
    pushed: dict[str, tuple[Version, bytes]] = {}
    for seed, size in enumerate(sizes):
        data = content(seed, size)
        pushed[f"f{seed}"] = push(store, data, f"f{seed}"), data
    return pushed


def check_all(store: FileStorage, pushed: dict[str, tuple[Version, bytes]]) -> None:
    """Check that every file has its content."""
    for version, data in pushed.values():
        assert get(store, version) == data


def diff_of(version: Version, new_size: int, patches: Iterable[tuple[int, bytes, bytes | None]]) -> ManifestDiff:
    """Make a diff against a version, as a client would."""
    return ManifestDiff(
        version.version_id, new_size, version.chunk_size, tuple(Patch(index, i, data) for index, i, data in patches)
    )


# -- volumes and what lies in them ----------------------------------------------------------------


def volume_dir(root: Path, slot: int) -> Path:
    """Return the default directory of a volume."""
    return root / "volumes" / str(slot)


def lose(root: Path, *slots: int) -> None:
    """Remove volumes."""
    for slot in slots:
        shutil.rmtree(volume_dir(root, slot))


def lose_catalog(root: Path) -> None:
    """Remove the catalog."""
    shutil.rmtree(root / "catalog")


def segments(volume: Path) -> list[Path]:
    """Return a volume's segment files in order."""
    return sorted(volume.glob("*.seg"))


class Record(NamedTuple):
    """The position of a shard in a volume's segments."""

    segment: Path
    start: int
    stop: int
    key: ShardKey


def records(volume: Path) -> list[Record]:
    """Return all intact records of a volume, in order."""
    identity = read_identity(volume)
    assert identity is not None
    found: list[Record] = []
    for path in segments(volume):
        file = LocalFileSystem().open(path, writable=False)
        for record in scan_records(file, bytes.fromhex(identity.key), SEGMENT_HEADER_BYTES, file.size()):
            if isinstance(record, ScannedRecord) and record.intact:
                stop = record.offset + HEADER_BYTES + record.header.payload_length
                found.append(Record(path, record.offset, stop, record.header.key))
    return found


def flip(path: Path, offset: int, mask: int = 0x40) -> None:
    """Flip bits of one byte."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ mask]))


def flip_bytes(volume: Path, rng: random.Random, count: int) -> set[ShardKey]:
    """Flip random bytes of a volume's records; return the damaged shards."""
    there = records(volume)
    hit: set[ShardKey] = set()
    places = {(record, rng.randrange(record.start, record.stop)) for record in rng.choices(there, k=count)}
    for record, offset in places:
        flip(record.segment, offset, 1 << rng.randrange(8))
        hit.add(record.key)
    return hit


def rot_shards(root: Path, chunk_id: bytes, k: int, n: int, slots: Iterable[int], kind: Kind = Kind.CHUNK) -> None:
    """Flip a byte in the payload of some shards of an object, in every copy on disk."""
    stripe = stripe_key(kind, chunk_id, k, n)
    wanted = {shard_key(stripe, slot) for slot in slots}
    for volume in sorted((root / "volumes").iterdir()):
        for record in records(volume):
            if record.key in wanted:
                flip(record.segment, record.stop - 1)


def holders(chunk_id: bytes, k: int, n: int, volumes: int) -> tuple[int, ...]:
    """Return the volume of each slot of a stripe."""
    return FixedLayout(volumes).volumes(stripe_key(Kind.CHUNK, chunk_id, k, n), n)


def plant(root: Path, stripe: StripeKey, shards: dict[int, tuple[int, bytes]], volumes: int) -> None:
    """Write records with correct framing and digests but any content, as a lying volume would.

    Args:
        root: directory of the closed store.
        stripe: the stripe of the shards.
        shards: (object length, payload) by slot.
        volumes: number of volumes of the store.
    """
    parts = split_stripe_key(stripe)
    where = FixedLayout(volumes).volumes(parts.object_id, parts.n)
    for slot, (length, payload) in shards.items():
        directory = volume_dir(root, where[slot])
        identity = read_identity(directory)
        assert identity is not None
        volume = LocalVolume(directory, identity)
        volume.append([Shard(shard_key(stripe, slot), length, digest(payload), payload)])
        volume.close()


def copy_store(root: Path, target: Path) -> Path:
    """Copy a store's directory, as if the machine had lost power and its disk had been copied."""
    shutil.copytree(root, target)
    return as_the_same_disk(target)


def python_environment() -> dict[str, str]:
    """Return an environment in which a child Python finds the project."""
    import storage

    return {**os.environ, "PYTHONPATH": str(Path(storage.__file__).parent.parent)}
