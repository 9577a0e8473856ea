"""Files of users who show tokens: their own, and nobody else's."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import grpc
import pytest
from blake3 import blake3

from storage import FileStorage
from storage.write.quotas import NO_QUOTA, Quota
from taskworker.auth.rights import CANDIDATE_OWNER, Role, Scope
from taskworker.auth.users import Users
from taskworker.calls import owners
from taskworker.pool.candidates import payer_of
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.protos.taskworker_pb2_grpc import FileServiceStub
from taskworker.rpc.authorization import by_token
from taskworker.services.file_server import FileServer, guard_of
from taskworker.services.files import FileService
from tests.auth.documents import Documents
from tests.services.conftest import text_of

As = Callable[..., "Caller"]


class Caller:
    """Calls a server with one user's token."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._files = FileServiceStub(channel)
        self._store = StoreServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {token}"),)

    def push(self, filename: str, data: bytes, user_id: str = "") -> str:
        request = taskworker_pb2.PushRequest(file_data=data, filename=filename, user_id=user_id)
        return self._files.Push(request, metadata=self.metadata).file_id

    def push_stream(self, filename: str, data: bytes, user_id: str = "") -> store_pb2.Version:
        header = store_pb2.PushHeader(filename=filename, user_id=user_id)
        parts = [
            store_pb2.PushPart(header=header),
            store_pb2.PushPart(data=data),
            store_pb2.PushPart(commit=store_pb2.PushCommit(size=len(data))),
        ]
        return self._store.PushStream(iter(parts), metadata=self.metadata).version

    def push_many(self, files: dict[str, bytes], user_id: str = "") -> list[store_pb2.PushResult]:
        part = store_pb2.PushManyPart(
            header=store_pb2.PushManyHeader(user_id=user_id),
            files=[store_pb2.WholeFile(filename=name, data=data) for name, data in files.items()],
        )
        answers = self._store.PushMany(iter([part]), metadata=self.metadata)
        return [result for answer in answers for result in answer.results]

    def get(self, file_id: str, user_id: str = "") -> bytes:
        request = taskworker_pb2.GetRequest(file_id=file_id, user_id=user_id)
        return self._files.Get(request, metadata=self.metadata).file_data

    def get_stream(self, file_id: str) -> bytes:
        request = store_pb2.GetStreamRequest(file_id=file_id)
        return b"".join(part.data for part in self._store.GetStream(request, metadata=self.metadata))

    def get_many(self, *names: str) -> list[bytes]:
        request = store_pb2.GetManyRequest(files=[store_pb2.FileReference(filename=name) for name in names])
        return [one.data for part in self._store.GetMany(request, metadata=self.metadata) for one in part.results]

    def stat(self, filename: str) -> store_pb2.Version:
        return self._store.Stat(store_pb2.StatRequest(filename=filename), metadata=self.metadata)

    def names(self, prefix: str = "", user_id: str = "") -> list[str]:
        request = store_pb2.ListFilesRequest(prefix=prefix, user_id=user_id)
        return [one.filename for one in self._store.ListFiles(request, metadata=self.metadata).files]

    def delete(self, *file_ids: str) -> None:
        self._store.DeleteFiles(store_pb2.DeleteFilesRequest(file_ids=file_ids), metadata=self.metadata)

    def synchronize(self, file_id: str, version_id: str, user_id: str = "") -> taskworker_pb2.SynchronousResponse:
        state = store_pb2.SyncState(version_id=version_id, user_id=user_id)
        request = taskworker_pb2.SynchronousRequest(file_id=file_id, difference=state.SerializeToString())
        return self._files.Synchronous(request, metadata=self.metadata)

    def revise(self, file_id: str, base: store_pb2.Version, data: bytes) -> store_pb2.Version:
        header = store_pb2.ReviseHeader(
            file_id=file_id, base_version=base.version_id, new_size=len(data), chunk_size=base.chunk_size
        )
        patch = store_pb2.Patch(index=0, chunk_id=blake3(data).digest(), data=data)
        part = store_pb2.RevisePart(header=header, patches=[patch], commit=store_pb2.ReviseCommit(patch_count=1))
        return self._store.ReviseStream(iter([part]), metadata=self.metadata).version


@pytest.fixture
def users() -> Users:
    found = Users(Documents())
    for name, role in (("root", Role.OPERATOR), ("ann", Role.USER), ("bob", Role.USER), ("dee", Role.DEPLOYER)):
        found.add(name, role)
    return found


@pytest.fixture
def channel(store: FileStorage, users: Users) -> Iterator[grpc.Channel]:
    server = FileServer(store, guard=guard_of(store, by_token(users)))
    port = server.start("127.0.0.1:0")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
            yield opened
    finally:
        server.stop(0.0)


@pytest.fixture
def calls_as(channel: grpc.Channel, users: Users) -> As:
    """Makes a caller with a new token of a user, limited to some scopes."""
    return lambda user, *scopes: Caller(channel, users.create_token(user, scopes=map(Scope.parse, scopes)).text)


def refused(code: grpc.StatusCode, call: Callable[..., object], *arguments: object) -> str:
    """Check that a call is refused with this code; return the text."""
    with pytest.raises(grpc.RpcError) as raised:
        call(*arguments)
    assert raised.value.code() is code, text_of(raised.value)
    return text_of(raised.value)


DENIED, MISSING = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND


def test_what_a_user_stores_without_a_user_id_is_the_users(calls_as: As, store: FileStorage) -> None:
    ann = calls_as("ann")
    one = ann.push("one", b"1")
    ann.push_stream("two", b"22")
    assert [result.version.user_id for result in ann.push_many({"three": b"333"})] == ["ann"]
    assert [version.filename for version in store.list_files(user_id="ann")] == ["one", "three", "two"]
    assert ann.names() == ["one", "three", "two"]
    assert ann.get(one) == ann.get(one, "ann") == ann.get_stream(one) == b"1"
    assert ann.get_many("one", "two") == [b"1", b"22"]


def test_revisions_and_syncs_without_a_user_id(calls_as: As) -> None:
    ann = calls_as("ann")
    first = ann.push_stream("one", b"before")
    head = ann.revise(first.file_id, first, b"after!")
    assert ann.get(first.file_id) == b"after!"
    answer = ann.synchronize(first.file_id, first.version_id)
    assert answer.version_id == head.version_id
    assert answer.difference
    refused(MISSING, calls_as("bob").synchronize, first.file_id, first.version_id)
    refused(DENIED, calls_as("bob").synchronize, first.file_id, first.version_id, "ann")
    refused(MISSING, calls_as("bob").revise, first.file_id, first, b"x")


def test_files_of_others_are_not_there(calls_as: As) -> None:
    ann, bob = calls_as("ann"), calls_as("bob")
    secret = ann.push("plan", b"secret")
    missing = refused(MISSING, bob.get, "0" * len(secret))
    assert refused(MISSING, bob.get, secret) == missing.replace("0" * len(secret), secret)
    refused(MISSING, bob.get_stream, secret)
    refused(MISSING, bob.stat, "plan")
    refused(MISSING, bob.delete, secret)
    assert bob.names() == []
    assert ann.get(secret) == b"secret"


def test_nobody_acts_in_the_name_of_another_user(calls_as: As, store: FileStorage) -> None:
    ann, bob = calls_as("ann"), calls_as("bob")
    secret = ann.push("plan", b"secret")
    refused(DENIED, bob.get, secret, "ann")
    refused(DENIED, bob.names, "", "ann")
    for push in (bob.push, bob.push_stream):
        text = refused(DENIED, push, "plan", b"forged", "ann")
        assert "of user bob" in text
    with pytest.raises(grpc.RpcError) as raised:
        bob.push_many({"plan": b"forged"}, "ann")
    assert raised.value.code() is DENIED
    for reserved in (owners.DEPLOYED_OWNER, CANDIDATE_OWNER, "system:"):
        refused(DENIED, bob.push, "f", b"forged", reserved)
    assert store.get(secret, user_id="ann") == b"secret"
    assert store.counts().files == 1


def test_a_second_header_cannot_name_another_user(channel: grpc.Channel, calls_as: As, store: FileStorage) -> None:
    bob = calls_as("bob")
    parts = [
        store_pb2.PushManyPart(header=store_pb2.PushManyHeader()),
        store_pb2.PushManyPart(
            part=store_pb2.PushPart(
                header=store_pb2.PushHeader(filename="f", user_id="ann"),
                data=b"x",
                commit=store_pb2.PushCommit(size=1),
            )
        ),
    ]
    with pytest.raises(grpc.RpcError) as raised:
        list(StoreServiceStub(channel).PushMany(iter(parts), metadata=bob.metadata))
    assert raised.value.code() is DENIED
    assert store.counts().files == 0


def test_a_large_file_among_many_has_the_owner_of_the_others(
    channel: grpc.Channel, calls_as: As, store: FileStorage
) -> None:
    part = store_pb2.PushPart(header=store_pb2.PushHeader(filename="f"), data=b"x", commit=store_pb2.PushCommit(size=1))
    for caller, owner in ((calls_as("bob"), ""), (calls_as("root"), "ann")):
        messages = [
            store_pb2.PushManyPart(header=store_pb2.PushManyHeader(user_id=owner)),
            store_pb2.PushManyPart(part=part),
        ]
        (answer,) = StoreServiceStub(channel).PushMany(iter(messages), metadata=caller.metadata)
        assert answer.results[0].version.user_id == (owner or "bob")
    assert store.find("f", user_id="bob")
    assert store.find("f", user_id="ann")


def test_operators_act_for_others(calls_as: As, store: FileStorage) -> None:
    root = calls_as("root")
    file_id = root.push("plan", b"made for ann", "ann")
    assert store.get(file_id, user_id="ann") == calls_as("ann").get(file_id) == b"made for ann"
    assert root.names("", "ann") == ["plan"]
    assert root.names() == []
    refused(DENIED, calls_as("root", "files:read", "files:write").names, "", "ann")


def test_a_token_to_read_cannot_write(calls_as: As) -> None:
    file_id = calls_as("ann").push("a/1", b"1")
    reader, writer = calls_as("ann", "files:read"), calls_as("ann", "files:write")
    assert reader.get(file_id) == b"1"
    refused(DENIED, reader.push, "a/1", b"2")
    refused(DENIED, reader.delete, file_id)
    refused(DENIED, writer.get, file_id)
    refused(DENIED, writer.names)
    refused(DENIED, writer.synchronize, file_id, "0" * 64)
    assert writer.push("a/1", b"2") == file_id


def test_a_token_for_names_reaches_no_others(calls_as: As) -> None:
    ann = calls_as("ann")
    inside, outside = ann.push("a/1", b"1"), ann.push("b/1", b"secret")
    limited = calls_as("ann", "files:read:a/", "files:write:a/")
    assert limited.get(inside) == limited.get_stream(inside) == b"1"
    assert limited.names("a/") == ["a/1"]
    assert limited.get_many("a/1") == [b"1"]
    assert limited.push("a/2", b"2")
    for call in (limited.names, limited.push_many):
        refused(DENIED, call, {"b/2": b""} if call == limited.push_many else "")
    refused(DENIED, limited.get_many, "a/1", "b/1")
    refused(DENIED, limited.stat, "b/1")
    refused(DENIED, limited.push, "b/1", b"forged")
    refused(DENIED, limited.push_stream, "b/1", b"forged")
    missing = refused(MISSING, limited.get, "0" * len(outside))
    assert refused(MISSING, limited.get, outside) == missing.replace("0" * len(outside), outside)
    refused(MISSING, limited.get_stream, outside)
    refused(MISSING, limited.delete, inside, outside)
    assert ann.get(outside) == b"secret"
    assert ann.names() == ["a/1", "a/2", "b/1"]


def test_whoever_deploys_pushes_bundles_to_be_tried_out_but_does_not_read_them(calls_as: As) -> None:
    assert owners.CANDIDATE_OWNER == CANDIDATE_OWNER
    deployer = calls_as("dee", "deploy")
    version = deployer.push_stream("bundle", b"code", CANDIDATE_OWNER)
    refused(DENIED, deployer.push_stream, "bundle", b"code")  # no right to files of its own
    refused(DENIED, deployer.get, version.file_id, CANDIDATE_OWNER)
    refused(DENIED, calls_as("dee").get, version.file_id, CANDIDATE_OWNER)
    refused(DENIED, calls_as("dee").push_stream, "f", b"", owners.DEPLOYED_OWNER)
    refused(DENIED, calls_as("ann").push_stream, "bundle", b"code", CANDIDATE_OWNER)


def test_bundles_to_be_tried_out_count_for_those_who_push_them(calls_as: As, store: FileStorage) -> None:
    deployer, other = calls_as("dee", "deploy"), calls_as("root")
    store.upkeep.policy.payer_of = payer_of
    store.upkeep.policy.quota_of = lambda user: Quota(1 << 20) if user == "dee" else NO_QUOTA
    data = os.urandom(600_000)
    assert deployer.push_stream("one", data, CANDIDATE_OWNER).note == "dee"
    deployer.push_stream("two", os.urandom(600_000), CANDIDATE_OWNER)
    with pytest.raises(grpc.RpcError) as raised:
        deployer.push_stream("three", os.urandom(600_000), CANDIDATE_OWNER)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "user 'dee' takes" in (raised.value.details() or "")
    other.push_stream("other", data, CANDIDATE_OWNER)


def test_a_revoked_token_ends_while_it_is_used(channel: grpc.Channel, users: Users) -> None:
    made = users.create_token("ann")
    ann = Caller(channel, made.text)
    ann.push("one", b"1")
    users.revoke(made.token.token_id)
    assert "was revoked" in refused(grpc.StatusCode.UNAUTHENTICATED, ann.names)


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic eDp5", "bearer twu1.", "Bearer " + "x" * 5000])
def test_what_is_no_token_is_refused_and_logged_nowhere(
    channel: grpc.Channel, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(grpc.RpcError) as raised:
        StoreServiceStub(channel).Describe(store_pb2.DescribeRequest(), metadata=(("authorization", value),))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(value) < 10 or value not in text_of(raised.value) + caplog.text


def test_two_tokens_are_refused(channel: grpc.Channel, users: Users) -> None:
    metadata = tuple(("authorization", f"Bearer {users.create_token(name).text}") for name in ("ann", "bob"))
    with pytest.raises(grpc.RpcError) as raised:
        StoreServiceStub(channel).Describe(store_pb2.DescribeRequest(), metadata=metadata)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_calls_within_the_process_need_no_token(channel: grpc.Channel, store: FileStorage) -> None:
    del channel  # the store is being served
    answer = FileService(store).Push(taskworker_pb2.PushRequest(file_data=b"1", filename="f", user_id="eve"))
    assert store.get(answer.file_id, user_id="eve") == b"1"
