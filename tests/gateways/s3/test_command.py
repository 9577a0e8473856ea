"""``taskworker gateway s3``: the program itself, with access keys of the pool."""

from __future__ import annotations

import os
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from taskworker.client import Client
from taskworker.client.users import UserClient
from taskworker.gateways.s3.accounts import FileAccounts, PoolAccounts
from taskworker.gateways.s3.errors import S3Error
from tests import forked
from tests.cluster.processes import Process
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import connect
from tests.gateways.s3.test_objects import refused


def command(*arguments: str) -> tuple[int, str]:
    done = forked.run(["gateway", "s3", *arguments], cwd=Path.cwd(), env=os.environ, timeout_s=60)
    return done.returncode, done.stderr.decode()


def told(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}/{path}", timeout=60) as answer:
        return str(answer.read(), "utf-8")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--listen", "0.0.0.0:0"), "without TLS"),
        (("--listen", "127.0.0.1:0", "--tls-cert", "c.pem"), "belong together"),
        (("--listen", "nonsense", "--keys", "none"), "without TLS"),
        (("--listen", "127.0.0.1:0", "--keys", "none"), "there is no file"),
        (("--public", "bucket"), "BUCKET=KEY-ID"),
    ],
)
def test_what_it_does_not_start_with(arguments: tuple[str, ...], why: str) -> None:
    code, error = command(*arguments)
    assert code in (1, 2)
    assert why in error


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": {}}', '{"a/b": {"secret": "s", "user": "u"}}', '{"a": {"secret": "", "user": "u"}}']
)
def test_malformed_files_of_keys(tmp_path: Path, pool: FunctionPool, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Exception, match=r"keys\.json"):
        FileAccounts(path, pool.client)


def test_access_keys_of_a_pool(pool: FunctionPool, tmp_path: Path) -> None:
    with UserClient(pool.address) as users:
        if all(one.user != "s3-cli" for one in users.users()):
            users.add("s3-cli")
        key = users.create_access_key("s3-cli")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            metrics = f"127.0.0.1:{probe.getsockname()[1]}"
        gateway = Process(
            ["--pool", pool.address, "gateway", "s3", "--listen", "127.0.0.1:0", "--metrics", metrics],
            tmp_path / "gateway.log",
        )
        try:
            s3 = connect(f"http://{gateway.address}", key.access_key_id, key.secret)
            s3.create_bucket(Bucket="cli-bucket")
            s3.put_object(Bucket="cli-bucket", Key="k", Body=b"by the pool's key")
            assert s3.get_object(Bucket="cli-bucket", Key="k")["Body"].read() == b"by the pool's key"
            stranger = connect(f"http://{gateway.address}", "TWNOBODYNOBODYNOBODY", key.secret)
            assert refused(stranger.list_buckets) == ("InvalidAccessKeyId", 403)
            users.revoke(key.token_id)
            assert refused(s3.list_buckets) == ("InvalidAccessKeyId", 403)
            shown = told(metrics, "metrics")
            assert 'taskworker_s3_request_duration_seconds_count{code="OK",operation="PutObject"} 1.0' in shown
            assert 'duration_seconds_count{code="InvalidAccessKeyId",operation=' in shown
            assert 'taskworker_s3_received_bytes_total{operation="PutObject"}' in shown
            assert 'taskworker_s3_sent_bytes_total{operation="GetObject"} 17.0' in shown
            assert told(metrics, "readyz") == "ready\n"
            assert "TWNOBODY" not in shown
        finally:
            gateway.kill()


def test_rules_are_applied_by_a_gateway_that_nobody_asks(pool: FunctionPool, tmp_path: Path) -> None:
    with UserClient(pool.address) as users:
        if all(one.user != "s3-rules" for one in users.users()):
            users.add("s3-rules")
        key = users.create_access_key("s3-rules")
    arguments = ["--pool", pool.address, "gateway", "s3", "--listen", "127.0.0.1:0", "--lifecycle-interval"]
    gateway = Process([*arguments, "0"], tmp_path / "first.log")
    try:
        s3 = connect(f"http://{gateway.address}", key.access_key_id, key.secret)
        s3.create_bucket(Bucket="rules")
        expired = {"ID": "r", "Status": "Enabled", "Filter": {}, "Expiration": {"Date": "2020-01-01T00:00:00Z"}}
        s3.put_bucket_lifecycle_configuration(Bucket="rules", LifecycleConfiguration={"Rules": [expired]})
        with Client(pool.address, token=key.token) as client:
            list(client.push_many(((f"rules/{n}", b"") for n in range(100)), user_id="s3-rules"))
    finally:
        gateway.kill()
    for left in (90, 0):  # the first one is killed half way
        gateway = Process([*arguments, "0.1"], tmp_path / f"until-{left}.log")
        try:
            with Client(pool.address, token=key.token) as client:
                give_up = time.monotonic() + 60
                while len(client.list_files(user_id="s3-rules", prefix="rules/")) > left:
                    assert time.monotonic() < give_up, "the objects did not expire"
        finally:
            gateway.kill()


def test_keys_that_there_are_not_are_not_asked_for_again_and_again(pool: FunctionPool) -> None:
    now = [0.0]
    accounts = PoolAccounts(pool.address, clock_s=lambda: now[0])
    try:
        for _ in range(3):
            with pytest.raises(S3Error, match="no such access key"):
                accounts.find("TWNOBODYNOBODYNOBODY")
    finally:
        accounts.close()
