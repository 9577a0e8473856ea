"""Version records have one encoding each, are named by their hash, and form a chain to the first one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import ErasureProfile, FormatError
from storage.formats.manifest import RootNode, encode_root, height_for, object_id
from storage.formats.tombstones import Tombstone, decode_tombstone, encode_tombstone
from storage.formats.version_records import RECORD_FORMAT, VersionRecord
from storage.formats.versions import decode_version, read_version, seal
from storage.keys import Kind
from storage.limits import FILE_SIZE_MAX
from tests.storage.helpers import CHUNK, USER, content, digest, lose_catalog, open_store, push, records, volume_dir

ids = st.binary(min_size=32, max_size=32)
file_ids = st.binary(min_size=16, max_size=16)
text = st.text(st.characters(codec="utf-8"), max_size=60)
signed = st.integers(-(1 << 63), (1 << 63) - 1)


@st.composite
def _roots(draw: st.DrawFn) -> RootNode:
    size = draw(st.one_of(st.integers(0, 20 * CHUNK), st.integers(0, FILE_SIZE_MAX)))
    count = -(-size // CHUNK)
    height = height_for(count)
    width = -(-count // 1024**height)
    k = draw(st.integers(1, 256))
    return RootNode(1, size, CHUNK, k, draw(st.integers(k, 256)), 0, height, content(1, 32 * width))


@given(
    root=_roots(),
    file_id=file_ids,
    parent=st.none() | ids,
    names=st.tuples(text, text, text),
    times=st.tuples(signed, st.integers(0, (1 << 63) - 1)),
    sha256=st.none() | ids,
)
@settings(max_examples=100, deadline=None)
def test_any_record_comes_back(
    root: RootNode, file_id: bytes, parent: bytes | None, names: tuple[str, str, str], times: tuple[int, int],
    sha256: bytes | None,
) -> None:  # fmt: skip
    raw_root = encode_root(root)
    user, name, note = names
    record = VersionRecord(
        RECORD_FORMAT, file_id, parent, object_id(raw_root), root.size, user, name, times[0], times[1], sha256, note
    )
    stored = seal(record, root, raw_root)
    assert decode_version(stored.raw, stored.version_id) == stored
    assert read_version(stored.raw, stored.version_id) == stored
    public = stored.public()
    assert (public.user_id, public.filename, public.note, public.size) == (user, name, note, root.size)
    assert (public.time_ms, public.sequence) == times
    assert public.parent_id == (parent.hex() if parent else None)
    assert public.sha256 == (sha256.hex() if sha256 else None)
    assert public.profile == ErasureProfile(root.k, root.n)


def test_a_version_under_another_id_or_with_another_root() -> None:
    root = RootNode(1, 10, CHUNK, 1, 1, 0, 0, bytes(32))
    raw_root = encode_root(root)
    record = VersionRecord(RECORD_FORMAT, bytes(16), None, object_id(raw_root), 10, "u", "n", 0, 0, None, "")
    stored = seal(record, root, raw_root)
    with pytest.raises(FormatError, match="its id"):
        decode_version(stored.raw, bytes(32))
    other = RootNode(1, 10, CHUNK, 1, 1, 0, 0, b"\1" * 32)
    with pytest.raises(FormatError, match="manifest root"):
        decode_version(seal(record, other, encode_root(other)).raw)
    longer = msgspec.structs.replace(record, size=11)
    with pytest.raises(FormatError, match="manifest root"):
        decode_version(seal(longer, root, raw_root).raw)


def test_another_form_of_the_same_is_refused() -> None:
    """Otherwise one content could have many ids."""
    root = RootNode(1, 10, CHUNK, 1, 1, 0, 0, bytes(32))
    raw_root = encode_root(root)
    record = VersionRecord(RECORD_FORMAT, bytes(16), None, object_id(raw_root), 10, "u", "n", 0, 0, None, "")
    raw_record = msgspec.msgpack.encode(record)
    longer_integer = raw_record.replace(b"\x0a\xa1u\xa1n", b"\xcc\x0a\xa1u\xa1n")
    longer_text = raw_record.replace(b"\xa1u\xa1n", b"\xd9\x01u\xa1n")
    assert len(longer_integer) == len(longer_text) == len(raw_record) + 1
    for form in (longer_integer, longer_text, raw_record + b"\xc0"):
        with pytest.raises(FormatError):
            decode_version(msgspec.msgpack.encode([form, raw_root]))


@given(file_id=file_ids, sequence=st.integers(0, (1 << 63) - 1))
@settings(max_examples=30, deadline=None)
def test_tombstones(file_id: bytes, sequence: int) -> None:
    tombstone = Tombstone(RECORD_FORMAT, file_id, sequence)
    assert decode_tombstone(encode_tombstone(tombstone)) == tombstone


def test_a_history_can_be_verified_from_any_volume(root: Path) -> None:
    """Hashes are enough, as every record names its parent by the hash of the parent's bytes."""
    with open_store(root) as store:
        versions = [push(store, content(number, 1000)) for number in range(5)]
    lose_catalog(root)
    found: dict[str, list[object]] = {}
    for record in records(volume_dir(root, 3)):
        if record.key[32] == Kind.VERSION:
            raw = record.segment.read_bytes()[record.start + 96 : record.stop]
            inner, raw_root = msgspec.msgpack.decode(raw)
            fields = msgspec.msgpack.decode(inner)
            assert fields[3] == digest(raw_root)
            found[digest(inner).hex()] = fields
    at: str | None = versions[-1].version_id
    chain: list[str] = []
    while at is not None:
        chain.append(at)
        parent = found[at][2]
        at = parent.hex() if isinstance(parent, bytes) else None
    assert chain == [version.version_id for version in reversed(versions)]
    assert {str(fields[5]) for fields in found.values()} == {USER}
