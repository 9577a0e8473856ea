"""Who may make which call: the table has every call, and servers answer as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from taskworker.apps.pool_server import PoolServer
from taskworker.auth.requirements import REQUIREMENTS
from taskworker.auth.rights import Role, Scope
from taskworker.auth.user_tokens import new_token
from taskworker.auth.users import Users
from taskworker.calls.bundle import packed
from taskworker.calls.spec import FunctionSpec
from taskworker.pool.options import PoolOptions
from taskworker.protos import functions_pb2, taskworker_pb2
from taskworker.rpc.authorization import Guard, by_token
from taskworker.rpc.binding import generic_handler
from taskworker.rpc.message_fields import paths_to_owners
from taskworker.rpc.serving import Server
from tests.auth.documents import Clock, Documents
from tests.services.calls import methods, outcome, services

ALLOWED = {
    # P: public. Otherwise the roles whose users may make the call: user, deployer, auditor, operator.
    "taskworker.FileService.Push": "udo",
    "taskworker.FileService.Get": "udo",
    "taskworker.FileService.Revise": "udo",
    "taskworker.FileService.Synchronous": "udo",
    "taskworker.RPCService.CallFunction": "udo",
    "taskworker.DNSService.ResolveDomain": "udo",
    "taskworker.store.StoreService.Describe": "udao",
    "taskworker.store.StoreService.PushStream": "udo",
    "taskworker.store.StoreService.PushFile": "udo",
    "taskworker.store.StoreService.Concatenate": "udo",
    "taskworker.store.StoreService.MissingChunks": "udo",
    "taskworker.store.StoreService.GetStream": "udo",
    "taskworker.store.StoreService.LocateShards": "udo",
    "taskworker.store.StoreService.PrepareChunks": "udo",
    "taskworker.store.StoreService.PlaceChunks": "udo",
    "taskworker.store.StoreService.SettleChunks": "udo",
    "taskworker.store.StoreService.GetFile": "udo",
    "taskworker.store.StoreService.GetManifest": "udo",
    "taskworker.store.StoreService.ReviseStream": "udo",
    "taskworker.store.StoreService.Stat": "udo",
    "taskworker.store.StoreService.History": "udo",
    "taskworker.store.StoreService.ListFiles": "udo",
    "taskworker.store.StoreService.ListVersions": "udo",
    "taskworker.store.StoreService.Delete": "udo",
    "taskworker.store.StoreService.DeleteVersion": "udo",
    "taskworker.store.StoreService.DeleteFiles": "udo",
    "taskworker.store.StoreService.RotateKey": "udo",
    "taskworker.store.StoreService.PushMany": "udo",
    "taskworker.store.StoreService.GetMany": "udo",
    "taskworker.store.StoreService.GetFiles": "udo",
    "taskworker.store.StoreService.DeleteMany": "udo",
    "taskworker.store.StoreService.Stats": "ao",
    "taskworker.store.StoreService.Scrub": "o",
    "taskworker.store.StoreService.Repair": "o",
    "taskworker.store.StoreService.Collect": "o",
    "taskworker.store.StoreService.Rebuild": "o",
    "taskworker.functions.FunctionService.Deploy": "do",
    "taskworker.functions.FunctionService.Undeploy": "do",
    "taskworker.functions.FunctionService.ListFunctions": "udao",
    "taskworker.functions.FunctionService.FunctionHistory": "udao",
    "taskworker.functions.FunctionService.Rollback": "do",
    "taskworker.functions.FunctionService.ListHosts": "dao",
    "taskworker.functions.FunctionService.Logs": "dao",
    "taskworker.functions.StreamService.StreamFunction": "udo",
    "taskworker.functions.InvocationService.Invoke": "",
    "taskworker.functions.InvocationService.InvokeStream": "",
    "taskworker.functions.InvocationService.Prepare": "",
    "taskworker.functions.InvocationService.Cancel": "",
    "taskworker.functions.HostingService.Offer": "o",
    "taskworker.functions.HostingService.FetchBundle": "o",
    "taskworker.outside.OutsideService.GetSecret": "o",
    "taskworker.outside.OutsideService.CallExternalApi": "o",
    "taskworker.outside.OutsideService.Resolve": "o",
    "taskworker.egress.EgressService.Allow": "o",
    "taskworker.egress.EgressService.Deny": "o",
    "taskworker.egress.EgressService.ListRules": "ao",
    "taskworker.egress.EgressService.AuditLog": "ao",
    "taskworker.secrets.SecretService.SetSecret": "o",
    "taskworker.secrets.SecretService.RotateSecret": "o",
    "taskworker.secrets.SecretService.RemoveSecret": "o",
    "taskworker.secrets.SecretService.RemoveAllSecrets": "o",
    "taskworker.secrets.SecretService.ListSecrets": "ao",
    "taskworker.secrets.SecretService.GrantSecret": "o",
    "taskworker.secrets.SecretService.RevokeSecret": "o",
    "taskworker.secrets.SecretService.RotateMasterKey": "o",
    "taskworker.secrets.SecretService.GetMasterKey": "o",
    "taskworker.secrets.SecretService.NoteMasterKeyCopied": "o",
    "taskworker.pool.PoolService.Describe": "o",
    "taskworker.pool.PoolService.Join": "o",
    "taskworker.pool.PoolService.Heartbeat": "o",
    "taskworker.pool.PoolService.Leave": "o",
    "taskworker.pool.PoolService.Status": "ao",
    "taskworker.pool.PoolService.Drain": "o",
    "taskworker.pool.PoolService.Forget": "o",
    "taskworker.pool.PoolService.GetLayout": "ao",
    "taskworker.pool.PoolService.PreviewLayout": "o",
    "taskworker.pool.PoolService.NewJoinToken": "o",
    "taskworker.pool.PoolService.DenyWorker": "o",
    "taskworker.pool.PoolService.EncryptExisting": "o",
    "taskworker.pool.PoolService.Shred": "o",
    "taskworker.auth.AuthService.WhoAmI": "udao",
    "taskworker.auth.AuthService.GetAuthorities": "udao",
    "taskworker.auth.AuthService.LogIn": "P",
    "taskworker.auth.AuthService.ChangeAuthority": "o",
    "taskworker.auth.AuthService.AddUser": "o",
    "taskworker.auth.AuthService.RemoveUser": "o",
    "taskworker.auth.AuthService.DestroyKeys": "o",
    "taskworker.auth.AuthService.ListUsers": "ao",
    "taskworker.auth.AuthService.ExportUsers": "o",
    "taskworker.auth.AuthService.ImportUsers": "o",
    "taskworker.auth.AuthService.SetQuota": "o",
    "taskworker.auth.AuthService.CreateToken": "o",
    "taskworker.auth.AuthService.ListTokens": "ao",
    "taskworker.auth.AuthService.RevokeToken": "o",
    "taskworker.auth.AuthService.GetAccessKey": "o",
    "taskworker.auth.AuthService.ListAccessKeys": "o",
    "taskworker.sharing.SharingService.Share": "udo",
    "taskworker.sharing.SharingService.Unshare": "udo",
    "taskworker.sharing.SharingService.ListShares": "udo",
    "taskworker.sharing.SharingService.CreateLink": "udo",
    "taskworker.sharing.SharingService.ListLinks": "udo",
    "taskworker.sharing.SharingService.RevokeLink": "udo",
    "taskworker.sharing.SharingService.Linked": "udao",
    "taskworker.audit.AuditService.ReadTrail": "ao",
    "taskworker.audit.AuditService.VerifyTrail": "ao",
    "taskworker.members.EnrollmentService.Enroll": "P",
    "taskworker.members.MemberService.Renew": "",
    "grpc.health.v1.Health.Check": "P",
    "grpc.health.v1.Health.Watch": "P",
    "grpc.health.v1.Health.List": "P",
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": "udao",
}
ROLES = {"u": Role.USER, "d": Role.DEPLOYER, "a": Role.AUDITOR, "o": Role.OPERATOR}
METHODS = methods()
WITH_OWNER = [name for name, method in METHODS.items() if any(paths_to_owners(method.input_type))]


class Callers(NamedTuple):
    """A server, and tokens for it.

    Attributes:
        channel: a channel to it.
        by_role: a token for each role, by its letter.
        refused: what is no valid token, by what it is.
        users: the server's users.
    """

    channel: grpc.Channel
    by_role: dict[str, str]
    refused: dict[str, str | None]
    users: Users


def _callers(channel: grpc.Channel, users: Users) -> Callers:
    by_role = {}
    for letter, role in ROLES.items():
        users.add(f"one-{role}", role)
        by_role[letter] = users.create_token(f"one-{role}").text
    gone = users.create_token("one-operator")
    users.revoke(gone.token.token_id)
    users.add("removed", Role.OPERATOR)
    removed = users.create_token("removed")
    users.remove("removed")
    refused = {"nobody": None, "a wrong token": new_token(), "revoked": gone.text, "removed": removed.text, "junk": "x"}
    return Callers(channel, by_role, refused, users)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    """A real pool, which serves all but what workers serve."""
    directory: Path = tmp_path_factory.mktemp("pool")
    server = PoolServer(directory / "pool", options=PoolOptions(allow_fragile=True), authenticates=True)
    port = server.start("127.0.0.1:0")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield _callers(channel, server.users)
    finally:
        server.stop(0.0)


class _Anything:
    """Stands for any service: a call that reaches it has been let through."""

    def __getattr__(self, name: str) -> object:
        def reached(request: object, _caller: object) -> object:
            for _message in request if isinstance(request, Iterator) else ():
                pass
            raise NotImplementedError

        return reached


@pytest.fixture(scope="module")
def everything() -> Iterator[tuple[Callers, Clock]]:
    """A server that has every service, none of which does anything."""
    clock = Clock()
    users = Users(Documents(), clock)
    guard = Guard(by_token(users))
    own = [one for one in services() if not one.full_name.startswith("grpc.")]
    handlers = {service.full_name: generic_handler(service, _Anything(), guard=guard) for service in own}
    server = Server(handlers, guard=guard)
    port = server.start("127.0.0.1:0")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield _callers(channel, users), clock
    finally:
        server.stop(0.0)


def test_the_table_has_every_call_and_no_other() -> None:
    assert set(REQUIREMENTS) == set(METHODS)
    assert set(ALLOWED) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_calls_are_answered_as_the_table_says(everything: tuple[Callers, Clock], name: str) -> None:
    callers, _clock = everything
    _check(callers, name)


@pytest.mark.parametrize("name", METHODS)
def test_a_pool_answers_as_the_table_says(pool: Callers, name: str) -> None:
    if METHODS[name].containing_service.name in ("InvocationService", "EnrollmentService", "MemberService"):
        assert outcome(pool.channel, METHODS[name], token=pool.by_role["o"])[0] is grpc.StatusCode.UNIMPLEMENTED
    else:
        _check(pool, name)
        for token in pool.by_role.values():
            assert outcome(pool.channel, METHODS[name], token=token)[0] is not grpc.StatusCode.INTERNAL


def _check(callers: Callers, name: str) -> None:
    method = METHODS[name]
    for what, token in callers.refused.items():
        code, text = outcome(callers.channel, method, token=token)
        assert (code is grpc.StatusCode.UNAUTHENTICATED) == (ALLOWED[name] != "P"), (what, code, text)
        assert token is None or token == "x" or token[8:20] not in text
    for letter, token in callers.by_role.items():
        code, text = outcome(callers.channel, method, token=token)
        is_refused = code is grpc.StatusCode.PERMISSION_DENIED and "needs the right" in text
        assert is_refused == (ALLOWED[name] != "P" and letter not in ALLOWED[name]), (letter, code, text)
        assert code is not grpc.StatusCode.UNAUTHENTICATED, (letter, text)


@pytest.mark.parametrize("name", [name for name in METHODS if ALLOWED[name] != "P"])
def test_an_expired_token_is_worth_nothing(everything: tuple[Callers, Clock], name: str) -> None:
    callers, clock = everything
    text = callers.users.create_token("one-operator", ttl_s=5).text
    clock.now_ms += 5_000
    code, why = outcome(callers.channel, METHODS[name], token=text)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "has expired" in why


@pytest.mark.parametrize("name", WITH_OWNER)
def test_only_operators_name_other_users(everything: tuple[Callers, Clock], name: str) -> None:
    callers, _clock = everything
    method = METHODS[name]
    for path in paths_to_owners(method.input_type):
        message = GetMessageClass(method.input_type)()
        holder: Any = message
        for step in path:
            holder = getattr(holder, step)
        holder.user_id = "ann"
        for letter in ALLOWED[name]:
            code, text = outcome(callers.channel, method, message, callers.by_role[letter])
            is_refused = code is grpc.StatusCode.PERMISSION_DENIED and "cannot act for 'ann'" in text
            assert is_refused == (letter != "o"), (letter, code, text)


def test_every_message_that_names_a_user_is_found() -> None:
    for name, method in METHODS.items():
        fields = {field.name for field in method.input_type.fields if field.type == FieldDescriptor.TYPE_STRING}
        assert ("user_id" in fields) == (() in list(paths_to_owners(method.input_type))), name
    assert set(paths_to_owners(METHODS["taskworker.store.StoreService.PushMany"].input_type)) == {
        ("header",),
        ("part", "header"),
    }


_FUNCTIONS = "taskworker.functions"


def _bundle(name: str) -> bytes:
    return packed(FunctionSpec(name=name, entry="app:f"), {"app/app.py": b"def f(): ..."}).bundle


@pytest.mark.parametrize(
    ("call", "message", "right"),
    [
        ("taskworker.RPCService.CallFunction", taskworker_pb2.FunctionCallRequest, "call:team-f"),
        (f"{_FUNCTIONS}.StreamService.StreamFunction", functions_pb2.StreamFunctionRequest, "call:team-f"),
        (f"{_FUNCTIONS}.FunctionService.FunctionHistory", functions_pb2.FunctionHistoryRequest, "call:team-f"),
        (f"{_FUNCTIONS}.FunctionService.FunctionHistory", functions_pb2.FunctionHistoryRequest, "deploy:team-"),
        (f"{_FUNCTIONS}.FunctionService.Logs", functions_pb2.LogsRequest, "deploy:team-"),
        (f"{_FUNCTIONS}.FunctionService.Undeploy", functions_pb2.UndeployRequest, "deploy:team-"),
        (f"{_FUNCTIONS}.FunctionService.Rollback", functions_pb2.RollbackRequest, "deploy:team-"),
        (f"{_FUNCTIONS}.FunctionService.Deploy", functions_pb2.DeployRequest, "deploy:team-"),
    ],
)
def test_a_token_for_functions_reaches_no_others(pool: Callers, call: str, message: type[Message], right: str) -> None:
    token = pool.users.create_token("one-deployer", scopes=[Scope.parse(right)]).text

    def code(name: str) -> grpc.StatusCode:
        named = {"bundle": _bundle(name)} if call.endswith(".Deploy") else {"function_name": name}
        return outcome(pool.channel, METHODS[call], message(**named), token)[0]

    assert code("team-f") is not grpc.StatusCode.PERMISSION_DENIED
    for other in ("other", "tea", "xteam-f"):
        assert code(other) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("call", ["FunctionService.ListFunctions", "FunctionService.Logs"])
def test_a_token_for_some_functions_sees_no_lists_of_all(pool: Callers, call: str) -> None:
    for right in ("call:f", "deploy:team-"):
        token = pool.users.create_token("one-deployer", scopes=[Scope.parse(right)]).text
        assert outcome(pool.channel, METHODS[f"{_FUNCTIONS}.{call}"], token=token)[0] is (
            grpc.StatusCode.PERMISSION_DENIED
        )


@pytest.mark.parametrize("right", ["join", "audit", "files:read", "files:write", "call", "deploy"])
def test_a_limited_token_of_an_operator_operates_nothing(pool: Callers, right: str) -> None:
    token = pool.users.create_token("one-operator", scopes=[Scope.parse(right)]).text
    for name, allowed in ALLOWED.items():
        if allowed == "o" and not name.startswith(("taskworker.outside", f"{_FUNCTIONS}.HostingService")):
            if right == "join" and name.rpartition(".")[2] in ("Describe", "Join", "Heartbeat", "Leave"):
                continue
            assert outcome(pool.channel, METHODS[name], token=token)[0] is grpc.StatusCode.PERMISSION_DENIED, name


def test_a_right_on_some_names_is_not_enough_for_calls_without_names(pool: Callers) -> None:
    for right, call in (
        ("call:f", "taskworker.DNSService.ResolveDomain"),
        ("deploy:team-", f"{_FUNCTIONS}.FunctionService.ListHosts"),
    ):
        token = pool.users.create_token("one-deployer", scopes=[Scope.parse(right)]).text
        code, text = outcome(pool.channel, METHODS[call], token=token)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "not limited to some names" in text
