"""HTTP that is meant to do harm: what is said twice, what comes slowly, and what nobody reads."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import md5
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, cast

import psutil
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from prometheus_client import CollectorRegistry

from taskworker.client import Client
from taskworker.client.local_files import write_all
from taskworker.gateways import http_protocol
from taskworker.gateways.http_protocol import PIPELINED_MAX
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.pipes import PeerGone
from taskworker.gateways.s3 import app
from taskworker.gateways.s3.accounts import FileAccounts
from taskworker.gateways.s3.app import S3App
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.posting import Form
from taskworker.gateways.s3.streams import Outgoing, Straight
from taskworker.metrics.requests import RequestMetrics
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import KEY, OTHER_KEY, OTHER_SECRET, SECRET, USER, connect, keys_file, send
from tests.gateways.s3.test_http import exchange

MIB = 1 << 20


@pytest.fixture(scope="module")
def hasty(pool: FunctionPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """A gateway that waits for slow callers for half a second, and lets nobody wait in silence."""
    with serving(pool, tmp_path_factory.mktemp("hasty"), piece_s=0.5, patience_s=0.0) as server:
        yield server


@contextmanager
def serving(pool: FunctionPool, directory: Path, **options: Any) -> Iterator[HttpServer]:
    """A gateway in a thread of this process."""
    served = S3App(FileAccounts(keys_file(directory), Client(pool.address)), **options)
    server = HttpServer(served, "127.0.0.1:0", half_close=True)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive(), "the gateway did not stop"


def connected(gateway: HttpServer) -> socket.socket:
    host, port = gateway.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=60)


def signed(gateway: HttpServer, method: str, path: str, length: int = 0, **more: str) -> bytes:
    """The head of a signed request whose body is not signed."""
    request = AWSRequest(method=method, url=f"http://{gateway.address}{path}")
    request.headers["X-Amz-Content-Sha256"] = "UNSIGNED-PAYLOAD"
    request.context["payload_signing_enabled"] = False
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
    fields = {**request.headers, "Host": gateway.address, "Content-Length": str(length)}
    fields |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


def answered(gateway: HttpServer, *requests: bytes) -> bytes:
    """What is answered to requests that are sent at once; the connection is kept until the last answer."""
    with connected(gateway) as connection:
        *others, last = requests
        connection.sendall(b"".join(others) + last.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        return read_to_end(connection)


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the other side ends the connection."""
    received = bytearray()
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


# -- what two servers may understand differently ------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"X: a\r\n folded: b\r\n Content-Length: 5\r\n",
        b"X: a\nContent-Length: 5\r\n",
        b"X: a\rContent-Length: 5\r\n",
    ],
)
def test_bodies_whose_end_is_not_clear_are_refused(gateway: HttpServer, fields: bytes) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = exchange(gateway, b"PUT /b/k HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\nhello" + smuggled)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403")), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows was taken for a request of its own"
    assert b"smuggled" not in answer


def test_lines_must_end_as_http_says(gateway: HttpServer) -> None:
    answer = exchange(gateway, b"GET / HTTP/1.1\nHost: h\n\nGET /smuggled HTTP/1.1\nHost: h\n\n")
    assert b"smuggled" not in answer
    assert answer.count(b"HTTP/1.1 ") <= 1


def test_requests_that_follow_at_once_are_answered_in_their_order(gateway: HttpServer, s3: Any, bucket: str) -> None:
    for name in "ab":
        s3.put_object(Bucket=bucket, Key=name, Body=name.encode() * 3)
    answer = answered(gateway, *(signed(gateway, "GET", f"/{bucket}/{name}") for name in "abab"))
    assert answer.count(b"HTTP/1.1 200") == 4
    assert [part[:3] for part in answer.split(b"\r\n\r\n")[1:]] == [b"aaa", b"bbb", b"aaa", b"bbb"]


def test_requests_that_nobody_waits_for_are_bounded(gateway: HttpServer, s3: Any, bucket: str) -> None:
    with connected(gateway) as connection:
        flood = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * (100 * PIPELINED_MAX)
        with suppress(OSError):  # it has ended the connection already
            connection.sendall(flood)
        assert read_to_end(connection).count(b"HTTP/1.1 403") <= PIPELINED_MAX + 1
    s3.list_objects_v2(Bucket=bucket)


# -- what comes slowly, and what nobody reads -----------------------------------------------------------


@pytest.mark.parametrize("length", [1000, 1_000_000, 3_000_000])
def test_a_body_that_does_not_come_is_given_up(hasty: HttpServer, s3: Any, bucket: str, length: int) -> None:
    with connected(hasty) as connection:
        connection.sendall(signed(hasty, "PUT", f"/{bucket}/slow", length) + b"x" * 10)
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"<Code>RequestTimeout</Code>" in answer
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket, Prefix="slow")


def test_a_reply_that_nobody_reads_is_given_up(
    hasty: HttpServer, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "PIECE_S", 0.5)
    content = b"unread" * (2 * MIB)
    s3.put_object(Bucket=bucket, Key="unread", Body=content)
    with connected(hasty) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(signed(hasty, "GET", f"/{bucket}/unread"))
        assert connection.recv(12) == b"HTTP/1.1 200"
        eventually(lambda: not established(hasty, connection))
        received = len(read_to_end(connection))
    assert received < len(content), "all was kept for a caller who did not read"


def test_one_user_or_host_leaves_transfers_and_forms_to_others(
    pool: FunctionPool, tmp_path: Path, s3: Any, other_s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TRANSFERS_MAX", 4), ("FORMS_MAX", 2), ("_WAIT_S", 1.0)):
        monkeypatch.setattr(app, name, value)
    s3.put_object(Bucket=bucket, Key="large", Body=bytes(12 * MIB))
    other_s3.create_bucket(Bucket="another-user-s")
    other_s3.put_object(Bucket="another-user-s", Key="k", Body=bytes(MIB))
    with serving(pool, tmp_path) as crowded, ExitStack() as ending:
        for _ in range(5):
            reader = ending.enter_context(connected(crowded))
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(signed(crowded, "GET", f"/{bucket}/large"))
            assert reader.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 503")
        other = connect(f"http://{crowded.address}", OTHER_KEY, OTHER_SECRET)
        assert other.get_object(Bucket="another-user-s", Key="k")["Body"].read() == bytes(MIB)
        host, _, port = crowded.address.rpartition(":")
        form = b"Host: h\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n"
        for _ in range(3):
            slow = socket.create_connection((host, int(port)), 60, ("127.0.0.2", 0))
            ending.enter_context(slow).sendall(b"POST /bucket HTTP/1.1\r\n" + form % 100_000)
        assert slow.recv(12) == b"HTTP/1.1 503", "it had to wait, and for too long"
        assert b"SlowDown" not in answered(crowded, b"POST /bucket HTTP/1.1\r\n" + form % 5 + b"--x--")


@pytest.mark.parametrize("waiting", ["GET", "PUT"])
def test_a_caller_that_leaves_holds_nothing_although_more_of_its_requests_wait(
    pool: FunctionPool, tmp_path: Path, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, waiting: str
) -> None:
    for name, value in (("TRANSFERS_MAX", 4), ("_WAIT_S", 30.0)):
        monkeypatch.setattr(app, name, value)
    content = b"unread" * (2 * MIB)
    s3.put_object(Bucket=bucket, Key="unread", Body=content)
    with serving(pool, tmp_path) as crowded:
        for _ in range(6):
            with connected(crowded) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.sendall(signed(crowded, "GET", f"/{bucket}/unread"))
                connection.sendall(signed(crowded, waiting, f"/{bucket}/other", 0 if waiting == "GET" else 5))
                assert connection.recv(12) == b"HTTP/1.1 200"
        assert connect(f"http://{crowded.address}").get_object(Bucket=bucket, Key="unread")["Body"].read() == content


def test_one_user_or_host_leaves_threads_to_others(
    pool: FunctionPool, tmp_path: Path, other_s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORKS_MAX", 4), ("LOOK_UPS_MAX", 2), ("_WAIT_S", 5.0)):
        monkeypatch.setattr(app, name, value)
    go_on, busy = threading.Event(), threading.Semaphore(0)
    list_page = Client.list_page
    other_s3.create_bucket(Bucket="threads-of-others")

    def slow(client: Client, **asked: Any) -> Any:
        if asked["user_id"] == USER:
            busy.release()
            go_on.wait(60)
        return list_page(client, **asked)

    class Unknown(FileAccounts):
        """Takes long to find out that there is no such key."""

        def find(self, access_key_id: str) -> Any:
            busy.release()
            go_on.wait(60)
            return super().find(access_key_id)

    monkeypatch.setattr(Client, "list_page", slow)
    monkeypatch.setattr(f"{__name__}.FileAccounts", Unknown)
    with serving(pool, tmp_path) as crowded, ExitStack() as ending:
        ending.callback(go_on.set)
        host, _, port = crowded.address.rpartition(":")
        for _ in range(5):
            ending.enter_context(connected(crowded)).sendall(signed(crowded, "GET", f"/{bucket}?list-type=2"))
        for _ in range(3):
            asking = socket.create_connection((host, int(port)), 60, ("127.0.0.2", 0))
            ending.enter_context(asking).sendall(
                b"GET /b?AWSAccessKeyId=NOBODY&Signature=x&Expires=9999999999 HTTP/1.1\r\nHost: h\r\n\r\n"
            )
        for _ in range(4):  # three of the user, and one of the host
            assert busy.acquire(timeout=30)
        other = connect(f"http://{crowded.address}", OTHER_KEY, OTHER_SECRET)
        assert other.list_objects_v2(Bucket="threads-of-others")["KeyCount"] == 0
        assert not busy.acquire(blocking=False)


def test_strangers_forms_hold_nobody_up_and_a_gateway_that_is_full_says_so(
    pool: FunctionPool, tmp_path: Path, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "TRANSFERS_MAX", 1)
    monkeypatch.setattr(app, "_WAIT_S", 0.2)
    content = b"unread" * (2 * MIB)
    s3.put_object(Bucket=bucket, Key="large", Body=content)
    registry = CollectorRegistry()

    def counted(code: str) -> float | None:
        labels = {"operation": "GetObject", "code": code}
        return registry.get_sample_value("taskworker_s3_request_duration_seconds_count", labels)

    metrics = RequestMetrics(registry, "s3")
    with serving(pool, tmp_path, metrics=metrics) as crowded, connected(crowded) as stranger:
        form = b"Host: h\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
        stranger.sendall(b"POST /bucket HTTP/1.1\r\n" + form)
        eventually(lambda: registry.get_sample_value("taskworker_s3_requests_in_progress") == 1)
        with connected(crowded) as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(signed(crowded, "GET", f"/{bucket}/large"))
            assert reader.recv(12) == b"HTTP/1.1 200"
            refused = answered(crowded, signed(crowded, "GET", f"/{bucket}/large"))
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"<Code>SlowDown</Code>" in refused
        eventually(lambda: counted("ClientGone") == 1)
    assert (counted("SlowDown"), counted("OK")) == (1, None)
    sent = registry.get_sample_value("taskworker_s3_sent_bytes_total", {"operation": "GetObject"})
    assert sent is not None
    assert 0 < sent < len(content)


@pytest.mark.parametrize(
    "again",
    [
        b"--x\r\na: " + b"b" * 1000 + b"\r\n\r\n\r\n",
        b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n",
        b"--x\r\n\r\n\r\n" * 50,
        b"\r\n" * 500,
    ],
    ids=["headers", "parts of the same name", "parts without a name", "empty lines"],
)
def test_forms_without_end_are_refused_before_their_file(again: bytes) -> None:
    head = Head("POST", "/b", "", (("content-type", "multipart/form-data; boundary=x"),))
    with pytest.raises(S3Error) as raised:
        Form(head, repeat(again, 3000))
    assert raised.value.code == "MaxMessageLengthExceeded"


def test_bodies_that_nobody_wants_are_not_kept(gateway: HttpServer) -> None:
    host, port = gateway.address.rsplit(":", 1)
    head = b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (4 * MIB)
    body = bytes(4 * MIB - 1)
    memory = psutil.Process().memory_info
    before = memory().rss
    with ExitStack() as sending:
        for _ in range(40):
            connection = sending.enter_context(socket.create_connection((host, int(port)), timeout=60))
            with suppress(OSError):  # it has waited for as long as it does
                connection.sendall(head + body)
        assert memory().rss - before < 64 * MIB


def test_whoever_writes_a_reply_that_is_cancelled_does_not_wait() -> None:
    async def scenario() -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        async def send_piece(_: dict[str, Any]) -> None:
            begun.set()
            await never.wait()

        async def receive() -> dict[str, Any]:
            await never.wait()
            return {}

        outgoing = Outgoing(send_piece, receive)
        running = asyncio.create_task(outgoing.run())
        outgoing.write(b"content")
        await begun.wait()
        running.cancel()
        await asyncio.wait({running})
        with pytest.raises(PeerGone):
            outgoing.write(b"more")
        assert outgoing.sent == 0

    asyncio.run(scenario())


def test_a_reply_is_what_was_written_even_if_that_memory_is_used_again() -> None:
    async def scenario() -> bytes:
        sent, forever = bytearray(), asyncio.Event()

        async def send_piece(message: dict[str, Any]) -> None:
            await asyncio.sleep(0.01)  # a slow caller
            sent.extend(message["body"])

        async def receive() -> dict[str, Any]:
            await forever.wait()
            return {}

        def write(outgoing: Outgoing) -> None:
            memory = bytearray(2 * MIB)  # as of a read from workers, which use it for what follows
            for letter in b"abc":
                memory[:] = bytes((letter,)) * len(memory)
                write_all(cast(BinaryIO, outgoing), memoryview(memory))
            memory[:] = bytes(len(memory))
            outgoing.end()

        outgoing = Outgoing(send_piece, receive)
        writing = asyncio.create_task(asyncio.to_thread(write, outgoing))
        await outgoing.run()
        await writing
        return bytes(sent)

    assert asyncio.run(scenario()) == b"a" * 2 * MIB + b"b" * 2 * MIB + b"c" * 2 * MIB


def writing_straight(
    pieces: list[bytearray], piece_s: float, read: Callable[[socket.socket], bytes]
) -> tuple[bytes, int]:
    """What is read of pieces that are written straight to a connection, and how many bytes were sent."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def scenario() -> tuple[bytes, int]:
        forever = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await forever.wait()
            return {}

        def write(straight: Straight) -> None:
            try:
                for piece in pieces:
                    write_all(cast(BinaryIO, straight), memoryview(piece))
                    piece[:] = bytes(len(piece))
            finally:
                straight.end()

        straight = Straight(ours, receive, piece_s)
        writing = asyncio.create_task(asyncio.to_thread(write, straight))
        reading = asyncio.create_task(asyncio.to_thread(read, theirs))
        await straight.run()
        with suppress(PeerGone):
            await writing
        return await reading, straight.sent

    with theirs:
        return asyncio.run(scenario())


def test_what_is_written_straight_to_a_slow_caller_is_the_content() -> None:
    def read(connection: socket.socket) -> bytes:
        got = bytearray()
        while piece := connection.recv(MIB):
            got += piece
            time.sleep(0.0001)
        return bytes(got)

    pieces = [bytearray(letter * (MIB + 1)) for letter in (b"a", b"b", b"c")]
    content = b"".join(pieces)
    assert writing_straight(pieces, 60.0, read) == (content, len(content))


def test_nobody_waits_for_a_caller_that_does_not_read_what_is_written_straight() -> None:
    content, sent = writing_straight([bytearray(2 * MIB)], 0.2, lambda _: b"")
    assert content == b""
    assert sent < MIB


def eventually(is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.05)


def established(gateway: HttpServer, connection: socket.socket) -> bool:
    """Whether the gateway's end of a connection is open."""
    port = connection.getsockname()[1]
    return any(
        one.status == psutil.CONN_ESTABLISHED and one.raddr.port == port
        for one in psutil.Process().net_connections("tcp")
        if one.laddr.port == int(gateway.address.rpartition(":")[2])
    )


# -- bodies of chunks, dates and documents ---------------------------------------------------------------


@pytest.mark.parametrize(
    "date", ["19700101T000000Z", "29991231T235959Z", "20200101T000000Z", "yesterday", "20201301T000000Z"]
)
def test_dates_that_are_not_now_are_refused(url: str, gateway: HttpServer, bucket: str, date: str) -> None:
    head = signed(gateway, "GET", f"/{bucket}")
    made = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"x-amz-date"))
    answer = answered(gateway, head.replace(made, f"X-Amz-Date: {date}".encode()))
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"RequestTimeTooSkewed" in answer or b"AccessDenied" in answer


@pytest.mark.parametrize(
    "document",
    [
        b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 1000 + b'"><!ENTITY d "' + b"&b;" * 1000 + b'">]><Delete>&d;</Delete>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><Delete><Object><Key>a</Key></Object></Delete>',
        b"<a>" * 100_000,
        b"<Delete>" + b"<Object>" * 13 + b"</Object>" * 13 + b"</Delete>",
        b"<Delete " + b" ".join(b'a%d="b"' % number for number in range(10_000)) + b">",
        "<?xml version='1.0' encoding='utf-16'?><Delete/>".encode("utf-16"),
        b"<?xml version='1.0' encoding='utf-7'?><Delete/>",
        b"<Delete>\xff\xfe</Delete>",
        b"<Delete>\x00</Delete>",
    ],
)
def test_documents_that_are_meant_to_explode_are_refused(url: str, bucket: str, document: bytes) -> None:
    status, body = send(
        url, "POST", f"/{bucket}?delete", document, content_md5=b64encode(md5(document).digest()).decode()
    )
    assert (status, b"<Code>MalformedXML</Code>" in body) == (400, True)


# -- outcomes that take long -----------------------------------------------------------------------------


def test_who_waits_for_a_long_operation_hears_something(hasty: HttpServer, new_bucket: Callable[[], str]) -> None:
    bucket, s3 = new_bucket(), connect(f"http://{hasty.address}")
    s3.put_object(Bucket=bucket, Key="a", Body=b"content")
    copied = s3.copy_object(Bucket=bucket, Key="b", CopySource=f"{bucket}/a")
    assert copied["CopyObjectResult"]["ETag"] == f'"{md5(b"content").hexdigest()}"'
    upload = s3.create_multipart_upload(Bucket=bucket, Key="c")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="c", UploadId=upload, PartNumber=1, Body=io.BytesIO(b"part"))
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    made = s3.complete_multipart_upload(Bucket=bucket, Key="c", UploadId=upload, MultipartUpload=parts)
    assert made["ETag"].endswith('-1"')
    assert s3.get_object(Bucket=bucket, Key="c")["Body"].read() == b"part"
    deleted = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in "abc"]})
    assert len(deleted["Deleted"]) == 3


def test_an_error_after_the_reply_began_is_an_error_for_programs(
    hasty: HttpServer, new_bucket: Callable[[], str]
) -> None:
    bucket, s3 = new_bucket(), connect(f"http://{hasty.address}", retries={"total_max_attempts": 1})
    with pytest.raises(ClientError, match="NoSuchKey"):
        s3.copy_object(Bucket=bucket, Key="b", CopySource=f"{bucket}/none")
    with pytest.raises(ClientError, match="NoSuchUpload"):
        s3.complete_multipart_upload(
            Bucket=bucket, Key="c", UploadId="0" * 32, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": '"a"'}]}
        )
