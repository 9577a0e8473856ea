"""Bodies are what they were announced to be, or refused."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskworker.gateways.s3 import checksums
from taskworker.gateways.s3.bodies import Body, Received, expected
from taskworker.gateways.s3.chunked import SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.signatures import UNSIGNED, Signed, signing_key
from tests.gateways.s3.signing import SECRET, signed_chunks, unsigned_chunks

_SCOPE = "20130524/us-east-1/s3/aws4_request"
SEED = Signed(signing_key(SECRET, _SCOPE), "0" * 64, _SCOPE, "20130524T000000Z")
_CHUNKS = st.lists(st.binary(min_size=1, max_size=5000), max_size=5)


def receive(body: Iterable[bytes], payload: str = UNSIGNED, **headers: str) -> tuple[bytes, Received]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    pieces = [*body]
    if payload.startswith("STREAMING"):
        given.setdefault("x-amz-decoded-content-length", "11")
    given.setdefault("content-length", str(sum(map(len, pieces))))
    taken = Body(expected(Head("PUT", "/b/k", "", tuple(given.items())), payload, SEED))
    content = b"".join(bytes(part) for piece in pieces for part in taken.feed(piece))
    return content, taken.finish()


def refused(body: Iterable[bytes], payload: str = UNSIGNED, **headers: str) -> str:
    with pytest.raises(S3Error) as raised:
        receive(body, payload, **headers)
    return raised.value.code


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def b64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


HELLO = b"hello world"
SUMS = {
    "CRC32": b64(binascii.crc32(HELLO).to_bytes(4, "big")),
    "CRC32C": "yZRlqg==",
    "CRC64NVME": "jSnVw/bqjr4=",
    "SHA1": b64(hashlib.sha1(HELLO).digest()),
    "SHA256": b64(hashlib.sha256(HELLO).digest()),
}
"""Of "hello world". That of CRC32C is in RFC 3720's polynomial, 0xC9946 5AA, as other programs compute it."""


def test_plain_bodies() -> None:
    content, received = receive(
        [b"hello ", b"world"], hashlib.sha256(HELLO).hexdigest(), content_md5=b64(hashlib.md5(HELLO).digest())
    )
    assert (content, received.size, received.etag) == (HELLO, 11, hashlib.md5(HELLO).hexdigest())
    assert receive([]) == (b"", Received(0, hashlib.md5().hexdigest(), {}))


@pytest.mark.parametrize(
    ("code", "payload", "headers"),
    [
        ("XAmzContentSHA256Mismatch", "0" * 64, {}),
        ("InvalidArgument", "E" * 64, {}),
        ("InvalidArgument", "", {}),
        ("NotImplemented", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", {}),
        ("BadDigest", UNSIGNED, {"content_md5": b64(bytes(16))}),
        ("InvalidDigest", UNSIGNED, {"content_md5": "?"}),
        ("InvalidDigest", UNSIGNED, {"content_md5": b64(bytes(15))}),
        ("IncompleteBody", UNSIGNED, {"content_length": "12"}),
        ("IncompleteBody", UNSIGNED, {"content_length": "10"}),
        ("InvalidArgument", UNSIGNED, {"content_length": "-1"}),
        ("InvalidArgument", UNSIGNED, {"content_length": "9" * 5000}),
        ("EntityTooLarge", UNSIGNED, {"content_length": str(5 * 1024**3 + 1)}),
        ("InvalidRequest", UNSIGNED, {"x_amz_checksum_crc32": "AAAA"}),
        ("InvalidRequest", UNSIGNED, {"x_amz_checksum_crc32": SUMS["CRC32"], "x_amz_checksum_sha1": SUMS["SHA1"]}),
        ("InvalidRequest", UNSIGNED, {"x_amz_trailer": "x-amz-checksum-crc32"}),
        ("InvalidRequest", UNSIGNED, {"x_amz_sdk_checksum_algorithm": "MD4"}),
    ],
)
def test_what_is_not_as_announced_is_refused(code: str, payload: str, headers: dict[str, str]) -> None:
    assert refused([HELLO], payload, **headers) == code


def test_a_body_needs_a_length() -> None:
    with pytest.raises(S3Error, match="content-length"):
        expected(Head("PUT", "/"), UNSIGNED, None)


@pytest.mark.parametrize("name", SUMS)
def test_checksums_in_headers(name: str) -> None:
    header = {f"x_amz_checksum_{name.lower()}": SUMS[name]}
    assert receive([HELLO], **header)[1].checksums == {name: SUMS[name]}
    assert refused([HELLO[:-1] + b"!"], **header) == "BadDigest"
    assert receive([HELLO], x_amz_sdk_checksum_algorithm=name)[1].checksums == {name: SUMS[name]}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_checksums_in_trailers(name: str, size: int) -> None:
    trailer = f"x-amz-checksum-{name.lower()}"
    for value, code in ((SUMS[name], ""), (b64(bytes(checksums.ALGORITHMS[name].size)), "BadDigest")):
        unsigned = cut(unsigned_chunks([HELLO[:4], HELLO[4:]], [(trailer, value)]), size)
        signed = cut(signed_chunks([HELLO[:4], HELLO[4:]], SEED, [(trailer, value)]), size)
        for body, coding in ((unsigned, UNSIGNED_CHUNKS_TRAILER), (signed, SIGNED_CHUNKS_TRAILER)):
            if code:
                assert refused(body, coding, x_amz_trailer=trailer) == code
            else:
                assert receive(body, coding, x_amz_trailer=trailer)[1].checksums == {name: value}


@given(_CHUNKS, st.integers(1, 6000))
def test_signed_chunks_in_pieces_of_any_size(chunks: list[bytes], size: int) -> None:
    whole = b"".join(chunks)
    body = cut(signed_chunks(chunks, SEED), size)
    content, received = receive(body, SIGNED_CHUNKS, **{"x-amz-decoded-content-length": str(len(whole))})
    assert (content, received.etag) == (whole, hashlib.md5(whole).hexdigest())


@given(_CHUNKS, st.integers(0, 1 << 30), st.integers(1, 255))
def test_no_changed_byte_of_signed_chunks_is_accepted(chunks: list[bytes], at: int, flip: int) -> None:
    body = bytearray(signed_chunks(chunks, SEED))
    at %= len(body)
    was = bytes(body[at : at + 1])
    body[at] ^= flip
    length = {"x-amz-decoded-content-length": str(sum(map(len, chunks)))}
    if was.isalpha() and bytes(body[at : at + 1]).lower() == was.lower():
        return  # a hexadecimal size in capitals is the same size
    assert refused([bytes(body)], SIGNED_CHUNKS, **length)


@given(st.binary(max_size=300), st.sampled_from([SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER]))
def test_no_other_bytes_are_accepted(body: bytes, coding: str) -> None:
    trailer = {} if coding == SIGNED_CHUNKS else {"x_amz_trailer": "x-amz-checksum-crc32"}
    assert refused([body], coding, **trailer)


def test_chunks_cannot_be_repeated_left_out_or_put_in_another_order() -> None:
    chunks = [b"aaaa", b"bbbb", b"cccc"]
    body = signed_chunks(chunks, SEED)
    length = len(b"4;chunk-signature=") + 64 + len(b"\r\naaaa\r\n")
    first, second, rest = body[:length], body[length : 2 * length], body[2 * length :]
    size = {"x-amz-decoded-content-length": "12"}
    assert receive([first, second, rest], SIGNED_CHUNKS, **size)[0] == b"".join(chunks)
    assert refused([first, first, second, rest], SIGNED_CHUNKS, **size) == "SignatureDoesNotMatch"
    assert refused([second, first, rest], SIGNED_CHUNKS, **size) == "SignatureDoesNotMatch"
    assert refused([first, rest], SIGNED_CHUNKS, **size) == "SignatureDoesNotMatch"
    assert refused([first, second], SIGNED_CHUNKS, **size) == "IncompleteBody"
    assert refused([body, body], SIGNED_CHUNKS, **size) == "InvalidRequest"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "IncompleteBody"),
        (b"b\r\nhello world\r\n", "IncompleteBody"),
        (b"b\r\nhello world\r\n0\r\n", "IncompleteBody"),
        (b"a\r\nhello world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n", "InvalidRequest"),
        (b"b\nhello world\n0\n\n", "InvalidRequest"),
        (b"-b\r\nhello world\r\n0\r\n\r\n", "InvalidRequest"),
        (b"0xb\r\nhello world\r\n0\r\n\r\n", "InvalidRequest"),
        (b"ffffffffffffff\r\nhello world", "InvalidRequest"),
        (b"c\r\nhello world!\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n", "IncompleteBody"),
        (b"b\r\nhello world\r\n0\r\n\r\n", "InvalidRequest"),
        (b"b\r\nhello world\r\n0\r\nx-amz-checksum-crc32c:yZRlqg==\r\n\r\n", "InvalidRequest"),
        (b"b\r\nhello world\r\n0\r\nx-amz-checksum-crc32:\xff\r\n\r\n", "InvalidRequest"),
        (b"b\r\nhello world\r\n0\r\n" + b"a:b\r\n" * 17 + b"\r\n", "InvalidRequest"),
        (b"b\r\nhello world\r\n0\r\nno-colon\r\n\r\n", "InvalidRequest"),
        (b"b\r\nhello world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\nmore", "InvalidRequest"),
        (b"0" * 5000, "InvalidRequest"),
    ],
)
def test_malformed_chunks_are_refused(body: bytes, code: str) -> None:
    for pieces in ([body], cut(body, 1)):
        assert refused(pieces, UNSIGNED_CHUNKS_TRAILER, x_amz_trailer="x-amz-checksum-crc32") == code


def test_trailers_must_be_signed_where_chunks_are() -> None:
    trailer = ("x-amz-checksum-crc32", SUMS["CRC32"])
    body = signed_chunks([HELLO], SEED, [trailer])
    without = body[: body.index(b"x-amz-trailer-signature")] + b"\r\n"
    changed = body.replace(SUMS["CRC32"].encode(), b64(bytes(4)).encode())
    for forged in (without, changed):
        assert refused([forged], SIGNED_CHUNKS_TRAILER, x_amz_trailer=trailer[0]) == "SignatureDoesNotMatch"


def test_chunks_cannot_be_signed_in_a_request_that_is_not() -> None:
    head = Head("PUT", "/", "", (("x-amz-decoded-content-length", "1"),))
    with pytest.raises(S3Error, match="signed"):
        Body(expected(head, SIGNED_CHUNKS, None))


def test_chunks_need_the_length_of_the_content() -> None:
    with pytest.raises(S3Error, match="x-amz-decoded-content-length"):
        expected(Head("PUT", "/", "", (("content-length", "1"),)), SIGNED_CHUNKS, SEED)


def test_the_example_of_the_documentation() -> None:
    """Amazon's documentation has it: "Transferring Payload in Multiple Chunks"."""
    key = signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", _SCOPE)
    seed = Signed(key, "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9", _SCOPE, "20130524T000000Z")
    body = (
        b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
        + b"a" * 65536
        + b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n"
        + b"a" * 1024
        + b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
    )
    head = Head("PUT", "/", "", (("x-amz-decoded-content-length", "66560"),))
    taken = Body(expected(head, SIGNED_CHUNKS, seed))
    assert sum(len(part) for part in taken.feed(body)) == 66560
    assert taken.finish().size == 66560


@pytest.mark.parametrize("name", ["CRC32", "CRC32C", "CRC64NVME"])
@settings(max_examples=15)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_the_checksum_of_a_whole_follows_from_those_of_its_parts(name: str, parts: list[bytes]) -> None:
    chosen = checksums.algorithm(name)

    def of(data: bytes) -> str:
        running = chosen.start()
        running.update(data)
        return checksums.encoded(running.digest())

    assert checksums.combined(chosen, [(of(part), len(part)) for part in parts]) == of(b"".join(parts))


def test_sha_of_a_whole_does_not() -> None:
    with pytest.raises(S3Error, match="COMPOSITE"):
        checksums.combined(checksums.algorithm("SHA256"), [(SUMS["SHA256"], 11)])


def test_checksums_and_entity_tags_of_multipart_objects() -> None:
    digest = hashlib.sha256(hashlib.sha256(HELLO).digest() * 2).digest()
    assert checksums.composite(checksums.algorithm("sha256"), [SUMS["SHA256"]] * 2) == f"{b64(digest)}-2"
    md5 = hashlib.md5(HELLO)
    assert checksums.multipart_etag([md5.hexdigest()] * 2) == f"{hashlib.md5(md5.digest() * 2).hexdigest()}-2"
