"""S3 requests with as little work as possible in this process: signed heads, bodies as they are."""

from __future__ import annotations

import hashlib
import hmac
import socket
import time
from functools import lru_cache
from pathlib import Path
from typing import Self

from benchmarks.measure import MIB
from benchmarks.peer_processes import REQUEST_TIMEOUT_S, PeerFailed

ACCESS_KEY_ID, SECRET = "BENCHMARKBENCHMARK00", "benchmark-" + "s" * 30
BUCKET = "bench"
REGION = "us-east-1"
_PAYLOAD = "UNSIGNED-PAYLOAD"
_SIGNED = "host;x-amz-content-sha256;x-amz-date"
_HEAD_END = b"\r\n\r\n"


class S3Caller:
    """One connection to an S3 server. Keys must need no encoding.

    Args:
        address: ``host:port``.

    Raises:
        OSError: it cannot be reached.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=REQUEST_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(MIB))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def make_bucket(self) -> None:
        """Make the bucket, which must not exist.

        Raises:
            PeerFailed: the answer is not one of success.
        """
        self._socket.sendall(self._head("PUT", f"/{BUCKET}", 0))
        self._answer("PUT")

    def put(self, key: str, content: bytes) -> None:
        """Put a small object; raises as :meth:`make_bucket`."""
        self._socket.sendall(self._head("PUT", f"/{BUCKET}/{key}", len(content)) + content)
        self._answer("PUT")

    def put_file(self, key: str, source: Path) -> None:
        """Put an object from a file, whose bytes the kernel sends; raises as :meth:`make_bucket`."""
        with source.open("rb") as file:
            self._socket.sendall(self._head("PUT", f"/{BUCKET}/{key}", source.stat().st_size))
            self._socket.sendfile(file)
        self._answer("PUT")

    def get(self, key: str) -> bytes:
        """The content of a small object; raises as :meth:`make_bucket`."""
        self.ask(key)
        return self.answer()

    def ask(self, key: str) -> None:
        """Ask for an object, whose content :meth:`answer` returns."""
        self._socket.sendall(self._head("GET", f"/{BUCKET}/{key}", 0))

    def answer(self) -> bytes:
        """What was asked for; raises as :meth:`make_bucket`."""
        return self._answer("GET")

    def drain(self, key: str) -> int:
        """Get an object and discard its bytes; return how many there were; raises as :meth:`make_bucket`."""
        self._socket.sendall(self._head("GET", f"/{BUCKET}/{key}", 0))
        head, _, body = self._received_head()
        length = self._checked(head, "GET", body)
        left = length - len(body)
        while left:
            count = self._socket.recv_into(self._buffer[: min(left, len(self._buffer))])
            if not count:
                raise PeerFailed("it closed the connection")
            left -= count
        return length

    def _head(self, method: str, path: str, length: int) -> bytes:
        now = time.gmtime()
        stamp, day = time.strftime("%Y%m%dT%H%M%SZ", now), time.strftime("%Y%m%d", now)
        request = (
            f"{method}\n{path}\n\nhost:{self._address}\nx-amz-content-sha256:{_PAYLOAD}\nx-amz-date:{stamp}\n\n"
            f"{_SIGNED}\n{_PAYLOAD}"
        )
        scope = f"{day}/{REGION}/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(_signing_key(day), to_sign.encode(), "sha256").hex()
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self._address}\r\nContent-Length: {length}\r\n"
            f"x-amz-content-sha256: {_PAYLOAD}\r\nx-amz-date: {stamp}\r\n"
            f"Authorization: AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/{scope}, SignedHeaders={_SIGNED}, "
            f"Signature={signature}\r\n\r\n"
        ).encode()

    def _answer(self, method: str) -> bytes:
        head, _, body = self._received_head()
        length = self._checked(head, method, body)
        while len(body) < length:
            body += self._some()
        return body

    def _received_head(self) -> tuple[bytes, bytes, bytes]:
        received = b""
        while _HEAD_END not in received:
            received += self._some()
        return received.partition(_HEAD_END)

    def _checked(self, head: bytes, method: str, body: bytes) -> int:
        """The length of the content, if the answer is one of success."""
        status, length = read_head(head)
        if status != 200:
            raise PeerFailed(f"it answered {method} with {status} {body[:300]!r}")
        return length

    def _some(self) -> bytes:
        some = self._socket.recv(MIB)
        if not some:
            raise PeerFailed("it closed the connection")
        return some


def read_head(head: bytes) -> tuple[int, int]:
    """Return the status of an HTTP answer, and the length of its content."""
    first, *lines = head.split(b"\r\n")
    length = 0
    for line in lines:
        if line[:15].lower() == b"content-length:":
            length = int(line[15:])
    return int(first.split()[1]), length


@lru_cache(2)
def _signing_key(day: str) -> bytes:
    key = f"AWS4{SECRET}".encode()
    for part in (day, REGION, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
