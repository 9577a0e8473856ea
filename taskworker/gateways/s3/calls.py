"""A request to an operation, and what it is answered with."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from dataclasses import dataclass

from storage import Version
from taskworker.client import Client
from taskworker.gateways.s3.accounts import Account
from taskworker.gateways.s3.bodies import Expected
from taskworker.gateways.s3.documents import Node, rendered
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.names import filename

XML = ("content-type", "application/xml")


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose signature was right.

    Attributes:
        head: the request.
        account: whose it is.
        bucket: what it is about; empty: all buckets.
        key: likewise; empty: the bucket.
        expected: what it says about its body.
        now_ms: when it came, in milliseconds since 1970.
        scheme: ``http`` or ``https``.
    """

    head: Head
    account: Account
    bucket: str
    key: str
    expected: Expected
    now_ms: int
    scheme: str = "http"

    @property
    def client(self) -> Client:
        """The connection to act for the user."""
        return self.account.client

    @property
    def user(self) -> str:
        """Whose files these are."""
        return self.account.user

    @property
    def fields(self) -> dict[str, str]:
        """The request's headers."""
        return self.head.fields

    @property
    def parameters(self) -> dict[str, str]:
        """The query's parameters."""
        return self.head.parameters

    @property
    def filename(self) -> str:
        """The name of the object's file."""
        return filename(self.bucket, self.key)

    @property
    def host(self) -> str:
        """Where the request was sent to."""
        return self.fields.get("host", "localhost")


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of a version.

    Attributes:
        client: who gets them.
        user: whose they are.
        version: the version.
        offset: the first byte.
        length: how many.
        data: all bytes of the version, if they are known already.
    """

    client: Client
    user: str
    version: Version
    offset: int
    length: int
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request is answered with.

    Attributes:
        status: of HTTP.
        headers: names in lower case.
        body: all of it.
        content: bytes of a version that follow instead of the body; its length is that of the reply.
        later: the reply itself, which takes longer than callers may be patient; what is sent until it comes is that the
            request succeeded, and spaces.
    """

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    content: Content | None = None
    later: Future[Reply] | None = None


def document(root: Node, *, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Reply:
    """A reply with a document."""
    return Reply(status, (XML, *headers), rendered(root))


def failure(error: S3Error, head: Head, request_id: str) -> Reply:
    """A reply that says what went wrong."""
    if error.status == 304 or head.method == "HEAD":
        return Reply(error.status, error.headers)
    body: list[Node] = [("Code", error.code), ("Message", error.message), *error.details.items()]
    body += [("Resource", head.path), ("RequestId", request_id)]
    return Reply(error.status, (XML, *error.headers), rendered(("Error", body), namespace=False))
