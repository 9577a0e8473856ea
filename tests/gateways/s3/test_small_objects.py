"""Small objects of buckets that the gateway knows already are got and put without threads, to the same effect."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from botocore.exceptions import ClientError

from storage import Version
from storage.errors import FileNotFound, InvalidArgument
from taskworker.client import Client
from taskworker.client.small_files import SmallFiles
from taskworker.errors import StorageUnavailable, Unauthenticated
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.s3.accounts import FileAccounts
from taskworker.gateways.s3.app import S3App
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import connect, exchange, keys_file

SMALL, LARGE = b"small " * 100, b"large " * 20_000
CHANGING = ("date", "x-amz-request-id", "x-amz-id-2")
OF_BROWSERS = "vary"


class Watched(Client):
    """Notes which calls threads make by it."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.made: list[str] = []

    def get_small(self, *arguments: Any, **options: Any) -> tuple[Version, bytes | None]:
        self.made.append("get_small")
        return super().get_small(*arguments, **options)

    def push(self, *arguments: Any, **options: Any) -> Version:
        self.made.append("push")
        return super().push(*arguments, **options)


class Stand(NamedTuple):
    """A gateway, a client of it, and what notes the calls of its threads."""

    url: str
    s3: Any
    client: Watched


@pytest.fixture
def stand(pool: FunctionPool, tmp_path: Path) -> Iterator[Stand]:
    client = Watched(pool.address)
    app = S3App(FileAccounts(keys_file(tmp_path), client), clock_s=lambda: 0.0)
    server = HttpServer(app, "127.0.0.1:0", half_close=True)
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://{server.address}"
    yield Stand(url, connect(url), client)
    server.stop()
    thread.join(30)


@pytest.fixture
def bucket(stand: Stand, request: pytest.FixtureRequest) -> str:
    """A bucket that the gateway knows."""
    name = f"b{hashlib.sha256(request.node.name.encode()).hexdigest()[:20]}"
    stand.s3.create_bucket(Bucket=name)
    stand.s3.put_object(Bucket=name, Key="known", Body=b"")
    stand.client.made.clear()
    return name


def test_no_thread_gets_or_puts_small_objects_of_a_bucket_that_is_known(stand: Stand, bucket: str) -> None:
    put = stand.s3.put_object(Bucket=bucket, Key="a", Body=SMALL, Metadata={"of": "me"}, Tagging="x=y")
    got = stand.s3.get_object(Bucket=bucket, Key="a")

    assert (got["Body"].read(), got["Metadata"], got["TagCount"]) == (SMALL, {"of": "me"}, 1)
    assert put["ETag"] == got["ETag"] == f'"{hashlib.md5(SMALL, usedforsecurity=False).hexdigest()}"'
    assert stand.client.made == []


def test_conditional_puts_and_large_ones_are_made_by_threads(stand: Stand, bucket: str) -> None:
    stand.s3.put_object(Bucket=bucket, Key="a", Body=SMALL, IfNoneMatch="*")
    stand.s3.put_object(Bucket=bucket, Key="large", Body=LARGE)

    assert stand.client.made == ["push", "push"]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        stand.s3.put_object(Bucket=bucket, Key="a", Body=b"other", IfNoneMatch="*")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("small", {}),
        ("small", {"range": "bytes=3-9"}),
        ("small", {"range": "bytes=9000-"}),
        ("small", {"if-none-match": f'"{hashlib.md5(SMALL, usedforsecurity=False).hexdigest()}"'}),
        ("small", {"if-match": '"other"'}),
        ("small", {"x-amz-checksum-mode": "ENABLED"}),
        ("small?partNumber=1", {}),
        ("small?response-content-type=text%2Fplain", {}),
        ("empty", {}),
        ("large", {}),
        ("large", {"range": "bytes=100000-100009"}),
        ("deleted", {}),
        ("missing", {}),
    ],
)
def test_replies_are_those_that_threads_give(path: str, headers: dict[str, str], stand: Stand, bucket: str) -> None:
    """Requests of browsers, which have an origin, are answered by threads."""
    stand.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for key, content in (("small", SMALL), ("empty", b""), ("large", LARGE), ("deleted", SMALL)):
        stand.s3.put_object(Bucket=bucket, Key=key, Body=content, ChecksumAlgorithm="CRC32C")
    stand.s3.delete_object(Bucket=bucket, Key="deleted")

    def reply(**more: str) -> tuple[int, dict[str, str], bytes]:
        status, given, content = exchange(stand.url, "GET", f"/{bucket}/{path}", b"", {**headers, **more})
        shown = {name.lower(): value for name, value in given.items() if name.lower() not in CHANGING}
        if status >= 400:
            content = content.partition(b"<RequestId>")[0]
        shown.pop("content-length" if status >= 400 else OF_BROWSERS, None)
        return status, shown, content

    assert reply() == reply(origin="https://page.test")


def test_a_small_body_that_is_not_what_was_announced_is_not_stored(stand: Stand, bucket: str) -> None:
    for said in ({"content-md5": "A" * 22 + "=="}, {"x-amz-checksum-crc32": "AAAAAA=="}):
        status, _, body = exchange(stand.url, "PUT", f"/{bucket}/a", SMALL, said)
        assert (status, b"BadDigest" in body) == (400, True)
    status, _, body = exchange(stand.url, "PUT", f"/{bucket}/a", SMALL, {"x-amz-content-sha256": "0" * 64})
    assert (status, b"XAmzContentSHA256Mismatch" in body) == (400, True)

    with pytest.raises(ClientError, match="NoSuchKey"):
        stand.s3.get_object(Bucket=bucket, Key="a")
    assert stand.client.made == []


def of_loop(pool: FunctionPool, work: Callable[[SmallFiles, Client], Any], **options: Any) -> Any:
    """What a coroutine returns that uses small files on behalf of a client."""

    async def run() -> Any:
        files = SmallFiles()
        try:
            return await work(files, client)
        finally:
            files.close()

    with Client(pool.address, **options) as client:
        return asyncio.run(run())


def test_small_files_are_got_and_pushed_in_an_event_loop(pool: FunctionPool, user: str) -> None:
    async def work(files: SmallFiles, client: Client) -> None:
        for content in (SMALL, b""):
            pushed = await files.push(client, content, user_id=user, filename="a/b", time_ms=7, attributes={"x": b"y"})
            version, data = await files.get(client, "a/b", user_id=user, bytes_max=4096)
            assert (version, data) == (pushed, content)
            assert (version.time_ms, version.attributes) == (7, {"x": b"y"})
        assert (await files.get(client, "a/b", user_id=user, bytes_max=0))[1] == b""
        await files.push(client, SMALL, user_id=user, filename="a/b", time_ms=7, attributes={})
        assert (await files.get(client, "a/b", user_id=user, bytes_max=1))[1] is None
        with pytest.raises(FileNotFound):
            await files.get(client, "a/c", user_id=user, bytes_max=4096)
        with pytest.raises(InvalidArgument):
            await files.push(client, b"", user_id=user, filename="x" * 1025, time_ms=7, attributes={})
        with pytest.raises(InvalidArgument):
            await files.push(client, b"", user_id=user, filename="\ud800", time_ms=7, attributes={})

    of_loop(pool, work)


def test_small_files_show_the_token_of_the_client(pool: FunctionPool, user: str) -> None:
    async def work(files: SmallFiles, client: Client) -> None:
        with Client(pool.address) as owner:
            await files.push(owner, SMALL, user_id=user, filename="a", time_ms=7, attributes={})
        with pytest.raises(Unauthenticated):
            await files.get(client, "a", user_id=user, bytes_max=4096)

    of_loop(pool, work, token="tw_nobody")


def test_small_files_leave_clients_alone_that_have_a_key_or_a_channel(pool: FunctionPool) -> None:
    async def work(files: SmallFiles, client: Client) -> None:
        assert files.serves(client)
        with Client(pool.address, key=b"k" * 32) as sealed, grpc.insecure_channel(pool.address) as channel:
            assert not files.serves(sealed)
            assert not files.serves(Client(pool.address, channel=channel))

    of_loop(pool, work)


def test_small_files_tell_that_no_server_answers() -> None:
    async def work() -> None:
        with Client("127.0.0.1:9") as client:
            await SmallFiles().push(client, b"", user_id="u", filename="a", time_ms=7, attributes={})

    with pytest.raises(StorageUnavailable):
        asyncio.run(work())
