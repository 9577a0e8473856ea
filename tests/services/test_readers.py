"""Readers are files: buffered, and good for everything that the standard library does with binary files."""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import pytest

from storage import FileReader, FileStorage
from storage.read.reader import VersionStream
from taskworker import Client
from taskworker.client.fetching import RemoteFile, _RemoteStream

USER = "ada"
LINES = [f"{number},line {number},{'x' * (number % 50)}\n" for number in range(20_000)]
TEXT = "".join(LINES).encode()

Open = Callable[[bytes], FileReader | RemoteFile]


@pytest.fixture(params=["embedded", "remote"])
def opened(request: pytest.FixtureRequest, store: FileStorage) -> Open:
    """Stores content and opens it."""

    def open_it(data: bytes) -> FileReader | RemoteFile:
        file_id = store.push(data, filename="f", user_id=USER).file_id
        if request.param == "embedded":
            return store.open_file(file_id, user_id=USER)
        client: Client = request.getfixturevalue("client")
        return client.open(file_id, user_id=USER)

    return open_it


def test_lines_are_read_by_the_buffer(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0

    def counting(method: Callable[..., int]) -> Callable[..., int]:
        def readinto(self: object, buffer: memoryview) -> int:
            nonlocal reads
            reads += 1
            return method(self, buffer)

        return readinto

    monkeypatch.setattr(VersionStream, "readinto", counting(VersionStream.readinto))
    monkeypatch.setattr(_RemoteStream, "readinto", counting(_RemoteStream.readinto))
    with opened(TEXT) as reader:
        assert b"".join(reader) == TEXT
        reader.seek(0)
        assert [reader.readline().decode() for _ in range(5)] == LINES[:5]
        assert reader.readlines(100) == [line.encode() for line in LINES[5:11]]
        assert reads < 2 + len(TEXT) / 10_000


def test_peek_does_not_move(opened: Open) -> None:
    with opened(TEXT) as reader:
        assert reader.peek(10)[:10] == TEXT[:10]
        assert reader.tell() == 0
        assert reader.read1(5) == TEXT[:5]
        reader.seek(-3, io.SEEK_END)
        assert reader.peek() == TEXT[-3:]
        reader.seek(0, io.SEEK_END)
        assert reader.peek() == b""
        assert not reader.writable()
        assert (reader.readable(), reader.seekable(), reader.size) == (True, True, len(TEXT))


def test_small_and_large_reads_in_turn(opened: Open) -> None:
    expected = io.BytesIO(TEXT)
    with opened(TEXT) as reader:
        for size in (1, 100_000, 3, 65_536, 0, 7, 200_000, 1 << 30):
            assert reader.read(size) == expected.read(size)
        for place in (5, 70_000, 66_000, 64, 500_000, 5):
            reader.seek(place), expected.seek(place)
            buffer, wanted = bytearray(90_000), bytearray(90_000)
            assert reader.readinto(buffer) == expected.readinto(wanted)
            assert buffer == wanted
            assert reader.tell() == expected.tell()
        assert reader.readall() == expected.read()


def test_the_standard_library_takes_them(opened: Open) -> None:
    with io.TextIOWrapper(opened(TEXT), encoding="utf-8", newline="") as text:
        rows = list(csv.reader(text))
    assert (len(rows), rows[77][1]) == (len(LINES), "line 77")
    with gzip.open(opened(gzip.compress(TEXT))) as unpacked:
        assert unpacked.read() == TEXT

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", TEXT)
        packed.writestr("b", b"b")
    with opened(archive.getvalue()) as reader, zipfile.ZipFile(reader) as found:
        assert (found.read("b"), found.read("a")) == (b"b", TEXT)

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("a")
        member.size = len(TEXT)
        tar.addfile(member, io.BytesIO(TEXT))
    with opened(archive.getvalue()) as reader, tarfile.open(fileobj=reader) as tar:
        content = tar.extractfile("a")
        assert content is not None
        assert content.read() == TEXT


def test_one_can_be_pushed_again(opened: Open, store: FileStorage) -> None:
    with opened(TEXT) as reader:
        source: BinaryIO = reader
        assert source.readline() == LINES[0].encode()
        copy = store.push(source, filename="copy", user_id=USER)
    assert store.get(copy.file_id, user_id=USER) == TEXT[len(LINES[0]) :]


def test_closed_ones_refuse(opened: Open) -> None:
    reader = opened(TEXT)
    reader.read(1)
    reader.close()
    for use in (lambda: reader.read(1), lambda: reader.readline(), lambda: reader.seek(0), lambda: reader.peek()):
        with pytest.raises(ValueError, match="closed"):
            use()
