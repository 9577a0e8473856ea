"""Requests as programs make them that cannot be installed everywhere: Hadoop's S3A, which Spark uses, and DuckDB."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tests.gateways.s3.conftest import send, sent_head

_SDK = {
    "amz-sdk-invocation-id": "6a2f8f0e-1c0f-4f7f-9e55-2d8a2c6f0a11",
    "amz-sdk-request": "attempt=1; max=6",
    "user-agent": "Hadoop 3.4.2, aws-sdk-java/2.29.52 md/io#sync md/http#Apache ua/2.1 os/Linux lang/java#17",
}
_PART = bytes(range(256)) * 20_480  # 5 MiB


@pytest.fixture(scope="module")
def root(url: str) -> str:
    """The path of a new bucket."""
    path = f"/shapes-{uuid.uuid4().hex[:12]}"
    assert send(url, "PUT", path)[0] == 200
    return path


def _status(url: str, root: str, name: str) -> str:
    """How S3A finds out what a path is: a HEAD, then a listing of two keys below it."""
    status, head = sent_head(url, f"{root}/{quote(name)}", **_SDK)
    if status == 200:
        return "file"
    assert status == 404, head
    listing = _listed(url, root, f"list-type=2&delimiter=%2F&max-keys=2&prefix={quote(name + '/', safe='')}")
    return "directory" if "<Contents>" in listing or "<CommonPrefixes>" in listing else "nothing"


def _listed(url: str, root: str, query: str) -> str:
    status, body = send(url, "GET", f"{root}?{query}", **_SDK)
    assert status == 200, body
    return body.decode()


def _found(pattern: str, text: str) -> list[str]:
    return re.findall(pattern, text)


def _uploaded(url: str, path: str, parts: list[bytes], **headers: str) -> tuple[str, str]:
    """A multipart upload that is not completed: its id, and the document that completes it."""
    status, body = send(url, "POST", f"{path}?uploads=", content_type="application/octet-stream", **headers)
    assert status == 200, body
    [upload] = _found("<UploadId>(.*?)</UploadId>", body.decode())
    listed = ""
    for number, part in enumerate(parts, 1):
        where = f"{path}?partNumber={number}&uploadId={quote(upload, safe='')}"
        assert send(url, "PUT", where, part, content_type="application/octet-stream", **headers)[0] == 200
        listed += f'<Part><ETag>"{hashlib.md5(part).hexdigest()}"</ETag><PartNumber>{number}</PartNumber></Part>'
    namespace = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    return upload, f"<CompleteMultipartUpload {namespace}>{listed}</CompleteMultipartUpload>"


def _completed(url: str, path: str, upload: str, document: str, **headers: str) -> None:
    status, body = send(url, "POST", f"{path}?uploadId={quote(upload, safe='')}", document.encode(), **headers)
    assert status == 200
    assert b"<CompleteMultipartUploadResult" in body[:1000]  # where DuckDB looks


def test_spark_makes_a_table_with_the_magic_committer(url: str, root: str) -> None:
    assert sent_head(url, root, **_SDK)[0] == 200
    assert _status(url, root, "warehouse/sales") == "nothing"
    marker = {"content_type": "application/x-directory", **_SDK}
    assert send(url, "PUT", f"{root}/warehouse/sales/", **marker)[0] == 200
    assert _status(url, root, "warehouse/sales") == "directory"
    status, head = sent_head(url, f"{root}/warehouse/sales/", **_SDK)
    assert (status, head["content-type"], head["content-length"]) == (200, "application/x-directory", "0")

    # Two tasks upload their files, which are invisible until the job commits them.
    job = f"{root}/warehouse/sales/__magic_job-0001"
    pending: dict[str, tuple[str, str]] = {}
    for task in (0, 1):
        path = f"{root}/warehouse/sales/day%3D2026-11-30/part-{task}.parquet"
        pending[path] = _uploaded(url, path, [_PART, b"tail %d" % task], **_SDK)
        told = json.dumps({"destinationKey": path, "uploadId": pending[path][0]}).encode()
        assert send(url, "PUT", f"{job}/tasks/task-{task}.pendingset", told, **_SDK)[0] == 200
    assert _status(url, root, "warehouse/sales/day=2026-11-30") == "nothing"
    uploads = _listed(url, root, "uploads&prefix=warehouse%2Fsales%2F&max-uploads=5000")
    assert _found("<UploadId>(.*?)</UploadId>", uploads) == [upload for upload, _ in pending.values()]
    sets = _listed(url, root, f"list-type=2&max-keys=5000&prefix={quote(job.removeprefix(f'{root}/'), safe='')}%2F")
    assert len(_found("<Key>", sets)) == 2
    assert "<MaxKeys>1000</MaxKeys>" in sets
    for path, (upload, document) in pending.items():
        _completed(url, path, upload, document, **_SDK)
    assert send(url, "PUT", f"{root}/warehouse/sales/_SUCCESS", b"{}", **_SDK)[0] == 200
    names = _found("<Key>(.*?)</Key>", sets)
    assert _deleted(url, root, names) == []
    assert _status(url, root, "warehouse/sales/__magic_job-0001") == "nothing"
    shown = _listed(url, root, "list-type=2&max-keys=5000&prefix=warehouse%2Fsales%2F&delimiter=%2F&fetch-owner=false")
    assert _found("<Key>(.*?)</Key>", shown) == ["warehouse/sales/", "warehouse/sales/_SUCCESS"]
    assert _found("<Prefix>(.*?)</Prefix>", shown)[1:] == ["warehouse/sales/day=2026-11-30/"]

    # It is read in ranges, several at once, of the version that was opened.
    path = next(iter(pending))
    status, head = sent_head(url, path, **_SDK)
    assert int(head["content-length"]) == len(_PART) + 6
    content = _PART + b"tail 0"
    ranges = [(len(content) - 8, len(content) - 1), (0, 3), (1_000_000, 1_999_999), (3_000_000, 3_000_063)]
    same = {"if_match": head["etag"], **_SDK}

    def read(first: int, last: int) -> tuple[int, bytes]:
        return send(url, "GET", path, range=f"bytes={first}-{last}", **same)

    with ThreadPoolExecutor(4) as threads:
        for (first, last), (status, body) in zip(ranges, threads.map(read, *zip(*ranges, strict=True)), strict=True):
            assert (status, body) == (206, content[first : last + 1])
    assert send(url, "GET", path, range=f"bytes={len(content)}-", **same)[0] == 416
    assert send(url, "PUT", path, b"another writer", **_SDK)[0] == 200
    assert read(0, 3)[0] == 412


def test_spark_renames_a_directory_and_creates_files_once(url: str, root: str) -> None:
    names = ["tmp/out/a b+c=1.parquet", "tmp/out/数据.parquet"]
    for name in names:
        assert send(url, "PUT", f"{root}/{quote(name)}", name.encode(), if_none_match="*", **_SDK)[0] == 200
        assert send(url, "PUT", f"{root}/{quote(name)}", b"late", if_none_match="*", **_SDK)[0] == 412
    listing = _listed(url, root, "list-type=2&max-keys=5000&prefix=tmp%2Fout%2F&fetch-owner=false&encoding-type=url")
    etags = dict(zip(names, _found("<ETag>(.*?)</ETag>", listing), strict=True))
    assert _found("<Key>(.*?)</Key>", listing) == [quote(name, safe="/") for name in names]
    for name in names:
        copied = {
            "x-amz-copy-source": quote(f"{root}/{name}"),
            "x-amz-copy-source-if-match": etags[name].replace("&quot;", '"'),
            "x-amz-metadata-directive": "REPLACE",
            "content-type": "application/octet-stream",
        }
        status, body = send(url, "PUT", f"{root}/{quote(name.replace('tmp/', 'final/'))}", **copied, **_SDK)
        assert status == 200, body
    assert _deleted(url, root, names) == []
    assert _status(url, root, "tmp/out") == "nothing"
    for name in names:
        assert send(url, "GET", f"{root}/{quote(name.replace('tmp/', 'final/'))}") == (200, name.encode())


def _deleted(url: str, root: str, names: list[str]) -> list[str]:
    """Delete as S3A does, quietly; the names that could not be deleted."""
    objects = "".join(f"<Object><Key>{name}</Key></Object>" for name in names)
    document = f"<Delete>{objects}<Quiet>true</Quiet></Delete>".encode()
    md5 = base64.b64encode(hashlib.md5(document).digest()).decode()
    status, body = send(url, "POST", f"{root}?delete", document, content_md5=md5, **_SDK)
    assert status == 200, body
    return _found("<Key>(.*?)</Key>", body.decode())


def test_duckdb_writes_a_partitioned_table_and_reads_it_by_a_pattern(url: str, root: str) -> None:
    path = f"{root}/duck/year%3D2026/data%200.parquet"
    upload, document = _uploaded(url, path, [_PART, b"PAR1"])
    _completed(url, path, upload, document, content_type="application/octet-stream")
    listing = _listed(url, f"{root}/", "encoding-type=url&list-type=2&prefix=duck%2F")
    assert _found("<Key>(.*?)</Key>", listing) == ["duck/year%3D2026/data%200.parquet"]
    assert "<NextContinuationToken>" not in listing
    status, head = sent_head(url, path)
    assert (status, head["content-length"], head["accept-ranges"]) == (200, str(len(_PART) + 4), "bytes")
    assert head["last-modified"].endswith("GMT")
    assert send(url, "GET", path, range=f"bytes={len(_PART)}-{len(_PART) + 3}") == (206, b"PAR1")


def test_duckdb_follows_the_pages_of_a_listing(url: str, root: str) -> None:
    for number in range(3):
        assert send(url, "PUT", f"{root}/pages/{number}.csv", b"x\n1\n")[0] == 200
    found, token = [], ""
    while True:
        # The continuation token comes first, and percent signs in it are encoded.
        query = f"{token}encoding-type=url&list-type=2&max-keys=2&prefix=pages%2F"
        listing = _listed(url, f"{root}/", query)
        found += _found("<Key>(.*?)</Key>", listing)
        following = _found("<NextContinuationToken>(.*?)</NextContinuationToken>", listing)
        if not following:
            break
        token = f"continuation-token={quote(following[0], safe='')}&"
    assert found == [f"pages/{number}.csv" for number in range(3)]
