"""The gateway as an ASGI application: who asks, what for, and the way of bodies and contents."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from storage.clocks import monotonic_s, wall_ms
from storage.errors import StorageError
from taskworker.errors import ServerBusy, Unauthenticated
from taskworker.gateways.http_server import CONNECTIONS_MAX
from taskworker.gateways.pipes import DIVERT, PIECE_S, Divert, PeerGone
from taskworker.gateways.s3 import cors, posting
from taskworker.gateways.s3.accounts import Account, Accounts
from taskworker.gateways.s3.bodies import Body, Expected, expected
from taskworker.gateways.s3.buckets import Buckets
from taskworker.gateways.s3.calls import XML, Call, Content, Reply, failure
from taskworker.gateways.s3.contents import with_short_content, write
from taskworker.gateways.s3.documents import DECLARATION, DOCUMENT_BYTES_MAX
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.expiring import BackgroundLifecycles
from taskworker.gateways.s3.failures import as_s3_error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.multipart import put_part
from taskworker.gateways.s3.objects import SHORT, put
from taskworker.gateways.s3.operations import Operation, Takes, operation_of, require_public, visiting
from taskworker.gateways.s3.signatures import UNSIGNED, Claim, Signed, checked, claim_of, with_moved_headers
from taskworker.gateways.s3.signatures_v2 import UrlClaim, check_url, claim_of_url
from taskworker.gateways.s3.small_objects import SmallObjects
from taskworker.gateways.s3.streams import Incoming, Outgoing, Receive, Send, Straight, disconnected
from taskworker.gateways.turns import Turns
from taskworker.hosts import host_of
from taskworker.metrics.requests import RequestMetrics, Served

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

THREADS = 96
WORKS_MAX = 32
"""Requests without a large body that threads work on; the others wait."""
LOOK_UPS_MAX = 16
"""Access keys that are looked up. Who asks is not known yet."""
TRANSFERS_MAX = 32
"""Bodies and contents of more than a message that are under way; the others wait."""
FORMS_MAX = 8
"""Forms that are under way. Who sends one is known only when its fields have come, so forms take no place of others."""
_WAIT_S = 30.0
_SHORT = SHORT
"""Bodies up to this size are taken before a thread works on them."""
_CODED_SHORT = 2 * _SHORT
_GONE = "ClientGone"
_LEFT_OVER = 4 * 1024 * 1024
_LEFT_OVER_S = 2.0


class S3App:
    """Serves S3 by ASGI.

    Args:
        accounts: who may sign requests.
        domain: requests to ``BUCKET.DOMAIN`` are about that bucket; empty: buckets are in paths only.
        public: buckets that anybody may read, each with the access key that stands for such readers.
        patience_s: after how many seconds, and how often, those who wait for the outcome of a long operation are sent
            a space: their programs give up on a connection that is silent.
        piece_s: how long a piece of a body, or of a reply, may take, in seconds.
        needs_md5: whether entity tags of large contents must be MD5 sums, as with Amazon, and not random.
        metrics: where requests are counted; None: nowhere.
        lifecycles: applies lifecycle rules until the application is closed; None: nothing does.
        now_ms: milliseconds since 1970.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        accounts: Accounts,
        *,
        domain: str = "",
        public: Mapping[str, str] | None = None,
        patience_s: float = 10.0,
        piece_s: float = PIECE_S,
        needs_md5: bool = True,
        metrics: RequestMetrics | None = None,
        lifecycles: BackgroundLifecycles | None = None,
        now_ms: Callable[[], int] = wall_ms,
        clock_s: Callable[[], float] = monotonic_s,
    ) -> None:
        self._accounts = accounts
        self._domain = domain.lower()
        self._public = dict(public or {})
        self._patience_s = patience_s
        self._piece_s = piece_s
        self._needs_md5 = needs_md5
        self._metrics = metrics
        self._lifecycles = lifecycles
        self._now_ms = now_ms
        self._clock_s = clock_s
        self._buckets = Buckets(clock_s=clock_s)
        self._small = SmallObjects(self._buckets)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        # One user may have 24 of 32 works and as many transfers, and one host half of the rest.
        turns = partial(Turns, waiting=CONNECTIONS_MAX, within_s=_WAIT_S)
        self._transfers = turns(TRANSFERS_MAX, "transfers are under way", times=3)
        self._works = turns(WORKS_MAX, "requests are under way", times=3)
        self._forms = turns(FORMS_MAX, "forms are under way")
        self._look_ups = turns(LOOK_UPS_MAX, "access keys are looked up")

    def close(self) -> None:
        """End the threads, once what they work on is done, and the connections."""
        if self._lifecycles is not None:
            self._lifecycles.stop()
        self._threads.shutdown(cancel_futures=True)
        self._small.close()
        self._accounts.close()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            raise RuntimeError(f"S3 is not spoken over {scope['type']}")
        if self._metrics is None:
            return await self._answer(scope, receive, send, Served())
        served, begun_s = Served(), self._clock_s()
        self._metrics.begun()
        try:
            await self._answer(scope, receive, send, served)
        except BaseException:
            served.code = "InternalError"
            raise
        finally:
            self._metrics.ended(served, self._clock_s() - begun_s)

    async def _answer(self, scope: Mapping[str, Any], receive: Receive, send: Send, served: Served) -> None:
        request_id = os.urandom(8).hex().upper()
        head = _head_of(scope)
        host = f"host {host_of(scope['client'])}"
        incoming = Incoming(receive, scope["extensions"][DIVERT], self._piece_s, host)
        if head.fields.get("content-length", "0") == "0" and "transfer-encoding" not in head.fields:
            incoming.ended = True
        try:
            handling = self._handled(head, incoming, scope["scheme"], served)
            reply = await _or_failure(handling, head, request_id, served)
        except PeerGone:
            served.code = _GONE
            await incoming.gone()
            return
        except asyncio.CancelledError:
            incoming.abandon()  # nobody else would tell the thread that reads it
            raise
        finally:
            served.received = incoming.received
        await self._send(reply, head, incoming, request_id, receive, send, served)

    # -- who asks, and what for ---------------------------------------------------------------------

    async def _handled(self, head: Head, incoming: Incoming, scheme: str, served: Served) -> Reply:
        bucket, key = self._target(head)
        if head.method == "OPTIONS":
            served.operation = "Preflight"
            return await self._preflight(head, bucket, incoming)
        claim = claim_of(head) or claim_of_url(head)
        now_ms = self._now_ms()
        if claim is None and bucket and not key and posting.is_form(head):
            served.operation = "PostObject"
            async with _place(self._forms, incoming):
                put_as, pieces = partial(self._answered, put), incoming.pieces()
                return await self._run(posting.post, head, bucket, pieces, self._accounts, put_as, now_ms, scheme)
        account, signed = await self._caller(head, claim, bucket, incoming)
        if isinstance(claim, Claim) and claim.expires_s is not None:
            head = with_moved_headers(head)
        operation = operation_of(head, bucket, key)
        served.operation = operation.name
        if claim is None:
            require_public(head, operation)
        else:
            incoming.whose = f"user {account.user}"
        account = visiting(account, operation, head.fields, is_signed=claim is not None)
        payload = claim.payload if isinstance(claim, Claim) else UNSIGNED
        about_body = Expected(size=0, needs_md5=self._needs_md5)
        if operation.takes is not Takes.NOTHING:
            about_body = expected(head, payload, signed, needs_md5=self._needs_md5)
        call = Call(head, account, bucket, key, about_body, now_ms, scheme)
        try:
            reply = await self._worked(operation, call, incoming)
        except Unauthenticated:
            self._accounts.drop(account.access_key_id)
            raise
        return reply

    async def _caller(
        self, head: Head, claim: Claim | UrlClaim | None, bucket: str, incoming: Incoming
    ) -> tuple[Account, Signed | None]:
        if claim is None:
            key_id = self._public.get(bucket)
            if key_id is None or head.method not in ("GET", "HEAD"):
                raise S3Error("AccessDenied", "the request is not signed; sign it with an access key")
            return await self._account(key_id, incoming), None
        account = await self._account(claim.access_key_id, incoming)
        if "x-amz-security-token" in head.fields or "X-Amz-Security-Token" in head.parameters:
            raise S3Error("InvalidToken", "access keys here have no session tokens")
        if isinstance(claim, UrlClaim):
            check_url(claim, head, self._hosted(head), account.secret, now_ms=self._now_ms)
            return account, None
        return account, checked(claim, head, account.secret, now_ms=self._now_ms)

    async def _account(self, access_key_id: str, incoming: Incoming) -> Account:
        known = self._accounts.known(access_key_id)
        if known is not None:
            return known
        async with _place(self._look_ups, incoming):
            return await self._run(self._accounts.find, access_key_id)

    def _target(self, head: Head) -> tuple[str, str]:
        """The bucket and the key that a request is about."""
        path = head.path.removeprefix("/")
        if bucket := self._hosted(head):
            raw_key = path
        else:
            raw_bucket, _, raw_key = path.partition("/")
            bucket = unquote_to_bytes(raw_bucket).decode("utf-8", "replace")
        if not head.path.startswith("/") or (path and not bucket):
            raise S3Error("InvalidURI", "the path must have the form /BUCKET/KEY")
        head.decoded_path  # noqa: B018  # it must be text
        return bucket, unquote_to_bytes(raw_key).decode()

    def _hosted(self, head: Head) -> str:
        """The bucket that a request's host names; empty if none."""
        given = head.fields.get("host", "").lower()
        host = given.rpartition(":")[0] or given
        return host.removesuffix(f".{self._domain}") if self._domain and host.endswith(f".{self._domain}") else ""

    async def _preflight(self, head: Head, bucket: str, incoming: Incoming) -> Reply:
        """Browsers do not sign what they ask before a request. The key in its URL says whose bucket it is about."""
        signed_by = head.parameters.get("X-Amz-Credential", "").partition("/")[0] or head.parameters.get(
            "AWSAccessKeyId"
        )
        key_id = signed_by or self._public.get(bucket)
        if not key_id or not bucket:
            raise S3Error("AccessDenied", "whose bucket this is cannot be told: no access key is named")
        account = await self._account(key_id, incoming)
        call = Call(head, account, bucket, "", Expected(), self._now_ms())
        found = await self._worked_on(incoming, self._buckets.get, call)
        return cors.preflight(found, head.fields)

    # -- the way of bodies --------------------------------------------------------------------------

    async def _worked(self, operation: Operation, call: Call, incoming: Incoming) -> Reply:
        if operation.work is None:
            return await self._stored(operation, call, incoming)
        body = b""
        if operation.takes is Takes.DOCUMENT and not incoming.ended:
            is_short = _length(call) <= _SHORT
            async with contextlib.nullcontext() if is_short else _place(self._transfers, incoming):
                body = _verified(call.expected, await incoming.whole(DOCUMENT_BYTES_MAX + _CODED_SHORT))
        elif operation.takes is Takes.DOCUMENT:
            _verified(call.expected, b"")
        sooner = partial(self._got, call) if operation.name == "GetObject" else None
        working = self._worked_on(incoming, self._answered, operation.work, call, body, sooner=sooner)
        if operation.is_long and call.head.version != "1.0":
            later = asyncio.ensure_future(working)
            await asyncio.wait({later}, timeout=self._patience_s)
            return await later if later.done() else Reply(200, (XML,), later=later)
        return await working

    async def _stored(self, operation: Operation, call: Call, incoming: Incoming) -> Reply:
        work = put_part if operation.takes is Takes.PART else put
        if _length(call) <= _SHORT:
            body = b"" if incoming.ended else await incoming.whole(_CODED_SHORT)
            sooner = partial(self._small.put, call, body) if operation.takes is Takes.OBJECT else None
            return await self._worked_on(incoming, self._answered, work, call, (body,), True, sooner=sooner)
        async with _place(self._transfers, incoming):
            incoming.straighten()
            return await self._run(self._answered, work, call, incoming.pieces(), False)

    def _answered(self, work: Callable[..., Reply], call: Call, *arguments: Any) -> Reply:
        """The reply to a call, with its content if that is short."""
        return with_short_content(cors.answered(work, call, self._buckets, *arguments))

    async def _got(self, call: Call) -> Reply | None:
        """The reply to GetObject, with its content if that is short; None: a thread needs to find it."""
        reply = await self._small.get(call)
        if reply is None or reply.content is None or reply.content.data is not None:
            return None if reply is None else with_short_content(reply)
        return await self._run(with_short_content, reply) if reply.content.length <= _SHORT else reply

    async def _worked_on(
        self,
        incoming: Incoming,
        work: Callable[..., _Result],
        *arguments: Any,
        sooner: Callable[[], Awaitable[_Result | None]] | None = None,
    ) -> _Result:
        """What work returns that is done in the event loop, if ``sooner`` does so, or else in a thread."""
        async with _place(self._works, incoming):
            done = None if sooner is None else await sooner()
            return await self._run(work, *arguments) if done is None else done

    async def _run(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    # -- the way of replies -------------------------------------------------------------------------

    async def _send(
        self,
        reply: Reply,
        head: Head,
        incoming: Incoming,
        request_id: str,
        receive: Receive,
        send: Send,
        served: Served,
    ) -> None:
        closes = not incoming.ended and not await _drained(head, incoming)
        if reply.content is not None:
            async with contextlib.AsyncExitStack() as held:
                reply = await _or_failure(self._admitted(reply, incoming, held), head, request_id, served)
                if reply.content is not None:
                    await send(_start_of(reply, request_id, closes=closes))
                    await self._send_content(reply.content, incoming.divert, receive, send, served)
        if reply.content is not None:
            await send({"type": "http.response.body", "body": b""})
            return
        await send(_start_of(reply, request_id, closes=closes))
        if reply.later is not None:
            await self._send_later(reply.later, head, request_id, send, served)
            return
        body = b"" if head.method == "HEAD" else reply.body
        served.sent += len(body)
        await send({"type": "http.response.body", "body": body})

    async def _admitted(self, reply: Reply, incoming: Incoming, held: contextlib.AsyncExitStack) -> Reply:
        """A reply whose content has a place, until ``held`` is closed."""
        await held.enter_async_context(_place(self._transfers, incoming))
        return reply

    async def _send_later(
        self, later: asyncio.Future[Reply], head: Head, request_id: str, send: Send, served: Served
    ) -> None:
        """Send spaces until the outcome is known, and then what it is; if it is an error, callers look for it there."""
        await send({"type": "http.response.body", "body": DECLARATION, "more_body": True})
        while not later.done():
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            await asyncio.wait({later}, timeout=self._patience_s)
        reply = await _or_failure(later, head, request_id, served)
        served.sent = len(reply.body)
        await send({"type": "http.response.body", "body": reply.body.removeprefix(DECLARATION)})

    async def _send_content(
        self, content: Content, divert: Divert, receive: Receive, send: Send, served: Served
    ) -> None:
        """If it fails, so does the application, and the server closes the connection before all was sent."""
        connection = divert.straight()
        outgoing = (
            Outgoing(send, receive, self._piece_s)
            if connection is None
            else Straight(connection, receive, self._piece_s, clock_s=self._clock_s)
        )
        writing = asyncio.ensure_future(self._run(write, content, outgoing))
        try:
            await outgoing.run()
            with contextlib.suppress(PeerGone):
                await writing
        finally:
            served.sent = outgoing.sent
        if connection is not None:
            divert.wrote(outgoing.sent)
        if outgoing.sent < content.length:
            served.code = _GONE
            if connection is not None:
                divert.abort()
                await disconnected(receive)


@contextlib.asynccontextmanager
async def _place(places: Turns, incoming: Incoming) -> AsyncIterator[None]:
    """Wait for a place, and hold it.

    Raises:
        S3Error: none became free for a while.
    """
    async with contextlib.AsyncExitStack() as held:
        try:
            await held.enter_async_context(places.one(incoming.whose))
        except ServerBusy as error:
            raise S3Error("SlowDown", str(error)) from None
        yield


async def _or_failure(replying: Awaitable[Reply], head: Head, request_id: str, served: Served) -> Reply:
    """A reply, or what says why there is none."""
    try:
        return await replying
    except S3Error as error:
        problem = error
    except StorageError as error:
        problem = as_s3_error(error)
        if problem.status >= 500:
            _log.warning("request %s failed: %s", request_id, error)
    except PeerGone:
        raise
    except Exception:
        _log.exception("request %s failed", request_id)
        problem = S3Error("InternalError", "the gateway failed unexpectedly; its log has the details")
    served.code = problem.code
    return failure(problem, head, request_id)


def _start_of(reply: Reply, request_id: str, *, closes: bool) -> dict[str, Any]:
    """The head of a reply, for ASGI; ``closes``: no request can follow on its connection."""
    headers = [*reply.headers, ("x-amz-request-id", request_id), ("x-amz-id-2", request_id)]
    if closes:
        headers.append(("connection", "close"))
    has_length = (
        reply.content is not None or reply.later is not None or any(name == "content-length" for name, _ in headers)
    )
    if not has_length and reply.status not in (204, 304):
        headers.append(("content-length", str(len(reply.body))))
    encoded = [(name.encode(), _encoded(value)) for name, value in headers]
    return {"type": "http.response.start", "status": reply.status, "headers": encoded}


def _verified(announced: Expected, raw: bytes) -> bytes:
    body = Body(announced)
    content = b"".join(body.feed(raw))
    body.finish()
    return content


def _length(call: Call) -> int:
    """How long a body is; of one whose length is not known, more than is short."""
    size = call.expected.size
    if size is None:
        return _SHORT + 1
    return size if call.expected.coding is None else max(size, int(call.fields.get("content-length") or _SHORT + 1))


async def _drained(head: Head, incoming: Incoming) -> bool:
    """Take what is left of a short body, as the caller may only read the reply when it has sent everything."""
    incoming.abandon()
    if "expect" in head.fields:
        return False
    try:
        async with asyncio.timeout(_LEFT_OVER_S):
            await incoming.skip(_LEFT_OVER)
    except (TimeoutError, S3Error, PeerGone):
        return False
    return True


def _head_of(scope: Mapping[str, Any]) -> Head:
    headers = tuple((name.decode("latin-1").lower(), _decoded(value)) for name, value in scope["headers"])
    path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    return Head(scope["method"], path, query, headers, scope["http_version"])


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _encoded(value: str) -> bytes:
    return value.encode("utf-8", "replace")
