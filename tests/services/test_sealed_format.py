"""The format of files that users seal: its arithmetic, large files, and a second implementation that reads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import ErasureProfile, FileStorage, Version
from storage.errors import InvalidArgument, SealBroken
from storage.limits import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, BytesLike
from storage.sealing.master_keys import MasterKey, new_key_file
from taskworker import Client
from taskworker.client.sealed.content import SealedContent
from taskworker.client.sealed.keys import FileKeys, OwnKey
from taskworker.client.sealed.layout import FOOTER_BYTES, PAGE_BYTES, PAGE_ENTRIES, Layout, layout_of
from taskworker.client.sealed.reading import SealedVersion
from taskworker.client.sources import SeekableSource

CHUNK = CHUNK_SIZE_MIN
DECODER = Path(__file__).with_name("decode_sealed_by_users.py")
LARGE = PAGE_ENTRIES * (CHUNK - 16) + 5 * CHUNK + 99  # two levels of pages


@given(size=st.integers(0, 1 << 59) | st.integers(0, 1 << 30), chunk_size=st.integers(CHUNK_SIZE_MIN, CHUNK_SIZE_MAX))
def test_the_size_follows_from_that_of_the_stored_file(size: int, chunk_size: int) -> None:
    layout = Layout(size, chunk_size)
    assert layout_of(layout.stored_bytes, chunk_size) == layout
    assert layout.root_at + layout.page_bytes(len(layout.entries) - 1, 0) + FOOTER_BYTES == layout.stored_bytes
    assert Layout(size + 1, chunk_size).stored_bytes > layout.stored_bytes


@given(stored=st.integers(-1, 1 << 61) | st.integers(0, 1 << 20), chunk_size=st.integers(0, 1 << 25))
def test_any_other_size_is_refused(stored: int, chunk_size: int) -> None:
    try:
        layout = layout_of(stored, chunk_size)
    except SealBroken:
        return
    assert layout.stored_bytes == stored


@dataclass
class Large:
    """A file with two levels of pages, all of it zeros, sealed in memory."""

    keys: FileKeys
    layout: Layout
    raw: bytearray
    fetched: int = 0

    def fetch(self, offset: int, length: int) -> Iterator[BytesLike]:
        self.fetched += length
        for at in range(offset, offset + length, 500_000):
            yield bytes(self.raw[at : min(at + 500_000, offset + length)])

    def version(self) -> SealedVersion:
        shown = Version("f", "v", None, "u", "n", 0, CHUNK, ErasureProfile(), 0, 0, None, "")
        return SealedVersion(self.keys, self.layout, stored=shown, version=shown, note="", fetch=self.fetch)


@pytest.fixture(scope="module")
def large() -> Large:
    keys = OwnKey(MasterKey(b"k" * 32)).of_file("u", "n")
    layout = Layout(LARGE, CHUNK)
    assert len(layout.entries) == 2
    content = SealedContent(SeekableSource(bytes(LARGE)), keys, layout, "")
    return Large(keys, layout, bytearray(content.read(0, content.size)))


def test_parts_of_a_large_file_take_few_reads(large: Large) -> None:
    for offset, length in ((0, 10), (LARGE - 3 * CHUNK, CHUNK), (PAGE_ENTRIES * (CHUNK - 16) - 9, 20), (LARGE - 1, 9)):
        before = large.fetched
        found = b"".join(large.version().content(offset, length))
        assert found == bytes(min(length, LARGE - offset))
        assert large.fetched - before < 4 * CHUNK + 2 * PAGE_BYTES


def test_a_changed_page_is_noticed(large: Large) -> None:
    at = large.layout.page_at(0, 1)
    large.raw[at] ^= 1
    try:
        assert b"".join(large.version().content(0, 10)) == bytes(10)
        with pytest.raises(SealBroken, match="list of blocks"):
            b"".join(large.version().content(LARGE - 10, 10))
    finally:
        large.raw[at] ^= 1


def test_a_source_that_changes_meanwhile_is_refused() -> None:
    keys = OwnKey(MasterKey(b"k" * 32)).of_file("u", "n")
    data = bytearray(3 * CHUNK)
    content = SealedContent(SeekableSource(data), keys, Layout(len(data), CHUNK), "")
    content.read(content.layout.sealed_bytes, 10)
    content.read(0, CHUNK)
    data[CHUNK] ^= 1
    with pytest.raises(InvalidArgument, match="changed while"):
        content.read(CHUNK, CHUNK)


def test_a_second_implementation_reads_it(
    address: str, store: FileStorage, client: Client, large: Large, tmp_path: Path
) -> None:
    key = new_key_file(tmp_path / "key")
    files = {"空": b"", "小": b"small", "大": bytes(range(256)) * 2000}
    with Client(address, key=key) as sealing:
        for name, data in files.items():
            sealing.push(data, filename=name, user_id="ann", note=f"备注 {name}")
    arguments: list[str] = []
    for number, stored in enumerate(client.list_files(user_id="ann")):
        (tmp_path / f"{number}").write_bytes(store.get(stored.file_id, user_id="ann"))
        arguments += [stored.filename, stored.note, str(tmp_path / f"{number}")]
    (tmp_path / "out").mkdir()
    run = [sys.executable, str(DECODER), str(tmp_path / "key"), "ann", str(tmp_path / "out"), *arguments]
    subprocess.run(run, check=True, timeout=120)
    for name, data in files.items():
        assert (tmp_path / "out" / name).read_bytes() == data + f"备注 {name}".encode()

    (tmp_path / "raw").write_bytes(large.raw)
    own = OwnKey(MasterKey(b"k" * 32))
    (tmp_path / "key").write_text("a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\n")
    run = [sys.executable, str(DECODER), str(tmp_path / "key"), "u", str(tmp_path / "out")]
    subprocess.run([*run, own.sealed_name("u", "n"), "", str(tmp_path / "raw")], check=True, timeout=120)
    assert (tmp_path / "out" / "n").read_bytes() == bytes(LARGE)
