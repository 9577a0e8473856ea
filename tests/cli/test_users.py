"""Users at the command line: the owner needs nothing, others log in."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import TIMEOUT_S, Cli, serving


@pytest.fixture
def owner(tmp_path: Path) -> Cli:
    return Cli(tmp_path, {"XDG_CONFIG_HOME": str(tmp_path / "owner")}, "ann")


def person(owner: Cli, name: str) -> Cli:
    """Somebody else on the machine, whom commands take for a user of this name unless a server knows better."""
    environment = {"XDG_CONFIG_HOME": str(owner.directory / name), "LOGNAME": f"login-{name}"}
    return Cli(owner.directory, environment, "")


def test_whoever_starts_a_server_uses_it_at_once_and_nobody_else_does(owner: Cli) -> None:
    owner.write("f", b"1")
    stranger = person(owner, "eve")
    with serving(owner, owner.directory / "store") as address:
        owner.run("push", "f", "--pool", address)
        (context,) = owner.json("context", "ls")
        assert (context["address"], context["owned"], context["current"]) == (address, True, False)
        assert "taskworker login" in stranger.error("ls", "--pool", address, code=1)
        assert stranger.json("context", "ls") == []
    kept = owner.directory / "owner/taskworker/contexts.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_user_logs_in_with_a_token(owner: Cli) -> None:
    owner.write("f", b"1")
    bob = person(owner, "bob")
    with serving(owner, owner.directory / "store") as address:
        at = ("--pool", address)
        owner.run("push", "f", *at)
        owner.run("user", "add", "bob", *at)
        made = owner.json("token", "create", "--user", "bob", "--expires", "2h", "--label", "laptop", *at)
        token = made["token"].encode()
        assert bob.json("login", address, stdin=token + b"\n") == {
            "address": address,
            "user": "bob",
            "role": "user",
            "scopes": [],
            "encrypted": False,
        }
        assert bob.names() == []  # at the server chosen by login, as the user whom it knows
        bob.run("push", "f")
        assert bob.names() == ["f"]
        assert "cannot act for 'ann'" in bob.error("ls", "--user", "ann", code=1)
        assert "needs the right operate" in bob.error("user", "add", "eve", code=1)
        text = owner.text("token", "ls", "--user", "bob", *at)
        assert "laptop" in text
        assert token.decode() not in text
        owner.run("user", "export", "users.json", *at)
        assert stat.S_IMODE((owner.directory / "users.json").stat().st_mode) == 0o600
        assert owner.json("user", "import", "users.json", *at) == dict.fromkeys(
            ("users", "tokens", "workers", "grants", "links"), 0
        )
        owner.run("token", "revoke", made["token_id"], *at)
        assert "was revoked" in bob.error("ls", code=1)
        assert owner.json("user", "rm", "bob", *at)["tokens"] == 1
        assert [one["user"] for one in owner.json("user", "ls", *at) if one["user"] == "bob"] == []


def test_a_wrong_token_is_not_kept(owner: Cli) -> None:
    bob = person(owner, "bob")
    with serving(owner, owner.directory / "store") as address:
        for wrong in (b"", b"nonsense", b"twu1." + b"a" * 43):
            said = bob.error("login", address, stdin=wrong, code=1)
            assert "aaaa" not in said
        assert bob.json("context", "ls") == []
    (owner.directory / "f").touch()
    bob.error("login", "127.0.0.1:1", "--token", "x", code=6)
    for options in (["--ca-hash", "sha256:1"], ["--ca-hash", "0" * 64, "--ca-file", "f"], ["--ca-file", "f"]):
        bob.error("login", "127.0.0.1:1", "--token", "x", *options, code=2)


@pytest.mark.parametrize("kind", ["pool", "serve"])
def test_users_of_other_machines_log_in_with_tls(owner: Cli, kind: str) -> None:
    bob = person(owner, "bob")
    arguments = ["pool", "--dir", "pool"] if kind == "pool" else ["--store", "store", "serve"]
    process = owner.start(*arguments, "--listen", "0.0.0.0:0", "--json", stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        announced = json.loads(os.read(process.stdout.fileno(), 4096))
        port = announced["address"].removeprefix("0.0.0.0:")
        address, elsewhere = f"127.0.0.1:{port}", f"127.0.0.2:{port}"
        owner.run("user", "add", "bob", "--pool", address)
        token = owner.text("token", "create", "--user", "bob", "--pool", address).encode()
        assert "--ca-hash" in bob.error("login", elsewhere, stdin=token, code=6)
        assert "no certificate with" in bob.error("login", elsewhere, "--ca-hash", "0" * 64, stdin=token, code=6)
        assert bob.json("context", "ls") == []
        told = bob.json("login", elsewhere, "--ca-hash", announced["ca"], stdin=token)
        assert (told["user"], told["encrypted"]) == ("bob", True)
        assert bob.names() == []
        assert "does not know it" in bob.error("ls", "--pool", address, code=6)
        for version, is_spoken in ((ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)):
            assert _speaks(int(port), version) == is_spoken
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


def _speaks(port: int, version: ssl.TLSVersion) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as connected, contextlib.suppress(ssl.SSLError):
        context.wrap_socket(connected).close()
        return True
    return False


def test_the_authority_of_a_running_server_is_replaced(owner: Cli) -> None:
    bob, eve, ida = person(owner, "bob"), person(owner, "eve"), person(owner, "ida")
    with serving(owner, owner.directory / "store", "--tls") as address:
        at = ("--pool", address)
        (first,) = owner.json("authority", "show", "--certificates", "ca.pem", *at)["authorities"]
        for name, user in (("bob", bob), ("eve", eve), ("ida", ida)):
            owner.run("user", "add", name, *at)
            token = owner.text("token", "create", "--user", name, *at).encode()
            user.run("login", address, "--ca-file", owner.directory / "ca.pem", stdin=token)
        owner.error("authority", "promote", *at, code=2)
        assert len(owner.json("authority", "add-next", *at)["authorities"]) == 2
        assert [one["changed"] for one in bob.json("context", "refresh")] == [True]
        assert [one["changed"] for one in bob.json("context", "refresh", address)] == [False]
        kept = owner.directory / "ida/taskworker/contexts.json"  # two days later, she only lists her files
        document = json.loads(kept.read_text())
        assert document["all"][0].pop("asked_ms")
        kept.write_text(json.dumps(document))
        assert ida.names() == []
        owner.run("authority", "promote", *at)
        assert bob.names() == eve.names() == ida.names() == []
        (second,) = owner.json("authority", "drop-former", *at)["authorities"]
        assert second["fingerprint"] != first["fingerprint"]
        assert bob.names() == ida.names() == []
        assert owner.json("ls", *at) == []
        assert "its authority was replaced" in eve.error("ls", code=6)
        refused = eve.run("context", "refresh", code=6).stderr.decode()
        assert address in refused


def test_options_for_tls(owner: Cli) -> None:
    serve = ("--store", "store", "serve", "--listen")
    assert "no-auth" in owner.error(*serve, "0.0.0.0:0", "--no-auth", code=2)
    assert "no-auth" in owner.error(*serve, "127.0.0.1:0", "--tls", "--no-auth", code=2)
    assert "belong together" in owner.error(*serve, "127.0.0.1:0", "--tls-cert", "f", code=2)
    assert "socket files" in owner.error(*serve, "unix:s", "--tls", code=2)
    owner.error(*serve, "127.0.0.1:0", "--tls-cert", "absent", "--tls-key", "absent", code=1)


def test_contexts_are_chosen_and_forgotten(owner: Cli) -> None:
    with serving(owner, owner.directory / "store") as address:
        owner.run("context", "use", address)
        assert owner.names() == []
        owner.run("context", "rm", address)
        assert owner.json("context", "ls") == []
        owner.error("context", "rm", address, code=3)
        owner.error("context", "use", address, code=2)


def test_without_authentication_everybody_may_do_everything_and_is_told_so(owner: Cli) -> None:
    stranger = person(owner, "eve")
    with serving(owner, owner.directory / "store", "--no-auth") as address:
        assert stranger.json("ls", "--pool", address) == []
        assert owner.json("context", "ls") == []


def test_wrong_options(owner: Cli) -> None:
    owner.error("token", "create", "--pool", "127.0.0.1:1", code=2)
    for wrong in ("x", "1", "1y", "-1h", "9999999d", "1 h"):
        owner.error("token", "create", "--user", "ann", f"--expires={wrong}", "--pool", "127.0.0.1:1", code=2)


@pytest.mark.parametrize("options", [[], ["--no-auth"]])
def test_a_pool_is_its_owners(owner: Cli, options: list[str]) -> None:
    stranger = person(owner, "eve")
    arguments = ["pool", "--dir", "pool", "--listen", "127.0.0.1:0", "--json", *options]
    process = owner.start(*arguments, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        address = json.loads(os.read(process.stdout.fileno(), 4096))["address"]
        assert owner.json("status", "--pool", address)["workers"] == []
        assert owner.json("layout", "--pool", address)["members"] == []
        if options:
            assert stranger.json("status", "--pool", address)["workers"] == []
        else:
            assert "taskworker login" in stranger.error("layout", "--pool", address, code=1)
    finally:
        process.terminate()
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert ("whoever can connect may do everything" in err.decode()) == bool(options)


def test_a_server_whose_contexts_others_can_read_does_not_start(owner: Cli) -> None:
    kept = owner.directory / "owner/taskworker/contexts.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    kept.chmod(0o644)
    assert "chmod 600" in owner.error("--store", "store", "serve", "--listen", "127.0.0.1:0", code=1)
    assert kept.read_text() == "{}"


def test_a_user_has_a_quota(owner: Cli) -> None:
    owner.write("f", b"1" * 100_000)
    bob = person(owner, "bob")
    with serving(owner, owner.directory / "store", "--quota", "bytes=1MiB,files=2") as address:
        at = ("--pool", address)
        owner.run("user", "add", "bob", *at)
        token = owner.json("token", "create", "--user", "bob", *at)["token"].encode()
        bob.json("login", address, stdin=token + b"\n")
        bob.run("push", "f")
        (shown,) = [one for one in owner.json("user", "ls", *at) if one["user"] == "bob"]
        assert (shown["files"], shown["files_max"], shown["bytes_max"]) == (1, 2, 1 << 20)
        assert 150_000 <= shown["bytes"] <= 160_000
        changed = owner.json("user", "quota", "bob", "--bytes", "200KiB", "--files", "none", *at)
        assert (changed["files_max"], changed["bytes_max"]) == (None, 200 << 10)
        said = bob.error("push", "f", "--name", "g", code=1)
        assert "may take 200.0 KiB" in said
        assert "ask the operator for a higher quota" in said
        assert bob.names() == ["f"]
        assert "of 200" in owner.text("user", "quota", "bob", *at)
