"""The physical limits: what each part of the work costs when it is done alone, on one thread.

Reads are of page-cached files; writes end with fsync. Pieces are of the engine's own sizes (chunks of
1 MiB, shards of a quarter of it), and the erasure code is computed by the codec the engine chose.
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
"""Chunks the limits cycle over: few enough to stay in the processor's cache, as a freshly read chunk is."""
RECORD_BYTES = 200
"""About what one file's catalog entry takes (design: ~200 B a file)."""
LMDB_MAP_BYTES = 1 << 30
SMALL_RECORDS = 20_000

Parts = dict[str, float]


class PhysicalLimits:
    """Measures single parts of the engine's work; every method returns seconds.

    Args:
        directory: where files are written; on the file system of the measured store.
        profile: the erasure profile whose shards are written.
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
        """Stored bytes for each byte of data (1.5 for 4-of-6)."""
        return self._profile.n / self._profile.k

    def push_parts(self, source: Path, size: int) -> Parts:
        """The parts of a durable push of ``source``, each measured alone."""
        return {
            "read": self.read(source),
            "BLAKE3": self.hash_chunks(size),
            "encode": self.encode(size),
            "shard digests": self.hash_shards(size),
            "write and fsync": self.write_shards(size),
        }

    def get_parts(self, source: Path, size: int) -> Parts:
        """The parts of a healthy get: read, verify, copy out."""
        return {"read": self.read(source), "BLAKE3": self.hash_chunks(size), "copy out": self.copy_out(size)}

    def whole_get_parts(self, source: Path, size: int) -> Parts:
        """The parts of a healthy get into one fresh piece of memory."""
        return self.get_parts(source, size) | {"copy out": self.copy_out_fresh(size)}

    def degraded_get_parts(self, source: Path, size: int) -> Parts:
        """The parts of a get with two of six volumes gone.

        Slots are spread evenly over the volumes: of the 15 pairs of slots of a 4-of-6 stripe, 6 are two data
        shards, 8 a data and a parity shard, and one needs no decoding.
        """
        both, single = int(size * 6 / 15), int(size * 8 / 15)
        return self.get_parts(source, size) | {"decode": self.decode(both, [0, 1]) + self.decode(single, [0])}

    def repair_parts(self, source: Path, size: int) -> Parts:
        """The parts of making one lost volume again: it held k of n parts data shards, the others parity."""
        decoded = size * self._profile.k // self._profile.n
        return {
            "read": self.read(source),
            "BLAKE3": self.hash_chunks(size),
            "decode or encode": self.decode(decoded, [0]) + self.encode(size - decoded),
            "shard digests": self.hash_shards(size, shards=1),
            "write and fsync": self.write_shards(size, shards=1),
        }

    def stripe_parts(self, parent: Path) -> Parts:
        """The parts of storing one changed chunk and committing it."""
        return {
            "BLAKE3": self.hash_chunks(CHUNK_BYTES),
            "encode": self.encode(CHUNK_BYTES),
            "shard digests": self.hash_shards(CHUNK_BYTES),
            "write and fsync": self.write_shards(CHUNK_BYTES),
            "LMDB commit": DurableCommits(parent).run(1),
        }

    def read(self, path: Path) -> float:
        """Read a page-cached file through one 1 MiB buffer."""
        buffer = memoryview(bytearray(CHUNK_BYTES))

        def action() -> None:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

        return seconds_of(action)

    def hash_chunks(self, size: int) -> float:
        """BLAKE3 over chunks."""
        return self._each_chunk(size, lambda chunk: blake3(chunk).digest())

    def hash_shards(self, size: int, shards: int | None = None) -> float:
        """BLAKE3 over each of the shards (all n unless told) that ``size`` bytes of data become."""
        step, count = self._shard_bytes, shards or self._profile.n
        pieces = [self._chunks[0][i % self._profile.k * step :][:step] for i in range(count)]

        def action(_: memoryview) -> None:
            for piece in pieces:
                blake3(piece).digest()

        return self._each_chunk(size, action)

    def encode(self, size: int) -> float:
        """The erasure code's parity, computed by the engine's own codec."""
        return self._each_chunk(size, lambda chunk: self._code.encode(chunk, self._shard_bytes))

    def decode(self, size: int, lost: Sequence[int]) -> float:
        """Data shards ``lost`` computed anew from the first k shards that are left."""
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
        """Copy of verified chunks into a reader's buffer of several MiB."""
        target = memoryview(bytearray(8 * CHUNK_BYTES))
        slots = [target[start:][:CHUNK_BYTES] for start in range(0, len(target), CHUNK_BYTES)]

        def action() -> None:
            for index, piece in enumerate(_lengths(size)):
                slots[index % len(slots)][:piece] = self._chunks[index % HOT_CHUNKS][:piece]

        return seconds_of(action)

    def copy_out_fresh(self, size: int) -> float:
        """Copy of verified chunks into memory that the process did not have before."""

        def action() -> None:
            target = memoryview(bytearray(size))
            start = 0
            for index, piece in enumerate(_lengths(size)):
                target[start : start + piece] = self._chunks[index % HOT_CHUNKS][:piece]
                start += piece

        return seconds_of(action)

    def write_shards(self, size: int, shards: int | None = None) -> float:
        """Write what ``size`` bytes of data become (all n shards unless told), a file a slot, then fsync all."""
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
    """One plain file a slot in one directory: the least a durable erasure-coded write can do.

    The parity files are given bytes of the data, as only their amount matters here.
    """

    def __init__(self, directory: Path, profile: ErasureProfile, shards: int | None = None) -> None:
        self._k = profile.k
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        self._files = [os.open(directory / f"shard-{slot}", flags, 0o644) for slot in range(shards or profile.n)]

    def append(self, chunk: memoryview) -> None:
        """Write one chunk's shards."""
        step = -(-len(chunk) // self._k)
        for slot, file in enumerate(self._files):
            start = slot % self._k * step
            os.write(file, chunk[start : start + step])

    def sync(self) -> None:
        """Make all of it durable, the directory's entries too."""
        for file in (*self._files, self._directory):
            os.fsync(file)

    def close(self) -> None:
        """Close the files."""
        for file in (*self._files, self._directory):
            os.close(file)


class DurableCommits:
    """Raw LMDB: one small put in each transaction, every transaction synced."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, count: int) -> float:
        """Seconds of ``count`` commits, one after another, into a fresh environment."""
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
    """The least a get of a small file, a page of names or a look at a history can do.

    A look-up is an LMDB get of ~200 B; a get is a look-up, one pread from a page-cached file and BLAKE3.
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
        """Seconds of ``count`` gets, one after another."""

        def action() -> None:
            for index in range(count):
                self._look_up(index)
                blake3(os.pread(self._file, self._size, index % 64 * self._size)).digest()

        return seconds_of(action)

    def look_ups(self, count: int) -> float:
        """Seconds of ``count`` look-ups of one record each."""

        def action() -> None:
            for index in range(count):
                self._look_up(index)

        return seconds_of(action)

    def pages(self, count: int, entries: int) -> float:
        """Seconds of ``count`` walks over ``entries`` neighbouring records."""

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
    """Seconds to store each of ``contents`` as a plain file: create, write, fsync file and directory."""
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
    """Lengths of the chunks of ``size`` bytes."""
    whole, rest = divmod(size, CHUNK_BYTES)
    return [CHUNK_BYTES] * whole + ([rest] if rest else [])
