"""HTTP as hostile programs speak it; and presigned requests, forms and browsers."""

from __future__ import annotations

import socket
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from hashlib import md5
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from taskworker.gateways.http_protocol import HEAD_BYTES_MAX
from taskworker.gateways.http_server import HttpServer
from tests.gateways.s3.conftest import KEY, SECRET, send
from tests.gateways.s3.signing import signed_chunks
from tests.gateways.s3.test_bodies import SEED


def exchange(gateway: HttpServer, request: bytes) -> bytes:
    """What a gateway answers to these bytes, until it closes the connection or has answered."""
    host, port = gateway.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(request)
            if b"Connection: close" not in request:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has refused already
        answer = bytearray()
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    return bytes(answer)


def test_who_waits_to_send_an_empty_body_may_go_on(gateway: HttpServer) -> None:
    answer = exchange(gateway, b"PUT /b/k HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n")
    lines = answer.split(b"\r\n")
    assert (lines[0], lines[1], lines[2][:13]) == (b"HTTP/1.1 100 Continue", b"", b"HTTP/1.1 403 ")
    answer = exchange(gateway, b"PUT /b/k HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nx: a\x00b\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(gateway: HttpServer, request_bytes: bytes) -> None:
    answer = exchange(gateway, request_bytes)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows was taken for a request of its own"


def test_heads_are_bounded(gateway: HttpServer) -> None:
    for endless in (b"x: " + b"a" * (16 * HEAD_BYTES_MAX), b"x: y\r\n" * HEAD_BYTES_MAX):
        answer = exchange(gateway, b"GET / HTTP/1.1\r\nHost: h\r\n" + endless)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("path", ["//", "//b/k", "/b/%00", "/b/%FF", "/%2e%2e/k", "/b/%2e%2e/k", "/b%2Fc/k"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_paths_with_tricks_are_refused(url: str, method: str, path: str) -> None:
    status, body = send(url, method, path, b"x" if method == "PUT" else b"")
    assert status in (400, 403, 404)
    assert b"<Code>" in body


def test_requests_without_a_signature_are_refused(url: str, bucket: str) -> None:
    for path in ("/", f"/{bucket}", f"/{bucket}/k"):
        with pytest.raises(HTTPError) as raised:
            urllib.request.urlopen(f"{url}{path}")
        assert raised.value.code == 403
        assert b"<Code>AccessDenied</Code>" in raised.value.read()


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<Delete>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><Delete><Object><Key>&b;</Key></Object></Delete>',
        b"<Delete>" + b"<Object><Key>a</Key></Object>" * 1001 + b"</Delete>",
        b"<Other/>",
    ],
)
def test_hostile_documents_are_refused(url: str, bucket: str, document: bytes) -> None:
    status, body = send(
        url, "POST", f"/{bucket}?delete", document, content_md5=b64encode(md5(document).digest()).decode()
    )
    assert (status, b"<Code>MalformedXML</Code>" in body) == (400, True)


def test_a_body_that_breaks_off_stores_nothing(gateway: HttpServer, s3: Any, bucket: str) -> None:
    for size in (1000, 1_000_000):
        host, port = gateway.address.rsplit(":", 1)
        request = AWSRequest(
            method="PUT", url=f"http://{gateway.address}/{bucket}/half", headers={"Content-Length": str(size)}
        )
        request.headers["X-Amz-Content-Sha256"] = "UNSIGNED-PAYLOAD"
        request.context["payload_signing_enabled"] = False
        S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                f"PUT /{bucket}/half HTTP/1.1\r\nHost: {gateway.address}\r\n{head}\r\n".encode() + b"x" * 900
            )
        time.sleep(0.2)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket, Prefix="half")


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_callers_may_close_their_side_after_a_request(url: str, s3: Any, bucket: str, size: int) -> None:
    s3.put_object(Bucket=bucket, Key="half", Body=b"h" * size)
    address = urlsplit(s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "half"}))
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        head = f"GET {address.path}?{address.query} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n"
        connection.sendall(head.encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as reply:
            answer = reply.read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.partition(b"\r\n\r\n")[2] == b"h" * size


def test_a_reply_comes_although_the_caller_s_side_was_closed_meanwhile(gateway: HttpServer) -> None:
    assert exchange(gateway, b"GET /b/k HTTP/1.1\r\nHost: h\r\n\r\n").startswith(b"HTTP/1.1 403 ")


def test_chunks_of_another_request_are_refused(url: str, s3: Any, bucket: str) -> None:
    body = signed_chunks([b"hello world"], SEED)
    headers = {
        "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "x-amz-decoded-content-length": "11",
        "content-encoding": "aws-chunked",
    }
    status, answer = send(url, "PUT", f"/{bucket}/replayed", body, **headers)
    assert (status, b"SignatureDoesNotMatch" in answer) == (403, True)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket, Prefix="replayed")


def test_a_body_other_than_the_signed_one_is_refused(s3: Any, url: str, bucket: str) -> None:
    def change(request: Any, **_: Any) -> None:
        request.body = b"forged"

    s3.meta.events.register("before-send.s3.PutObject", change)
    try:
        with pytest.raises(Exception, match=r"XAmzContentSHA256Mismatch|BadDigest|IncompleteBody"):
            s3.put_object(Bucket=bucket, Key="forged", Body=b"signed")
    finally:
        s3.meta.events.unregister("before-send.s3.PutObject", change)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket, Prefix="forged")


def test_presigned_urls(s3: Any, bucket: str) -> None:
    where = {"Bucket": bucket, "Key": "presigned ä"}
    put = urllib.request.Request(s3.generate_presigned_url("put_object", where), b"by url", method="PUT")
    put.add_header("content-type", "")
    urllib.request.urlopen(put).close()
    link = s3.generate_presigned_url("get_object", {**where, "ResponseContentType": "a/b"})
    with urllib.request.urlopen(link) as got:
        assert (got.read(), got.headers["content-type"]) == (b"by url", "a/b")
    with pytest.raises(HTTPError, match="403"):
        urllib.request.urlopen(link.replace("a%2Fb", "c%2Fd"))


def form_of(fields: dict[str, str], name: str, content: bytes) -> tuple[bytes, str]:
    parts = [f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()]
    head = "".join(parts) + f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def post(url: str, fields: dict[str, str], content: bytes, name: str = "n.txt") -> tuple[int, bytes]:
    body, kind = form_of(fields, name, content)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": kind})) as got:
            return got.status, got.read()
    except HTTPError as error:
        return error.code, error.read()


def test_forms(s3: Any, bucket: str) -> None:
    made = s3.generate_presigned_post(
        bucket,
        "form/${filename}",
        {"success_action_status": "201"},
        [["content-length-range", 1, 10], {"success_action_status": "201"}],
    )
    status, answer = post(made["url"], made["fields"], b"content")
    assert (status, b"<Key>form/n.txt</Key>" in answer) == (201, True)
    assert s3.get_object(Bucket=bucket, Key="form/n.txt")["Body"].read() == b"content"
    for content, code in ((b"too long by far", b"EntityTooLarge"), (b"", b"EntityTooSmall")):
        status, answer = post(made["url"], made["fields"], content, "bad")
        assert (status, code in answer) == (400, True)
    status, answer = post(made["url"], {**made["fields"], "x-amz-signature": "0" * 64}, b"content", "bad")
    assert (status, b"SignatureDoesNotMatch" in answer) == (403, True)
    status, answer = post(made["url"], {}, b"content", "bad")
    assert (status, b"AccessDenied" in answer) == (403, True)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket, Prefix="form/bad")


def test_browsers_are_told_what_a_bucket_allows(s3: Any, url: str, new_bucket: Callable[[], str]) -> None:
    bucket = new_bucket()
    rules = [
        {
            "AllowedOrigins": ["https://a.example"],
            "AllowedMethods": ["GET"],
            "AllowedHeaders": ["x-*"],
            "MaxAgeSeconds": 5,
        }
    ]
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": rules})
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    link = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"})
    with urllib.request.urlopen(urllib.request.Request(link, headers={"Origin": "https://a.example"})) as got:
        assert got.headers["access-control-allow-origin"] == "https://a.example"
    with urllib.request.urlopen(urllib.request.Request(link, headers={"Origin": "https://b.example"})) as got:
        assert got.headers["access-control-allow-origin"] is None
    ask = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "x-a",
    }
    with urllib.request.urlopen(urllib.request.Request(link, headers=ask, method="OPTIONS")) as got:
        assert got.headers["access-control-allow-headers"] == "x-a"
        assert got.headers["access-control-max-age"] == "5"
    with pytest.raises(HTTPError, match="403"):
        urllib.request.urlopen(
            urllib.request.Request(link, headers={**ask, "Access-Control-Request-Method": "PUT"}, method="OPTIONS")
        )


def test_browsers_may_read_errors_and_answers_to_forms(s3: Any, new_bucket: Callable[[], str]) -> None:
    bucket = new_bucket()
    rule = {"AllowedOrigins": ["https://a.example"], "AllowedMethods": ["PUT", "POST"], "ExposeHeaders": ["ETag"]}
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
    origin = {"Origin": "https://a.example"}
    link = s3.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "k", "IfNoneMatch": "*"})
    for content, status in (("x", 200), ("y", 412)):
        with answer_to(link, content.encode(), "PUT", {**origin, "If-None-Match": "*"}) as got:
            assert (got.status, got.headers["access-control-allow-origin"]) == (status, origin["Origin"])
    made = s3.generate_presigned_post(bucket, "f", None, [["content-length-range", 1, 5]])
    for sent, status in ((b"x", 204), (b"too long", 400)):
        body, kind = form_of(made["fields"], "f", sent)
        with answer_to(made["url"], body, "POST", {**origin, "Content-Type": kind}) as got:
            assert (got.status, got.headers["access-control-allow-origin"]) == (status, origin["Origin"])
        with answer_to(made["url"], body, "POST", {"Origin": "https://b.example", "Content-Type": kind}) as got:
            assert (got.status, got.headers["access-control-allow-origin"]) == (status, None)


def answer_to(url: str, body: bytes, method: str, headers: dict[str, str]) -> Any:
    """An answer of any status."""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method))
    except HTTPError as error:
        return error


def test_buckets_in_host_names(gateway: HttpServer, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="virtual", Body=b"x")
    request = AWSRequest(method="GET", url=f"http://{bucket}.s3.test/virtual")
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    answer = exchange(
        gateway, f"GET /virtual HTTP/1.1\r\nHost: {bucket}.s3.test\r\n{head}Connection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\nx")


def test_public_buckets_can_be_read_and_not_written(s3: Any, url: str) -> None:
    s3.create_bucket(Bucket="public-bucket")
    s3.put_object(Bucket="public-bucket", Key="k", Body=b"for all")
    with urllib.request.urlopen(f"{url}/public-bucket/k") as got:
        assert got.read() == b"for all"
    for method in ("PUT", "DELETE", "POST"):
        with pytest.raises(HTTPError, match="403"):
            urllib.request.urlopen(
                urllib.request.Request(f"{url}/public-bucket/k", b"" if method != "DELETE" else None, method=method)
            )


def status_of(address: str) -> int:
    """The status of the answer to an unsigned GET."""
    try:
        with urllib.request.urlopen(address) as got:
            return int(got.status)
    except HTTPError as error:
        return error.code


def test_the_public_reads_objects_and_lists_and_nothing_else(s3: Any, url: str) -> None:
    for content in (b"former", b"for all"):
        s3.put_object(Bucket="public-bucket", Key="k", Body=content)
    former = s3.list_object_versions(Bucket="public-bucket")["Versions"][-1]["VersionId"]
    for what in ("", "?list-type=2", "?location", "/k", "/k?response-content-type=a%2Fb"):
        assert status_of(f"{url}/public-bucket{what}") == 200
    for what in ("?policy", "?acl", "?versions", "?uploads", "?lifecycle", "?tagging", "/k?tagging", "/k?acl"):
        assert status_of(f"{url}/public-bucket{what}") == 403
    assert status_of(f"{url}/public-bucket/k?versionId={former}") == 403


def presigned_with(url: str, path: str, query: str, **headers: str) -> tuple[int, bytes]:
    """The answer to a presigned put of ``content``."""
    request = AWSRequest(method="PUT", url=f"{url}{path}?{query}", headers=headers)
    S3SigV4QueryAuth(Credentials(KEY, SECRET), "s3", "us-east-1", expires=60).add_auth(request)
    put = urllib.request.Request(request.url, b"content", {"content-type": "", **headers}, method="PUT")
    try:
        with urllib.request.urlopen(put) as got:
            return got.status, got.read()
    except HTTPError as error:
        return error.code, error.read()


def test_headers_in_presigned_urls_count(s3: Any, url: str, bucket: str) -> None:
    path = f"/{bucket}/moved"
    status, _ = presigned_with(
        url, path, "x-amz-meta-a=%C3%A4&X-Amz-Tagging=t%3D1&x-amz-meta-b=2", **{"x-amz-meta-b": "2"}
    )
    assert status == 200
    head = s3.head_object(Bucket=bucket, Key="moved")
    assert (head["Metadata"]["b"], head["TagCount"]) == ("2", 1)
    assert head["Metadata"]["a"].encode("latin-1") == "ä".encode()
    for query, code in (
        ("x-amz-acl=public-read", b"NotImplemented"),
        ("x-amz-expected-bucket-owner=somebody", b"AccessDenied"),
        ("x-amz-meta-a=%0D%0Ax-amz-acl:private", b"InvalidArgument"),
    ):
        status, answer = presigned_with(url, path, query)
        assert (status >= 400, code in answer) == (True, True), answer
    status, answer = presigned_with(url, path, "x-amz-meta-a=1", **{"x-amz-meta-a": "2"})
    assert b"InvalidArgument" in answer


def test_a_thousand_idle_connections_are_held(gateway: HttpServer, s3: Any, bucket: str) -> None:
    host, port = gateway.address.rsplit(":", 1)
    connections = [socket.create_connection((host, int(port))) for _ in range(1000)]
    try:
        s3.put_object(Bucket=bucket, Key="meanwhile", Body=b"x")
        assert s3.get_object(Bucket=bucket, Key="meanwhile")["Body"].read() == b"x"
        connections[0].sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert connections[0].recv(12) == b"HTTP/1.1 403"
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/{}?acl&tagging", b"InvalidArgument"),
        ("POST", "/{}/k", b"NotImplemented"),
        ("POST", "/{}/k?select&select-type=2", b"NotImplemented"),
        ("POST", "/{}/k?restore", b"NotImplemented"),
        ("GET", "/{}/k?torrent", b"NotImplemented"),
        ("PUT", "/{}?website", b"NotImplemented"),
        ("PUT", "/{}?replication", b"NotImplemented"),
        ("PATCH", "/{}/k", b"MethodNotAllowed"),
    ],
)
def test_operations_that_there_are_not(url: str, bucket: str, method: str, path: str, code: bytes) -> None:
    status, body = send(url, method, path.format(bucket), b"" if method == "GET" else b"x")
    assert status in (400, 405, 501)
    assert code in body
