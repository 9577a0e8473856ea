"""A pool's own process: where its master key comes from, and what it does when that cannot be used."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from storage.catalog import LmdbCatalog
from storage.errors import FileNotFound, InvalidArgument
from taskworker import Client
from taskworker.client.pool import PoolClient
from taskworker.client.secrets import SecretClient
from taskworker.errors import SecretDamaged, SecretsUnavailable
from taskworker.outbound.secrets.vault import DOCUMENT
from tests.cluster.processes import Process
from tests.secrets.kept import secrets_in

REPOSITORY = Path(__file__).parents[2]


def test_a_pool_whose_key_cannot_be_used_does_all_else_if_it_does_not_encrypt(tmp_path: Path) -> None:
    key = tmp_path / "elsewhere.key"
    key.write_text(base64.b64encode(bytes(32)).decode())
    key.chmod(0o644)
    arguments = ["pool", "--dir", str(tmp_path / "pool"), "--listen", "127.0.0.1:0", "--master-key", str(key)]
    with pytest.raises(AssertionError, match=r"has mode 0644.*chmod 600"):
        Process(arguments, tmp_path / "encrypting.log")
    arguments.append("--no-encryption")
    process = Process(arguments, tmp_path / "pool.log")
    try:
        with SecretClient(process.address) as operator:
            with pytest.raises(SecretsUnavailable, match=rf"{key} has mode 0644.*chmod 600"):
                operator.secrets()
            with pytest.raises(SecretsUnavailable):
                operator.set("key", "value")
            assert "has mode 0644" in (tmp_path / "pool.log").read_text()
            with PoolClient(process.address) as pool:
                assert pool.status() is not None
            with Client(process.address) as client, pytest.raises(FileNotFound):
                client.get("absent", user_id="ann")
            key.chmod(0o600)
            operator.set("key", "value")  # without a new start
    finally:
        process.kill()
    assert not (tmp_path / "pool" / "master.key").exists()

    key.unlink()
    process = Process(arguments, tmp_path / "pool.log")
    try:
        with SecretClient(process.address) as operator, pytest.raises(SecretsUnavailable, match="is missing"):
            operator.secrets()
    finally:
        process.kill()
    assert not key.exists()


def test_a_pool_whose_catalog_was_tampered_with_does_all_else(tmp_path: Path) -> None:
    with secrets_in(tmp_path) as kept:
        for name in ("one", "two"):
            kept.set(name, "value")
    with contextlib.closing(LmdbCatalog(tmp_path / "catalog")) as catalog:
        intact = catalog.document(DOCUMENT)
        assert intact is not None
        catalog.save_document(DOCUMENT, intact[:-1] + bytes([intact[-1] ^ 1]))
    process = Process(["pool", "--dir", str(tmp_path), "--listen", "127.0.0.1:0"], tmp_path / "pool.log")
    try:
        assert "two" in (tmp_path / "pool.log").read_text()
        with SecretClient(process.address) as operator, PoolClient(process.address) as pool:
            assert [(one.name, one.damaged) for one in operator.secrets()] == [("one", False), ("two", True)]
            with pytest.raises(SecretDamaged, match="rm two"):
                operator.rotate("two", "new")
            operator.remove("two")
            operator.rotate("one", "new")
            assert pool.status() is not None
    finally:
        process.kill()


def test_a_key_from_the_environment_is_on_no_disk(tmp_path: Path) -> None:
    raw = secrets.token_bytes(32)
    text = base64.b64encode(raw).decode()
    process = subprocess.Popen(
        [sys.executable, "-m", "taskworker", "pool", "--dir", tmp_path / "pool", "--listen", "127.0.0.1:0", "--json"],
        env=os.environ | {"TASKWORKER_MASTER_KEY": text},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    told = os.read(process.stdout.fileno(), 4096)
    with SecretClient(json.loads(told)["address"]) as operator:
        operator.set("key", "value")
        with pytest.raises(InvalidArgument, match="NEW,OLD"):
            operator.rotate_master_key()
    process.terminate()
    said = b"".join(process.communicate())
    assert process.returncode in (0, 143)
    assert not (tmp_path / "pool" / "master.key").exists()
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for form in (raw, text.encode(), raw.hex().encode()):
        assert form not in on_disk + said


def test_a_process_that_keeps_secrets_is_closed_to_others() -> None:
    program = (
        "import ctypes, resource; from taskworker.outbound.secrets.process_memory import keep_private; keep_private();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert said.stdout == "0 (1, 1)\n"
