"""Whatever is sent as a policy, or is in the files with settings, is understood or refused, and breaks nothing."""

from __future__ import annotations

import contextlib
import json
from typing import Any, cast
from xml.etree.ElementTree import fromstring

from hypothesis import example, given, settings
from hypothesis import strategies as some

from taskworker.client import Client
from taskworker.gateways.s3 import access, cors
from taskworker.gateways.s3 import configuration as conf
from taskworker.gateways.s3.accounts import Account
from taskworker.gateways.s3.bodies import Expected
from taskworker.gateways.s3.bucket_policies import grants_in
from taskworker.gateways.s3.buckets import Bucket, Buckets, check_undamaged
from taskworker.gateways.s3.calls import Call
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.lifecycle import expiration_header, get_lifecycle
from taskworker.gateways.s3.lifecycle_rules import enabled
from taskworker.gateways.s3.locking import get_configuration
from taskworker.gateways.s3.locks import MODES, Lock

_WORDS = some.sampled_from(
    [
        *("Statement", "Effect", "Allow", "Principal", "AWS", "Action", "Resource", "Condition", "StringLike"),
        *("s3:GetObject", "s3:GetObjectVersion", "s3:ListBucket", "s3:prefix", "arn:aws:s3:::b/k", "arn:aws:s3:::b"),
        *("ID", "Status", "Enabled", "Filter", "And", "Tag", "Key", "Value", "Prefix", "Expiration", "Days", "Date"),
        *("created_ms", "region", "versioning", "tags", "cors", "lifecycle", "object_lock", "policy", "granted"),
        *("public_block", "ownership", "mode", "until", "hold", "GOVERNANCE", "2030-01-01", "Mode", "AllowedOrigin"),
        *("AllowedMethod", "AllowedHeader", "ExposeHeader", "MaxAgeSeconds", "https://a.example", "GET", "*", "x-*"),
    ]
)
_PLAIN = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5) | _WORDS
JSON = some.recursive(
    _PLAIN, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(_WORDS, inner, max_size=6), max_leaves=20
)


@given(JSON, some.binary(max_size=20))
def test_policies_of_all_kinds(document: Any, junk: bytes) -> None:
    for body in (json.dumps(document).encode(), json.dumps({"Statement": document}).encode(), junk):
        with contextlib.suppress(S3Error):
            grants_in(body, "b", "owner")


@given(some.dictionaries(_WORDS, JSON), some.binary(max_size=20))
@settings(max_examples=50)
def test_settings_of_all_kinds(document: dict[str, Any], junk: bytes) -> None:
    whole = {"created_ms": 1, "region": "", "versioning": "", "tags": [], "cors": []}
    for content in (document, {**whole, **document}):
        found = Bucket.parse(json.dumps(content).encode())
        assert found.is_damaged or Bucket.parse(found.encoded()) == found
        enabled(found.lifecycle)
    for deep in (junk, b"[" * 20_000):
        Bucket.parse(deep)
        Lock.parse(deep)
    Lock.parse(json.dumps(document).encode())


@given(some.dictionaries(_WORDS, JSON), _PLAIN)
@settings(max_examples=50)
@example({}, 10**18)
def test_rules_that_are_kept_of_all_kinds(document: dict[str, Any], days: object) -> None:
    often = {"ID": "a", "Status": "Enabled", "Expiration": {"Days": days}}
    bucket = Bucket(lifecycle=(document, often, {**often, **document}))
    for name, value in expiration_header(bucket, "k", 1, {}, 1_900_000_000_000):
        assert (name, value.isprintable()) == ("x-amz-expiration", True)


@given(some.sampled_from(("", *MODES)), some.integers(0, 10**14), some.sampled_from((None, True, False)))
def test_locks_are_kept_as_they_are(mode: str, until_ms: int, hold: bool | None) -> None:
    lock = Lock(mode, until_ms, hold)
    assert Lock.parse(lock.encoded()) == lock


@given(some.dictionaries(_WORDS, JSON), some.lists(some.dictionaries(_WORDS, JSON | some.lists(_WORDS)), max_size=2))
@example({}, [{"AllowedOrigin": None}])
@example({}, [{"AllowedOrigin": ["*"], "AllowedMethod": ["GET"], "MaxAgeSeconds": [1]}])
@example({"versioning": "Enabled", "object_lock": {"<a>": {"b": []}}}, [])
@example({"policy": "\ud800"}, [])
@example({"region": "a\r\nb: c"}, [])
@settings(max_examples=50)
def test_settings_of_all_kinds_are_shown_or_said_to_be_damaged(document: dict[str, Any], rules: list[Any]) -> None:
    whole = {"created_ms": 1, "region": "", "versioning": "", "tags": [], "cors": rules}
    bucket = Bucket.parse(json.dumps({**whole, **document}).encode())
    asked = {"origin": "https://a.example", "access-control-request-method": "GET"}
    headers = cors.added(bucket, asked, "GET")
    with contextlib.suppress(S3Error):
        headers += cors.preflight(bucket, {**asked, "access-control-request-headers": "x-a"}).headers
    for show in (
        *(conf.get_cors, conf.get_bucket_tags, conf.get_versioning, conf.head_bucket, conf.location, get_lifecycle),
        *(get_configuration, access.get_policy, access.get_public_block, access.get_ownership),
    ):
        with contextlib.suppress(S3Error):
            reply = show(_call(), cast(Buckets, _Kept(bucket)))
            headers += reply.headers
            assert not reply.body.startswith(b"<?xml") or fromstring(reply.body.decode("utf-8", "replace")) is not None
    assert all(value.isprintable() for _, value in headers)


class _Kept:
    """Buckets of which one is known."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def get(self, _: Call) -> Bucket:
        return self._bucket

    def understood(self, call: Call) -> Bucket:
        check_undamaged(self._bucket, call.bucket)
        return self._bucket


def _call() -> Call:
    account = Account("id", "secret", "user", cast(Client, None))
    return Call(Head("GET", "/bucket"), account, "bucket", "", Expected(), 1_900_000_000_000)
