"""A client in another language: examples/node stores a file and reads it back, with TLS and a token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import FileStorage
from taskworker.auth.authority import Authority
from taskworker.auth.server_certificates import TlsOptions
from taskworker.auth.user_tokens import new_token
from taskworker.services.store_server import StoreServer

TOP = Path(__file__).parents[2]
WAIT_S = 120


def skip_loudly(why: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"the example in Node.js is NOT tested: {why}", stacklevel=2)
    pytest.skip(f"the example in Node.js is NOT tested: {why}")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, with its packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        skip_loudly("there is no Node.js here: `apt-get install nodejs npm`")
    directory = tmp_path_factory.mktemp("node") / "node"
    shutil.copytree(TOP / "examples" / "node", directory, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    done = subprocess.run(install, cwd=directory, capture_output=True, text=True, timeout=WAIT_S, check=False)
    if done.returncode:
        skip_loudly(f"npm cannot install its packages: {done.stderr[-300:]}")
    return directory / "client.js"


@pytest.fixture
def server(store: FileStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[StoreServer, str]]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    server = StoreServer(store)
    found: list[str] = []
    server.start_tls("127.0.0.1:0", TlsOptions(), bound=found.append)
    yield server, found[0]
    server.stop(0.0)


def test_the_example_in_node(
    program: Path, server: tuple[StoreServer, str], store: FileStorage, tmp_path: Path
) -> None:
    running, address = server
    running.users.add("bob")
    token = running.users.create_token("bob").text
    assert running.tls is not None
    (tmp_path / "ca.pem").write_text(running.tls.trust.authorities)
    other = Authority(tmp_path / "other-authority.pem", "f" * 32)
    (tmp_path / "other.pem").write_bytes(other.certificates_pem)

    def run(ca: str, token: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"TASKWORKER_TOKEN": token, "TASKWORKER_PROTOS": str(TOP / "protos")}
        command = ["node", str(program), address, str(tmp_path / ca), "hello.txt"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)

    done = run("ca.pem", token)
    assert done.returncode == 0, done.stderr
    (version,) = store.list_files(user_id="bob")
    assert done.stdout == f"{version.file_id}: hello from Node.js\n"
    assert "UNAUTHENTICATED" in run("ca.pem", new_token()).stderr
    assert "UNAVAILABLE" in run("other.pem", token).stderr
    assert json.loads((program.parent / "package.json").read_text())["private"]
