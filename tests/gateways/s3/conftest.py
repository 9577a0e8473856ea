"""A gateway over the pool that the tests of gateways share, and clients of it."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from taskworker.client import Client
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.s3.accounts import FileAccounts, PoolAccounts
from taskworker.gateways.s3.app import S3App
from taskworker.gateways.s3.expiring import Lifecycles
from taskworker.gateways.s3.lifecycle_passes import Expired
from taskworker.gateways.s3.times import DAY_MS
from tests.functions.processes import FunctionPool

KEY, SECRET, USER = "TWAAAAAAAAAAAAAAAAAA", "s" * 43, "s3-user"
Apply = Callable[..., Expired]
OTHER_KEY, OTHER_SECRET, OTHER_USER = "TWBBBBBBBBBBBBBBBBBB", "t" * 43, "s3-other"


def keys_file(directory: Path) -> Path:
    """A file with the access keys of two users."""
    path = directory / "keys.json"
    keys = {KEY: {"secret": SECRET, "user": USER}, OTHER_KEY: {"secret": OTHER_SECRET, "user": OTHER_USER}}
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        json.dump(keys, file)
    return path


@pytest.fixture(scope="session")
def gateway(pool: FunctionPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """A gateway in a thread of this process, over a real pool."""
    path = keys_file(tmp_path_factory.mktemp("gateway"))
    app = S3App(FileAccounts(path, Client(pool.address)), domain="s3.test", public={"public-bucket": KEY})
    server = HttpServer(app, "127.0.0.1:0", half_close=True)
    thread = threading.Thread(target=server.run, name="gateway")
    thread.start()
    yield server
    server.stop()
    thread.join(30)
    assert not thread.is_alive(), "the gateway did not stop"


def connect(url: str, key: str = KEY, secret: str = SECRET, **config: Any) -> Any:
    """A boto3 client of a gateway."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(**{"signature_version": "s3v4", "retries": {"max_attempts": 1}, **config}),
    )


class _Signer(S3SigV4Auth):
    """Signs what a request says of its body, if it says something."""

    def __init__(self, said: str | None) -> None:
        super().__init__(Credentials(KEY, SECRET), "s3", "us-east-1")
        self._said = said

    def payload(self, request: AWSRequest) -> str:
        if self._said is not None:
            return self._said
        computed: str = super().payload(request)
        return computed


def send(url: str, method: str, path: str, body: bytes = b"", /, **headers: str) -> tuple[int, bytes]:
    """Send a signed request, and return the status and the body of the answer."""
    status, _, content = exchange(url, method, path, body, headers)
    return status, content


def sent_head(url: str, path: str, /, **headers: str) -> tuple[int, dict[str, str]]:
    """Send a signed HEAD, and return the status and the headers of the answer, whose names are in lower case."""
    status, given, _ = exchange(url, "HEAD", path, b"", headers)
    return status, {name.lower(): value for name, value in given.items()}


def exchange(
    url: str, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, Mapping[str, str], bytes]:
    """Send a signed request, and return the status, the headers and the body of the answer."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = AWSRequest(method=method, url=f"{url}{path}", headers=given, data=body)
    _Signer(given.get("x-amz-content-sha256")).add_auth(request)
    prepared = request.prepare()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        sent = {**dict(prepared.headers.items()), **({"Content-Length": str(len(body))} if body else {})}
        connection.request(method, prepared.url.removeprefix(url), body or None, sent)
        response = connection.getresponse()
        return response.status, dict(response.headers.items()), response.read()
    finally:
        connection.close()


@pytest.fixture(scope="session")
def url(gateway: HttpServer) -> str:
    return f"http://{gateway.address}"


@pytest.fixture(scope="session")
def pool_url(pool: FunctionPool) -> Iterator[str]:
    """A gateway with the access keys of the pool."""
    server = HttpServer(S3App(PoolAccounts(pool.address)), "127.0.0.1:0", half_close=True)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://{server.address}"
    server.stop()
    thread.join(30)


@pytest.fixture(scope="session")
def s3(url: str) -> Any:
    """A boto3 client of the gateway."""
    return connect(url)


@pytest.fixture(scope="session")
def other_s3(url: str) -> Any:
    """A client of another user."""
    return connect(url, OTHER_KEY, OTHER_SECRET)


@pytest.fixture
def new_bucket(s3: Any) -> Callable[[], str]:
    def make() -> str:
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        s3.create_bucket(Bucket=name)
        return name

    return make


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    """A bucket that the tests of a module share."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="module")
def accounts(pool: FunctionPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileAccounts]:
    """The other user, for passes of lifecycle rules."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.touch(0o600)
    path.write_text(json.dumps({OTHER_KEY: {"secret": OTHER_SECRET, "user": OTHER_USER}}))
    made = FileAccounts(path, Client(pool.address))
    yield made
    made.close()


@pytest.fixture
def apply(accounts: FileAccounts) -> Apply:
    """Make a pass as if so many days had gone by."""

    def passed(days: float, stopped: Callable[[], bool] = lambda: False) -> Expired:
        now = lambda: int(time.time() * 1000 + days * DAY_MS)  # noqa: E731
        return Lifecycles(accounts, now_ms=now, skew_max_ms=2000 * DAY_MS).apply(stopped)

    return passed
