"""Users, their tokens, and what these allow."""

from __future__ import annotations

import secrets
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InvalidArgument, StoreFull, StoreReadOnly
from taskworker.auth import users as users_module
from taskworker.auth.rights import RIGHTS_OF, Principal, Right, Role, Scope
from taskworker.auth.user_tokens import hash_of_token, is_token, new_token
from taskworker.auth.users import Users
from taskworker.errors import Unauthenticated
from tests.auth.documents import Clock, Documents

DAY_MS = 86_400_000


@pytest.fixture
def documents() -> Documents:
    return Documents()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def users(documents: Documents, clock: Clock) -> Users:
    found = Users(documents, clock)
    found.add("root", Role.OPERATOR)
    found.add("ann")
    return found


# -- tokens --------------------------------------------------------------------------------------


def test_a_token_names_its_user(users: Users) -> None:
    made = users.create_token("ann")
    assert users.principal_of(made.text) == Principal("ann", Role.USER, (), made.token.token_id)


def test_tokens_are_long_and_all_different() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(is_token(one) and len(one) == 48 for one in tokens)


def test_only_the_hash_of_a_token_is_kept(users: Users, documents: Documents) -> None:
    text = users.create_token("ann").text
    assert text.removeprefix("twu1.").encode() not in b"".join(documents.kept.values())
    assert hash_of_token(text) in b"".join(documents.kept.values())


def test_users_and_tokens_are_there_after_a_restart(users: Users, documents: Documents, clock: Clock) -> None:
    made = users.create_token("ann", scopes=[Scope(Right.CALL, "f")], label="laptop")
    again = Users(documents, clock)
    assert again.principal_of(made.text) == users.principal_of(made.text)
    assert again.users() == users.users()


@pytest.mark.parametrize(
    "text", ["", "twu1.", "x" * 48, "twu1." + "é" * 43, "twu1." + "a" * 42, "twu1." + "a" * 44, "Bearer " + "a" * 41]
)
def test_what_is_no_token_is_refused(users: Users, text: str) -> None:
    with pytest.raises(Unauthenticated, match="this is no token"):
        users.principal_of(text)


@given(st.text(max_size=60))
def test_whatever_is_sent_instead_of_a_token_is_refused(text: str) -> None:
    with pytest.raises(Unauthenticated):
        Users(Documents(), Clock()).principal_of(text)


def test_a_token_of_somebody_elses_server_is_refused_without_being_repeated(users: Users) -> None:
    text = new_token()
    with pytest.raises(Unauthenticated, match="not valid here") as refused:
        users.principal_of(text)
    assert text[5:15] not in str(refused.value)


def test_an_expired_token_is_refused(users: Users, clock: Clock) -> None:
    text = users.create_token("ann", ttl_s=60).text
    clock.now_ms += 59_999
    users.principal_of(text)
    clock.now_ms += 1
    with pytest.raises(Unauthenticated, match="has expired"):
        users.principal_of(text)


def test_a_revoked_token_is_refused_at_once(users: Users) -> None:
    kept, gone = users.create_token("ann"), users.create_token("ann")
    users.revoke(gone.token.token_id)
    with pytest.raises(Unauthenticated, match="was revoked"):
        users.principal_of(gone.text)
    users.principal_of(kept.text)
    with pytest.raises(InvalidArgument, match="no valid token"):
        users.revoke(gone.token.token_id)


def test_a_token_is_revoked_for_a_restarted_server_too(users: Users, documents: Documents, clock: Clock) -> None:
    made = users.create_token("ann")
    users.revoke(made.token.token_id)
    with pytest.raises(Unauthenticated, match="was revoked"):
        Users(documents, clock).principal_of(made.text)


def test_the_tokens_of_a_removed_user_end(users: Users) -> None:
    text = users.create_token("ann").text
    assert users.remove("ann") == 1
    with pytest.raises(Unauthenticated):
        users.principal_of(text)
    users.add("ann")
    with pytest.raises(Unauthenticated):
        users.principal_of(text)


def test_ended_tokens_are_forgotten_after_a_while(users: Users, clock: Clock) -> None:
    text = users.create_token("ann", ttl_s=1).text
    clock.now_ms += 32 * DAY_MS
    users.create_token("ann")
    with pytest.raises(Unauthenticated, match="not valid here"):
        users.principal_of(text)
    assert len(users.tokens("ann")) == 1


def test_the_last_use_is_noted_and_written_seldom(users: Users, documents: Documents, clock: Clock) -> None:
    made = users.create_token("ann")
    before = documents.writes
    for _ in range(100):
        clock.now_ms += 1
        users.principal_of(made.text)
    assert documents.writes == before
    assert users.tokens("ann")[0].used_ms == clock.now_ms
    clock.now_ms += 600_000
    users.principal_of(made.text)
    assert documents.writes == before + 1
    assert Users(documents, clock).tokens("ann")[0].used_ms == clock.now_ms


def test_the_last_use_is_written_when_the_server_stops(users: Users, documents: Documents, clock: Clock) -> None:
    text = users.create_token("ann").text
    clock.now_ms += 5
    users.principal_of(text)
    users.save_uses()
    assert Users(documents, clock).tokens("ann")[0].used_ms == clock.now_ms
    before = documents.writes
    users.save_uses()
    assert documents.writes == before


class _ReadOnly(Documents):
    fails = False

    def save_document(self, name: str, raw: bytes) -> None:
        if self.fails:
            raise StoreReadOnly("the disk is read-only")
        super().save_document(name, raw)


def test_a_disk_that_takes_no_writes_keeps_nobody_out(clock: Clock) -> None:
    documents = _ReadOnly()
    users = Users(documents, clock)
    users.add("ann")
    text = users.create_token("ann").text
    documents.fails = True
    clock.now_ms += 600_000
    assert users.principal_of(text).user == "ann"
    with pytest.raises(StoreReadOnly):
        users.create_token("ann")
    assert len(users.tokens()) == 1


def test_uses_and_changes_at_the_same_time(users: Users) -> None:
    text = users.create_token("ann").text
    failed: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(300):
                assert users.principal_of(text).user == "ann"
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        users.revoke(users.create_token("ann").token.token_id)
    for thread in threads:
        thread.join()
    assert not failed


def test_how_long_a_token_is_valid_is_bounded(users: Users) -> None:
    for ttl_s in (0.0, -1.0, 1e12, float("nan")):
        with pytest.raises(InvalidArgument, match="10 years"):
            users.create_token("ann", ttl_s=ttl_s)


def test_tokens_and_users_are_bounded(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users_module, "TOKENS_MAX", 2)
    monkeypatch.setattr(users_module, "USERS_MAX", 2)
    users.create_token("ann")
    users.create_token("ann")
    with pytest.raises(StoreFull):
        users.create_token("ann")
    with pytest.raises(StoreFull):
        users.add("bob")
    with pytest.raises(InvalidArgument, match="at most"):
        users.create_token("ann", label="x" * 1000)


# -- users ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ann", "Ann.B-c_d", "ann+x@example.org", "Åsa", "山田", "0"])
def test_names_that_users_may_have(users: Users, name: str) -> None:
    if name != "ann":
        users.add(name)
    assert name in [user.name for user in users.users()]


@pytest.mark.parametrize("name", ["system:", "system:pool", "taskworker:functions", "taskworker:candidates", ":"])
def test_reserved_names(users: Users, name: str) -> None:
    with pytest.raises(InvalidArgument, match="reserved"):
        users.add(name)


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", ".a", "a/b", "a\x00", "a\u202eb", "\ud800", "a" * 201, "a\n"])
def test_names_that_nobody_may_have(users: Users, name: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be a user"):
        users.add(name)


def test_a_name_that_looks_like_another_is_refused(users: Users) -> None:
    with pytest.raises(InvalidArgument, match="look like others"):
        users.add("\uff41nn")  # a wide a


def test_there_are_no_two_users_of_a_name(users: Users) -> None:
    with pytest.raises(InvalidArgument, match="already"):
        users.add("ann")


def test_the_last_operator_stays(users: Users) -> None:
    with pytest.raises(InvalidArgument, match="last operator"):
        users.remove("root")
    users.add("ops", Role.OPERATOR)
    users.remove("root")


def test_nobody_gets_a_token_for_whom_there_is_not(users: Users) -> None:
    with pytest.raises(InvalidArgument, match="no user"):
        users.create_token("eve")
    with pytest.raises(InvalidArgument, match="no user"):
        users.remove("eve")


# -- rights --------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(set(Right) - {Right.MEMBER})), st.text(max_size=30))
def test_a_scope_survives_its_text(right: Right, target: str) -> None:
    scope = Scope(right, target if right in (Right.READ_FILES, Right.WRITE_FILES, Right.CALL, Right.DEPLOY) else "")
    assert Scope.parse(scope.text) == scope


@pytest.mark.parametrize(
    "text", ["", "file", "files:", "files:read:", "call:", "operate:x", "join:x", "audit:x", "member", "callx", "root"]
)
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="scope"):
        Scope.parse(text)


def test_nobody_has_the_rights_of_members() -> None:
    for role in Role:
        principal = Principal("x", role)
        assert not principal.has(Right.MEMBER)
        assert not principal.may(Right.MEMBER, "")
    assert not Principal("x", Role.OPERATOR, (Scope(Right.OPERATE), Scope(Right.MEMBER))).may(Right.MEMBER, "")


def test_a_token_has_no_right_that_its_user_has_not(users: Users) -> None:
    for role in Role:
        name = f"one-{role}"
        users.add(name, role)
        for right in Right:
            if right in RIGHTS_OF[role]:
                users.create_token(name, scopes=[Scope(right)])
            else:
                with pytest.raises(InvalidArgument, match="has no right"):
                    users.create_token(name, scopes=[Scope(right)])
                assert not Principal(name, role, (Scope(right),)).has(right)


def test_scopes_limit_names() -> None:
    reader = Principal("ann", Role.DEPLOYER, (Scope(Right.READ_FILES, "a/"), Scope(Right.CALL, "f")))
    assert reader.has(Right.READ_FILES)
    assert reader.may(Right.READ_FILES, "a/b")
    assert not reader.may(Right.READ_FILES, "b")
    assert not reader.may(Right.READ_FILES, "")
    assert not reader.has(Right.WRITE_FILES)
    assert reader.may(Right.CALL, "f")
    assert not reader.may(Right.CALL, "ff")
    assert not reader.has(Right.DEPLOY)


def test_without_scopes_a_token_has_all_rights_of_its_user() -> None:
    for role in Role:
        assert {right for right in Right if Principal("x", role).may(right, "")} == RIGHTS_OF[role]


def test_only_operators_act_for_others() -> None:
    assert Principal("root", Role.OPERATOR).may_act_for("ann")
    assert Principal("root", Role.OPERATOR, (Scope(Right.OPERATE),)).may_act_for("ann")
    assert not Principal("root", Role.OPERATOR, (Scope(Right.READ_FILES),)).may_act_for("ann")
    for role in set(Role) - {Role.OPERATOR}:
        assert not Principal("bob", role).may_act_for("ann")
        assert Principal("ann", role).may_act_for("ann")


def test_a_token_differs_from_all_others_in_its_hash() -> None:
    text = "twu1." + secrets.token_urlsafe(32)
    assert hash_of_token(text) != hash_of_token(text[:-1] + ("A" if text[-1] != "A" else "B"))
