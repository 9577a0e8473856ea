"""Attributes of versions over the wire."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

import pytest

from storage import FileStorage, InvalidArgument
from storage.limits import ATTRIBUTES_BYTES_MAX
from taskworker import Client
from tests.services.conftest import CHUNK

ADA = "ada"
LARGE = {"a": bytes(ATTRIBUTES_BYTES_MAX - 1)}
SIZES = [0, 10, CHUNK + 1, 3 << 20]


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def streamed(data: bytes, take: Callable[[bytes], object]) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK):
        take(data[start : start + CHUNK])
        yield data[start : start + CHUNK]


@pytest.mark.parametrize("size", SIZES)
def test_attributes_come_back_from_all_that_shows_versions(client: Client, size: int) -> None:
    version = client.push(content(1, size), filename="a", user_id=ADA, attributes=LARGE)
    assert version.attributes == LARGE
    assert client.stat(version.file_id, user_id=ADA).attributes == LARGE
    assert [one.attributes for one in client.history(version.file_id, user_id=ADA)] == [LARGE]
    with client.open(version.file_id, user_id=ADA) as file:
        assert file.version.attributes == LARGE
    found = client.find("a", user_id=ADA)
    assert found == version
    assert client.push(content(1, size), filename="a", user_id=ADA).unchanged
    assert not client.push(content(1, size), filename="a", user_id=ADA, attributes={}).unchanged


def test_a_digest_that_is_known_at_the_end_of_a_stream(client: Client) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    data = content(2, 3 * CHUNK + 5)

    def attributes() -> dict[str, bytes]:
        return {"etag": digest.hexdigest().encode()}

    version = client.push(streamed(data, digest.update), filename="a", user_id=ADA, attributes=attributes)
    assert version.attributes == {"etag": hashlib.md5(data, usedforsecurity=False).hexdigest().encode()}


def test_a_push_whose_attributes_cannot_be_made_stores_nothing(client: Client) -> None:
    def refusing() -> dict[str, bytes]:
        raise ValueError("another checksum was announced")

    for data in (b"small", content(3, 3 * CHUNK)):
        with pytest.raises(ValueError, match="announced"):
            client.push(iter([data]), filename="a", user_id=ADA, attributes=refusing)
        with pytest.raises(ValueError, match="announced"):
            client.push(data, filename="a", user_id=ADA, attributes=refusing)
        with pytest.raises(InvalidArgument, match="16,385 bytes"):
            client.push(data, filename="a", user_id=ADA, attributes=lambda: {"b": bytes(ATTRIBUTES_BYTES_MAX)})
    assert client.find("a", user_id=ADA) is None


def test_many_files_and_long_histories_come_in_pages(client: Client, store: FileStorage) -> None:
    """Versions with all their attributes do not fit into one message."""
    outcomes = list(client.push_many(((f"{at:03}", b"x") for at in range(300)), user_id=ADA, attributes=LARGE))
    assert [one.version.attributes for one in outcomes if one.version] == [LARGE] * 300
    everything = list(client.get_many((f"{at:03}" for at in range(300)), user_id=ADA, by_name=True))
    assert [one.version.attributes for one in everything if one.version] == [LARGE] * 300
    for at in range(299):
        store.push(str(at).encode(), filename="000", user_id=ADA, attributes=LARGE)
    file_id = outcomes[0].version.file_id if outcomes[0].version else ""
    assert [one.attributes for one in client.history(file_id, user_id=ADA)] == [LARGE] * 300
    assert {len(one.attributes) for one in client.list_files(user_id=ADA)} == {0}
    shown = client.list_files(user_id=ADA, with_attributes=["b", "a"])
    assert [one.attributes for one in shown] == [LARGE] * 300


def test_a_copy_keeps_or_replaces_attributes(client: Client) -> None:
    version = client.push(content(4, 2 * CHUNK), filename="a", user_id=ADA, attributes={"a": b"1"})
    copy = client.copy(version.file_id, "b", user_id=ADA)
    assert copy.attributes == {"a": b"1"}
    again = client.copy(copy.file_id, "b", user_id=ADA, attributes={"a": b"2"})
    assert (again.parent_id, again.attributes) == (copy.version_id, {"a": b"2"})
    assert client.copy(copy.file_id, "b", user_id=ADA, attributes={}).attributes == {}
    assert client.get(copy.file_id, user_id=ADA) == content(4, 2 * CHUNK)


def test_a_client_with_a_key_of_its_own_has_no_attributes(address: str, store: FileStorage) -> None:
    with Client(address, key=bytes(range(32))) as client:
        with pytest.raises(InvalidArgument, match="cannot be sealed"):
            client.push(b"x", filename="a", user_id=ADA, attributes={"a": b"1"})
        with pytest.raises(InvalidArgument, match="cannot be sealed"):
            next(client.push_many([("a", b"x")], user_id=ADA, attributes={"a": b"1"}))
        version = client.push(b"x", filename="a", user_id=ADA)
        with pytest.raises(InvalidArgument, match="cannot be sealed"):
            client.copy(version.file_id, "b", user_id=ADA, attributes={"a": b"1"})
        # What a server makes up is not shown as if it came from somebody with the key.
        sealed = store.stat(version.file_id, user_id=ADA)
        data = store.get(version.file_id, user_id=ADA)
        store.push(data, filename=sealed.filename, user_id=ADA, note=sealed.note, attributes={"a": b"a lie"})
        assert store.stat(version.file_id, user_id=ADA).attributes == {"a": b"a lie"}
        shown = client.find("a", user_id=ADA)
        assert shown is not None
        assert shown.attributes == {}
        assert client.stat(version.file_id, user_id=ADA).attributes == {}
        assert [one.attributes for one in client.history(version.file_id, user_id=ADA)] == [{}, {}]
        assert client.copy(version.file_id, "b", user_id=ADA).attributes == {}
