"""Sealing: any value under any name opens again, and nothing that was touched does."""

from __future__ import annotations

import contextlib
import hmac

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.sealing.master_keys import MasterKey, MasterKeys
from taskworker.errors import SecretDamaged, SecretsUnavailable
from taskworker.outbound.secrets.document import SealedSecret, opened, rewrapped_all, sealed
from taskworker.outbound.secrets.sealing import Grant, Terms, rewrapped, seal, unseal

KEY = MasterKey(bytes(range(32)))
OTHER = MasterKey(bytes(32))
RING = MasterKeys(KEY)

texts = st.text(st.characters(codec="utf-8"))
grants = st.lists(st.builds(Grant, texts, st.lists(texts, max_size=2).map(tuple)), max_size=3).map(tuple)
terms = st.builds(
    Terms,
    texts,
    st.integers(1, 1 << 31),
    st.just(b""),
    st.integers(0, 1 << 50),
    st.integers(0, 1 << 50),
    grants,
)


def secret(name: str, value: str, version: int = 1, *, key: MasterKey = KEY) -> SealedSecret:
    found, record = seal(value, Terms(name, version, b"", 1, 2, (Grant("f"),)), key)
    return SealedSecret(name, version, found.serial, record, key, found)


def document(*secrets: SealedSecret) -> bytes:
    return sealed(secrets, KEY)


def intact(raw: bytes) -> list[str]:
    return [one.name for one in opened(raw, RING, "here").by_name.values() if not one.damaged]


@settings(max_examples=60)
@given(value=texts, about=terms)
def test_what_was_sealed_opens_as_it_was(value: str, about: Terms) -> None:
    kept, record = seal(value, about, KEY)
    assert unseal(record, KEY) == (kept, value)
    again = rewrapped(record, KEY, OTHER)
    assert unseal(again, OTHER) == (kept, value)
    for key, sealed_record in ((OTHER, record), (KEY, again)):
        with pytest.raises(SecretDamaged):
            unseal(sealed_record, key)


@settings(max_examples=50)
@given(value=st.text(st.characters(codec="utf-8"), min_size=8))
def test_neither_value_nor_key_is_in_the_record(value: str) -> None:
    about = Terms("name", 1, b"", 1, 2)
    _, record = seal(value, about, KEY)
    assert value.encode() not in record
    assert KEY.raw not in record
    assert KEY.secrets_wrap not in record
    assert seal(value, about, KEY)[1] != record  # never twice the same


@settings(max_examples=60)
@given(data=st.data(), value=texts, about=terms)
def test_no_byte_of_a_record_can_be_changed(data: st.DataObject, value: str, about: Terms) -> None:
    _, record = seal(value, about, KEY)
    at = data.draw(st.integers(0, len(record) - 1))
    changed = bytearray(record)
    changed[at] ^= data.draw(st.integers(1, 255))
    for touched in (bytes(changed), record[:at], record + b"\0", record[:at] + record[at + 1 :]):
        with pytest.raises(SecretDamaged):
            unseal(touched, KEY)


def test_every_bit_of_every_byte_of_a_document_counts() -> None:
    raw = document(secret("a", "first value"), secret("b", "second value"))
    for at in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[at] ^= 1 << bit
            with contextlib.suppress(SecretDamaged, SecretsUnavailable):
                # What can still be read is at most the one secret that was not touched.
                assert len(intact(bytes(changed))) == 1


@settings(max_examples=50)
@given(noise=st.binary(max_size=300))
def test_garbage_is_found_to_be_that(noise: bytes) -> None:
    if noise:
        with pytest.raises((SecretDamaged, SecretsUnavailable)):
            opened(noise, RING, "here")
    with pytest.raises(SecretDamaged):
        unseal(noise, KEY)


def moved(of: SealedSecret, record: bytes) -> SealedSecret:
    """A secret with another's record, as one who can write to the catalog would put it there."""
    return SealedSecret(of.name, of.version, of.serial, record, of.key, of.terms)


def test_records_swapped_between_names_are_found() -> None:
    one, two, three = secret("one", "1" * 9), secret("two", "2" * 9), secret("three", "3" * 9)
    raw = document(one, two, three)
    assert intact(raw) == ["one", "three", "two"]
    swapped = raw.replace(one.record, b"\1" * len(one.record)).replace(two.record, one.record)
    swapped = swapped.replace(b"\1" * len(one.record), two.record)
    assert swapped != raw
    assert intact(swapped) == ["three"]
    assert intact(document(moved(one, two.record), two, three)) == ["three", "two"]


def test_an_earlier_version_put_back_is_found() -> None:
    before, now = secret("key", "old value", 1), secret("key", "new value", 2)
    other = secret("other", "other")
    assert intact(document(moved(now, before.record), other)) == ["other"]
    # Nor does one of the same version: removed and set again, or with a grant that was taken back.
    assert intact(document(moved(before, secret("key", "old value", 1).record), other)) == ["other"]


def test_a_record_left_out_or_added_is_found() -> None:
    one, two = secret("one", "1" * 9), secret("two", "2" * 9)
    both, alone = document(one, two), document(one)
    assert intact(both) == ["one", "two"]
    assert intact(alone) == ["one"]
    for raw in (both, alone):
        with pytest.raises(SecretDamaged):
            opened(raw[:-1], RING, "here")
    cut = both.replace(two.record, b"")
    with pytest.raises(SecretDamaged):
        opened(cut, RING, "here")


def test_a_document_under_another_key_says_which() -> None:
    raw = document(secret("one", "value"))
    with pytest.raises(SecretsUnavailable, match=rf"{KEY.secrets_id}, but the drawer holds {OTHER.secrets_id}"):
        opened(raw, MasterKeys(OTHER), "the drawer")
    again = rewrapped_all(opened(raw, RING, "here"), OTHER)
    assert [one.damaged for one in opened(again, MasterKeys(OTHER, (KEY,)), "here").by_name.values()] == [False]
    # The table is tagged by the key as well: records that the key's owner made do not make a table.
    forged = sealed([secret("one", "value")], OTHER).replace(OTHER.secrets_id.encode(), KEY.secrets_id.encode())
    with pytest.raises(SecretDamaged):
        opened(forged, RING, "here")


def test_nothing_that_shows_a_key_shows_it() -> None:
    shown = f"{KEY!r} {KEY} {RING!r} {MasterKeys(KEY, (OTHER,))}"
    assert KEY.id.hex() in shown
    for form in (repr(KEY.raw), repr(KEY.secrets_wrap), repr(KEY.secrets_table), KEY.text(), KEY.raw.hex()):
        assert form.strip("b'") not in shown


def test_the_format_is_as_it_is_written() -> None:
    """As docs/format.md tells it, by other means."""

    def derived(purpose: bytes, length: int) -> bytes:
        # RFC 5869, for up to one block of output
        extracted = hmac.digest(bytes(32), KEY.raw, "sha256")
        return hmac.digest(extracted, b"taskworker secrets " + purpose + b"\1", "sha256")[:length]

    def opened_by(key: bytes, sealed_bytes: bytes, context: bytes) -> bytes:
        return AESGCM(key).decrypt(sealed_bytes[:12], sealed_bytes[12:], context)

    number, key_id, table, tag, records = msgspec.msgpack.decode(document(secret("b", "välue"), secret("a", "x", 7)))
    assert (number, key_id) == (1, derived(b"id", 8).hex())
    assert tag == hmac.digest(derived(b"table", 32), msgspec.msgpack.encode([1, key_id, table]), "sha256")
    found = {}
    for (name, version, serial), record in zip(table, records, strict=True):
        about, wrapped, sealed_value = msgspec.msgpack.decode(record)
        data_key = opened_by(derived(b"wrap", 32), wrapped, b"taskworker secret key 1\0" + about)
        assert len(serial) == 16
        assert msgspec.msgpack.decode(about) == [name, version, serial, 1, 2, [["f", []]]]
        found[name] = opened_by(data_key, sealed_value, b"taskworker secret value 1\0" + about).decode()
    assert list(found.items()) == [("a", "x"), ("b", "välue")]
