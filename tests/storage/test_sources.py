"""Sources of every kind, in pieces of any size: what was pushed can be read back."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from storage import FileStorage, IncompletePush, InvalidArgument, Upload, Version
from storage.write.sources import Source
from tests.storage.helpers import CHUNK, USER, content, get, open_store

MIB = 1 << 20
SIZES = (0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 3 * CHUNK, 3 * CHUNK + 1, MIB, MIB + 1, 20 * CHUNK + 7)


class Dribble(io.RawIOBase):
    """A raw stream that returns an odd number of bytes at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._stream = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        return self._stream.readinto(view[: min(len(view), 7919)])


class ReadOnly:
    """A stream with only read()."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, 50_021))


def _pieces(data: bytes) -> Iterator[bytes | bytearray | memoryview]:
    """Yield odd pieces of all three kinds, including empty ones."""
    sizes = (1, 70_001, 0, 13, 65_536, 262_144)
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        piece = data[at : at + size]
        yield (piece, bytearray(piece), memoryview(piece))[turn % 3]
        at, turn = at + size, turn + 1


def _path(data: bytes, scratch: Path) -> Path:
    path = scratch / f"{len(data)}"
    path.write_bytes(data)
    return path


SOURCES: dict[str, Callable[[bytes, Path], Source]] = {
    "bytes": lambda data, _: data,
    "bytearray": lambda data, _: bytearray(data),
    "memoryview": lambda data, _: memoryview(data),
    "view of a bytearray": lambda data, _: memoryview(bytearray(data)),
    "path": _path,
    "str": lambda data, scratch: str(_path(data, scratch)),
    "buffered file": lambda data, scratch: _path(data, scratch).open("rb"),
    "raw file": lambda data, scratch: cast(BinaryIO, _path(data, scratch).open("rb", buffering=0)),
    "BytesIO": lambda data, _: io.BytesIO(data),
    "dribble": lambda data, _: cast(BinaryIO, Dribble(data)),
    "read only": lambda data, _: cast(BinaryIO, ReadOnly(data)),
    "generator": lambda data, _: _pieces(data),
    "list": lambda data, _: list(_pieces(data)),
    "one byte at a time": lambda data, _: (data[i : i + 1] for i in range(min(len(data), 70_000))),
}


@pytest.fixture(scope="module")
def kept(module_scratch: Path) -> Iterator[FileStorage]:
    """One store for all sources. k does not divide the chunk size, so that padding is tested as well."""
    with open_store(module_scratch / "store", k=3, n=5) as opened:
        yield opened


def _close(source: Source) -> None:
    if hasattr(source, "close"):
        source.close()


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_and_size(kept: FileStorage, kind: str, tmp_path: Path) -> None:
    for size in SIZES:
        data = content(size, size)
        source = SOURCES[kind](data, tmp_path)
        version = kept.push(source, filename=kind, user_id=f"{kind} {size}")
        _close(source)
        expected = data[:70_000] if kind == "one byte at a time" else data
        assert version.size == len(expected)
        assert get(kept, version) == expected


@pytest.mark.parametrize("kind", ["bytes", "path", "raw file", "generator"])
@pytest.mark.parametrize("size", [0, 1000, MIB + 3 * CHUNK])
def test_a_sha256_is_checked(kept: FileStorage, kind: str, size: int, tmp_path: Path) -> None:
    data = content(7, size)
    right = hashlib.sha256(data).hexdigest()
    source = SOURCES[kind](data, tmp_path)
    version = kept.push(source, filename="sum", user_id=f"{kind} {size}", sha256=right)
    _close(source)
    assert version.sha256 == right
    assert get(kept, version) == data
    source = SOURCES[kind](data, tmp_path)
    with pytest.raises(InvalidArgument, match="SHA-256"):
        kept.push(source, filename="other", user_id=f"{kind} {size}", sha256="0" * 64)
    _close(source)
    assert kept.find("other", user_id=f"{kind} {size}") is None


@pytest.mark.parametrize("sha256", ["", None])
def test_no_sha256(store: FileStorage, sha256: str | None) -> None:
    assert store.push(b"x", filename="f", user_id=USER, sha256=sha256).sha256 is None


@pytest.mark.parametrize("sha256", ["0", "g" * 64, "0" * 63, "0" * 65, " " * 64, "00 " * 21 + "0"])
def test_a_malformed_sha256_is_refused(store: FileStorage, sha256: str) -> None:
    with pytest.raises(InvalidArgument, match="64 hexadecimal digits"):
        store.push(b"x", filename="f", user_id=USER, sha256=sha256)


def test_a_file_is_read_from_its_position(store: FileStorage, tmp_path: Path) -> None:
    path = _path(content(1, 3 * CHUNK), tmp_path)
    with path.open("rb") as stream:
        stream.seek(CHUNK + 5)
        version = store.push(stream, filename="f", user_id=USER)
    assert get(store, version) == content(1, 3 * CHUNK)[CHUNK + 5 :]


def test_a_sparse_file(store: FileStorage, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(40 * CHUNK + 3)
        stream.seek(11 * CHUNK + 9)
        stream.write(b"here")
    version = store.push(path, filename="f", user_id=USER)
    assert get(store, version) == path.read_bytes()
    assert len(set(store.chunk_ids(version.file_id, user_id=USER))) == 3
    assert store.stats().stored_bytes < 12 * CHUNK


def _write_slowly(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as stream:
        for at in range(0, len(data), 40_000):
            stream.write(data[at : at + 40_000])


def test_a_fifo(store: FileStorage, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    data = content(3, 5 * CHUNK + 1)
    writer = threading.Thread(target=_write_slowly, args=(path, data))
    writer.start()
    version = store.push(path, filename="f", user_id=USER)
    writer.join()
    assert get(store, version) == data


def test_a_pipe_without_data_is_not_taken_for_ended(store: FileStorage) -> None:
    """A non-blocking descriptor without data has not ended; stopping there would lose the rest."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.write(write, b"hello")
    with os.fdopen(read, "rb", buffering=0) as stream, pytest.raises(InvalidArgument, match="non-blocking"):
        store.push(cast(BinaryIO, stream), filename="f", user_id=USER)
    os.close(write)
    assert store.find("f", user_id=USER) is None


def test_views_of_other_items_and_strides(store: FileStorage) -> None:
    numbers = array("I", range(50_000))
    assert get(store, store.push(memoryview(numbers), filename="a", user_id=USER)) == numbers.tobytes()
    data = content(1, 3 * CHUNK)
    assert get(store, store.push(memoryview(data)[::3], filename="b", user_id=USER)) == data[::3]


def test_a_view_may_be_reused_after_the_push(store: FileStorage) -> None:
    buffer = bytearray(content(1, 4 * CHUNK))
    version = store.push(buffer, filename="f", user_id=USER)
    buffer[:] = bytes(len(buffer))
    assert get(store, version) == content(1, 4 * CHUNK)


def _writer(buffer: bytearray | mmap.mmap, done: threading.Event) -> threading.Thread:
    """Return a thread that keeps changing every chunk."""

    def write() -> None:
        turn = 0
        while not done.is_set():
            for at in range(0, len(buffer), CHUNK):
                buffer[at + turn % CHUNK] ^= 255
            turn += 1

    return threading.Thread(target=write)


@pytest.mark.parametrize("kind", ["bytearray", "view", "read-only view", "view of a file", "piece by piece"])
def test_what_somebody_writes_to_meanwhile_is_stored_as_it_was_at_some_time(
    store: FileStorage, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").write_bytes(content(1, 64 * CHUNK))
    buffer = bytearray((tmp_path / "file").read_bytes())
    with (tmp_path / "file").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        written: bytearray | mmap.mmap = mapped if kind == "view of a file" else buffer
        source = memoryview(written).toreadonly() if kind != "view" else memoryview(written)
        done = threading.Event()
        writer = _writer(written, done)
        writer.start()
        try:
            if kind == "piece by piece":
                with store.upload(filename="f", user_id=USER) as upload:
                    upload.write(source)
                    version = upload.commit()
            else:
                version = store.push(buffer if kind == "bytearray" else source, filename="f", user_id=USER)
        finally:
            done.set()
            writer.join()
            source.release()
    assert len(get(store, version)) == 64 * CHUNK


class Misreports(io.RawIOBase):
    """A raw stream that reports a wrong number of bytes read."""

    def __init__(self, told: object) -> None:
        super().__init__()
        self._told = [told]

    def readinto(self, buffer: object) -> int:
        return cast(int, self._told.pop() if self._told else 0)


@pytest.mark.parametrize("told", [-1, -(1 << 70), CHUNK + 1, 1 << 70, 1.5, "1", True])
def test_a_reader_that_misreports_what_it_read_is_refused(store: FileStorage, told: object) -> None:
    with pytest.raises(InvalidArgument, match="bytes"):
        store.push(cast(BinaryIO, Misreports(told)), filename="f", user_id=USER)
    version = store.push(b"x", filename="g", user_id=USER)
    with pytest.raises(InvalidArgument, match="bytes"):
        store.diff(version.file_id, cast(BinaryIO, Misreports(told)), user_id=USER)
    with store.upload(filename="f", user_id=USER) as upload:
        upload.free_space()[:3] = b"abc"
        upload.filled(3)
        with pytest.raises(InvalidArgument, match="bytes"):
            upload.filled(cast(int, told))
        assert get(store, upload.commit()) == b"abc"


class Shortened(bytes):
    """A file that reports a smaller size than it has."""

    def __len__(self) -> int:
        return 3


def test_bytes_are_as_many_as_there_are_whatever_their_class_says(store: FileStorage) -> None:
    assert get(store, store.push(Shortened(b"abcdef"), filename="f", user_id=USER)) == b"abcdef"


class Broken(Exception):
    """Raised by a signal handler, for example, anywhere in a method."""


def test_an_upload_that_lost_a_part_to_an_interruption_is_refused(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Upload, view: memoryview) -> int:
        raise Broken

    with store.upload(filename="f", user_id=USER) as upload:
        upload.write(content(1, CHUNK + 1))
        with monkeypatch.context() as patch:
            patch.setattr(Upload, "_fill", interrupted)
            with pytest.raises(Broken):
                upload.write(b"some more")
        upload.write(b"and the rest")
        with pytest.raises(IncompletePush):
            upload.commit()
    assert store.find("f", user_id=USER) is None


def test_an_iterable_may_reuse_its_buffer(store: FileStorage) -> None:
    def pieces() -> Iterator[memoryview]:
        buffer = bytearray(2 * CHUNK)
        for seed in range(8):
            buffer[:] = content(seed, 2 * CHUNK)
            yield memoryview(buffer)

    version = store.push(pieces(), filename="f", user_id=USER)
    assert get(store, version) == b"".join(content(seed, 2 * CHUNK) for seed in range(8))


class NotReallyIterable:
    """Like a zero-dimensional numpy array."""

    def __iter__(self) -> Iterator[bytes]:
        raise TypeError("iteration over a 0-d array")


@pytest.mark.parametrize("source", [5, None, 1.5, object(), NotReallyIterable()])
def test_what_is_no_source_is_refused(store: FileStorage, source: object) -> None:
    with pytest.raises(InvalidArgument, match="cannot push"):
        store.push(cast(Source, source), filename="f", user_id=USER)


@pytest.mark.parametrize("source", [io.StringIO("text"), ["text"], [b"x", 5]])
def test_text_is_refused(store: FileStorage, source: object) -> None:
    with pytest.raises(InvalidArgument):
        store.push(cast(Source, source), filename="f", user_id=USER)
    assert store.list_files(user_id=USER) == []


def _failing() -> Iterator[bytes]:
    yield content(1, 3 * CHUNK)
    raise RuntimeError("the source broke")


def test_a_source_that_fails_leaves_nothing_visible(store: FileStorage, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broke"):
        store.push(_failing(), filename="f", user_id=USER)
    with pytest.raises(FileNotFoundError):
        store.push(tmp_path / "absent", filename="f", user_id=USER)
    with pytest.raises(IsADirectoryError):
        store.push(tmp_path, filename="f", user_id=USER)
    assert store.list_files(user_id=USER) == []
    assert store.stats().files == 0
    store.collect(grace_s=0)
    assert sum(volume.shards for volume in store.stats().volumes) == 0


def test_a_file_that_shrinks_while_it_is_read(store: FileStorage, tmp_path: Path) -> None:
    path = _path(content(1, 64 * CHUNK), tmp_path)

    def progress(done: int, total: int) -> None:
        os.truncate(path, CHUNK)

    with pytest.raises(InvalidArgument, match="shorter"):
        store.push(path, filename="f", user_id=USER, progress=progress)
    assert store.find("f", user_id=USER) is None


@pytest.mark.parametrize("kind", ["bytes", "path", "generator"])
def test_progress(store: FileStorage, kind: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    data = content(2, 20 * CHUNK)

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    store.push(SOURCES[kind](data, tmp_path), filename="f", user_id=USER, progress=progress)
    done = [step for step, _ in told]
    assert done == sorted(done)
    assert done[-1] == len(data)
    assert {total for _, total in told} == {0 if kind == "generator" else len(data)}


def test_the_same_bytes_give_the_same_tree_however_they_came(kept: FileStorage, tmp_path: Path) -> None:
    data = content(5, 9 * CHUNK + 5)
    versions: list[Version] = []
    for kind, source in SOURCES.items():
        if kind != "one byte at a time":
            opened = source(data, tmp_path)
            versions.append(kept.push(opened, filename=f"same {kind}", user_id=USER))
            _close(opened)
    ids = {tuple(kept.chunk_ids(version.file_id, user_id=USER)) for version in versions}
    assert len(ids) == 1
