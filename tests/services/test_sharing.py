"""Files that are shared with other users and by links, through real calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage import ErasureProfile, FileStorage, Version
from storage.errors import FileNotFound, InvalidArgument, PermissionDenied, StorageError, VersionNotFound
from taskworker import AsyncClient, Client
from taskworker.auth import backup
from taskworker.auth.bearers import Bearers
from taskworker.auth.rights import Role, Scope
from taskworker.auth.sharing import Sharing
from taskworker.auth.users import Users
from taskworker.client.sharing_calls import Share
from taskworker.errors import Unauthenticated
from taskworker.protos import sharing_pb2, store_pb2, taskworker_pb2
from taskworker.rpc.authorization import by_token
from taskworker.rpc.binding import generic_handler
from taskworker.services.file_server import FileServer, guard_of
from taskworker.services.sharing import SharingService
from tests.auth.documents import Clock, Documents
from tests.services.calls import methods, outcome

METHODS = methods()
NAMES = ("a", "reports/1", "reports/2", "reports", "other/1")
PEOPLE = ("ann", "bob", "eve")


class Served:
    """A store with users, over gRPC.

    Attributes:
        clock: tells the time to grants and tokens.
        channel: a channel without a token.
        store: the store.
    """

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.store = FileStorage.open(directory, profile=ErasureProfile(1, 1))
        documents = Documents()
        self.users, self.sharing = Users(documents, self.clock), Sharing(documents, self.clock)
        for name in PEOPLE:
            self.users.add(name)
        self.users.add("root", Role.OPERATOR)
        guard = guard_of(self.store, by_token(Bearers(self.users, self.sharing)), grants=self.sharing)
        service = sharing_pb2.DESCRIPTOR.services_by_name["SharingService"]
        handler = generic_handler(service, SharingService(self.sharing, self.store), guard=guard)
        self._server = FileServer(self.store, added={service.full_name: handler}, guard=guard)
        self.address = f"127.0.0.1:{self._server.start('127.0.0.1:0')}"
        self.channel = grpc.insecure_channel(self.address)
        self.tokens = {name: self.users.create_token(name).text for name in (*PEOPLE, "root")}
        self._clients: dict[str, Client] = {}

    def client(self, user: str) -> Client:
        """A client of a user."""
        if user not in self._clients:
            self._clients[user] = self.with_token(self.tokens[user])
        return self._clients[user]

    def with_token(self, token: str) -> Client:
        """A client that shows a token or link."""
        self._clients[token] = Client(self.address, token=token)
        return self._clients[token]

    def outcome(self, call: str, message: Any, user: str) -> tuple[grpc.StatusCode, str]:
        """How a call ends."""
        return outcome(self.channel, METHODS[call], message, self.tokens[user])

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self.channel.close()
        self._server.stop(0.0)
        self.store.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    opened = Served(tmp_path / "served")
    yield opened
    opened.close()


def _push(served: Served, name: str = "plan", data: bytes = b"of ann", owner: str = "ann") -> Version:
    return served.client(owner).push(data, filename=name, user_id=owner)


def test_a_shared_file_is_read_by_name_id_and_version(served: Served) -> None:
    first, head = _push(served, data=b"first"), _push(served, data=b"second")
    bob = served.client("bob")
    with pytest.raises(PermissionDenied):
        bob.find("plan", user_id="ann")
    served.client("ann").share("plan", with_user="bob")
    found = bob.find("plan", user_id="ann")
    assert found is not None
    assert found.version_id == head.version_id
    for user in ("ann", "bob"):  # by id, the owner need not be named
        assert bob.get(head.file_id, user_id=user) == b"second"
        assert bob.get(head.file_id, user_id=user, version_id=first.version_id) == b"first"
        assert bob.get(head.file_id, user_id=user, offset=1, length=2) == b"ec"
        assert [one.version_id for one in bob.history(head.file_id, user_id=user)] == [
            head.version_id,
            first.version_id,
        ]
        assert bob.synchronize(head.file_id, user_id=user, have_version_id=first.version_id).diff is not None
    with pytest.raises(PermissionDenied, match="for reading only"):
        bob.push(b"third", filename="plan", user_id="ann")
    with pytest.raises(PermissionDenied, match="for reading only"):
        bob.revise(head.file_id, b"third", user_id="ann", base_version_id=head.version_id)
    with pytest.raises(StorageError):
        bob.delete(head.file_id, user_id="ann")
    served.client("ann").unshare("plan", with_user="bob")
    with pytest.raises(PermissionDenied):
        bob.get(head.file_id, user_id="ann")
    with pytest.raises(FileNotFound):
        bob.get(head.file_id, user_id="bob")


def test_a_writers_versions_name_the_writer(served: Served) -> None:
    head = _push(served)
    served.client("ann").share("plan", with_user="bob", write=True)
    bob = served.client("bob")
    noted = bob.push(b"by bob", filename="plan", user_id="ann", note="a fix")
    assert (noted.user_id, noted.note) == ("ann", "a fix (by bob)")
    revised = bob.revise(head.file_id, b"again bob", user_id="ann", base_version_id=noted.version_id)
    assert revised.note == "(by bob)"
    request = taskworker_pb2.PushRequest(filename="plan", user_id="ann", file_data=b"unary")
    assert served.outcome("taskworker.FileService.Push", request, "bob")[0] is grpc.StatusCode.OK
    assert [one.note for one in served.store.history(head.file_id, user_id="ann")] == [
        "(by bob)",
        "(by bob)",
        "a fix (by bob)",
        "",
    ]
    large = bob.push(bytes(9_000_000), filename="plan", user_id="ann")
    assert large.note == "(by bob)"
    with pytest.raises(FileNotFound):
        bob.push(b"x", filename="plan2", user_id="ann")
    assert served.store.counts().files == 1


def test_a_prefix_shares_what_begins_with_it_and_nothing_else(served: Served) -> None:
    for name in NAMES:
        _push(served, name)
    served.client("ann").share("reports/", with_user="bob", write=True)
    bob = served.client("bob")
    assert [one.filename for one in bob.list_files(user_id="ann", prefix="reports/")] == ["reports/1", "reports/2"]
    bob.push(b"new", filename="reports/3", user_id="ann")
    for prefix in ("", "r", "reports", "other/"):
        with pytest.raises(FileNotFound):
            bob.list_files(user_id="ann", prefix=prefix)
    for name in ("a", "reports", "other/1", "nowhere"):
        with pytest.raises(FileNotFound):
            bob.push(b"x", filename=name, user_id="ann")
        assert bob.find(name, user_id="ann") is None


def test_of_many_files_those_that_are_shared_are_read(served: Served) -> None:
    files = {name: _push(served, name, name.encode()) for name in NAMES}
    with pytest.raises(PermissionDenied):
        list(served.client("eve").get_many(list(NAMES), user_id="ann", by_name=True))
    served.client("ann").share("reports/", with_user="bob")
    bob = served.client("bob")
    asked = ["reports/1", "a", "reports", "nowhere", "reports/2", "other/1", "reports/3"]
    by_name = list(bob.get_many(asked, user_id="ann", by_name=True))
    assert [one.data for one in by_name] == [b"reports/1", None, None, None, b"reports/2", None, None]
    told = {str(one.error).replace(repr(one.file), "NAME") for one in by_name if one.data is None}
    assert len(told) == 1
    assert {type(one.error) for one in by_name if one.data is None} == {FileNotFound}
    ids = [files[name].file_id if name in files else "0" * 32 for name in asked[:-1]]
    by_id = list(bob.get_many(ids, user_id="ann"))
    assert [one.data for one in by_id] == [one.data for one in by_name[:-1]]
    assert len({str(one.error).replace(one.file, "ID") for one in by_id if one.data is None}) == 1
    together = store_pb2.GetManyRequest(user_id="ann", files=[store_pb2.FileReference(file_id=one) for one in ids])
    in_one_message = bob._channel.store.GetFiles(together).results
    assert [(one.data, one.error.text.replace(file, "ID")) for one, file in zip(in_one_message, ids, strict=True)] == [
        (one.data or b"", str(one.error or "").replace(one.file, "ID")) for one in by_id
    ]
    with pytest.raises(grpc.RpcError) as refused:
        served.client("eve")._channel.store.GetFiles(together)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_what_else_the_owner_has_is_not_told_to_writers(served: Served) -> None:
    _push(served, "secret", b"known" * 1000)
    served.client("ann").share("plan", with_user="bob", write=True)
    request = store_pb2.MissingChunksRequest(user_id="ann", chunk_ids=[blake3(b"known" * 1000).digest()])
    call = served.channel.unary_unary(
        "/taskworker.store.StoreService/MissingChunks",
        request_serializer=store_pb2.MissingChunksRequest.SerializeToString,
        response_deserializer=store_pb2.MissingChunksResponse.FromString,
    )
    metadata = (("authorization", f"Bearer {served.tokens['bob']}"),)
    assert list(call(request, metadata=metadata).missing) == [True]


READS: dict[str, Callable[[str, str], Any]] = {
    "taskworker.FileService.Get": lambda i, v: taskworker_pb2.GetRequest(file_id=i, user_id="ann", version_id=v),
    "taskworker.store.StoreService.GetStream": lambda i, v: store_pb2.GetStreamRequest(
        file_id=i, user_id="ann", version_id=v
    ),
    "taskworker.store.StoreService.GetFile": lambda i, v: store_pb2.GetFileRequest(
        file_id=i, user_id="ann", version_id=v
    ),
    "taskworker.store.StoreService.GetManifest": lambda i, v: store_pb2.GetManifestRequest(
        file_id=i, user_id="ann", version_id=v
    ),
    "taskworker.store.StoreService.Stat": lambda i, v: store_pb2.StatRequest(file_id=i, user_id="ann", version_id=v),
    "taskworker.store.StoreService.History": lambda i, v: store_pb2.HistoryRequest(file_id=i, user_id="ann", before=v),
}


@pytest.mark.parametrize("call", READS)
@pytest.mark.parametrize("names_owner", [True, False])
def test_what_is_not_shared_is_as_if_it_were_not_there(served: Served, call: str, names_owner: bool) -> None:
    shared, secret = _push(served, "shared"), _push(served, "secret")
    served.client("ann").share("shared", with_user="bob")
    told = set()
    for file_id in (secret.file_id, "0" * 32):
        for version in ("", secret.version_id, shared.version_id):
            message = READS[call](file_id, version)
            if not names_owner:
                message.user_id = ""
            code, text = served.outcome(call, message, "bob")
            told.add((code, text.replace(file_id, "ID")))
    assert len(told) == 1
    assert told.pop()[0] is grpc.StatusCode.NOT_FOUND
    assert served.outcome(call, READS[call](shared.file_id, ""), "bob")[0] is grpc.StatusCode.OK


def test_grants_expire_and_are_listed(served: Served) -> None:
    head = _push(served)
    ann, bob = served.client("ann"), served.client("bob")
    ann.share("plan", with_user="bob", ttl_s=10)
    ann.share("reports/", with_user="eve", write=True)
    assert [(one.with_user, one.name, one.write) for one in ann.shares().given] == [
        ("bob", "plan", False),
        ("eve", "reports/", True),
    ]
    assert [(one.owner, one.name) for one in bob.shares().received] == [("ann", "plan")]
    assert bob.shares().given == []
    assert bob.get(head.file_id, user_id="ann") == b"of ann"
    served.clock.now_ms += 10_000
    assert bob.shares().received == []
    with pytest.raises(PermissionDenied):
        bob.get(head.file_id, user_id="ann")
    with pytest.raises(InvalidArgument, match="not shared"):
        ann.unshare("plan2")
    with pytest.raises(InvalidArgument, match="your own"):
        ann.share("plan", with_user="ann")
    with pytest.raises(PermissionDenied):
        bob.share("plan", with_user="eve", user_id="ann")


def test_limited_tokens_share_nothing_and_reach_nothing_of_others(served: Served) -> None:
    head = _push(served)
    served.client("ann").share("plan", with_user="bob", write=True)
    for scopes in (["files:read:plan"], ["files:write"], ["call"]):
        token = served.users.create_token("bob", scopes=map(Scope.parse, scopes)).text
        with pytest.raises(StorageError):
            served.with_token(token).get(head.file_id, user_id="ann")
    for scopes in (["files:read"], ["files:write:p"]):
        token = served.users.create_token("ann", scopes=map(Scope.parse, scopes)).text
        limited = served.with_token(token)
        with pytest.raises(PermissionDenied):
            limited.share("plan", with_user="eve")
        with pytest.raises(PermissionDenied):
            limited.create_link(head.file_id)


def test_a_user_who_was_removed_leaves_no_grants_to_the_next_of_this_name(served: Served) -> None:
    head = _push(served)
    served.client("ann").share("plan", with_user="bob")
    link = served.client("ann").create_link(head.file_id).text
    assert served.sharing.forget("bob") == 1
    assert served.client("ann").shares().given == []
    assert served.sharing.forget("ann") == 1
    with pytest.raises(Unauthenticated):
        served.with_token(link).linked()


def test_what_users_share_outlives_the_catalog_in_a_backup(served: Served) -> None:
    head = _push(served)
    ann = served.client("ann")
    ann.share("plan", with_user="bob")
    ann.share("other/", with_user="eve", ttl_s=60)
    link = ann.create_link(head.file_id).text
    raw = backup.exported(served.users, None, served.sharing)
    assert link.encode() not in raw

    documents = Documents()
    users, sharing = Users(documents, served.clock), Sharing(documents, served.clock)
    served.clock.now_ms += 61_000
    assert backup.restored(raw, users, None, sharing) == (4, 4, 0, 1, 1)
    assert backup.restored(raw, users, None, sharing) == (0, 0, 0, 0, 0)
    again = Sharing(documents, served.clock)
    assert again.may("bob", "ann", "plan", write=False)
    assert not again.may("eve", "ann", "other/1", write=False)
    assert again.principal_of_link(link).user == "ann"
    with pytest.raises(InvalidArgument, match="reserved"):
        backup.restored(raw.replace(b'"owner": "ann"', b'"owner": "system:x"'), users, None, Sharing(Documents()))


def test_a_link_shows_the_newest_version_of_one_file_and_nothing_else(served: Served) -> None:
    unseen, first, other = _push(served, data=b"draft"), _push(served), _push(served, "other")
    made = served.client("ann").create_link(first.file_id)
    anybody = served.with_token(made.text)
    shown = anybody.linked()
    assert anybody.get(shown.file_id, user_id=shown.user_id, version_id=shown.version_id) == b"of ann"
    _push(served, data=b"newer")
    assert anybody.get(first.file_id, user_id="ann") == b"newer"
    assert anybody.linked().version_id != first.version_id
    for file_id, owner, version_id in (
        (other.file_id, "ann", None),
        (first.file_id, "ann", unseen.version_id),
        (first.file_id, "bob", None),
        ("0" * 32, "ann", None),
    ):
        with pytest.raises(FileNotFound):
            anybody.get(file_id, user_id=owner, version_id=version_id)
    assert anybody.find("other", user_id="ann") is None
    assert anybody.find("plan", user_id="ann") is None
    served.client("ann").delete(first.file_id, user_id="ann")
    with pytest.raises(FileNotFound):
        anybody.linked()


def test_a_download_by_a_link_stays_on_its_version_when_a_newer_one_is_stored(served: Served) -> None:
    before, after = b"of ann " * 200_000, b"newer"
    first, ann = _push(served, data=before), served.client("ann")
    anybody, somebody = (served.with_token(ann.create_link(first.file_id).text) for _ in range(2))
    with anybody.open(first.file_id, user_id="ann") as opened:
        got = opened.read(10)
        _push(served, data=after)
        assert got + opened.read() == before
        with pytest.raises(FileNotFound):  # another link, which never showed it
            somebody.get(first.file_id, user_id="ann", version_id=first.version_id)
        opened.seek(0)
        ann.delete_version(first.file_id, first.version_id, user_id="ann")
        with pytest.raises(VersionNotFound):
            opened.read()
    assert anybody.get(first.file_id, user_id="ann") == after


def test_a_link_to_a_version_shows_that_version(served: Served) -> None:
    first, head = _push(served, data=b"first"), _push(served, data=b"second")
    anybody = served.with_token(served.client("ann").create_link(first.file_id, version_id=first.version_id).text)
    assert anybody.linked().version_id == first.version_id
    assert anybody.get(first.file_id, user_id="ann") == b"first"
    with pytest.raises(FileNotFound):
        anybody.get(first.file_id, user_id="ann", version_id=head.version_id)
    with pytest.raises(PermissionDenied):
        served.client("bob").delete_version(first.file_id, first.version_id, user_id="ann")
    assert served.client("ann").delete_version(first.file_id, first.version_id, user_id="ann") == head
    with pytest.raises(VersionNotFound):
        anybody.linked()
    with pytest.raises(VersionNotFound):
        anybody.get(first.file_id, user_id="ann")


ALLOWED_WITH_LINK = {
    "taskworker.FileService.Get",
    "taskworker.sharing.SharingService.Linked",
    *(
        f"taskworker.store.StoreService.{call}"
        for call in ("Describe", "GetStream", "LocateShards", "GetFile", "GetManifest", "Stat")
    ),
}


def test_a_link_is_for_no_other_call(served: Served) -> None:
    link = served.client("ann").create_link(_push(served).file_id).text
    served_here = ("taskworker.FileService.", "taskworker.store.", "taskworker.sharing.", "grpc.reflection.")
    for name, method in METHODS.items():
        if name.startswith(served_here):
            code, text = outcome(served.channel, method, token=link)
            refused = code is grpc.StatusCode.PERMISSION_DENIED and "a link only reads a file" in text
            assert refused == (name not in ALLOWED_WITH_LINK), (name, code, text)


def test_links_expire_and_are_revoked(served: Served) -> None:
    head = _push(served)
    ann = served.client("ann")
    short, long = ann.create_link(head.file_id, ttl_s=5), ann.create_link(head.file_id)
    assert short.text.startswith("twl1.")
    assert len(short.text) == 48
    assert [one.link_id for one in ann.links()] == [short.link.link_id, long.link.link_id]
    served.clock.now_ms += 5_000
    with pytest.raises(Unauthenticated, match="expired"):
        served.with_token(short.text).linked()
    with pytest.raises(InvalidArgument):
        served.client("bob").revoke_link(long.link.link_id)
    ann.revoke_link(long.link.link_id)
    for wrong in (long.text, "twl1." + "x" * 43):
        with pytest.raises(Unauthenticated, match="not valid") as raised:
            served.with_token(wrong).linked()
        assert wrong[5:] not in str(raised.value)
    with pytest.raises(FileNotFound):
        served.client("bob").create_link(head.file_id)
    raw = b"".join(served.sharing._documents.kept.values())  # type: ignore[attr-defined]
    assert long.text[5:].encode() not in raw


def test_asynchronously(served: Served) -> None:
    head = _push(served)

    async def shared() -> None:
        async with AsyncClient(served.address, token=served.tokens["ann"]) as ann:
            await ann.share("plan", with_user="bob")
            link = await ann.create_link(head.file_id)
            assert [one.name for one in (await ann.shares()).given] == ["plan"]
        async with AsyncClient(served.address, token=link.text) as anybody:
            shown = await anybody.linked()
            assert await anybody.get(shown.file_id, user_id=shown.user_id) == b"of ann"

    asyncio.run(shared())


class _Grant(NamedTuple):
    owner: str
    user: str
    name: str
    write: bool
    until_ms: int


class GrantsMachine(RuleBasedStateMachine):
    """Users share, take back, read and write; a model says what they may."""

    served: Served

    def __init__(self) -> None:
        super().__init__()
        self.grants: dict[tuple[str, str, str], _Grant] = {}
        self.files: dict[tuple[str, str], str] = {}
        served = self.served
        for owner in PEOPLE:
            for one in served.store.list_files(user_id=owner):
                served.store.delete(one.file_id, user_id=owner)
            served.sharing.forget(owner)

    def _may(self, user: str, owner: str, name: str, *, write: bool) -> bool:
        now_ms = self.served.clock.now_ms
        return any(
            (one.owner, one.user) == (owner, user)
            and (one.until_ms == 0 or now_ms < one.until_ms)
            and (one.write or not write)
            and (name == one.name or (one.name.endswith("/") and name.startswith(one.name)))
            for one in self.grants.values()
        )

    @rule(
        owner=st.sampled_from(PEOPLE),
        user=st.sampled_from(PEOPLE),
        name=st.sampled_from((*NAMES, "reports/", "other/")),
        write=st.booleans(),
        ttl_s=st.sampled_from((None, 5.0)),
    )
    def share(self, owner: str, user: str, name: str, write: bool, ttl_s: float | None) -> None:
        if owner == user:
            return
        made = self.served.client(owner).share(name, with_user=user, write=write, ttl_s=ttl_s)
        assert isinstance(made, Share)
        until_ms = 0 if ttl_s is None else self.served.clock.now_ms + int(ttl_s * 1000)
        self.grants[owner, user, name] = _Grant(owner, user, name, write, until_ms)

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def unshare(self, data: st.DataObject) -> None:
        owner, user, name = data.draw(st.sampled_from(sorted(self.grants)))
        gone = self.grants.pop((owner, user, name))
        if gone.until_ms == 0 or self.served.clock.now_ms < gone.until_ms:
            self.served.client(owner).unshare(name, with_user=user)

    @rule()
    def wait(self) -> None:
        self.served.clock.now_ms += 3_000

    @rule(owner=st.sampled_from(PEOPLE), user=st.sampled_from(PEOPLE), name=st.sampled_from(NAMES))
    def write_it(self, owner: str, user: str, name: str) -> None:
        may = owner == user or self._may(user, owner, name, write=True)
        try:
            version = self.served.client(user).push(user.encode(), filename=name, user_id=owner)
        except (FileNotFound, PermissionDenied):
            assert not may
        else:
            assert may
            self.files[owner, name] = version.file_id
            assert version.user_id == owner
            assert version.unchanged or version.note == ("" if owner == user else f"(by {user})")

    @rule(owner=st.sampled_from(PEOPLE), user=st.sampled_from(PEOPLE), name=st.sampled_from(NAMES))
    def read_it(self, owner: str, user: str, name: str) -> None:
        file_id = self.files.get((owner, name))
        may = owner == user or self._may(user, owner, name, write=False)
        try:
            found = self.served.client(user).find(name, user_id=owner)
        except PermissionDenied:
            found = None
        assert (found is not None) == (may and file_id is not None)
        for named in {owner, user}:
            if file_id is None:
                continue
            try:
                self.served.client(user).get(file_id, user_id=named)
            except (FileNotFound, PermissionDenied):
                assert not may
            else:
                assert may

    @invariant()
    def every_list_is_right(self) -> None:
        user = PEOPLE[len(self.grants) % len(PEOPLE)]
        now_ms = self.served.clock.now_ms
        valid = [one for one in self.grants.values() if one.until_ms == 0 or now_ms < one.until_ms]
        found = self.served.client(user).shares()
        assert {(one.with_user, one.name) for one in found.given} == {
            (o.user, o.name) for o in valid if o.owner == user
        }
        assert {(one.owner, one.name) for one in found.received} == {(o.owner, o.name) for o in valid if o.user == user}


def test_grants_are_as_a_model_says(served: Served) -> None:
    class Machine(GrantsMachine):
        pass

    Machine.served = served
    run_state_machine_as_test(Machine, settings=settings(max_examples=12, stateful_step_count=20, deadline=None))
