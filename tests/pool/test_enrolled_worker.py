"""A worker with a certificate: how it renews it, and what its pool does not take from it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import msgspec
import pytest

from storage import ErasureProfile
from storage.clocks import wall_ms
from storage.errors import InvalidArgument, PermissionDenied
from taskworker import Client
from taskworker.apps.pool_server import PoolServer
from taskworker.auth import backup
from taskworker.auth.authority import Authority
from taskworker.auth.certificates import new_key, new_request, read_certificate
from taskworker.auth.contexts import Contexts
from taskworker.auth.enrollment import DOCUMENT, Enrollment
from taskworker.auth.identity import POOL_DNS_NAME, MemberIdentity, MemberKind
from taskworker.auth.join_tokens import Admission
from taskworker.auth.owner_context import keep_owner_context
from taskworker.auth.server_certificates import TlsOptions
from taskworker.auth.sharing import Sharing
from taskworker.client.pool import PoolClient
from taskworker.client.users import UserClient
from taskworker.errors import ServerNotTrusted, StorageUnavailable, WorkerRefused
from taskworker.pool.options import PoolOptions
from taskworker.protos import members_pb2, pool_pb2
from taskworker.protos.members_pb2_grpc import EnrollmentServiceStub, MemberServiceStub
from taskworker.protos.pool_pb2_grpc import PoolServiceStub
from taskworker.rpc import status
from taskworker.rpc.dialling import dial_secure
from taskworker.rpc.protocol import PROTOCOL
from taskworker.transport.member_dialling import MemberDialling
from taskworker.worker.member import WorkerMember, enroll, load_member
from taskworker.worker.volume import VolumeWorker
from tests.auth.documents import Documents

HOUR_MS = 3_600_000


class Stand:
    """A pool whose workers join with tokens, and its operator."""

    def __init__(self, directory: Path, *, secured: bool = False) -> None:
        self.directory = directory
        options = PoolOptions(allow_fragile=True, lease_s=1.0 if secured else 3.0)
        profile = ErasureProfile(1, 2) if secured else None
        self.server = server = PoolServer(
            directory / "pool", profile=profile, options=options, joins_by_token=True, authenticates=secured
        )
        port = server.start("127.0.0.1:0", "127.0.0.1:0", tls=TlsOptions() if secured else None)
        self.address = f"127.0.0.1:{port}"

        def keep_context() -> None:
            assert server.tls is not None
            keep_owner_context(server.users, server.pool.pool_id, self.address, trust=server.tls.trust)

        if secured:
            keep_context()
            server.on_authority_change = keep_context
        self.operator = PoolClient(self.address)

    def enroll(self, name: str, now_ms: Callable[[], int] = wall_ms) -> WorkerMember:
        token, address = self.operator.new_join_token(name)
        (self.directory / name).mkdir()
        return enroll(self.directory / name, address, token, name, now_ms)

    def enroll_again(self, name: str) -> WorkerMember:
        token, address = self.operator.new_join_token(name)
        return enroll(self.directory / name, address, token, name)

    def states(self) -> list[str]:
        status = self.operator.status()
        return [] if status is None else [worker.state for worker in status.workers]

    def close(self) -> None:
        self.operator.close()
        self.server.stop(0.0)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    yield stand
    stand.close()


def refusal(call: Callable[[], object]) -> Exception:
    """Why a call was refused."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return status.decode(raised.value, "the pool")


def eventually(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_a_certificate_is_renewed_while_the_worker_is_used(stand: Stand) -> None:
    ahead_ms = 0
    member = stand.enroll("w1", lambda: wall_ms() + ahead_ms)
    first = member.credentials.pair
    worker = VolumeWorker("w1", member.members_address, stand.directory / "w1", member=member)
    worker.start("127.0.0.1:0")
    try:
        with Client(stand.address) as client:
            file_id = client.push(b"one", filename="a", user_id="u").file_id
            ahead_ms = 13 * HOUR_MS
            eventually(lambda: member.credentials.pair.certificate_pem != first.certificate_pem)
            renewed = member.credentials.pair
            assert renewed.key_pem != first.key_pem
            assert renewed.identity == first.identity
            for _ in range(5):
                client.push(b"two", filename="b", user_id="u")
                assert client.get(file_id, user_id="u") == b"one"
                time.sleep(0.5)
            assert stand.states() == ["alive"]
        kept = load_member(stand.directory / "w1")
        assert kept is not None
        assert kept.credentials.pair == renewed
    finally:
        worker.stop(0.0)


def test_a_worker_speaks_for_itself_only(stand: Stand) -> None:
    member, other = stand.enroll("w1"), stand.enroll("w2")
    with member.dial() as channel:
        pool = PoolServiceStub(channel)
        others: tuple[Callable[[], object], ...] = (
            lambda: pool.Join(pool_pb2.JoinRequest(worker_id="w2", address="127.0.0.1:1", shard_address="127.0.0.1:2")),
            lambda: pool.Heartbeat(pool_pb2.HeartbeatRequest(worker_id="w2")),
            lambda: pool.Leave(pool_pb2.LeaveRequest(worker_id="w2")),
        )
        for call in others:
            assert isinstance(refusal(call), PermissionDenied)
        operators: tuple[Callable[[], object], ...] = (
            lambda: pool.Status(pool_pb2.StatusRequest()),
            lambda: pool.Drain(pool_pb2.DrainRequest(worker_id="w1")),
            lambda: pool.Forget(pool_pb2.ForgetRequest(worker_id="w2")),
            lambda: pool.GetLayout(pool_pb2.GetLayoutRequest()),
            lambda: pool.PreviewLayout(pool_pb2.PreviewLayoutRequest()),
            lambda: pool.NewJoinToken(pool_pb2.NewJoinTokenRequest(worker_id="w9")),
            lambda: pool.DenyWorker(pool_pb2.DenyWorkerRequest(worker_id="w2")),
        )
        for call in operators:
            assert "for operators" in str(refusal(call))
    assert other.worker_id == "w2"


@pytest.mark.parametrize("address", ["192.0.2.7:22", "example.invalid:80", "unix:/run/secret", "127.0.0.1", ""])
def test_the_pool_connects_only_to_where_a_worker_calls_from(stand: Stand, address: str) -> None:
    member = stand.enroll("w1")
    with member.dial() as channel:
        for announced in ((address, "127.0.0.1:1"), ("127.0.0.1:1", address)):
            request = pool_pb2.JoinRequest(
                worker_id="w1", address=announced[0], shard_address=announced[1], protocol=PROTOCOL, instance="i"
            )
            error = refusal(lambda request=request: PoolServiceStub(channel).Join(request))  # type: ignore[misc]
            assert "reached at" in str(error) or "host:port" in str(error)


def test_users_address_admits_nobody(stand: Stand) -> None:
    """It is without TLS, and whoever calls there has not shown who they are."""
    with grpc.insecure_channel(stand.address) as channel:
        pool = PoolServiceStub(channel)
        assert "with tokens" in str(refusal(lambda: pool.Join(pool_pb2.JoinRequest(worker_id="w1"))))
        assert isinstance(refusal(lambda: pool.Heartbeat(pool_pb2.HeartbeatRequest(worker_id="w1"))), PermissionDenied)
        assert isinstance(refusal(lambda: pool.Leave(pool_pb2.LeaveRequest(worker_id="w1"))), PermissionDenied)
        for stub in (MemberServiceStub(channel).Renew, EnrollmentServiceStub(channel).Enroll):
            with pytest.raises(grpc.RpcError) as raised:
                stub(members_pb2.RenewRequest())  # type: ignore[arg-type]
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_members_are_served_only_with_certificates(stand: Stand) -> None:
    """The entrance has no services for members, and their own port no callers without a certificate."""
    member = stand.enroll("w1")
    trust = grpc.ssl_channel_credentials(member.credentials.pair.authorities_pem)
    with dial_secure(member.members_address, trust, POOL_DNS_NAME) as channel:
        error = refusal(lambda: PoolServiceStub(channel).Describe(pool_pb2.DescribeRequest(), timeout=10))
        assert isinstance(error, StorageUnavailable)
    with dial_secure(stand.server.join_address, trust, POOL_DNS_NAME) as channel:
        renewal = members_pb2.RenewRequest(certificate_request=new_request(new_key()))
        with pytest.raises(grpc.RpcError) as raised:
            MemberServiceStub(channel).Renew(renewal)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_denied_worker_is_cut_off_and_cannot_renew(stand: Stand) -> None:
    member = stand.enroll("w1")
    worker = VolumeWorker("w1", member.members_address, stand.directory / "w1", member=member)
    worker.start("127.0.0.1:0")
    try:
        stand.operator.deny_worker("w1")
        eventually(lambda: stand.states() == ["suspect"])
        with member.dial() as channel, pytest.raises(PermissionDenied, match="not any more"):
            member.renew(channel)
    finally:
        worker.stop(0.0)


def test_workers_close_their_doors_to_one_that_was_denied(stand: Stand) -> None:
    member, thief = stand.enroll("w1"), stand.enroll("w2")
    worker = VolumeWorker("w1", member.members_address, stand.directory / "w1", member=member)
    worker.start("127.0.0.1:0")
    stolen = MemberDialling(thief.credentials)
    try:
        stream = stolen.to_workers().dial(worker.shard_address, 10.0)
        stand.operator.deny_worker("w2")
        eventually(lambda: refuses(stolen, worker.shard_address))
        ready = memoryview(bytearray(1))
        with contextlib.suppress(OSError):
            assert stream.receive([ready], wait=True) == 0  # it was closed at the other end
        stream.close()
        stand.enroll_again("w2")
        eventually(lambda: not refuses(stolen, worker.shard_address))
    finally:
        worker.stop(0.0)


def refuses(dialling: MemberDialling, address: str) -> bool:
    """Whether a worker closes a connection as soon as it knows who connects."""
    stream = dialling.to_workers().dial(address, 10.0)
    try:
        return stream.receive([memoryview(bytearray(1))], wait=True) == 0
    except OSError:
        return True
    finally:
        stream.close()


def test_how_long_workers_are_told_of_one_that_was_denied(tmp_path: Path) -> None:
    now_ms = wall_ms()
    enrollment = Enrollment(Authority(tmp_path / "a.pem", "a" * 32, lambda: now_ms), Documents(), lambda: now_ms)
    token = enrollment.new_token(Admission("w1"))
    enrollment.enroll("w1", token.secret, new_request(new_key()), now_ms)
    enrollment.new_token(Admission("w2"))
    assert enrollment.denied_now() == []
    for worker in ("w1", "w2"):  # the latter has never had a certificate
        enrollment.deny(worker)
    assert enrollment.denied_now() == ["w1"]
    now_ms += 23 * HOUR_MS
    assert enrollment.denied_now() == ["w1"]
    now_ms += 2 * HOUR_MS
    assert enrollment.denied_now() == []


def test_certificates_of_members_are_valid_as_long_as_the_operator_says(tmp_path: Path) -> None:
    now_ms = wall_ms()
    authority = Authority(tmp_path / "a.pem", "a" * 32, lambda: now_ms)
    enrollment = Enrollment(authority, Documents(), lambda: now_ms, lifetime_s=3600)
    issued = enrollment.enroll("w1", enrollment.new_token(Admission("w1")).secret, new_request(new_key()), now_ms)
    until = read_certificate(issued.certificate_pem).not_valid_after_utc
    assert abs(until.timestamp() - now_ms / 1000 - 3600) < 2
    enrollment.deny("w1")
    now_ms += HOUR_MS * 11 // 10
    assert enrollment.denied_now() == []


def test_members_find_a_pool_that_was_started_again(stand: Stand) -> None:
    member = stand.enroll("w1")
    stand.server.stop(0.0)
    again = PoolServer(stand.directory / "pool", joins_by_token=True, authenticates=False)
    try:
        again.start("127.0.0.1:0", "127.0.0.1:0")
        with member.dial() as channel:
            PoolServiceStub(channel).Describe(pool_pb2.DescribeRequest())
    finally:
        again.stop(0.0)


def test_a_pool_whose_directory_was_lost_knows_its_users_and_workers_again(secured: Stand) -> None:
    member = secured.enroll("w1")
    secured.enroll("w2")
    secured.operator.deny_worker("w2")
    secured.server.users.add("bob")
    bob = secured.server.users.create_token("bob")
    with UserClient(secured.address) as operator:
        exported = operator.export()
        assert operator.restore(exported) == (0, 0, 0, 0, 0)
        for wrong in (b"", b"{}", b"[]", exported.replace(b'"version": 1', b'"version": 2'), b"[" * 100_000):
            with pytest.raises(InvalidArgument, match="backup of users"):
                operator.restore(wrong)
        with pytest.raises(InvalidArgument, match="reserved"):
            operator.restore(exported.replace(b'"bob"', b'"system:x"'))
    assert bob.text.encode() not in exported
    pool_id = secured.server.pool.pool_id
    secured.server.stop(0.0)
    lost = secured.directory / "pool"
    lost.rename(secured.directory / "lost")
    lost.mkdir()
    (lost / "authority.pem").write_bytes((secured.directory / "lost/authority.pem").read_bytes())
    (lost / "authority.pem").chmod(0o600)
    options = PoolOptions(allow_fragile=True, rebuild=pool_id)
    again = PoolServer(lost, profile=ErasureProfile(1, 2), options=options, joins_by_token=True, authenticates=True)
    try:
        again.start("127.0.0.1:0", "127.0.0.1:0")
        assert again.pool.enrollment is not None
        with pytest.raises(PermissionDenied):
            again.pool.enrollment.require(member.credentials.identity)
        sharing = Sharing(again.pool.documents)
        assert backup.restored(exported, again.users, again.pool.enrollment, sharing) == (2, 2, 2, 0, 0)
        assert again.pool.enrollment.require(member.credentials.identity) == Admission("w1")
        with pytest.raises(PermissionDenied):
            again.pool.enrollment.require(MemberIdentity(pool_id, MemberKind.WORKER, "w2"))
        assert again.users.principal_of(bob.text).user == "bob"
        renewed = again.pool.enrollment.renew(member.credentials.identity, new_request(new_key()))
        assert renewed.authorities_pem == member.credentials.pair.authorities_pem
    finally:
        again.stop(0.0)


def test_a_token_is_not_used_up_by_a_bad_request(stand: Stand) -> None:
    token, address = stand.operator.new_join_token("w1")
    secret = token.rpartition(".")[2]
    authority = stand.server.pool.credentials
    assert authority is not None
    trust = grpc.ssl_channel_credentials(authority.pair.authorities_pem)
    with dial_secure(address, trust, POOL_DNS_NAME) as channel:
        for noise in (b"", b"noise", b"-----BEGIN CERTIFICATE REQUEST-----"):
            request = members_pb2.EnrollRequest(
                worker_id="w1", secret=secret, certificate_request=noise, now_ms=wall_ms()
            )
            refusal(lambda request=request: EnrollmentServiceStub(channel).Enroll(request))  # type: ignore[misc]
    assert enroll(stand.directory, address, token, "w1").worker_id == "w1"
    with pytest.raises(WorkerRefused, match="used already"):
        enroll(stand.directory, address, token, "w1")  # with another key


# -- replacing the authority ---------------------------------------------------------------------


class Load:
    """Pushes and gets that go on until they are stopped; each opens its connection anew, and none may fail."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.calls = 0
        self.errors: list[Exception] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with Client(self._address) as client:
                    data = os.urandom(100_000)
                    version = client.push(data, filename=f"f{self.calls % 10}", user_id="u")
                    assert client.get(version.file_id, user_id="u") == data
                self.calls += 2
            except Exception as error:
                self.errors.append(error)

    def go_on(self) -> None:
        """Wait for some more calls."""
        until = self.calls + 6
        eventually(lambda: self.calls >= until or bool(self.errors))


@pytest.fixture
def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    stand = Stand(tmp_path, secured=True)
    yield stand
    stand.close()


def test_the_authority_is_replaced_under_load_without_an_error(secured: Stand) -> None:
    members = {name: secured.enroll(name) for name in ("w1", "w2", "w3")}
    workers = [
        VolumeWorker(name, member.members_address, secured.directory / name, member=member)
        for name, member in members.items()
    ]
    first = members["w1"].credentials.pair
    former = Contexts().find(secured.address)
    assert former is not None
    late = secured.enroll("late")  # has a certificate, and is off
    with UserClient(secured.address) as operator:
        try:
            for worker in workers:
                worker.start("127.0.0.1:0")
            eventually(lambda: secured.states() == ["alive"] * 3)
            with Load(secured.address) as load:
                for number, step in enumerate(("add-next", "promote", "drop-former")):
                    load.go_on()
                    if number:
                        with pytest.raises(InvalidArgument, match=r"1 workers have not renewed .* late"):
                            operator.change_authority(step)
                    told = operator.change_authority(step, force=number > 0)
                    assert [one.issues_to_users for one in told.authorities].count(True) == 1
                    eventually(lambda: operator.authorities().waiting == ["late"])
                    load.go_on()
            assert not load.errors
            assert secured.states() == ["alive"] * 3
            (only,) = operator.authorities().authorities
            for member in members.values():
                assert member.credentials.pair.authorities_pem.decode() == only.certificate
            assert only.certificate.encode() != first.authorities_pem
        finally:
            for worker in workers:
                worker.stop(0.0)
        with late.dial() as channel:
            describe = PoolServiceStub(channel).Describe
            assert isinstance(refusal(lambda: describe(pool_pb2.DescribeRequest())), StorageUnavailable)
    Contexts().put(former)  # as of a user who learned of nothing
    with Client(secured.address) as client, pytest.raises(ServerNotTrusted, match="not trusted"):
        client.stats()


def test_steps_come_in_their_order(secured: Stand) -> None:
    with UserClient(secured.address) as operator:
        for step, text in (
            ("promote", "no further"),
            ("drop-former", "no former"),
            ("", "is no step"),
            ("up", "is no step"),
        ):
            with pytest.raises(InvalidArgument, match=text):
                operator.change_authority(step)
        operator.change_authority("add-next")
        with pytest.raises(InvalidArgument, match="already"):
            operator.change_authority("add-next")
        with pytest.raises(InvalidArgument, match="promote it first"):
            operator.change_authority("drop-former")
        # Tokens to join with that were made before the second step are valid after it.
        token, address = PoolClient(secured.address).new_join_token("w1")
        operator.change_authority("promote")
        assert enroll(secured.directory, address, token, "w1").worker_id == "w1"


def test_the_pools_own_certificate_is_renewed_while_it_runs(stand: Stand) -> None:
    member = stand.enroll("w1")
    pool = stand.server.pool
    assert pool.credentials is not None
    first = pool.credentials.pair
    pool.renew_identity(only_if_due=True)
    assert pool.credentials.pair is first
    pool.credentials._now_ms = lambda: wall_ms() + 16 * 24 * HOUR_MS
    pool.renew_identity(only_if_due=True)
    assert pool.credentials.pair.certificate_pem != first.certificate_pem
    with member.dial() as channel:
        PoolServiceStub(channel).Describe(pool_pb2.DescribeRequest())


def test_members_of_a_pool_of_the_release_before_are_waited_for(tmp_path: Path) -> None:
    now_ms = wall_ms()
    documents = Documents()
    authority = Authority(tmp_path / "a.pem", "a" * 32, lambda: now_ms)
    admitted = {"w1": Admission("w1")}
    documents.save_document(DOCUMENT, msgspec.msgpack.encode({"admitted": admitted, "denied": []}))
    enrollment = Enrollment(authority, documents, lambda: now_ms)
    assert enrollment.behind() == ["w1"]
    assert enrollment.is_behind("w1")
    member = MemberIdentity("a" * 32, MemberKind.WORKER, "w1")
    enrollment.renew(member, new_request(new_key()))
    assert enrollment.behind() == []
    authority.add_next()
    assert enrollment.behind() == ["w1"]
    assert Enrollment(authority, documents, lambda: now_ms).behind() == ["w1"]
    now_ms += 25 * HOUR_MS  # its certificate has expired, and it needs a new token anyway
    assert enrollment.behind() == []
