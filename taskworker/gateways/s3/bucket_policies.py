"""Policies of buckets, as far as what they say is what grants of the store are.

A grant lets another user read a file, or all files whose names begin with a prefix: what there is, former versions and
lists of these. A policy that allows more, less or something else is refused.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from taskworker.gateways.s3.errors import S3Error

POLICY_BYTES_MAX = 20 * 1024
GRANTS_MAX = 1000
_VERSIONS = ("2012-10-17", "2008-10-17")
_READS = frozenset(("s3:GetObject", "s3:GetObjectVersion"))
_LISTS = frozenset(("s3:ListBucket", "s3:ListBucketVersions"))
_ALSO_READS = frozenset(
    f"s3:GetObject{one}" for one in ("Tagging", "VersionTagging", "Attributes", "VersionAttributes")
)
_ALSO_LISTS = frozenset(("s3:GetBucketLocation",))
_OF_OBJECTS = _READS | _ALSO_READS
_OF_BUCKETS = _LISTS | _ALSO_LISTS
_ARN = "arn:aws:s3:::"
_KNOWN = frozenset(("Sid", "Effect", "Principal", "Action", "Resource", "Condition"))
_USER_ARN = re.compile(r"arn:aws:iam::([^:]*):(?:root|user/(?:.*/)?([^/]+))")


class Grant(NamedTuple):
    """What a policy lets another user read: the file of this name; if it ends with ``/``, all that begin with it."""

    user: str
    name: str


def grants_in(body: bytes, bucket: str, owner: str) -> set[Grant]:
    """The grants that do what a policy says.

    Args:
        body: the policy, JSON.
        bucket: whose policy it is.
        owner: whose bucket it is.

    Raises:
        S3Error: it is malformed, or there are no such grants.
    """
    reads: dict[Grant, set[str]] = defaultdict(set)
    lists: dict[Grant, set[str]] = defaultdict(set)
    count = 0
    for statement in _statements(body):
        users = [user for user in _users(statement.get("Principal")) if user != owner]
        actions = _actions(statement.get("Action"))
        about_bucket, names = _resources(statement.get("Resource"), bucket)
        of_objects, of_bucket = actions & _OF_OBJECTS, actions & _OF_BUCKETS
        if bool(of_objects) != bool(names) or bool(of_bucket) != about_bucket:
            raise _malformed("each Action must be for one of the kinds of Resource, and each Resource have an Action")
        below = _prefixes(statement.get("Condition"), bucket, of_objects)
        count += len(users) * (len(names) + len(below) * about_bucket)
        if count > GRANTS_MAX:
            raise _malformed(f"a policy can let users read at most {GRANTS_MAX:,} objects and prefixes, in all")
        for user in users:
            for name in names:
                reads[Grant(user, name)] |= of_objects
            for name in below if of_bucket else ():
                lists[Grant(user, name)] |= of_bucket
    _check_whole(reads, lists)
    return set(reads)


def _check_whole(reads: Mapping[Grant, set[str]], lists: Mapping[Grant, set[str]]) -> None:
    for actions, needed, what in (
        *((one, _READS, "objects") for one in reads.values()),
        *((one, _LISTS, "lists") for one in lists.values()),
    ):
        if not actions >= needed:
            raise _unmapped(f"who may read {what} here may also read former versions: allow {_told(needed)} together")
    folders = {grant for grant in reads if grant.name.endswith("/")}
    if folders != set(lists):
        raise _unmapped(
            f"who may read all objects below a prefix may also list them: allow {_told(_READS)} on BUCKET/PREFIX/* and "
            f"{_told(_LISTS)} on BUCKET, with the condition StringLike s3:prefix PREFIX/* unless it is for all objects"
        )


def _statements(body: bytes) -> list[dict[str, Any]]:
    if len(body) > POLICY_BYTES_MAX:
        raise _malformed(f"a policy may have at most {POLICY_BYTES_MAX} bytes")
    try:
        policy = json.loads(body.decode())  # no other encoding
    except (ValueError, RecursionError):
        raise _malformed("the policy is no valid JSON") from None
    if not isinstance(policy, dict) or not {*policy} <= {"Version", "Id", "Statement"}:
        raise _malformed("a policy has Version, Id and Statement, and nothing else")
    if policy.get("Version", _VERSIONS[1]) not in _VERSIONS:
        raise _malformed(f"Version must be {_VERSIONS[0]}")
    statements = policy.get("Statement")
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list) or not statements or not all(isinstance(one, dict) for one in statements):
        raise _malformed("a policy has at least one Statement")
    for statement in statements:
        _check_allows(statement)
    return statements


def _check_allows(statement: Mapping[str, Any]) -> None:
    for name in statement:
        if name in ("NotPrincipal", "NotAction", "NotResource"):
            raise _unmapped(f"{name} is not supported")
        if name not in _KNOWN:
            raise _malformed(f"a Statement has no {name[:40]}")
    if statement.get("Effect") == "Deny":
        raise _unmapped("statements that deny are not supported; nothing is allowed unless a policy says so")
    if statement.get("Effect") != "Allow":
        raise _malformed("Effect must be Allow")


def _users(principal: Any) -> Iterator[str]:
    if principal == "*":
        principal = {"AWS": "*"}
    if not isinstance(principal, dict) or not principal:
        raise _malformed("Principal must name users")
    for kind, named in principal.items():
        if kind not in ("AWS", "CanonicalUser"):
            raise _unmapped(f"a Principal can be AWS or CanonicalUser, and not {kind[:40]}")
        for text in _texts(named, "Principal"):
            if "*" in text:
                raise _unmapped(
                    "a policy cannot make anything public; presign a URL, or ask the gateway's operator for --public"
                )
            arn = _USER_ARN.fullmatch(text)
            if not text or (arn is None and text.startswith("arn:")):
                raise _malformed(f"no user is meant by the Principal {text[:80]!r}")
            yield text if arn is None else arn[2] or arn[1]


def _actions(given: Any) -> set[str]:
    found: set[str] = set()
    for text in _texts(given, "Action"):
        if text not in _OF_OBJECTS and text not in _OF_BUCKETS:
            raise _unmapped(f"others can be let read and list objects by {_told(_OF_OBJECTS | _OF_BUCKETS)} only")
        found.add(text)
    return found


def _resources(given: Any, bucket: str) -> tuple[bool, set[str]]:
    """Whether the bucket is meant, and the names of grants for the objects that are."""
    about_bucket, names = False, set()
    for text in _texts(given, "Resource"):
        named, slash, key = text.removeprefix(_ARN).partition("/")
        if not text.startswith(_ARN) or named != bucket or (slash and not key):
            raise _malformed(f"Resource must be {_ARN}{bucket}, or {_ARN}{bucket}/ with the key of objects")
        if slash:
            names.add(_granted(bucket, key))
        else:
            about_bucket = True
    return about_bucket, names


def _granted(bucket: str, pattern: str) -> str:
    key = pattern.removesuffix("*")
    is_folder = key != pattern
    if any(letter in key for letter in "*?$") or (is_folder and key and not key.endswith("/")):
        raise _unmapped("Resource can be BUCKET/KEY, BUCKET/PREFIX/* or BUCKET/*, without other wildcards")
    if not is_folder and key.endswith("/"):
        raise _unmapped("the object of a folder cannot be shared without what is below it")
    return f"{bucket}/{key}"


def _prefixes(condition: Any, bucket: str, of_objects: Iterable[str]) -> set[str]:
    """The names below which objects may be listed."""
    if condition is None or condition == {}:
        return {f"{bucket}/"}
    if of_objects or not isinstance(condition, dict) or {*condition} != {"StringLike"}:
        raise _unmapped("the only condition that is supported is StringLike s3:prefix, of lists")
    about = condition["StringLike"]
    if not isinstance(about, dict) or {*about} != {"s3:prefix"}:
        raise _unmapped("the only condition that is supported is StringLike s3:prefix, of lists")
    prefixes = {_granted(bucket, text) for text in _texts(about["s3:prefix"], "Condition")}
    if not all(one.endswith("/") for one in prefixes):
        raise _unmapped("s3:prefix must have the form PREFIX/*")
    return prefixes


def _texts(given: Any, what: str) -> list[str]:
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(one, str) for one in texts):
        raise _malformed(f"{what} must be a text, or a list of these")
    if any("\ud800" <= letter <= "\udfff" for one in texts for letter in one):
        raise _malformed(f"{what} has half of a character")
    return texts


def _told(actions: Iterable[str]) -> str:
    return " and ".join(sorted(actions))


def _malformed(message: str) -> S3Error:
    return S3Error("MalformedPolicy", message)


def _unmapped(message: str) -> S3Error:
    return S3Error("NotImplemented", message)
