"""Large bodies, which the thread that works on a request reads from its connection itself."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from storage.limits import MIB
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.pipes import PeerGone
from taskworker.gateways.s3.straight_bodies import StraightBody, TooSlow
from tests.gateways.s3.conftest import KEY, SECRET
from tests.gateways.s3.test_hostile import answered, connected, eventually, read_to_end, signed

LARGE = random.Random(1).randbytes(5 * MIB + 12345)


class Unsigned(S3SigV4Auth):
    """Signs a request without its body."""

    def __init__(self, said: str) -> None:
        super().__init__(Credentials(KEY, SECRET), "s3", "us-east-1")
        self._said = said

    def payload(self, request: AWSRequest) -> str:
        return self._said


def put_head(gateway: HttpServer, path: str, length: int, said: str = "UNSIGNED-PAYLOAD", **more: str) -> bytes:
    """The head of a signed PUT."""
    request = AWSRequest(method="PUT", url=f"http://{gateway.address}{path}")
    request.headers["X-Amz-Content-Sha256"] = said
    Unsigned(said).add_auth(request)
    fields = {**request.headers, "Host": gateway.address, "Content-Length": str(length), **more}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"PUT {path} HTTP/1.1\r\n{lines}\r\n".encode()


def stored(s3: Any, bucket: str, key: str = "k") -> bytes:
    content: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


# -- requests -------------------------------------------------------------------------------------------


def test_a_large_body_ends_where_the_next_request_begins(gateway: HttpServer, s3: Any, bucket: str) -> None:
    """They are sent at once, so that some of the next one has come when the end of the body is read."""
    puts = [put_head(gateway, f"/{bucket}/{name}", len(LARGE)) + LARGE for name in "kl"]
    answer = answered(gateway, *puts, signed(gateway, "GET", f"/{bucket}/k"))

    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.endswith(LARGE)
    assert stored(s3, bucket) == stored(s3, bucket, "l") == LARGE


def test_a_large_body_comes_in_pieces_of_any_size(gateway: HttpServer, s3: Any, bucket: str) -> None:
    chance = random.Random(2)
    with connected(gateway) as connection:
        connection.sendall(put_head(gateway, f"/{bucket}/k", len(LARGE), Connection="close"))
        at = 0
        while at < len(LARGE):
            count = chance.choice((1, 1000, 70_000, MIB))
            connection.sendall(LARGE[at : at + count])
            at += count
        assert read_to_end(connection).startswith(b"HTTP/1.1 200")
    assert stored(s3, bucket) == LARGE


def test_who_waits_before_a_large_body_may_go_on(gateway: HttpServer, s3: Any, bucket: str) -> None:
    with connected(gateway) as connection:
        connection.sendall(put_head(gateway, f"/{bucket}/k", len(LARGE), Expect="100-continue"))
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(LARGE)
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert stored(s3, bucket) == LARGE


@pytest.mark.parametrize("sent", [0, 1, MIB, len(LARGE) - 1])
def test_a_large_body_that_breaks_off_stores_nothing(gateway: HttpServer, s3: Any, bucket: str, sent: int) -> None:
    with connected(gateway) as connection:
        connection.sendall(put_head(gateway, f"/{bucket}/broken", len(LARGE)) + LARGE[:sent])
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b""
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket, Prefix="broken")


def test_a_large_body_other_than_announced_stores_nothing_and_the_connection_goes_on(
    gateway: HttpServer, s3: Any, bucket: str
) -> None:
    wrong = {"Content-MD5": "A" * 22 + "=="}
    answer = answered(
        gateway,
        put_head(gateway, f"/{bucket}/other", len(LARGE), **wrong) + LARGE,
        signed(gateway, "GET", f"/{bucket}/other"),
    )
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"<Code>BadDigest</Code>" in answer
    assert b"<Code>NoSuchKey</Code>" in answer


def test_what_is_left_of_a_large_body_that_nobody_wants_is_passed_over(
    gateway: HttpServer, s3: Any, bucket: str
) -> None:
    """A chunk that is malformed lets the request fail after the first MiB."""
    body = b"100000;chunk-signature=" + b"0" * 64 + b"\r\n" + LARGE[:MIB] + b"\r\n" + LARGE[: 2 * MIB]
    said, more = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", {"x-amz-decoded-content-length": str(3 * MIB)}
    answer = answered(
        gateway,
        put_head(gateway, f"/{bucket}/k", len(body), said, **more) + body,
        signed(gateway, "GET", f"/{bucket}/k"),
    )
    assert answer.startswith(b"HTTP/1.1 403")
    assert answer.count(b"HTTP/1.1 ") == 2


# -- the part that reads ----------------------------------------------------------------------------------


class Ends(NamedTuple):
    """Two ends of a connection, and what the reader told."""

    sender: socket.socket
    reader: socket.socket
    own: socket.socket
    told: list[tuple[int, bool]]

    def body(self, length: int, **options: Any) -> StraightBody:
        return StraightBody(self.reader, length, lambda *told: self.told.append(told), **options)

    @property
    def taken(self) -> int:
        return sum(count for count, _ in self.told)

    @property
    def ends(self) -> int:
        return sum(is_over for _, is_over in self.told)


@pytest.fixture
def ends() -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        own = server.accept()[0]
    own.setblocking(False)
    reader = own.dup()
    with sender, own, reader:
        yield Ends(sender, reader, own, [])


def test_no_byte_after_the_body_is_read_and_the_next_one_is_told_at_once(ends: Ends) -> None:
    content = LARGE * 4
    sending = threading.Thread(target=lambda: ends.sender.sendall(content + b"!"))
    sending.start()
    read = b"".join(ends.body(len(content)).pieces())
    sending.join()

    assert hashlib.sha256(read).digest() == hashlib.sha256(content).digest()
    assert (ends.taken, ends.ends, len(ends.told) > 2) == (len(content), 1, True)
    assert ends.own.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
    assert select.select([ends.own], [], [], 60)[0], "the kernel waits for more than one byte"
    assert ends.own.recv(10) == b"!"


def test_a_body_that_is_too_slow_is_given_up(ends: Ends) -> None:
    times = iter((0.0, 1.0, 59.9, 60.0))
    ends.sender.sendall(b"x" * 10)
    with pytest.raises(TooSlow):
        list(ends.body(MIB, piece_s=60.0, clock_s=lambda: next(times)).pieces())
    assert (ends.taken, ends.ends) == (0, 1)


def test_whoever_waits_for_a_body_stops_when_nobody_wants_it(ends: Ends) -> None:
    body = ends.body(MIB)
    ended = threading.Event()

    def read() -> None:
        with suppress(PeerGone):
            list(body.pieces())
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    body.stop()
    assert ended.wait(60)
    eventually(lambda: ends.ends == 1)
    assert ends.reader.fileno() == -1


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_body_is_let_go_although_nobody_asks_for_its_next_piece(ends: Ends, pieces: int) -> None:
    ends.sender.sendall(LARGE[:MIB])
    body = ends.body(len(LARGE))
    reading = body.pieces()
    read = sum(len(next(reading)) for _ in range(pieces))
    body.stop()
    body.stop()

    assert (ends.taken, ends.ends) == (read, 1)
    with pytest.raises(PeerGone):
        next(reading)
    assert ends.ends == 1
