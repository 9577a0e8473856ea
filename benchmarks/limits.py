"""The physical limits: the cost of each part of the work when it is done alone, on one thread.

Files to read are in the page cache; writes end with fsync. Pieces have the engine's sizes (chunks of 1 MiB, shards of
a quarter of that), and the erasure code is computed by the engine's codec.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb
from blake3 import blake3

from benchmarks.measure import MIB, seconds_of
from benchmarks.workload import RandomContent
from storage.erasure import ErasureProfile, code_for

CHUNK_BYTES = MIB
HOT_CHUNKS = 4
"""How many chunks the measurements cycle over: few enough to stay in the processor's cache, like a chunk just read."""
RECORD_BYTES = 200
"""Approximate size of a file's catalog entry (by design about 200 bytes)."""
LMDB_MAP_BYTES = 1 << 30
SMALL_RECORDS = 20_000

Parts = dict[str, float]


class PhysicalLimits:
    """Measures single parts of the engine's work. All methods return seconds.

    Args:
        directory: where to write files; on the file system of the measured store.
        profile: erasure profile that determines the shards.
    """

    def __init__(self, directory: Path, profile: ErasureProfile | None = None) -> None:
        self._directory = directory
        self._profile = profile or ErasureProfile()
        self._code = code_for(self._profile)
        content = RandomContent("limits", HOT_CHUNKS * CHUNK_BYTES)
        self._chunks = [memoryview(piece) for piece in content.pieces(CHUNK_BYTES)]
        self._shard_bytes = self._profile.shard_length(CHUNK_BYTES)

    @property
    def stretch(self) -> float:
        """Stored bytes per byte of data (1.5 for 4-of-6)."""
        return self._profile.n / self._profile.k

    def push_parts(self, source: Path, size: int) -> Parts:
        """Measure the parts of a durable push of ``source``."""
        return {
            "read": self.read(source),
            "BLAKE3": self.hash_chunks(size),
            "encode": self.encode(size),
            "shard digests": self.hash_shards(size),
            "write and fsync": self.write_shards(size),
        }

    def get_parts(self, source: Path, size: int) -> Parts:
        """Measure the parts of a healthy get: read, verify, copy out."""
        return {"read": self.read(source), "BLAKE3": self.hash_chunks(size), "copy out": self.copy_out(size)}

    def whole_get_parts(self, source: Path, size: int) -> Parts:
        """Measure the parts of a healthy get into newly allocated memory."""
        return self.get_parts(source, size) | {"copy out": self.copy_out_fresh(size)}

    def degraded_get_parts(self, source: Path, size: int) -> Parts:
        """Measure the parts of a get without two of six volumes.

        Slots are spread evenly over the volumes. Of the 15 pairs of slots in a 4-of-6 stripe, 6 are two data shards, 8
        are a data and a parity shard, and one is two parity shards, which needs no decoding.
        """
        both, single = int(size * 6 / 15), int(size * 8 / 15)
        return self.get_parts(source, size) | {"decode": self.decode(both, [0, 1]) + self.decode(single, [0])}

    def repair_parts(self, source: Path, size: int) -> Parts:
        """Measure the parts of making a lost volume again. k of n of its shards are data shards, the rest parity."""
        decoded = size * self._profile.k // self._profile.n
        return {
            "read": self.read(source),
            "BLAKE3": self.hash_chunks(size),
            "decode or encode": self.decode(decoded, [0]) + self.encode(size - decoded),
            "shard digests": self.hash_shards(size, shards=1),
            "write and fsync": self.write_shards(size, shards=1),
        }

    def stripe_parts(self, parent: Path) -> Parts:
        """Measure the parts of storing and committing one changed chunk."""
        return {
            "BLAKE3": self.hash_chunks(CHUNK_BYTES),
            "encode": self.encode(CHUNK_BYTES),
            "shard digests": self.hash_shards(CHUNK_BYTES),
            "write and fsync": self.write_shards(CHUNK_BYTES),
            "LMDB commit": DurableCommits(parent).run(1),
        }

    def read(self, path: Path) -> float:
        """Read a page-cached file through a 1 MiB buffer."""
        buffer = memoryview(bytearray(CHUNK_BYTES))

        def action() -> None:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

        return seconds_of(action)

    def hash_chunks(self, size: int) -> float:
        """Hash chunks with BLAKE3."""
        return self._each_chunk(size, lambda chunk: blake3(chunk).digest())

    def hash_shards(self, size: int, shards: int | None = None) -> float:
        """Hash the shards of ``size`` bytes of data with BLAKE3: ``shards`` for each chunk, by default all n."""
        step, count = self._shard_bytes, shards or self._profile.n
        pieces = [self._chunks[0][i % self._profile.k * step :][:step] for i in range(count)]

        def action(_: memoryview) -> None:
            for piece in pieces:
                blake3(piece).digest()

        return self._each_chunk(size, action)

    def encode(self, size: int) -> float:
        """Compute parity shards with the engine's codec."""
        return self._each_chunk(size, lambda chunk: self._code.encode(chunk, self._shard_bytes))

    def decode(self, size: int, lost: Sequence[int]) -> float:
        """Compute the data shards among ``lost`` from the first k of the other shards."""
        k, step = self._profile.k, self._shard_bytes
        chunk = self._chunks[0]
        stripe = [chunk[slot * step :][:step] for slot in range(k)]
        parity = self._code.encode(chunk, step)
        stripe += [parity[row * step :][:step] for row in range(self._profile.n - k)]
        slots = [slot for slot in range(self._profile.n) if slot not in lost][:k]
        wanted = [slot for slot in lost if slot < k]
        out = [memoryview(bytearray(step)) for _ in wanted]
        blocks = [stripe[slot] for slot in slots]
        return self._each_chunk(size, lambda _: self._code.decode_into(blocks, slots, wanted, out))

    def copy_out(self, size: int) -> float:
        """Copy chunks into a buffer of several MiB, like that of a reader."""
        target = memoryview(bytearray(8 * CHUNK_BYTES))
        slots = [target[start:][:CHUNK_BYTES] for start in range(0, len(target), CHUNK_BYTES)]

        def action() -> None:
            for index, piece in enumerate(_lengths(size)):
                slots[index % len(slots)][:piece] = self._chunks[index % HOT_CHUNKS][:piece]

        return seconds_of(action)

    def copy_out_fresh(self, size: int) -> float:
        """Copy chunks into newly allocated memory."""

        def action() -> None:
            target = memoryview(bytearray(size))
            start = 0
            for index, piece in enumerate(_lengths(size)):
                target[start : start + piece] = self._chunks[index % HOT_CHUNKS][:piece]
                start += piece

        return seconds_of(action)

    def write_shards(self, size: int, shards: int | None = None) -> float:
        """Write the shards of ``size`` bytes of data, with a file for each slot (by default all n), then fsync."""
        with tempfile.TemporaryDirectory(dir=self._directory, prefix="limit-") as name:
            writer = ShardFiles(Path(name), self._profile, shards)

            def action() -> None:
                for index, piece in enumerate(_lengths(size)):
                    writer.append(self._chunks[index % HOT_CHUNKS][:piece])
                writer.sync()

            try:
                return seconds_of(action)
            finally:
                writer.close()

    def _each_chunk(self, size: int, action: Callable[[memoryview], object]) -> float:
        def loop() -> None:
            for index in range(-(-size // CHUNK_BYTES)):
                action(self._chunks[index % HOT_CHUNKS])

        return seconds_of(loop)


class ShardFiles:
    """One plain file for each slot in a directory: the least work of a durable erasure-coded write.

    The parity files get bytes of the data, as only the amount matters here.
    """

    def __init__(self, directory: Path, profile: ErasureProfile, shards: int | None = None) -> None:
        self._k = profile.k
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        self._files = [os.open(directory / f"shard-{slot}", flags, 0o644) for slot in range(shards or profile.n)]

    def append(self, chunk: memoryview) -> None:
        """Write the shards of a chunk."""
        step = -(-len(chunk) // self._k)
        for slot, file in enumerate(self._files):
            start = slot % self._k * step
            os.write(file, chunk[start : start + step])

    def sync(self) -> None:
        """Make the files and their directory entries durable."""
        for file in (*self._files, self._directory):
            os.fsync(file)

    def close(self) -> None:
        """Close the files."""
        for file in (*self._files, self._directory):
            os.close(file)


class DurableCommits:
    """Raw LMDB commits: one small put in each transaction, and a sync for each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, count: int) -> float:
        """Time ``count`` commits in a fresh environment, one after another, in seconds."""
        with (
            tempfile.TemporaryDirectory(dir=self._directory, prefix="lmdb-") as name,
            lmdb.open(name, map_size=LMDB_MAP_BYTES) as environment,
        ):
            value = bytes(RECORD_BYTES)
            _commit(environment, b"warm", value)

            def action() -> None:
                for index in range(count):
                    _commit(environment, b"%030d" % index, value)

            return seconds_of(action)


def _commit(environment: lmdb.Environment, key: bytes, value: bytes) -> None:
    with environment.begin(write=True) as transaction:
        transaction.put(key, value)


class SmallReads:
    """The least work of getting a small file, listing a page of names, or reading a history.

    A look-up is an LMDB get of about 200 bytes. A get is a look-up, a pread from a page-cached file, and BLAKE3.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self._root = Path(tempfile.mkdtemp(dir=directory, prefix="small-"))
        self._size = size
        self._environment = lmdb.open(str(self._root), map_size=LMDB_MAP_BYTES, sync=False)
        with self._environment.begin(write=True) as transaction:
            for index in range(SMALL_RECORDS):
                transaction.put(b"%030d" % index, bytes(RECORD_BYTES))
        RandomContent("small-reads", max(size * 64, CHUNK_BYTES)).write_to(self._root / "data")
        self._file = os.open(self._root / "data", os.O_RDONLY)

    def gets(self, count: int) -> float:
        """Time ``count`` gets, one after another, in seconds."""

        def action() -> None:
            for index in range(count):
                self._look_up(index)
                blake3(os.pread(self._file, self._size, index % 64 * self._size)).digest()

        return seconds_of(action)

    def look_ups(self, count: int) -> float:
        """Time ``count`` look-ups of one record each, in seconds."""

        def action() -> None:
            for index in range(count):
                self._look_up(index)

        return seconds_of(action)

    def pages(self, count: int, entries: int) -> float:
        """Time ``count`` walks over ``entries`` consecutive records, in seconds."""

        def action() -> None:
            for index in range(count):
                with self._environment.begin() as transaction:
                    cursor = transaction.cursor()
                    cursor.set_range(b"%030d" % (index * entries % (SMALL_RECORDS - entries)))
                    for _, (_key, _value) in zip(range(entries), cursor, strict=False):
                        pass

        return seconds_of(action)

    def close(self) -> None:
        """Close and remove the files."""
        os.close(self._file)
        self._environment.close()
        shutil.rmtree(self._root)

    def _look_up(self, index: int) -> None:
        with self._environment.begin() as transaction:
            transaction.get(b"%030d" % (index * 7919 % SMALL_RECORDS))


def plain_files(directory: Path, contents: Sequence[bytes]) -> float:
    """Time storing each of ``contents`` as a plain file, in seconds: create, write, fsync file and directory."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="plain-") as name:
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY)

        def action() -> None:
            for index, content in enumerate(contents):
                file = os.open(f"{name}/{index}", os.O_CREAT | os.O_WRONLY, 0o644)
                os.write(file, content)
                os.fsync(file)
                os.close(file)
                os.fsync(folder)

        try:
            return seconds_of(action)
        finally:
            os.close(folder)


def _lengths(size: int) -> list[int]:
    """Return the lengths of the chunks of ``size`` bytes."""
    whole, rest = divmod(size, CHUNK_BYTES)
    return [CHUNK_BYTES] * whole + ([rest] if rest else [])
