"""Requests that botocore signed, as the gateway sees them; and chunks signed by the rules of Amazon's documentation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.signatures import Signed, canonical_trailers, signature

KEY = "TWEXAMPLE00000000000"
SECRET = "s" * 43


def signed_head(
    method: str, url: str, headers: Mapping[str, str] | None = None, *, secret: str = SECRET, region: str = "us-east-1"
) -> Head:
    """A request that botocore signed in its headers."""
    request = AWSRequest(method=method, url=url, headers=dict(headers or {}))
    S3SigV4Auth(Credentials(KEY, secret), "s3", region).add_auth(request)
    return head_of(method, request.url or "", request.headers.items())


def presigned_head(method: str, url: str, *, expires_s: int = 3600, secret: str = SECRET) -> Head:
    """A request whose URL botocore presigned."""
    request = AWSRequest(method=method, url=url)
    S3SigV4QueryAuth(Credentials(KEY, secret), "s3", "us-east-1", expires=expires_s).add_auth(request)
    return head_of(method, request.url or "", ())


def head_of(method: str, url: str, headers: Iterable[tuple[str, str]]) -> Head:
    """A request as it arrives."""
    parts = urlsplit(url)
    given = [(name.lower(), str(value)) for name, value in headers]
    return Head(method, parts.path or "/", parts.query, (("host", parts.netloc), *given))


def signed_chunks(chunks: Iterable[bytes], seed: Signed, trailers: Iterable[tuple[str, str]] | None = None) -> bytes:
    """A body of signed chunks, the last of which is empty."""
    previous, out = seed.signature, bytearray()
    for chunk in (*chunks, b""):
        hashes = f"{hashlib.sha256().hexdigest()}\n{hashlib.sha256(chunk).hexdigest()}"
        text = f"AWS4-HMAC-SHA256-PAYLOAD\n{seed.time}\n{seed.scope}\n{previous}\n{hashes}"
        previous = signature(seed.key, text)
        out += f"{len(chunk):x};chunk-signature={previous}\r\n".encode() + chunk + (b"\r\n" if chunk else b"")
    if trailers is not None:
        given = [*trailers]
        hashed = hashlib.sha256(canonical_trailers(given).encode()).hexdigest()
        last = signature(seed.key, f"AWS4-HMAC-SHA256-TRAILER\n{seed.time}\n{seed.scope}\n{previous}\n{hashed}")
        for name, value in (*given, ("x-amz-trailer-signature", last)):
            out += f"{name}:{value}\r\n".encode()
    return bytes(out + b"\r\n")


def unsigned_chunks(chunks: Iterable[bytes], trailers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A body of chunks without signatures."""
    out = bytearray()
    for chunk in chunks:
        out += f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
    out += b"0\r\n"
    for name, value in trailers:
        out += f"{name}:{value}\r\n".encode()
    return bytes(out + b"\r\n")
