"""The on-disk format does not change, and docs/format.md is sufficient to read it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from storage import FileStorage, Version
from storage.fleet.placement import FixedLayout
from storage.formats.manifest import RootNode, decode_node, decode_root, encode_node, encode_root, object_id
from storage.formats.tombstones import Tombstone, decode_tombstone, encode_tombstone
from storage.formats.version_records import VersionRecord
from storage.formats.versions import decode_version, seal
from storage.keys import Kind, shard_key, stripe_key
from storage.shards import Shard
from storage.shards.record import (
    Header,
    SegmentHeader,
    pack_headers,
    pack_segment_header,
    parse_header,
    parse_segment_header,
)
from tests.storage.helpers import CHUNK, USER, content, digest, open_store, push, push_many, volume_dir

DECODER = Path(__file__).with_name("decode_by_format.py")
LINES_MAX = 30
SIZES = (0, 1, 3, 4, 5, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17)


# -- the specification is enough -------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(module_scratch: Path) -> tuple[Path, dict[str, bytes]]:
    """A closed 4-of-6 store, and all of its chunks by hexadecimal id."""
    root = module_scratch / "store"
    chunks: dict[str, bytes] = {}
    with open_store(root, segment_bytes_max=128 * 1024) as store:
        for version, data in push_many(store, SIZES).values():
            chunks |= _chunks(store, version, data)
        ours = store.push(content(99, 5), filename="another code", user_id=USER, chunk_size=CHUNK)
        chunks |= _chunks(store, ours, content(99, 5))
    return root, chunks


def _chunks(store: FileStorage, version: Version, data: bytes) -> dict[str, bytes]:
    ids = store.chunk_ids(version.file_id, user_id=USER)
    return {chunk_id.hex(): data[i * CHUNK : (i + 1) * CHUNK] for i, chunk_id in enumerate(ids)}


def _decode(out: Path, volumes: list[Path]) -> dict[str, bytes]:
    out.mkdir()
    command = [sys.executable, "-I", str(DECODER), str(out), *map(str, volumes)]
    subprocess.run(command, check=True, timeout=120)
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("removed", list(combinations(range(6), 2))[::2])
def test_any_four_of_six_volumes_decode_by_the_specification(
    kept: tuple[Path, dict[str, bytes]], removed: tuple[int, int], tmp_path: Path
) -> None:
    root, chunks = kept
    left = [volume_dir(root, slot) for slot in range(6) if slot not in removed]
    assert _decode(tmp_path / "out", left) == chunks


def test_three_of_six_volumes_are_too_few(kept: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    root, _ = kept
    assert _decode(tmp_path / "out", [volume_dir(root, slot) for slot in range(3)]) == {}


def test_a_store_in_use_decodes_as_well(tmp_path: Path) -> None:
    """Small appends write zeros ahead of them, which are not records."""
    with open_store(tmp_path / "store") as store:
        data = content(1, 100)
        version = push(store, data)
        shutil.copytree(tmp_path / "store", tmp_path / "copy")
        expected = _chunks(store, version, data)
    assert _decode(tmp_path / "out", [volume_dir(tmp_path / "copy", slot) for slot in (1, 3, 4, 5)]) == expected


def test_the_decoder_is_short_and_knows_nothing_of_the_project() -> None:
    text = DECODER.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    assert "import storage" not in text
    assert "from storage" not in text


# -- golden bytes: whoever changes these changes the format -----------------------------------------

VOLUME_KEY = bytes(range(32))
CHUNK_ID = bytes(range(100, 132))
PAYLOAD = b"payload"
ROOT = RootNode(1, 3 * CHUNK + 1, CHUNK, 4, 6, 0, 0, b"".join(bytes([i]) * 32 for i in range(1, 5)))
FILE_ID = bytes(range(16))


def test_record_header() -> None:
    key = shard_key(stripe_key(Kind.CHUNK, CHUNK_ID, 4, 6), 5)
    golden = (
        b"TwSh\x01"
        + CHUNK_ID
        + bytes([1, 3, 5, 5])
        + bytes.fromhex("1b000000 07000000")
        + bytes.fromhex("ec90915fa26ab012a89a88ecc8b47e4dd76c4adfd6abd1fc10e321b0fca18d1d")
        + bytes(3)
        + bytes.fromhex("a8059ec289c4540f8ea6f2ed")
    )
    assert pack_headers([Shard(key, 27, digest(PAYLOAD), PAYLOAD)], VOLUME_KEY) == [golden]
    assert parse_header(golden, VOLUME_KEY) == Header(key, 27, 7, digest(PAYLOAD))
    assert parse_header(golden, bytes(32)) is None


def test_segment_header() -> None:
    header = SegmentHeader(bytes(range(16)), VOLUME_KEY, 3, 6, 7, 1_700_000_000_123, CHUNK, 4, 6)
    golden = (
        b"TwSegmt1"
        + bytes(range(16))
        + VOLUME_KEY
        + bytes.fromhex("0300 0600 07000000 7b68e5cf8b010000 00000100 03 05")
        + bytes(18)
        + bytes.fromhex("44c46cb63273ade507567fe058e62ac9f7156f73c0d9830d55625194dd73a101")
    )
    assert pack_segment_header(header) == golden
    assert parse_segment_header(golden) == header


def test_manifest_root() -> None:
    golden = bytes.fromhex("98 01 ce00030001 ce00010000 04 06 00 00 c480") + ROOT.children
    assert encode_root(ROOT) == golden
    assert decode_root(golden) == ROOT
    empty = RootNode(1, 0, 1 << 20, 4, 6, 0, 0, b"")
    assert encode_root(empty) == bytes.fromhex("98 01 00 ce00100000 04 06 00 00 c400")


def test_manifest_node() -> None:
    golden = bytes.fromhex("92 01 c420") + bytes([7]) * 32
    assert encode_node(1, bytes([7]) * 32) == golden
    assert decode_node(golden, 1) == bytes([7]) * 32


def test_version_object() -> None:
    root = encode_root(ROOT)
    record = VersionRecord(
        1, FILE_ID, bytes([9]) * 32, object_id(root), ROOT.size, USER, "tour/été.txt", -5, 1_700_000_000_000_000,
        bytes([8]) * 32, "n",
    )  # fmt: skip
    raw_record = (
        bytes.fromhex("9b 01 c410")
        + FILE_ID
        + bytes.fromhex("c420")
        + bytes([9]) * 32
        + bytes.fromhex("c420 898550c9c5dd938c9294badf2c018ca8fea72af590b065e11e6914184fccbab7")
        + bytes.fromhex("ce00030001 a3616461 ae746f75722fc3a974c3a92e747874 fb cf00060a24181e4000 c420")
        + bytes([8]) * 32
        + bytes.fromhex("a16e")
    )
    golden = b"\x92\xc4" + bytes([len(raw_record)]) + raw_record + b"\xc4" + bytes([len(root)]) + root
    stored = seal(record, ROOT, root)
    assert stored.raw == golden
    assert stored.version_id.hex() == "6374be615a986f9898f006d14a34f533f9d0ec0773049dfb1a18f9229697382b"
    assert stored.version_id == digest(raw_record)
    assert decode_version(golden, stored.version_id) == stored


def test_tombstone() -> None:
    golden = bytes.fromhex("93 01 c410") + FILE_ID + bytes.fromhex("cd012c")
    assert encode_tombstone(Tombstone(1, FILE_ID, 300)) == golden
    assert decode_tombstone(golden) == Tombstone(1, FILE_ID, 300)


@pytest.mark.parametrize(
    ("prefix", "six", "three"),
    [
        (b"\x00\x00", (0, 5, 1, 4, 2, 3), (0, 1, 2, 0, 1)),
        (b"\x80\x40", (2, 0, 5, 4, 1, 3), (2, 0, 1, 2, 0)),
        (b"\xff\xff", (2, 0, 1, 4, 3, 5), (2, 0, 1, 2, 0)),
    ],
)
def test_placement(prefix: bytes, six: tuple[int, ...], three: tuple[int, ...]) -> None:
    assert FixedLayout(6).volumes(prefix + bytes(30), 6) == six
    assert FixedLayout(3).volumes(prefix + bytes(30), 5) == three


def test_files_of_a_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with open_store(root, k=3, n=5) as store:
        push(store, content(0, 10))
        store_id = store.stats().store_id
    assert {path.name for path in root.iterdir()} >= {"LOCK", "STORE", "catalog", "volumes"}
    for slot in range(5):
        directory = volume_dir(root, slot)
        assert {path.name for path in directory.iterdir()} == {"VOLUME", "index", "00000001.seg"}
        identity = json.loads((directory / "VOLUME").read_bytes())
        key = identity.pop("key")
        assert len(bytes.fromhex(key)) == 32
        assert identity == {
            "store_id": store_id, "slot": slot, "volumes": 5, "k": 3, "n": 5, "chunk_size": CHUNK, "format": 1
        }  # fmt: skip
        header = parse_segment_header((directory / "00000001.seg").read_bytes())
        assert header[:5] == (bytes.fromhex(store_id), bytes.fromhex(key), slot, 5, 1)
        assert header[6:] == (CHUNK, 3, 5)


def test_a_complete_segment_ends_with_its_last_record(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        push(store, content(0, 10))
    raw = (volume_dir(tmp_path / "store", 0) / "00000001.seg").read_bytes()
    assert not raw.endswith(bytes(64))
