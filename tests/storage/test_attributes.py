"""Attributes of versions: kept with each version, never changed, in the catalog and on the volumes."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import ErasureProfile, FileStorage, FormatError, InvalidArgument, Version
from storage.formats.authenticity import Authority, new_secret
from storage.formats.manifest import FAN_OUT, SEALED_REFERENCE_BYTES, RootNode, encode_root, object_id
from storage.formats.version_records import (
    ATTRIBUTED_FORMAT,
    NO_MAC,
    SIGNED_FORMAT,
    AttributedRecord,
    SignedRecord,
    attributes_of,
)
from storage.formats.versions import checked_outline, decode_version, read_version, seal_encrypted, seal_signed
from storage.limits import ATTRIBUTES_BYTES_MAX, ATTRIBUTES_MAX, check_attributes
from storage.maintenance.round_robin import RECORD_BYTES_MAX
from tests.storage.helpers import CHUNK, content, lose_catalog, open_store
from tests.storage.test_encryption import KEY, SECRET, _Ring, open_sealed, user_key

ADA = "ada"
OLD_STORE = Path(__file__).parent / "old_stores" / "format-1.tar.xz"
ROOT = RootNode(1, 10, CHUNK, 1, 1, 0, 0, bytes(32))
ETAG = {"etag": b"planted-etag-value", "type": b"text/plain"}
names = st.text(min_size=1, max_size=20)
given_attributes = st.dictionaries(names, st.binary(max_size=40), min_size=1, max_size=6)


def authority() -> Authority:
    made = Authority()
    made.use(new_secret(1, bytes))
    return made


def record(attributes: dict[str, bytes], note: str = "", user: str = ADA) -> AttributedRecord:
    pairs = tuple(check_attributes(attributes).items())
    root_id = object_id(encode_root(ROOT))
    return AttributedRecord(
        ATTRIBUTED_FORMAT, bytes(16), None, root_id, 10, user, "n", 5, 7, None, note, pairs, 3, NO_MAC
    )


def push(store: FileStorage, data: bytes, **options: Any) -> Version:
    return store.push(data, filename="a", user_id=ADA, **options)


# -- the record ---------------------------------------------------------------------------------------------


@given(attributes=given_attributes)
@settings(max_examples=40, deadline=None)
def test_any_attributes_come_back_sealed_or_not(attributes: dict[str, bytes]) -> None:
    plain = seal_signed(record(attributes), ROOT, encode_root(ROOT), authority())
    assert decode_version(plain.raw, plain.version_id) == read_version(plain.raw, plain.version_id) == plain
    assert plain.public().attributes == attributes
    key = user_key(ADA)
    sealed = seal_encrypted(record(attributes), ROOT, encode_root(ROOT), authority(), key, SECRET, bytes)
    again = decode_version(sealed.raw, sealed.version_id, _Ring(key))
    assert again == sealed
    assert again.public().attributes == attributes
    assert checked_outline(sealed.raw).format == 7


def test_a_record_without_attributes_has_the_former_bytes() -> None:
    """In such a store nothing changes, so that former releases still read it."""
    root_id = object_id(encode_root(ROOT))
    unsigned = SignedRecord(SIGNED_FORMAT, bytes(16), None, root_id, 10, ADA, "n", 5, 7, None, "", 3, NO_MAC)
    raw = msgspec.msgpack.decode(seal_signed(unsigned, ROOT, encode_root(ROOT), authority()).raw)[0]
    golden = (
        b"\x9d\x02\xc4\x10" + bytes(16) + b"\xc0\xc4\x20" + root_id + b"\x0a\xa3ada\xa1n\x05\x07\xc0\xa0\x03\xc4\x20"
    )
    assert raw[:-32] == golden


def test_a_record_with_attributes() -> None:
    """Golden bytes: whoever changes these changes the format."""
    stored = seal_signed(record({"b": b"2", "a": b""}), ROOT, encode_root(ROOT), authority())
    raw = msgspec.msgpack.decode(stored.raw)[0]
    pairs = b"\x92\x92\xa1a\xc4\x00\x92\xa1b\xc4\x012"
    golden = b"\x9e\x04\xc4\x10" + bytes(16) + b"\xc0\xc4\x20" + object_id(encode_root(ROOT))
    assert raw[:-32] == golden + b"\x0a\xa3ada\xa1n\x05\x07\xc0\xa0" + pairs + b"\x03\xc4\x20"


@pytest.mark.parametrize(
    "pairs",
    [
        (),
        (("b", b""), ("a", b"")),
        (("a", b""), ("a", b"")),
        (("", b""),),
        (("a" * 129, b""),),
        (("a", bytes(ATTRIBUTES_BYTES_MAX)),),
        tuple((f"{number:04}", b"") for number in range(ATTRIBUTES_MAX + 1)),
    ],
    ids=["none", "unsorted", "twice", "without a name", "long name", "large", "many"],
)
def test_other_forms_are_refused(pairs: tuple[tuple[str, bytes], ...]) -> None:
    made = msgspec.structs.replace(record({"a": b""}), attributes=pairs)
    raw = msgspec.msgpack.encode(made)
    with pytest.raises(FormatError, match="attributes"):
        decode_version(msgspec.msgpack.encode([raw, encode_root(ROOT)]))


def test_the_largest_version_fits_where_records_are_shown() -> None:
    """In a rebuild, a worker that shows a larger record is taken for a liar."""
    children = bytes(FAN_OUT * SEALED_REFERENCE_BYTES)
    root = RootNode(1, FAN_OUT * CHUNK, CHUNK, 4, 6, 1, 0, children)
    largest = msgspec.structs.replace(
        record({"a": bytes(ATTRIBUTES_BYTES_MAX - 1)}, note="n" * 4096, user="u" * 256),
        filename="f" * 1024,
        size=root.size,
        root_id=object_id(encode_root(root)),
    )
    sealed = seal_encrypted(largest, root, encode_root(root), authority(), user_key("u" * 256), SECRET, bytes)
    assert 80_000 < len(sealed.raw) <= RECORD_BYTES_MAX


# -- the store ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_attributes_are_kept_with_each_version_and_survive_a_rebuild(root: Path, key: bytes | None) -> None:
    with open_sealed(root, key) as store:
        first = push(store, b"one", attributes=ETAG)
        second = push(store, content(1, 3 * CHUNK), attributes={"etag": b"2"})
        third = push(store, b"three")
        outcomes = list(store.push_many([("m", b"x"), ("large", content(2, 2 << 20))], user_id=ADA, attributes=ETAG))
        assert [outcome.version.attributes for outcome in outcomes if outcome.version] == [ETAG, ETAG]
        expected = [{}, {"etag": b"2"}, ETAG]
        assert [one.attributes for one in (third, second, first)] == expected
    lose_catalog(root)
    with open_sealed(root, key) as store:
        store.rebuild()
        assert [one.attributes for one in store.history(first.file_id, user_id=ADA)] == expected
        assert store.stat(first.file_id, user_id=ADA, version_id=first.version_id).attributes == ETAG
        head = store.find("m", user_id=ADA)
        assert head is not None
        assert head.attributes == ETAG
        assert store.get(first.file_id, user_id=ADA, version_id=second.version_id) == content(1, 3 * CHUNK)
        assert {one.filename: one.attributes for one in store.list_files(user_id=ADA)}["large"] == ETAG
    planted = any(ETAG["etag"] in file.read_bytes() for file in root.rglob("*") if file.is_file())
    assert planted is (key is None)


@pytest.mark.parametrize("size", [3, 3 * CHUNK], ids=["small", "large"])
def test_equal_content_with_other_attributes_is_a_new_version(root: Path, size: int) -> None:
    data = content(3, size)
    with open_store(root) as store:
        first = push(store, data, attributes=ETAG)
        assert push(store, data).version_id == first.version_id
        assert push(store, data, attributes=dict(reversed(ETAG.items()))).unchanged
        other = push(store, data, attributes=ETAG | {"etag": b"other"})
        bare = push(store, data, attributes={})
        assert [one.attributes for one in store.history(first.file_id, user_id=ADA)] == [{}, other.attributes, ETAG]
        assert not bare.unchanged
        assert store.stats().logical_bytes == size


def test_attributes_may_be_known_only_when_the_content_was_read(root: Path) -> None:
    read = []

    def blocks() -> Any:
        yield content(4, CHUNK)
        read.append("all")

    with open_store(root) as store:
        version = push(store, blocks(), attributes=lambda: {"read": "".join(read).encode()})
        assert version.attributes == {"read": b"all"}

        def refusing() -> dict[str, bytes]:
            raise ValueError("not what was announced")

        with pytest.raises(ValueError, match="announced"):
            store.push(b"other", filename="b", user_id=ADA, attributes=refusing)
        assert store.find("b", user_id=ADA) is None
        with store.upload(filename="c", user_id=ADA, attributes={"a": b"early"}) as upload:
            upload.write(b"x")
            assert upload.commit(attributes={"a": b"late"}).attributes == {"a": b"late"}


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"a": "text"}, "must be bytes"),
        ({1: b""}, "must be text"),
        ({"": b""}, "of 1 to 128"),
        ({"ä" * 65: b""}, "130 bytes"),
        ({"a": bytes(ATTRIBUTES_BYTES_MAX)}, "16,385 bytes"),
        ({str(number): b"" for number in range(ATTRIBUTES_MAX + 1)}, "at most 128"),
        ([("a", b"")], "mapping"),
        ({"\ud800": b""}, "surrogates"),
    ],
)
def test_what_cannot_be_an_attribute(root: Path, attributes: Any, text: str) -> None:
    with open_store(root) as store:
        for given_ in (attributes, lambda: attributes):
            with pytest.raises(InvalidArgument, match=text):
                push(store, b"x", attributes=given_)
        assert store.find("a", user_id=ADA) is None
        assert push(store, b"x", attributes={"a": bytearray(ATTRIBUTES_BYTES_MAX - 1)}).attributes["a"] == bytes(16383)


def test_an_old_store_takes_attributes_and_keeps_its_versions(root: Path) -> None:
    with tarfile.open(OLD_STORE) as archive:
        archive.extractall(root.parent, filter="data")
    with FileStorage.open(root, profile=ErasureProfile(4, 6)) as store:
        before = store.find("a", user_id=ADA)
        assert before is not None
        version = push(store, store.get(before.file_id, user_id=ADA), attributes=ETAG)
        assert version.parent_id == before.version_id
        history = store.history(before.file_id, user_id=ADA)
    assert [one.attributes for one in history] == [ETAG, {}, {}]
    lose_catalog(root)
    with FileStorage.open(root, profile=ErasureProfile(4, 6)) as store:
        store.rebuild()
        assert store.history(before.file_id, user_id=ADA) == history


def test_a_revision_has_attributes_of_its_own(root: Path) -> None:
    with open_store(root) as store:
        base = push(store, content(5, CHUNK), attributes=ETAG)
        diff = store.diff(base.file_id, content(6, CHUNK), user_id=ADA)
        assert store.revise(base.file_id, diff, user_id=ADA).attributes == {}
        diff = store.diff(base.file_id, content(7, CHUNK), user_id=ADA)
        assert store.revise(base.file_id, diff, user_id=ADA, attributes=ETAG).attributes == ETAG


def test_records_say_whether_they_have_attributes() -> None:
    assert attributes_of(record({"a": b"1"})) == (("a", b"1"),)
