"""Contexts: which token belongs to which server."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from storage.errors import FormatError, InvalidArgument
from storage.system.private_paths import NotPrivate
from taskworker.auth.contexts import (
    Access,
    AccessTo,
    Context,
    Contexts,
    contexts_path,
    is_on_this_machine,
    plain_address,
    reached_here,
)
from taskworker.auth.owner_context import keep_owner_context, login_name
from taskworker.auth.rights import Role
from taskworker.auth.trust import SYSTEM, Trust
from taskworker.auth.users import Users
from tests.auth.documents import Clock, Documents

HERE = "127.0.0.1:50051"


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    return Contexts(tmp_path / "config" / "contexts.json")


# -- the file ------------------------------------------------------------------------------------


def test_a_token_is_found_by_its_address(contexts: Contexts) -> None:
    contexts.put(Context(HERE, "t1", "ann"))
    contexts.put(Context("[::1]:50051", "t2", "bob"))
    assert contexts.find(HERE) == Context(HERE, "t1", "ann")
    assert contexts.find("localhost:50051") == contexts.find(HERE)
    assert contexts.find("127.0.0.1:1, [::1]:50051") == Context("[::1]:50051", "t2", "bob")
    assert contexts.find("127.0.0.1:1") is None


def test_a_socket_has_one_context_however_it_is_written(
    contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    contexts.put(Context("unix:./socket", "t1"))
    for address in ("unix:socket", f"unix:{tmp_path}/socket", f"unix://{tmp_path}/x/../socket"):
        assert contexts.find(address) is not None


def test_the_newest_token_for_an_address_counts(contexts: Contexts) -> None:
    contexts.put(Context(HERE, "t1"))
    contexts.put(Context(HERE, "t2"))
    assert [one.token for one in contexts.all()] == ["t2"]


def test_a_server_has_one_context_wherever_it_listens(contexts: Contexts) -> None:
    contexts.put(Context("127.0.0.1:1", "t", server="s1"))
    contexts.put(Context("127.0.0.1:2", "t", server="s1"))
    contexts.put(Context("127.0.0.1:3", "t", server="s2"))
    assert [one.address for one in contexts.all()] == ["127.0.0.1:2", "127.0.0.1:3"]


def test_contexts_of_servers_are_bounded_and_others_are_kept(contexts: Contexts) -> None:
    contexts.put(Context(HERE, "mine"))
    for number in range(130):
        contexts.put(Context(f"127.0.0.1:{1000 + number}", "t", server=f"s{number}"))
    assert len(contexts.all()) == 101
    assert contexts.find(HERE) is not None
    assert contexts.find("127.0.0.1:1129") is not None
    assert contexts.find("127.0.0.1:1000") is None


def test_only_the_owner_may_read_the_file(contexts: Contexts) -> None:
    contexts.put(Context(HERE, "t"))
    assert stat.S_IMODE(contexts.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(contexts.path.parent.stat().st_mode) == 0o700
    contexts.path.chmod(0o640)
    for use in (contexts.all, lambda: contexts.put(Context(HERE, "t2")), AccessTo(HERE, lambda: contexts.path)):
        with pytest.raises(NotPrivate, match="chmod 600"):
            use()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"contexts": 1}',
        b"\xff",
        b'{"contexts": [{"address": "x"}]}',
        b'{"version": 1, "current": "", "contexts": [{"address": 1, "token": "x"}]}',
        b'{"version": 1, "current": "", "contexts": ["x"]}',
        b'{"version": 2, "current": "", "contexts": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_reported_and_left_alone(contexts: Contexts, raw: bytes) -> None:
    contexts.put(Context(HERE, "t"))
    contexts.path.write_bytes(raw)
    with pytest.raises(FormatError, match="damaged"):
        contexts.all()
    with pytest.raises(FormatError, match="damaged"):
        contexts.put(Context(HERE, "t"))
    assert contexts.path.read_bytes() == raw


def test_other_releases_read_the_file(contexts: Contexts) -> None:
    """Those without TLS know four fields of each context, and refuse more; later ones may add some."""
    plain = Context(HERE, "t", "ann", "s", worker_token="w")
    secured = Context("pool.example.org:1", "u", "ann", authorities=SYSTEM)
    contexts.put(secured)
    contexts.put(plain)
    assert contexts.all() == [secured, plain]
    document = json.loads(contexts.path.read_bytes())
    assert document["contexts"] == [{"address": HERE, "token": "t", "user": "ann", "server": "s"}]
    del document["all"]  # as such a release writes it
    document["contexts"][0]["later"] = 1
    contexts.path.write_text(json.dumps(document))
    assert contexts.all() == [plain._replace(worker_token="")]


def test_one_context_can_be_chosen(contexts: Contexts) -> None:
    assert contexts.current == ""
    contexts.put(Context(HERE, "t"), is_current=True)
    contexts.put(Context("127.0.0.1:2", "t"))
    assert contexts.current == HERE
    contexts.use("localhost:2")
    assert contexts.current == "127.0.0.1:2"
    with pytest.raises(InvalidArgument, match="no context"):
        contexts.use("127.0.0.1:3")
    assert contexts.remove("127.0.0.1:2")
    assert not contexts.remove("127.0.0.1:2")
    assert contexts.current == ""
    assert contexts.find(HERE) is not None


def _put_ten(path: Path, first: int) -> None:
    for number in range(first, first + 10):
        Contexts(path).put(Context(f"127.0.0.1:{number}", "t"))


def test_processes_that_write_at_the_same_time_lose_nothing(contexts: Contexts) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_put_ten, args=(contexts.path, first)) for first in (100, 200, 300)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(contexts.all()) == 30


def test_where_contexts_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert contexts_path() == tmp_path / "taskworker/contexts.json"
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "relative"):  # as the XDG base directory specification says
        monkeypatch.setenv("XDG_CONFIG_HOME", given)
        assert contexts_path() == tmp_path / ".config/taskworker/contexts.json"


# -- tokens to send ------------------------------------------------------------------------------


def test_a_token_is_found_when_it_comes_later(contexts: Contexts) -> None:
    access = AccessTo(HERE, lambda: contexts.path)
    assert access() == Access()
    contexts.put(Context(HERE, "t1"))
    assert access() == Access("t1")
    assert access() is access()
    contexts.put(Context(HERE, "t2").with_trust(Trust("PEM", "name")))
    assert access() == Access("t2", Trust("PEM", "name"))
    contexts.remove(HERE)
    assert access() == Access()


def test_no_token_is_sent_in_the_clear_to_another_machine(contexts: Contexts) -> None:
    for address in ("10.0.0.1:50051", "example.org:50051", "[2001:db8::1]:50051"):
        for several in (address, f"{address},{HERE}", f"{HERE},{address}"):
            assert AccessTo(several, lambda: contexts.path)() == Access(trust=Trust())
        contexts.put(Context(address, "t"))
        for several in (address, f"{address},{HERE}", f"{HERE}, {address}"):
            assert AccessTo(several, lambda: contexts.path)() == Access(trust=Trust())
        contexts.put(Context(address, "t").with_trust(Trust()))
        assert AccessTo(f"{address},{HERE}", lambda: contexts.path)() == Access("t", Trust())


@pytest.mark.parametrize("trust", [None, Trust(), Trust("PEM"), Trust("PEM", "name"), Trust("", "name")])
def test_how_a_server_is_known_is_kept(contexts: Contexts, trust: Trust | None) -> None:
    context = Context(HERE, "t").with_trust(trust)
    contexts.put(context)
    assert contexts.find(HERE) == context
    assert context.trust == trust
    assert context.with_trust(None) == Context(HERE, "t")


@pytest.mark.parametrize(
    ("listening", "reached"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        (":1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("unix:/a", "unix:/a"),
    ],
)
def test_where_this_machine_reaches_a_server(listening: str, reached: str) -> None:
    assert reached_here(listening) == reached


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/a", True),
        ("0.0.0.0:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
        ("127.0.0.1.example.org:1", False),
        ("", False),
    ],
)
def test_which_addresses_are_on_this_machine(address: str, is_here: bool) -> None:
    assert is_on_this_machine(address) is is_here


def test_addresses_that_are_written_differently() -> None:
    assert plain_address(" LocalHost:1 ") == plain_address("127.0.0.1:1")
    assert plain_address("localhost.example.org:1") == "localhost.example.org:1"


# -- the owner of a server -----------------------------------------------------------------------


def test_the_owner_of_a_server_is_its_operator(contexts: Contexts) -> None:
    users = Users(Documents())
    owner = keep_owner_context(users, "s1", HERE, contexts)
    found = contexts.find(HERE)
    assert found is not None
    assert owner == found.user == login_name()
    assert users.principal_of(found.token).role is Role.OPERATOR
    assert contexts.current == ""


def test_the_owners_token_is_made_once(contexts: Contexts) -> None:
    documents = Documents()
    keep_owner_context(Users(documents), "s1", HERE, contexts)
    before = contexts.all()[0].token
    keep_owner_context(Users(documents), "s1", "127.0.0.1:2", contexts)
    assert [(one.address, one.token) for one in contexts.all()] == [("127.0.0.1:2", before)]
    assert len(Users(documents).tokens()) == 1


def test_a_token_that_ended_is_replaced(contexts: Contexts) -> None:
    users = Users(Documents(), Clock())
    owner = keep_owner_context(users, "s1", HERE, contexts)
    users.revoke(users.tokens(owner)[0].token_id)
    keep_owner_context(users, "s1", HERE, contexts)
    found = contexts.find(HERE)
    assert found is not None
    assert users.principal_of(found.token).user == owner


def test_an_owner_who_was_something_else_becomes_an_operator(contexts: Contexts) -> None:
    users = Users(Documents())
    users.add(login_name(), Role.AUDITOR)
    keep_owner_context(users, "s1", HERE, contexts)
    assert [user.role for user in users.users()] == [Role.OPERATOR]
    found = contexts.find(HERE)
    assert found is not None
    assert users.principal_of(found.token).role is Role.OPERATOR


def test_another_server_at_the_address_has_a_token_of_its_own(contexts: Contexts) -> None:
    first, second = Users(Documents()), Users(Documents())
    keep_owner_context(first, "s1", HERE, contexts)
    keep_owner_context(second, "s2", HERE, contexts)
    (found,) = contexts.all()
    assert second.principal_of(found.token).role is Role.OPERATOR
