"""Every call at each port of a pool and of a worker, by everybody: who gets what, and that nobody gets more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from storage.clocks import wall_ms
from taskworker.apps.pool_server import PoolServer
from taskworker.auth.authority import Authority
from taskworker.auth.contexts import Access
from taskworker.auth.identity import POOL_DNS_NAME, MemberIdentity, MemberKind
from taskworker.auth.join_tokens import Admission
from taskworker.auth.server_certificates import TlsOptions
from taskworker.auth.user_tokens import new_token
from taskworker.pool.options import PoolOptions
from taskworker.rpc.dialling import dial, dial_secure
from taskworker.worker.member import WorkerMember, enroll
from tests.services.calls import methods, outcome, outcomes
from tests.services.member_workers import serving
from tests.services.test_rights import ALLOWED, ROLES
from tests.services.test_rights_of_workers import ANY_USER, HEALTH, OWN, REFLECTION

METHODS = methods()
OK = grpc.StatusCode.OK
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
NOT_FOR_USERS = ("InvocationService", "EnrollmentService", "MemberService")
DAY_MS = 86_400_000


def _authority_of(path: Path, pool_id: str, what: str, own: Authority) -> Authority:
    """Who issues certificates with which something is wrong."""
    if what == "expired":
        made = Authority(path, pool_id, lambda: wall_ms() - 2 * DAY_MS)
        made._issuers = own._issuers
        return made
    return Authority(path, "f" * 32 if what == "of another pool" else pool_id)


class Everybody:
    """A pool with TLS and users, two workers, and channels of all kinds of callers."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._stack, self._directory = stack, directory
        self.server = PoolServer(
            directory / "pool", options=PoolOptions(allow_fragile=True), joins_by_token=True, authenticates=True
        )
        stack.callback(self.server.stop, 0.0)
        port = self.server.start("127.0.0.1:0", "127.0.0.1:0", tls=TlsOptions())
        self.address, self.join_address = f"127.0.0.1:{port}", self.server.join_address
        assert self.server.tls is not None
        self.trust = self.server.tls.trust
        self.tokens = self._tokens()
        self.members = {name: self._enroll(name) for name in ("w1", "w2", "denied")}
        pool = self.server.pool
        assert pool.enrollment is not None
        pool.enrollment.deny("denied")
        self.strangers = {
            what: self._certified(_authority_of(directory / f"{what}.pem", pool.pool_id, what, pool.authority()))
            for what in ("of another authority", "expired", "of another pool")
        }

    def _tokens(self) -> dict[str, str]:
        users, tokens = self.server.users, {}
        for letter, role in ROLES.items():
            users.add(f"one-{role}", role)
            tokens[letter] = users.create_token(f"one-{role}").text
        revoked = users.create_token("one-operator")
        users.revoke(revoked.token.token_id)
        return tokens | {"revoked": revoked.text, "unknown": new_token(), "of a call": "twc1." + "ab" * 16}

    def _enroll(self, name: str) -> WorkerMember:
        (self._directory / name).mkdir()
        enrollment = self.server.pool.enrollment
        assert enrollment is not None
        return enroll(self._directory / name, self.join_address, enrollment.new_token(Admission(name)).text, name)

    def _certified(self, authority: Authority) -> grpc.ChannelCredentials:
        """The credentials of a worker w1 that this authority vouches for."""
        pair = authority.issue_own(MemberIdentity(authority.pool_id, MemberKind.WORKER, "w1"))
        trusted = self.members["w1"].credentials.pair.authorities_pem
        return grpc.ssl_channel_credentials(trusted, pair.key_pem, pair.certificate_pem)

    def as_user(self, token: str = "", authorities: str = "") -> grpc.Channel:
        """A channel to the users' port, which trusts the pool, or else these authorities."""
        trust = self.trust._replace(authorities=authorities) if authorities else self.trust
        return self._stack.enter_context(dial(self.address, access=Access(token, trust)))

    def at(
        self, address: str, credentials: grpc.ChannelCredentials | None = None, name: str = POOL_DNS_NAME
    ) -> grpc.Channel:
        """A channel to another port, without a certificate unless one is given."""
        trusted = self.members["w1"].credentials.pair.authorities_pem
        shown = credentials or grpc.ssl_channel_credentials(trusted)
        return self._stack.enter_context(dial_secure(address, shown, name))


@pytest.fixture(scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everybody]:
    with ExitStack() as stack:
        yield Everybody(tmp_path_factory.mktemp("pool"), stack)


def _is_for_users(name: str) -> bool:
    return METHODS[name].containing_service.name not in NOT_FOR_USERS


@pytest.mark.parametrize("who", ["nobody", "a worker", "of another authority", "revoked", "unknown", "of a call"])
def test_at_the_users_port_who_shows_no_valid_token_is_nobody(everybody: Everybody, who: str) -> None:
    if who in ("a worker", "of another authority"):  # a certificate says nothing here
        shown = everybody.members["w1"].credentials.for_grpc_channel() if who == "a worker" else None
        channel = everybody.at(everybody.address, shown or everybody.strangers[who], everybody.trust.name)
    else:
        channel = everybody.as_user(everybody.tokens.get(who, ""))
    for name, method in METHODS.items():
        code, text = outcome(channel, method)
        if _is_for_users(name):
            assert (code is UNAUTHENTICATED) == (ALLOWED[name] != "P"), (name, code, text)
        else:
            assert code is UNIMPLEMENTED, (name, text)


@pytest.mark.parametrize("letter", ROLES)
def test_at_the_users_port_roles_have_what_the_table_says(everybody: Everybody, letter: str) -> None:
    channel = everybody.as_user(everybody.tokens[letter])
    for name, method in METHODS.items():
        code, text = outcome(channel, method)
        if _is_for_users(name):
            is_refused = code is PERMISSION_DENIED and "needs the right" in text
            assert is_refused == (ALLOWED[name] != "P" and letter not in ALLOWED[name]), (name, code, text)
            assert code is not UNAUTHENTICATED, (name, text)
        else:
            assert code is UNIMPLEMENTED, (name, text)


def test_who_trusts_another_authority_sends_nothing(everybody: Everybody, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other.pem", everybody.server.pool.pool_id).certificates_pem.decode()
    channel = everybody.as_user(everybody.tokens["o"], authorities=other)
    assert set(outcomes(channel, METHODS.values()).values()) == {UNAVAILABLE}


@pytest.mark.parametrize("who", ["nobody", "an operator", "of another authority", "expired", "of another pool"])
def test_at_the_members_port_nobody_gets_in_without_a_certificate_of_the_pool(everybody: Everybody, who: str) -> None:
    channel = everybody.at(everybody.members["w1"].members_address, everybody.strangers.get(who))
    token = everybody.tokens["o"] if who == "an operator" else None
    assert set(outcomes(channel, METHODS.values(), token).values()) == {UNAVAILABLE}


@pytest.mark.parametrize("letter", ["", *ROLES])
def test_at_the_members_port_a_worker_is_a_worker_whatever_token_it_sends(everybody: Everybody, letter: str) -> None:
    member = everybody.members["w1"]
    channel = everybody.at(member.members_address, member.credentials.for_grpc_channel())
    token = everybody.tokens[letter] if letter else None
    for name, method in METHODS.items():
        code, text = outcome(channel, method, token=token)
        if name not in OWN | ANY_USER | HEALTH | REFLECTION:
            assert code in (PERMISSION_DENIED, UNIMPLEMENTED, UNAUTHENTICATED), (name, code, text)
        elif not letter:
            assert code not in (UNIMPLEMENTED, UNAUTHENTICATED) or name.endswith("Health.List"), (name, code, text)


def test_at_the_members_port_a_denied_worker_gets_nothing(everybody: Everybody) -> None:
    member = everybody.members["denied"]
    channel = everybody.at(member.members_address, member.credentials.for_grpc_channel())
    for name, method in METHODS.items():
        assert outcome(channel, method)[0] in (PERMISSION_DENIED, UNIMPLEMENTED), name


@pytest.mark.parametrize("who", ["nobody", "an operator", "a worker"])
def test_where_workers_join_they_can_join_and_nothing_else(everybody: Everybody, who: str) -> None:
    shown = everybody.members["w1"].credentials.for_grpc_channel() if who == "a worker" else None
    channel = everybody.at(everybody.join_address, shown)
    token = everybody.tokens["o"] if who == "an operator" else None
    for name, method in METHODS.items():
        code, text = outcome(channel, method, token=token)
        if name.endswith("Health.Check"):
            assert code is OK, text
        elif not name.endswith(".Enroll"):
            assert code is UNIMPLEMENTED, (name, code, text)
        else:
            assert code not in (OK, UNIMPLEMENTED), text


def test_at_a_worker_only_its_pool_gets_anything(everybody: Everybody) -> None:
    member = everybody.members["w1"]
    dns_name = member.credentials.identity.dns_name
    with serving(member, everybody._directory) as address:
        for shown in (None, *everybody.strangers.values()):
            channel = everybody.at(address, shown, dns_name)
            assert set(outcomes(channel, METHODS.values(), everybody.tokens["o"]).values()) == {UNAVAILABLE}
        other = everybody.at(address, everybody.members["w2"].credentials.for_grpc_channel(), dns_name)
        assert set(outcomes(other, METHODS.values()).values()) == {PERMISSION_DENIED, UNIMPLEMENTED}
