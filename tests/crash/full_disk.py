"""What is done on a full disk, in a process of its own: ``python -m tests.crash.full_disk SCENARIO DIRECTORY [LIMIT]``.

DIRECTORY is on a small file system, or files may have at most LIMIT bytes (RLIMIT_FSIZE). Ends with an
assertion's traceback, or well.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

from storage import ErasureProfile, FileStorage, StoreFull
from storage.fleet.volumes import VolumeOptions
from storage.formats.manifest import FAN_OUT

USER = "ann"
CHUNK_BYTES = 65536
SEGMENT_BYTES_MAX = 2 << 20
SEGMENT_BYTES_MAX_OF = {"large_segments": 256 << 20, "names": 256 << 10}
SIZES = (10, 3000, 50_000, 200_000, 700_000)


class Shelf:
    """A store and what is in it."""

    def __init__(self, directory: Path, segment_bytes_max: int, volumes: Sequence[Path] | None = None) -> None:
        self._options = VolumeOptions(segment_bytes_max=segment_bytes_max)
        self._volumes = volumes
        self.root = directory / "store"
        self.rng = Random(1)
        self.contents: dict[str, bytes] = {}
        self.ids: dict[str, str] = {}
        self.store = self._open()

    def _open(self) -> FileStorage:
        return FileStorage.open(
            self.root,
            profile=ErasureProfile(4, 6),
            chunk_size=CHUNK_BYTES,
            volumes=self._volumes,
            volume_options=self._options,
        )

    def reopen(self) -> None:
        self.store.close()
        self.store = self._open()

    def put(self, name: str, content: bytes) -> None:
        self.ids[name] = self.store.push(content, filename=name, user_id=USER).file_id
        self.contents[name] = content

    def drop(self, name: str) -> None:
        self.store.delete(self.ids[name], user_id=USER)
        del self.contents[name], self.ids[name]

    def fill(self) -> None:
        """Push until the store is full."""
        for number in range(10_000):
            try:
                self.put(f"file-{number:05}", self.rng.randbytes(self.rng.choice(SIZES)))
            except StoreFull:
                assert number > 20, "full before it was filled"
                return
        raise AssertionError("never full")

    def free(self) -> None:
        """Delete three files of four and collect."""
        for number, name in enumerate(sorted(self.contents)):
            if number % 4:
                self.drop(name)
        used = self.bytes_used()
        self.store.collect()
        assert self.bytes_used() < used

    def check(self) -> None:
        """All that was stored is there, as it was, and nothing else."""
        heads = {head.filename: head.file_id for head in self.store.list_files(user_id=USER)}
        assert heads == self.ids
        for name, content in self.contents.items():
            assert self.store.get(self.ids[name], user_id=USER) == content, name
            assert len(self.store.history(self.ids[name], user_id=USER)) == 1

    def check_usable(self) -> None:
        """It can be worked with as ever, and nothing is damaged."""
        self.put("afterwards", self.rng.randbytes(700_000))
        self.put("small", b"afterwards")
        self.check()
        self.check_whole()
        self.reopen()
        self.check()
        self.check_whole()

    def check_whole(self) -> None:
        report = self.store.scrub()
        assert report.clean, report.damaged[:3]

    def bytes_used(self) -> int:
        return self.store.stats().stored_bytes


def push(shelf: Shelf) -> None:
    """Filled by pushes; deleting and collecting makes room."""
    shelf.fill()
    shelf.check()
    shelf.check_whole()
    shelf.reopen()
    shelf.check()
    shelf.free()
    shelf.check()
    shelf.check_usable()


def names(shelf: Shelf) -> None:
    """It is the catalog that finds no room, for all there is to be remembered of small files."""
    for number in range(100_000):
        name = f"{number:05}" + 900 * "n"
        try:
            version = shelf.store.push(b"", filename=name, user_id=USER, note=3000 * "n")
        except StoreFull:
            break
        shelf.contents[name], shelf.ids[name] = b"", version.file_id
    else:
        raise AssertionError("never full")
    assert number > 50, "full before it was filled"
    shelf.check()
    shelf.reopen()
    shelf.check()
    for name in sorted(shelf.contents)[::2]:
        shelf.drop(name)
    shelf.store.collect()
    shelf.put("afterwards", shelf.rng.randbytes(3000))
    shelf.check()


def catalog(shelf: Shelf) -> None:
    """Somebody else takes the last byte of the catalog's disk: deleting works, and makes room for pushes."""
    long = 900 * "n"
    for number in range(600):
        shelf.put(f"{number:05}{long}", shelf.rng.randbytes(10))
    revised = shelf.store.push(b"1", filename="revised", user_id=USER)
    for content in (b"2", b"3"):
        revised = shelf.store.push(content, filename="revised", user_id=USER)
    take_all(shelf.root / "hog")
    for turn in range(8):
        pushed = push_until_full(shelf, f"{turn}-{long}")
        assert pushed or not turn, "deleting and collecting made no room"
        shelf.reopen()
        for name in sorted(shelf.contents)[turn::20]:
            shelf.drop(name)  # the first that this process writes to the full disk
        shelf.store.collect()
    versions = shelf.store.history(revised.file_id, user_id=USER)
    for version in versions[1:]:
        push_until_full(shelf, f"{version.version_id}-{long}")
        shelf.store.delete_version(revised.file_id, version.version_id, user_id=USER)
    assert shelf.store.get(revised.file_id, user_id=USER) == b"3"
    push_until_full(shelf, f"last-{long}")
    doomed = [revised.file_id, *list(shelf.ids.values())[1::2]]
    assert all(outcome.error is None for outcome in shelf.store.delete_many(doomed, user_id=USER))
    for name in list(shelf.ids)[1::2]:
        del shelf.contents[name], shelf.ids[name]
    shelf.store.collect()
    shelf.check()
    shelf.check_usable()


def push_until_full(shelf: Shelf, name: str) -> int:
    """Push files with names that begin so, until one is refused; return how many were not."""
    for number in range(10_000):
        try:
            shelf.put(f"{name}-{number:05}", shelf.rng.randbytes(10))
        except StoreFull:
            return number
    raise AssertionError("never full")


def large_segments(shelf: Shelf) -> None:
    """Segments so large that what is live of one does not fit into the room kept back."""
    shelf.fill()
    for number, name in enumerate(sorted(shelf.contents)):
        if number % 2:
            shelf.drop(name)
    used = shelf.bytes_used()
    shelf.store.collect()
    assert shelf.bytes_used() < used * 0.9
    shelf.check()
    shelf.check_usable()


def revise(shelf: Shelf) -> None:
    """A revision that does not fit leaves the head."""
    shelf.fill()
    name = sorted(shelf.contents)[0]
    diff = shelf.store.diff(shelf.ids[name], shelf.rng.randbytes(8_000_000), user_id=USER)
    for _ in range(2):
        try:
            shelf.store.revise(shelf.ids[name], diff, user_id=USER)
        except StoreFull:
            continue
        raise AssertionError("8 MB fitted into a full store")
    shelf.check()
    shelf.free()
    shelf.check_usable()


def repair(shelf: Shelf) -> None:
    """A volume is lost, its room given to new files, so that its shards find none."""
    shelf.fill()
    shutil.rmtree(shelf.store.volume_paths[2])
    shelf.reopen()
    filler = 0
    try:
        while True:
            shelf.put(f"filler-{filler:05}", shelf.rng.randbytes(100_000))
            filler += 1
    except StoreFull:
        pass
    assert filler > 5
    report = shelf.store.repair()  # what finds room is made, and who has none is named
    assert not report.complete, "the shards of a sixth of a full disk fitted into nothing"
    assert any(str(shelf.store.volume_paths[2]) in why for why in report.unwritable)
    shelf.check()
    shelf.free()
    assert shelf.store.repair().complete
    shelf.check_usable()


def others(shelf: Shelf) -> None:
    """Somebody else takes the last byte; everything is refused or done, and fine once there is room again."""
    for number in range(40):
        shelf.put(f"file-{number:05}", shelf.rng.randbytes(shelf.rng.choice(SIZES)))
    hog = shelf.root.parent / "hog"
    take_all(hog)
    refused = 0
    for attempt in attempts(shelf):
        try:
            attempt()
        except StoreFull:
            refused += 1
        shelf.check()
    assert refused, "nothing was refused"
    shelf.reopen()
    shelf.check()
    hog.unlink()
    shelf.free()
    shelf.check_usable()


def one_volume(shelf: Shelf) -> None:
    """Only one of the volumes has a small disk: all goes on without it, and it gets what it lacks once it has room."""
    small = shelf.store.volume_paths[0]
    for number in range(60):
        shelf.put(f"file-{number:05}", shelf.rng.randbytes(700_000))
    for _ in range(2):
        stats = shelf.store.stats()
        assert [volume.state for volume in stats.volumes] == ["incomplete", *5 * ["ok"]], stats.volumes
        assert stats.losses_survivable == 1
        shelf.check()
        shelf.reopen()
    take_all(small.parent / "hog")
    shelf.put("on", shelf.rng.randbytes(700_000))
    shelf.drop("file-00001")
    assert not shelf.store.repair().complete
    assert shelf.store.stats().volumes[0].takes_no_writes
    shelf.reopen()
    shelf.put("and on", shelf.rng.randbytes(10))
    shelf.check()
    (small.parent / "hog").unlink()
    shelf.free()
    report = shelf.store.repair()
    assert report.complete, report
    assert shelf.store.stats().losses_survivable == 2
    shelf.check_usable()


def take_all(hog: Path) -> None:
    """Fill the file system to the last byte."""
    with hog.open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue


def attempts(shelf: Shelf) -> Iterator[Callable[[], object]]:
    for size in (0, 10, 3000, 700_000):
        yield partial(shelf.put, f"push-{size}", shelf.rng.randbytes(size))
    for name in sorted(shelf.contents)[:4]:
        yield partial(shelf.drop, name)
    yield shelf.store.collect
    yield shelf.store.scrub
    yield shelf.store.repair


def stream(shelf: Shelf) -> None:
    """A push that is larger than the disk keeps nothing, though its first chunks were leased on the way."""
    shelf.put("before", shelf.rng.randbytes(300_000))
    used = shelf.bytes_used()
    try:
        shelf.store.push(pieces(shelf.rng), filename="endless", user_id=USER)
    except StoreFull:
        pass
    else:
        raise AssertionError("never full")
    check_given_back(shelf, used)
    # The chunks were not only uncounted: there is room for most of a disk's worth again.
    shelf.put("large", shelf.rng.randbytes(CHUNK_BYTES * 1024))
    shelf.check_usable()


def cut_off(shelf: Shelf) -> None:
    """A push whose source fails after as many chunks as are leased at once, or more, keeps nothing either."""
    shelf.put("before", shelf.rng.randbytes(300_000))
    used = shelf.bytes_used()

    def source(count: int) -> Iterator[bytes]:
        yield from islice(pieces(shelf.rng), count)
        raise ConnectionResetError

    # A few chunks are still on their way when the source fails; 300 later others have been counted as well.
    for count in (*range(FAN_OUT + 5, FAN_OUT + 8), FAN_OUT + 300):
        with suppress(ConnectionResetError):
            shelf.store.push(source(count), filename="cut off", user_id=USER)
        check_given_back(shelf, used)
    shelf.check_usable()


def pieces(rng: Random) -> Iterator[bytes]:
    while True:
        yield rng.randbytes(CHUNK_BYTES)


def check_given_back(shelf: Shelf, used: int) -> None:
    shelf.check()
    shelf.store.collect()
    assert shelf.bytes_used() <= used + 100_000
    shelf.check()


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (push, names, catalog, large_segments, revise, repair, others, one_volume, stream, cut_off)
}


def main() -> None:
    """Run a scenario."""
    name, directory = sys.argv[1], Path(sys.argv[2])
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    elsewhere = directory.with_name(f"{directory.name}-elsewhere")
    home = elsewhere if name == "one_volume" else directory
    volumes = [directory / "volume", *(elsewhere / str(slot) for slot in range(1, 6))] if home is elsewhere else None
    if name == "catalog":
        volumes = [elsewhere / str(slot) for slot in range(6)]
    shelf = Shelf(home, SEGMENT_BYTES_MAX_OF.get(name, SEGMENT_BYTES_MAX), volumes)
    SCENARIOS[name](shelf)
    shelf.store.close()
    os.write(1, b"done\n")


if __name__ == "__main__":
    main()
