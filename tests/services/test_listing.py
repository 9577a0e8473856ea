"""Pages and conditions over the wire."""

from __future__ import annotations

import random
from typing import Any

import pytest

from storage import ConflictError, FileNotFound, FileStorage, InvalidArgument, Version
from taskworker import Client
from taskworker.client.channel import Channel
from taskworker.errors import CallNotOffered, PoolIsBlind
from taskworker.protos import store_pb2
from tests.services.conftest import CHUNK

ADA = "ada"
LARGE = {"a": bytes(16_000), "b": b"1"}


@pytest.mark.parametrize("size", [0, 10, 3 * CHUNK])
def test_conditions(client: Client, size: int) -> None:
    data = random.Random(1).randbytes(size)

    def in_one_message(**options: Any) -> Version:
        return client.push(data, **options)

    def in_a_stream(**options: Any) -> Version:
        return client.push(iter([data]), **options)

    for push in (in_one_message, in_a_stream):
        name = push.__name__
        first = push(filename=name, user_id=ADA, if_absent=True)
        with pytest.raises(ConflictError) as caught:
            push(filename=name, user_id=ADA, if_absent=True)
        assert (caught.value.head, caught.value.base) == (first.version_id, None)
        second = push(filename=name, user_id=ADA, if_head=first.version_id, attributes={"a": b""})
        with pytest.raises(ConflictError) as caught:
            client.copy(first.file_id, name, user_id=ADA, if_head=first.version_id)
        assert (caught.value.head, caught.value.base) == (second.version_id, first.version_id)
        with pytest.raises(FileNotFound):
            push(filename="none", user_id=ADA, if_head=first.version_id)
        with pytest.raises(InvalidArgument, match="contradict"):
            push(filename="none", user_id=ADA, if_absent=True, if_head=first.version_id)
        with pytest.raises(ConflictError):
            client.copy(first.file_id, name, user_id=ADA, if_absent=True)
        assert client.copy(first.file_id, f"{name} copy", user_id=ADA, if_absent=True).size == size


def test_a_file_is_deleted_only_if_its_head_is_known(client: Client) -> None:
    first = client.push(b"1", filename="a", user_id=ADA)
    second = client.push(b"2", filename="a", user_id=ADA)
    with pytest.raises(ConflictError) as caught:
        client.delete(first.file_id, user_id=ADA, if_head=first.version_id)
    assert (caught.value.head, caught.value.base) == (second.version_id, first.version_id)
    with pytest.raises(InvalidArgument, match="version id"):
        client.delete(first.file_id, user_id=ADA, if_head="no version")
    assert client.get(first.file_id, user_id=ADA) == b"2"
    client.delete(first.file_id, user_id=ADA, if_head=second.version_id)
    assert client.find("a", user_id=ADA) is None
    with pytest.raises(FileNotFound):
        client.delete(first.file_id, user_id=ADA, if_head=second.version_id)


def test_a_server_that_knows_no_conditions_of_deletions_is_not_asked_for_one(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would ignore the condition, and delete what somebody else has stored meanwhile."""
    first = client.push(b"1", filename="a", user_id=ADA)
    described = store_pb2.DescribeResponse(has_conditions=True)
    monkeypatch.setattr(Channel, "describe", lambda *args: described)
    with pytest.raises(CallNotOffered, match="upgrade"):
        client.delete(first.file_id, user_id=ADA, if_head=first.version_id)
    assert client.get(first.file_id, user_id=ADA) == b"1"
    client.delete(first.file_id, user_id=ADA)


def test_pages_of_versions_with_large_attributes(client: Client, store: FileStorage) -> None:
    """One message holds few of them, and a page many."""
    outcomes = list(store.push_many(((f"d{at % 3}/{at:03}", b"x") for at in range(200)), user_id=ADA, attributes=LARGE))
    assert all(one.error is None for one in outcomes)
    page = client.list_page(user_id=ADA, with_attributes=["a"])
    assert [len(one.attributes) for one in page.files] == [1] * 200
    assert page.next_after is None
    assert client.list_page(user_id=ADA, delimiter="/").prefixes == ["d0/", "d1/", "d2/"]
    assert client.list_page(user_id=ADA, hidden="b").files == []
    versions = client.list_versions(user_id=ADA)
    assert [one.attributes for one in versions.versions] == [LARGE] * 200
    assert len(versions.latest) == 200
    first = client.list_versions(user_id=ADA, limit=150)
    rest = client.list_versions(user_id=ADA, after=first.next_after, before=first.next_before)
    assert first.versions + rest.versions == versions.versions


def test_an_older_server_would_ignore_them(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(*_: Any) -> store_pb2.DescribeResponse:
        return store_pb2.DescribeResponse(chunk_size=CHUNK)

    monkeypatch.setattr(Channel, "describe", describe)
    with pytest.raises(CallNotOffered, match="upgrade"):
        client.push(b"x", filename="a", user_id=ADA, if_absent=True)
    with pytest.raises(CallNotOffered, match="upgrade"):
        client.list_page(user_id=ADA, delimiter="/")
    assert client.find("a", user_id=ADA) is None


def test_names_that_only_the_client_knows_are_not_listed_in_pages(address: str) -> None:
    with Client(address, key=bytes(32)) as client, pytest.raises(PoolIsBlind):
        client.list_page(user_id=ADA)


def test_a_file_of_others(client: Client) -> None:
    pieces = [random.Random(at).randbytes(size) for at, size in enumerate([2 * CHUNK, CHUNK + 1, 10])]
    parts = [client.push(piece, filename=f"part {at}", user_id=ADA) for at, piece in enumerate(pieces)]
    named = [(parts[0].file_id, None), (parts[1].file_id, parts[1].version_id), (parts[2].file_id, None)]
    told: list[tuple[int, int]] = []
    version = client.concatenate(
        named, "whole", user_id=ADA, attributes=LARGE, if_absent=True, progress=lambda *done: told.append(done)
    )
    assert version.attributes == LARGE
    assert client.get(version.file_id, user_id=ADA) == b"".join(pieces)
    assert {total for _done, total in told} <= {0, 3 * CHUNK + 11}
    with pytest.raises(ConflictError):
        client.concatenate(named, "whole", user_id=ADA, if_absent=True)
    with pytest.raises(FileNotFound):
        client.concatenate([("0" * 32, None)], "another", user_id=ADA)
    with pytest.raises(InvalidArgument, match="1 to 10,000"):
        client.concatenate([], "another", user_id=ADA)
    assert client.find("another", user_id=ADA) is None
