"""For any bytes from outside, parsers return a result or None, or raise a storage error."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from storage import FileStorage, ManifestDiff, Patch, StorageError, Version
from storage.formats.manifest import Manifest, RootNode, decode_node, decode_root, encode_node, encode_root, object_id
from storage.formats.tombstones import Tombstone, decode_tombstone, encode_tombstone
from storage.formats.version_records import VersionRecord
from storage.formats.versions import decode_version, seal
from storage.keys import Kind, shard_key, stripe_key
from storage.shards import Shard
from storage.shards.filesystem import LocalFileSystem
from storage.shards.identity import read_identity
from storage.shards.record import (
    HEADER_BYTES,
    SegmentHeader,
    pack_headers,
    pack_segment_header,
    parse_header,
    parse_segment_header,
)
from storage.shards.scan import ScannedRecord, scan_records
from tests.storage.helpers import CHUNK, USER, content, digest, get, open_store, push

VOLUME_KEY = bytes(range(32))
ROOT = RootNode(1, 3 * CHUNK + 1, CHUNK, 4, 6, 0, 0, content(1, 128))
RECORD = VersionRecord(
    1,
    bytes(16),
    content(2, 32),
    object_id(encode_root(ROOT)),
    ROOT.size,
    USER,
    "名.txt",
    -1,
    1 << 50,
    content(3, 32),
    "n",
)
SHARD = Shard(shard_key(stripe_key(Kind.CHUNK, content(4, 32), 4, 6), 5), 400, digest(content(5, 100)), content(5, 100))

ROOT_RAW = encode_root(ROOT)
NODE_RAW = encode_node(0, content(1, 96))
VERSION_RAW = seal(RECORD, ROOT, ROOT_RAW).raw
TOMBSTONE_RAW = encode_tombstone(Tombstone(1, bytes(16), 1 << 50))
HEADER_RAW = pack_headers([SHARD], VOLUME_KEY)[0]
SEGMENT_RAW = pack_segment_header(SegmentHeader(bytes(16), VOLUME_KEY, 3, 6, 1, 1 << 40, CHUNK, 4, 6))
IDENTITY_RAW = json.dumps(
    {"store_id": "0" * 32, "slot": 0, "volumes": 6, "key": "1" * 64, "k": 4, "n": 6, "chunk_size": CHUNK, "format": 1}
).encode()

EXAMPLES = 200
LONG = 20_000


@st.composite
def _mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid bytes with some removed, inserted, overwritten or repeated."""
    raw = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        length = draw(st.integers(0, 8))
        piece = draw(
            st.one_of(
                st.binary(max_size=8),
                st.just(bytes(raw[at : at + length]) * 2),
                # Heads of MessagePack values, large ones among them.
                st.sampled_from(
                    [
                        b"\xc0",
                        b"\xc1",
                        b"\xdf\xff\xff\xff\xff",
                        b"\xdd\xff\xff\xff\xff",
                        b"\xc6\xff\xff\xff\xff",
                        b"\xdb\x7f\xff\xff\xff",
                        b"\xcf" + b"\xff" * 8,
                        b"\xd3\x80" + bytes(7),
                        b"\xcb\x7f\xf0" + bytes(6),
                        b"\x91" * 200,
                        b"\x81" * 100,
                        b"\xc9\xff\xff\xff\xff\x01",
                    ]
                ),
            )
        )
        raw[at : at + length] = piece
    return bytes(raw)


def _any_bytes(valid: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(max_size=300), _mutated(valid))


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "root": (decode_root, ROOT_RAW),
    "node": (lambda raw: decode_node(raw, 0), NODE_RAW),
    "version": (decode_version, VERSION_RAW),
    "tombstone": (decode_tombstone, TOMBSTONE_RAW),
    "record header": (lambda raw: parse_header(raw, VOLUME_KEY), HEADER_RAW),
    "segment header": (parse_segment_header, SEGMENT_RAW),
}


def _tolerates(parse: Callable[[bytes], object], raw: bytes) -> object:
    try:
        return parse(raw)
    except StorageError:
        return None


def _try_parser(name: str, data: st.DataObject) -> None:
    parse, valid = PARSERS[name]
    raw = data.draw(_any_bytes(valid))
    result = _tolerates(parse, raw)
    if name in ("root", "version") and result is not None:
        assert _encoded(result) == raw  # there is only one encoding


def _encoded(result: object) -> bytes:
    if isinstance(result, RootNode):
        return encode_root(result)
    return bytes(getattr(result, "raw"))  # noqa: B009


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_parsers(name: str, data: st.DataObject) -> None:
    _try_parser(name, data)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@settings(max_examples=LONG, deadline=None, suppress_health_check=list(HealthCheck))
def test_parsers_at_length(name: str, data: st.DataObject) -> None:
    _try_parser(name, data)


@pytest.mark.parametrize("name", PARSERS)
def test_every_cut_and_every_flip_of_valid_bytes(name: str) -> None:
    parse, valid = PARSERS[name]
    assert parse(valid) is not None
    for at in range(len(valid)):
        _tolerates(parse, valid[:at])
        for bit in range(8):
            _tolerates(parse, valid[:at] + bytes([valid[at] ^ (1 << bit)]) + valid[at + 1 :])


@pytest.mark.parametrize("name", ["record header", "segment header"])
def test_no_flip_of_a_header_goes_unnoticed(name: str) -> None:
    parse, valid = PARSERS[name]
    for at in range(len(valid)):
        assert _tolerates(parse, valid[:at] + bytes([valid[at] ^ 1]) + valid[at + 1 :]) is None


@given(
    format_=st.integers(-1, 2),
    size=st.integers(-1, 1 << 61),
    chunk_size=st.integers(0, 1 << 25),
    code=st.tuples(st.integers(0, 257), st.integers(0, 257)),
    rest=st.tuples(st.integers(0, 1), st.integers(-1, 5)),
    children=st.binary(max_size=200),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_roots_that_contradict_themselves(
    format_: int, size: int, chunk_size: int, code: tuple[int, int], rest: tuple[int, int], children: bytes
) -> None:
    root = _tolerates(decode_root, encode_root(RootNode(format_, size, chunk_size, *code, *rest, children)))
    if isinstance(root, RootNode):
        assert 1 <= root.k <= root.n <= 256
        assert len(root.children) == 32 * root.chunk_count


@given(
    root=st.builds(
        RootNode,
        st.just(1),
        st.integers(0, 1 << 40),
        st.just(CHUNK),
        st.just(4),
        st.just(6),
        st.just(0),
        st.integers(0, 4),
        st.binary(max_size=100),
    ),
    node=_any_bytes(NODE_RAW),
    index=st.integers(0, 5000),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_walking_a_tree_of_made_up_nodes(root: RootNode, node: bytes, index: int) -> None:
    manifest = Manifest(root, lambda node_id: node)
    _tolerates(lambda _: manifest.chunk_id(index), b"")
    _tolerates(lambda _: next(manifest.chunk_ids(index, index + 1), None), b"")


# -- the VOLUME file ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(module_scratch: Path) -> Path:
    """A directory for VOLUME files."""
    path = module_scratch / "volume"
    path.mkdir()
    return path


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _read(directory: Path, raw: bytes) -> None:
    (directory / "VOLUME").write_bytes(raw)
    _tolerates(lambda _: read_identity(directory), b"")


@given(raw=_any_bytes(IDENTITY_RAW))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_volume_files(directory: Path, raw: bytes) -> None:
    _read(directory, raw)


@given(member=st.sampled_from(sorted(json.loads(IDENTITY_RAW))), value=_JSON)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_volume_files_of_the_wrong_types(directory: Path, member: str, value: object) -> None:
    _read(directory, json.dumps(json.loads(IDENTITY_RAW) | {member: value}).encode())


@pytest.mark.parametrize("depth", [10, 1000, 200_000])
def test_deeply_nested_volume_files(directory: Path, depth: int) -> None:
    _read(directory, b'{"x":' + b"[" * depth)
    _read(directory, b'{"x":' + b"[" * depth + b"]" * depth + b"}")


# -- segments ---------------------------------------------------------------------------------------------


@st.composite
def _segments(draw: st.DrawFn) -> tuple[bytes, list[Shard]]:
    """Records, garbage between them, and payloads that contain whole records with another key."""
    raw, shards = bytearray(), []
    for number in range(draw(st.integers(0, 5))):
        raw += draw(st.one_of(st.just(b""), st.binary(max_size=50), st.just(b"TwSh"), st.just(HEADER_RAW[:90])))
        payload = draw(
            st.one_of(
                st.binary(max_size=200),
                st.just(pack_headers([SHARD], bytes(32))[0] + bytes(SHARD.payload)),
                st.just(b"TwSh" * 30),
            )
        )
        key = shard_key(stripe_key(Kind.CHUNK, content(number, 32), 1, 2), 1)
        shard = Shard(key, len(payload), digest(payload), payload)
        shards.append(shard)
        raw += pack_headers([shard], VOLUME_KEY)[0] + payload
    return bytes(raw + draw(st.binary(max_size=30))), shards


def _scan(path: Path, raw: bytes) -> list[tuple[int, int, object]]:
    path.write_bytes(raw)
    file = LocalFileSystem().open(path, writable=False)
    found: list[tuple[int, int, object]] = []
    for item in scan_records(file, VOLUME_KEY, 0, len(raw)):
        if isinstance(item, ScannedRecord):
            shard = Shard(item.header.key, item.header.object_length, item.header.digest, bytes(item.payload))
            found.append((item.offset, item.stop, shard if item.intact else None))
        else:
            found.append((item.offset, item.stop, None))
    return found


@given(made=_segments())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_scan_finds_all_records_and_accounts_for_every_byte(directory: Path, made: tuple[bytes, list[Shard]]) -> None:
    raw, shards = made
    found = _scan(directory / "segment", raw)
    assert [shard for _, _, shard in found if shard is not None] == shards
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found)][: len(found)]
    assert (found[-1][1] if found else 0) == len(raw)


@given(made=_segments(), seed=st.integers(0, 999), flips=st.integers(1, 5), cut=st.integers(0, 100))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_scan_of_damaged_segments(
    directory: Path, made: tuple[bytes, list[Shard]], seed: int, flips: int, cut: int
) -> None:
    """Undamaged records are found, and everything found is what was written."""
    raw, shards = made
    assume(len(raw) > cut)
    damaged = bytearray(raw)
    rng = random.Random(seed)
    for _ in range(flips):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    del damaged[len(damaged) - cut :]
    found = _scan(directory / "segment", bytes(damaged))
    intact = [shard for _, _, shard in found if shard is not None]
    assert all(shard in shards for shard in intact)
    for shard in shards:
        record = pack_headers([shard], VOLUME_KEY)[0] + bytes(shard.payload)
        if record in damaged:
            assert shard in intact


def test_a_scan_past_much_garbage(directory: Path) -> None:
    """The garbage is longer than the scan's window, and has the magic number across its borders."""
    raw = bytearray(9 << 20)
    places = [(2 << 20) - 2, (4 << 20) - 1, (4 << 20) + 1000, (8 << 20) - 90]
    for place in places:
        raw[place : place + HEADER_BYTES + 100] = HEADER_RAW + bytes(SHARD.payload)
    found = _scan(directory / "segment", bytes(raw))
    assert [start for start, _, shard in found if shard is not None] == places


# -- diffs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(module_scratch: Path) -> Iterator[tuple[FileStorage, Version]]:
    """A file that no invalid diff can change."""
    with open_store(module_scratch / "store", k=2, n=3) as store:
        yield store, push(store, content(1, 3 * CHUNK + 5))


_DATA = content(1, 3 * CHUNK + 5)
_IDS = st.one_of(
    st.binary(max_size=40), st.sampled_from([digest(_DATA[i : i + CHUNK]) for i in range(0, len(_DATA), CHUNK)])
)
_INTEGERS = st.one_of(st.integers(-3, 10), st.integers(), st.sampled_from([CHUNK, 1 << 31, 1 << 63, 1 << 64]))
_PATCHES = st.builds(Patch, _INTEGERS, _IDS, st.one_of(st.none(), st.binary(max_size=10), st.just(_DATA[:CHUNK])))


@given(
    size=st.one_of(_INTEGERS, st.integers(0, 5 * CHUNK)),
    chunk_size=st.sampled_from([CHUNK, CHUNK, CHUNK, 0, -1, 1, 1 << 64]),
    patches=st.lists(_PATCHES, max_size=4),
    base=st.sampled_from(["", "", "", "zz", "00" * 32, "é"]),
    sha256=st.sampled_from([None, None, "00" * 32, "x"]),
)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_diffs(
    kept: tuple[FileStorage, Version], size: int, chunk_size: int, patches: list[Patch], base: str, sha256: str | None
) -> None:
    store, first = kept
    head = store.stat(first.file_id, user_id=USER)
    diff = ManifestDiff(base or head.version_id, size, chunk_size, tuple(patches))
    try:
        version = store.revise(first.file_id, diff, user_id=USER, sha256=sha256)
    except StorageError:
        assert store.stat(first.file_id, user_id=USER) == head
        return
    assert len(get(store, version)) == size  # the diff is right by chance: then it was applied completely


@given(file_id=st.text(max_size=40), version_id=st.text(max_size=70), name=st.text(max_size=40), limit=st.integers())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arguments(kept: tuple[FileStorage, Version], file_id: str, version_id: str, name: str, limit: int) -> None:
    store, version = kept
    calls: list[Callable[[bytes], Any]] = [
        lambda _: store.get(file_id, user_id=USER),
        lambda _: store.get(version.file_id, user_id=name, version_id=version_id),
        lambda _: store.stat(version.file_id, user_id=USER, version_id=version_id),
        lambda _: store.find(name, user_id=USER),
        lambda _: store.list_files(user_id=USER, prefix=name, after=version_id, limit=min(limit, 1000)),
        lambda _: store.history(version.file_id, user_id=USER, before=version_id, limit=limit),
        lambda _: store.chunk_ids(version.file_id, user_id=USER, start=limit, stop=limit + 5),
        lambda _: store.synchronize(version.file_id, have_version_id=version_id, user_id=USER),
        lambda _: store.delete(file_id, user_id=USER),
    ]
    for call in calls:
        _tolerates(call, b"")
