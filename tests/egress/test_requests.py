"""What goes out and what comes back: headers, redirects, secrets, caching, tries, turns, the log."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from storage.errors import InvalidArgument, PermissionDenied, StoreClosed
from taskworker.calls.capabilities import ApiRequest
from taskworker.errors import ApiBusy, ApiUnreachable, CallAbandoned
from taskworker.outbound.dns.names import parse_name, shown
from taskworker.outbound.egress.audit import AuditLog
from taskworker.outbound.egress.concurrency import RequestLimiter
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.outbound.egress.rules import RuleBook, parse_rule
from tests.egress.conftest import ANN, Documents, Egress, Make
from tests.egress.servers import Http2Server, Received, Server, Writer, answer, contexts, plain

KEY = 's3cr:t/"value"&'


@pytest.fixture
def server(egress: Egress) -> Iterator[Server]:
    with Server(plain) as started:
        egress.allow(f"127.0.0.1:{started.port}")
        yield started


def url_of(server: Server, rest: str = "/") -> str:
    return f"http://127.0.0.1:{server.port}{rest}"


# -- requests ---------------------------------------------------------------------------------------


def test_a_request_comes_as_it_was_made(egress: Egress, server: Server) -> None:
    response = egress.request(
        url_of(server, "/a%20b?x=1&y=ü#not-sent"), "POST", headers=(("X-One", "1"), ("x-two", "é")), body=b"\x00data"
    )
    assert response.status == 200
    assert response.body == b"POST /a%20b?x=1&y=%C3%BC"
    assert dict(response.headers)["content-type"] == "text/plain"
    (received,) = server.received
    assert received.body == b"\x00data"
    assert received.headers["x-one"] == "1"
    assert received.headers["x-two"] == "é"
    assert received.headers["host"] == f"127.0.0.1:{server.port}"
    assert received.headers["accept-encoding"] == "gzip, deflate"
    assert received.headers["user-agent"] == "taskworker"


def test_connections_are_used_again(egress: Egress, server: Server) -> None:
    for _ in range(5):
        egress.request(url_of(server))
    assert server.connections == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "b\r\nX-Injected: c"),
        ("X-A", "b\nX-Injected: c"),
        ("X-A", "b\rc"),
        ("X-A", "b\x00"),
        ("X-A", "深"),
        ("X-A\r\nX-Injected", "c"),
        ("X A", "b"),
        ("", "b"),
        (":authority", "elsewhere.example"),
        ("X-A:", "b"),
        ("Host", "elsewhere.example"),
        ("Connection", "close"),
        ("transfer-encoding", "chunked"),
        ("Content-Length", "5"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "x"),
        ("TE", "trailers"),
        ("Proxy-Authorization", "Basic eA=="),
        ("Expect", "100-continue"),
        ("X-{{secret:A}}", "b"),
        ("X-A", "b" * 40_000),
    ],
)
def test_headers_that_would_break_a_request_are_refused(egress: Egress, server: Server, name: str, value: str) -> None:
    with pytest.raises(InvalidArgument):
        egress.request(url_of(server), headers=((name, value),))
    assert server.received == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "", "GET / HTTP/1.1\r\nX: ", "深"])
def test_only_known_methods_are_sent(egress: Egress, server: Server, method: str) -> None:
    with pytest.raises(InvalidArgument, match="method"):
        egress.request(url_of(server), method)


def test_requests_are_bounded(egress: Egress, server: Server) -> None:
    assert egress.request(url_of(server), "POST", body=bytes(1 << 20)).status == 200
    with pytest.raises(InvalidArgument, match="at most 1,048,576"):
        egress.request(url_of(server), "POST", body=bytes((1 << 20) + 1))
    with pytest.raises(InvalidArgument, match="URL"):
        egress.request(url_of(server, "/" + "x" * 9000))
    with pytest.raises(InvalidArgument, match="65 headers"):
        egress.request(url_of(server), headers=tuple((f"X-{n}", "y") for n in range(65)))
    for timeout_s in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidArgument, match="timeout"):
            egress.request(url_of(server), timeout_s=timeout_s)


# -- rules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        ("api.example.com", ["https://api.example.com/x", "http://api.example.com", "https://API.example.com:443/"],
         ["https://api.example.com:8443/", "https://x.api.example.com/", "https://example.com/", "http://api.example.com:443/"]),
        ("https://api.example.com", ["https://api.example.com/"], ["http://api.example.com/"]),
        ("api.example.com:8443", ["https://api.example.com:8443/", "http://api.example.com:8443"], ["https://api.example.com/"]),
        ("*.example.com", ["https://a.example.com/", "https://a.b.example.com/"],
         ["https://example.com/", "https://aexample.com/", "https://a.example.com.evil.example/"]),
        ("api.example.com/v1", ["https://api.example.com/v1", "https://api.example.com/v1/x", "https://api.example.com/v1?x=/../"],
         ["https://api.example.com/v10", "https://api.example.com/", "https://api.example.com/v1/../admin",
          "https://api.example.com/v1/%2e%2e/admin", "https://api.example.com/v1/..%2fadmin", "https://api.example.com/v1/%252e%252e/a",
          "https://api.example.com/v1//x", "https://api.example.com/v1/..;/admin", "https://api.example.com/V1/x"]),
        ("straße.example", ["https://straße.example/", "https://STRAßE.example/", "https://xn--strae-oqa.example/"],
         ["https://strasse.example/"]),
        ("bücher.example", ["https://xn--bcher-kva.example/", "https://Bücher.example/"], ["https://bucher.example/"]),
        ("[::1]:8080", ["http://[0:0::1]:8080/"], ["http://[::2]:8080/"]),
    ],
)  # fmt: skip
def test_rules_mean_what_they_say(rule: str, allowed: list[str], refused: list[str]) -> None:
    from taskworker.outbound.egress.urls import parse_url

    parsed = parse_rule(rule)
    assert [url for url in allowed if not parsed.allows(parse_url(url))] == []
    assert [url for url in refused if parsed.allows(parse_url(url))] == []
    assert parse_rule(parsed.text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.com", "*.*.example.com", "a.*.com", "*.127.0.0.1", "ftp://a.example", "a.example:0", "a.example:x",
     "u@a.example", "a.example/v1?x", "a.example/v1#x", "a.example/../x", "a.example/%2e%2e", "0x7f.1", "2130706433",
     "a example", "a.example.", "[::1"],
)  # fmt: skip
def test_rules_that_could_be_misread_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a rule"):
        parse_rule(text)


def test_rules_are_kept_and_taken_back() -> None:
    documents = Documents()
    book = RuleBook(documents)
    assert book.allow("f", parse_rule("a.example"))
    assert not book.allow("f", parse_rule("a.example"))
    assert book.allow("f", parse_rule("a.example", private=True))
    assert book.allow("g", parse_rule("*.b.example:8443/v1"))
    found = [("f", "a.example", True), ("g", "*.b.example:8443/v1", False)]
    assert [(function, rule.text, rule.private) for function, rule in RuleBook(documents).all()] == found
    assert book.deny("f", parse_rule("c.example")) == []
    assert [rule.text for rule in book.deny("f", parse_rule("a.example"))] == ["a.example"]
    assert [rule.text for rule in book.deny("g")] == ["*.b.example:8443/v1"]
    assert RuleBook(documents).all() == []
    with pytest.raises(InvalidArgument, match="function's name"):
        book.allow("no good", parse_rule("a.example"))


def test_functions_may_resolve_the_hosts_that_rules_stand_for() -> None:
    book = RuleBook(Documents())
    for rule in ("straße.example", "*.bücher.example", "*.example.com", "[::1]:8080"):
        book.allow("f", parse_rule(rule))

    def may(name: str) -> bool:
        return book.allows_host("f", shown(parse_name(name)).lower())

    for name in ("straße.example", "Straße.example.", "a.BÜCHER.example", "_x.a.example.com", "A.example.com"):
        assert may(name), name
    refused = ("strasse.example", "bücher.example", "example.com", "aexample.com", "a.bucher.example")
    escaped = (r"evil\.example.com", r"a\.b.example.com", r"a\046example.com", r"a.example\.com", r"\000.example.com")
    for name in (*refused, *escaped):
        assert not may(name), name


def test_nothing_is_allowed_until_it_is(egress: Egress, server: Server) -> None:
    with pytest.raises(PermissionDenied, match=rf"taskworker egress allow g 127.0.0.1:{server.port}"):
        egress.request(url_of(server), function="g")
    assert server.connections == 0


# -- redirects ---------------------------------------------------------------------------------------


class Redirecting:
    """Redirects to where it is told; tells what came otherwise."""

    def __init__(self) -> None:
        self.location = ""
        self.status = "302 Found"

    async def __call__(self, request: Received, writer: Writer) -> None:
        if request.target.startswith("/go"):
            answer(writer, status=self.status, headers=f"Location: {self.location}\r\n")
        else:
            await plain(request, writer)


CREDENTIALS = (
    ("Authorization", "Bearer x"),
    ("Cookie", "a=b"),
    ("X-Api-Key", "k"),
    ("X-Functions-Key", "k"),
    ("X-Plain", "p"),
)


def test_credentials_stay_with_their_host(egress: Egress) -> None:
    behave = Redirecting()
    with Server(behave) as first, Server(plain) as second:
        egress.allow(f"127.0.0.1:{first.port}")
        egress.allow(f"127.0.0.1:{second.port}")
        behave.location = "/there"
        assert egress.request(url_of(first, "/go"), headers=CREDENTIALS).url == url_of(first, "/there")
        assert first.received[-1].headers["authorization"] == "Bearer x"
        behave.location = url_of(second)
        assert egress.request(url_of(first, "/go"), headers=CREDENTIALS).url == url_of(second)
        headers = second.received[-1].headers
        assert headers["x-plain"] == "p"
        assert not {"authorization", "cookie", "x-api-key", "x-functions-key"} & set(headers)


def test_cookies_are_not_kept(egress: Egress) -> None:
    async def behave(_request: Received, writer: Writer) -> None:
        answer(writer, headers="Set-Cookie: a=b\r\n")

    with Server(behave) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        for _ in range(2):
            assert dict(egress.request(url_of(server)).headers)["set-cookie"] == "a=b"
        assert "cookie" not in server.received[-1].headers


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        ("301 Moved", "POST", "GET"),
        ("302 Found", "POST", "GET"),
        ("303 See Other", "PUT", "GET"),
        ("303 See Other", "HEAD", "HEAD"),
        ("302 Found", "PUT", "PUT"),
        ("307 Temporary", "POST", "POST"),
        ("308 Permanent", "POST", "POST"),
    ],
)
def test_redirects_keep_or_change_the_method(egress: Egress, status: str, method: str, then: str) -> None:
    behave = Redirecting()
    behave.status, behave.location = status, "there"
    with Server(behave) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        egress.request(url_of(server, "/go"), method, body=b"" if method == "HEAD" else b"data")
        last = server.received[-1]
        assert (last.method, last.body) == (then, b"data" if then == method and method != "HEAD" else b"")


# -- secrets -----------------------------------------------------------------------------------------


def fill(function: str, host: str, text: str) -> str:
    if (function, host) != ("f", "127.0.0.1"):
        raise PermissionDenied(f"{text} is not for {host}")
    return (
        text.replace("{{secret:key}}", KEY)
        .replace("{{secret:word}}", "S3cr")
        .replace("{{secret:bad}}", "a\r\nX-Injected: b")
    )


def test_secrets_are_filled_in_where_they_may_be(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    egress = make(fill=fill)

    async def echo(request: Received, writer: Writer) -> None:
        answer(writer, headers=f"X-Echo: {request.headers['authorization']}\r\n")

    with Server(echo) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        header = (("Authorization", "Bearer {{secret:key}}"),)
        url = url_of(server, "/?a={{secret:key}}&b=%7B%7Bsecret%3Akey%7D%7D")
        response = egress.request(url, headers=header)
        assert server.received[-1].target == "/?a=s3cr%3At%2F%22value%22%26&b=s3cr%3At%2F%22value%22%26"
        assert server.received[-1].headers["authorization"] == f"Bearer {KEY}"
        assert response.url == url
        assert dict(response.headers)["x-echo"] == "Bearer {{secret:key}}"
        bodies = {
            "application/json": b'{"k": "s3cr:t/\\"value\\"&"}',
            "application/x-www-form-urlencoded": b'{"k": "s3cr%3At%2F%22value%22%26"}',
            "text/plain": b'{"k": "s3cr:t/"value"&"}',
        }
        for kind, body in bodies.items():
            egress.request(
                url_of(server), "POST", headers=(*header, ("Content-Type", kind)), body=b'{"k": "{{secret:key}}"}'
            )
            assert server.received[-1].body == body
        with pytest.raises(InvalidArgument, match="path"):
            egress.request(url_of(server, "/{{secret:key}}"), headers=header)
        with pytest.raises(InvalidArgument, match="line break") as raised:
            egress.request(url_of(server), headers=(("X", "{{secret:bad}}"),))
        assert "Injected" not in str(raised.value)
        egress.allow(f"127.0.0.1:{server.port}", function="g")
        with pytest.raises(PermissionDenied, match="not for"):
            egress.request(url, headers=header, function="g")
        assert not any("X-Injected" in one.headers for one in server.received)
    for text in (caplog.text, str([*egress.audit.read()])):
        assert "s3cr" not in text
        assert "/?a=" not in text


def test_secrets_do_not_cross_to_another_host(make: Make) -> None:
    egress = make(fill=fill)
    behave = Redirecting()
    with Server(behave) as first, Server(plain) as second:
        egress.allow(f"127.0.0.1:{first.port}")
        egress.allow(f"127.0.0.1:{second.port}")
        behave.location = f"{url_of(second)}?x={{{{secret:key}}}}"
        response = egress.request(url_of(first, "/go?k={{secret:key}}"), headers=(("X-Mine", "{{secret:key}}"),))
        assert response.body == b"GET /?x={{secret:key}}"  # what a server writes is never filled in
        assert "x-mine" not in second.received[-1].headers
        behave.status, behave.location = "307 Temporary", url_of(second)
        with pytest.raises(PermissionDenied, match="must not get the secret"):
            egress.request(url_of(first, "/go"), "POST", body=b"{{secret:key}}")
        asked = len(second.received)
        for written in ("s3cr%3At%2F%22value%22%26", "s3cr%3at/%22value%22%26", "a%20s3cr:t/%22v%61lue%22%26"):
            behave.location = f"{url_of(second)}?k={written}"  # as a server repeats the query that it was asked with
            with pytest.raises(PermissionDenied, match="must not get the secret in the URL"):
                egress.request(url_of(first, "/go?k={{secret:key}}"))
        behave.location = "http://s3cr.other.example/"
        with pytest.raises(PermissionDenied, match="must not get the secret in the URL") as raised:
            egress.request(url_of(first, "/go"), headers=(("X-Mine", "{{secret:word}}"),))
        assert "s3cr" not in str(raised.value)  # the function may have it filled in, and not see it
        assert len(second.received) == asked
        behave.location = "/there?k=s3cr%3At%2F%22value%22%26"
        response = egress.request(url_of(first, "/go"), headers=(("X-Mine", "{{secret:key}}"),))
        assert first.received[-1].headers["x-mine"] == KEY
        assert response.url == url_of(first, "/there?k={{secret:key}}")


def test_without_secrets_their_places_are_refused(egress: Egress, server: Server) -> None:
    with pytest.raises(PermissionDenied, match="no secrets"):
        egress.request(url_of(server), headers=(("X", "{{secret:key}}"),))
    assert server.received == []


# -- caching, tries, turns -----------------------------------------------------------------------------


class Counting:
    def __init__(self, headers: str) -> None:
        self.headers = headers
        self.asked = 0

    async def __call__(self, request: Received, writer: Writer) -> None:
        self.asked += 1
        if "if-none-match" in request.headers:
            answer(writer, status="304 Not Modified", headers=self.headers)
        else:
            answer(writer, str(self.asked).encode(), headers=self.headers)


def test_answers_are_kept_by_http_s_rules_each_user_s_apart(egress: Egress) -> None:
    behave = Counting("Cache-Control: private, max-age=600\r\n")
    with Server(behave) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        egress.allow(f"127.0.0.1:{server.port}", function="g")
        first = egress.request(url_of(server), cache=True)
        again = egress.request(url_of(server), cache=True)
        assert (first.body, first.from_cache) == (b"1", False)
        assert (again.body, again.from_cache) == (b"1", True)
        assert egress.request(url_of(server)).body == b"2"  # not asked for
        assert egress.request(url_of(server), cache=True, user="bob").body == b"3"
        assert egress.request(url_of(server), cache=True, function="g").body == b"4"
        assert egress.request(url_of(server, "/?other"), cache=True).body == b"5"
    assert [one.outcome for one in egress.audit.read() if one].count("cache") == 1


def test_answers_are_kept_for_a_day_at_most(make: Make) -> None:
    now = [0.0]
    egress = make(clock_s=lambda: now[0])
    with Server(Counting("Cache-Control: max-age=10000000\r\n")) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        for now[0], body in ((0.0, b"1"), (86_399.0, b"1"), (86_401.0, b"2")):
            assert egress.request(url_of(server), cache=True).body == body


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "X-Api-Key", "X-Anything"])
def test_answers_to_other_credentials_are_kept_apart(make: Make, name: str) -> None:
    """A function may speak for several people by their tokens; and many hosts send no Vary."""
    values = ("{{secret:a}}", "{{secret:b}}") if name == "X-Anything" else ("a", "b")
    egress = make(fill=lambda _function, _host, text: f"value of {text[9:-2]}")
    with Server(Counting("Cache-Control: max-age=600\r\n")) as server:
        egress.allow(f"127.0.0.1:{server.port}")

        def asked(value: str, method: str = "GET") -> bytes:
            return egress.request(url_of(server), method, headers=((name, value),), cache=True).body

        assert [asked(value) for value in (*values, *values)] == [b"1", b"2", b"1", b"2"]
        asked(values[0], "PUT")  # of the URL, whoever changes it
        assert [asked(value) for value in values] == [b"4", b"5"]


@pytest.mark.parametrize(
    ("headers", "bodies"),
    [
        ("Cache-Control: no-store\r\n", [b"1", b"2"]),
        ("", [b"1", b"2"]),
        ("Cache-Control: no-cache\r\nETag: x\r\n", [b"1", b"1"]),
        ("Cache-Control: max-age=600\r\nVary: *\r\n", [b"1", b"2"]),
    ],
)
def test_what_http_does_not_let_keep_is_not_kept(egress: Egress, headers: str, bodies: list[bytes]) -> None:
    behave = Counting(headers)
    with Server(behave) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        assert [egress.request(url_of(server), cache=True).body for _ in range(2)] == bodies
        assert behave.asked == 2


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("cache", [False, True])
def test_what_was_kept_ends_with_a_request_that_changes_it(egress: Egress, method: str, cache: bool) -> None:
    behave = Counting("Cache-Control: max-age=600\r\nLocation: /made\r\n")
    with Server(behave) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        places = ("/own?x=1", "/own?x=2", "/made", "/own?x=1")

        def told(user: str = ANN) -> list[bytes]:
            return [egress.request(url_of(server, place), cache=True, user=user).body for place in places]

        assert told() == [b"1", b"2", b"3", b"1"]
        assert told("bob") == [b"4", b"5", b"6", b"4"]
        assert egress.request(url_of(server, "/own?x=1#part"), method, cache=cache, follow_redirects=False).body == b"7"
        assert told() == [b"8", b"2", b"9", b"8"]
        assert told("bob") == [b"4", b"5", b"6", b"4"]
        egress.request(url_of(server, "/own?x=1"), "OPTIONS")
        assert told() == [b"8", b"2", b"9", b"8"]


def test_what_was_kept_ends_also_if_the_change_is_not_answered(make: Make) -> None:
    egress = make(EgressLimits(attempts=1))
    state = [b"old"]

    async def behave(request: Received, writer: Writer) -> None:
        if request.method == "PUT":
            state[0] = b"new"
            writer.close()
        else:
            answer(writer, state[0], headers="Cache-Control: max-age=600\r\n")

    with Server(behave) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        assert egress.request(url_of(server), cache=True).body == b"old"
        with pytest.raises(ApiUnreachable):
            egress.request(url_of(server), "PUT")
        assert egress.request(url_of(server), cache=True).body == b"new"


def test_an_answer_of_before_a_change_is_not_kept_when_it_comes_after_it(egress: Egress) -> None:
    asked, changed = threading.Event(), threading.Event()
    state = [b"old"]

    async def behave(request: Received, writer: Writer) -> None:
        now = state[0]
        if request.method == "PUT":
            state[0] = b"new"
        elif now == b"old":
            asked.set()
            await asyncio.to_thread(changed.wait, 60)
        answer(writer, now, headers="Cache-Control: max-age=600\r\n")

    with Server(behave) as server, ThreadPoolExecutor(1) as threads:
        egress.allow(f"127.0.0.1:{server.port}")
        before = threads.submit(egress.request, url_of(server), cache=True)
        assert asked.wait(60)
        egress.request(url_of(server), "PUT")
        changed.set()
        assert before.result(60).body == b"old"
        assert [egress.request(url_of(server), cache=True).body for _ in range(2)] == [b"new", b"new"]
        assert egress.request(url_of(server), cache=True).from_cache


def test_the_cache_is_bounded(make: Make) -> None:
    egress = make(EgressLimits(cache_bytes=64 << 10))

    async def behave(_request: Received, writer: Writer) -> None:
        answer(writer, bytes(8 << 10), headers="Cache-Control: max-age=600\r\n")

    with Server(behave) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        for number in range(20):
            egress.request(url_of(server, f"/{number}"), cache=True)
        assert not egress.request(url_of(server, "/0"), cache=True).from_cache
        assert egress.request(url_of(server, "/19"), cache=True).from_cache


@pytest.mark.parametrize("large", ["path", "asked", "answered", "revalidated"])
def test_the_cache_is_bounded_by_all_that_it_keeps(make: Make, large: str) -> None:
    egress = make(EgressLimits(cache_bytes=64 << 10))
    text = "x" * 6_000
    headers = [("X-Large", text)] if large == "asked" else []

    async def behave(request: Received, writer: Writer) -> None:
        told = "Cache-Control: max-age=600\r\n"
        if large == "revalidated":
            told = 'ETag: "1"\r\nCache-Control: max-age=0\r\n'
        if large == "answered" or request.headers.get("if-none-match"):
            told += f"X-Large: {text}\r\n"
        status = "304 Not Modified" if request.headers.get("if-none-match") else "200 OK"
        answer(writer, status=status, headers=told)

    with Server(behave) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        paths = [f"/{number}{text if large == 'path' else ''}" for number in range(20)]
        for path in paths:
            for _ in range(1 + (large == "revalidated")):
                egress.request(url_of(server, path), headers=headers, cache=True)
        assert not egress.request(url_of(server, paths[0]), headers=headers, cache=True).from_cache
        assert egress.request(url_of(server, paths[-1]), headers=headers, cache=True).from_cache


class Failing:
    """Fails a number of times: by a status, or by hanging up."""

    def __init__(self, times: int, status: str = "") -> None:
        self.left = times
        self.status = status

    async def __call__(self, request: Received, writer: Writer) -> None:
        self.left -= 1
        if self.left < 0:
            await plain(request, writer)
        elif self.status:
            answer(writer, status=self.status)
        else:
            writer.close()


@pytest.mark.parametrize("status", ["", "503 Service Unavailable"])
def test_idempotent_requests_are_tried_again(egress: Egress, status: str) -> None:
    with Server(Failing(2, status)) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        assert egress.request(url_of(server), "PUT", body=b"x").status == 200
        assert [one.body for one in server.received] == [b"x"] * 3
    assert len([*egress.audit.read()]) == 3


def test_other_requests_are_not(egress: Egress) -> None:
    with Server(Failing(1)) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        with pytest.raises(ApiUnreachable):
            egress.request(url_of(server), "POST")
        assert len(server.received) == 1
    with Server(Failing(9, "503 Service Unavailable")) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        assert egress.request(url_of(server)).status == 503  # and that is the answer
        assert len(server.received) == 3


def test_each_function_has_its_rate() -> None:
    now = [0.0]
    limiter = RequestLimiter(EgressLimits(rate=2, burst=3), lambda: now[0])

    def take(function: str = "f") -> None:
        with limiter.permit(function, ANN):
            pass

    for _ in range(3):
        take()
    with pytest.raises(ApiBusy, match="2 times a second"):
        take()
    take("g")
    now[0] += 0.5
    take()
    with pytest.raises(ApiBusy):
        take()
    now[0] += 3600
    for _ in range(3):
        take()
    with pytest.raises(ApiBusy):
        take()


def test_one_user_leaves_something_of_a_function_to_others() -> None:
    """Of how often, of how many at once, and of how many bytes at once."""

    def taken(limiter: RequestLimiter, user: str, count: int, held: ExitStack, size: int = 0) -> int:
        for number in range(count):
            try:
                held.enter_context(limiter.permit("f", user)).hold(size)
            except ApiBusy:
                return number
        return count

    often = RequestLimiter(EgressLimits(rate=80, burst=80), lambda: 0.0)
    with ExitStack() as held:
        assert taken(often, ANN, 100, held) == 70
        assert taken(often, "bob", 100, held) == 10
    many = RequestLimiter(EgressLimits(concurrency=80))
    with ExitStack() as held:
        assert taken(many, ANN, 100, held) == 70
        assert taken(many, "bob", 100, held) >= 8
        assert taken(many, "cat", 1, held) == 1
    large = RequestLimiter(EgressLimits(function_bytes=80 << 20, concurrency=200))
    with ExitStack() as held:
        assert taken(large, ANN, 100, held, 1 << 20) == 70
        assert taken(large, "bob", 1, held, 1 << 20) == 1
    with ExitStack() as held:
        assert taken(large, "bob", 100, held, 1 << 20) == 70  # all was given back


def test_one_user_of_many_functions_leaves_bytes_to_others() -> None:
    limiter = RequestLimiter(EgressLimits(function_bytes=16 << 20, held_bytes=32 << 20))

    def held_by(user: str, functions: int, held: ExitStack) -> int:
        """How many MiB a user's functions hold, each as many as it may."""
        count = 0
        for number in range(functions):
            permit = held.enter_context(limiter.permit(f"{user}{number}", user))
            with suppress(ApiBusy):
                while True:
                    permit.hold(1 << 20)
                    count += 1
        return count

    with ExitStack() as held:
        assert held_by(ANN, 8, held) == 28
        assert held_by("bob", 1, held) >= 3
    with ExitStack() as held:
        assert held_by("bob", 8, held) == 28  # all was given back


# -- the log, the end --------------------------------------------------------------------------------


def test_every_request_is_told_and_none_of_its_values(make: Make, tmp_path: Path) -> None:
    from taskworker.outbound.egress.proxy import EgressProxy

    log = AuditLog(tmp_path / "egress.log")
    made = make()
    proxy = EgressProxy(made.rules, log, resolve=made.names)
    made.proxy.close()
    made.proxy = proxy
    with Server(plain) as server:
        made.allow(f"127.0.0.1:{server.port}")
        made.request(
            url_of(server, "/secret-path?secret-query"), "POST", body=b"12345", headers=(("X", "secret-header"),)
        )
        with pytest.raises(PermissionDenied):
            made.request("http://elsewhere.example/secret-path?secret-query", function="g")
        with pytest.raises(InvalidArgument):
            made.request("http://secret-user:secret-password@elsewhere.example/")
    records = [one for one in log.read() if one]
    told = [(r.function, r.user_id, r.host, r.method, r.status, r.sent, r.received > 0, r.outcome) for r in records]
    assert told == [
        ("f", "ann", f"127.0.0.1:{server.port}", "POST", 200, 5, True, "ok"),
        ("g", "ann", "elsewhere.example:80", "GET", 0, 0, False, "PermissionDenied"),
        ("f", "ann", "", "GET", 0, 0, False, "InvalidArgument"),
    ]
    assert [one.function for one in log.read("g") if one] == ["g"]
    proxy.close()
    written = (tmp_path / "egress.log").read_text()
    assert [json.loads(line)["outcome"] for line in written.splitlines()] == [
        "ok",
        "PermissionDenied",
        "InvalidArgument",
    ]
    assert "secret" not in written


def test_a_closed_proxy_says_so(egress: Egress, server: Server) -> None:
    egress.request(url_of(server))
    egress.proxy.close()
    egress.proxy.close()
    with pytest.raises(StoreClosed):
        egress.request(url_of(server))


def test_closing_ends_what_is_under_way(egress: Egress) -> None:
    async def silence(_request: Received, _writer: Writer) -> None:
        await asyncio.sleep(3600)

    with Server(silence) as server, ThreadPoolExecutor(1) as threads:
        egress.allow(f"127.0.0.1:{server.port}")
        hanging = threads.submit(egress.request, url_of(server))
        while not server.received:
            time.sleep(0.005)
        egress.proxy.close()
        with pytest.raises(StoreClosed):
            hanging.result()


def test_what_nobody_waits_for_any_more_is_ended(egress: Egress) -> None:
    async def silence(_request: Received, _writer: Writer) -> None:
        await asyncio.sleep(3600)

    with Server(silence) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        request = ApiRequest("GET", url_of(server))
        with pytest.raises(CallAbandoned):
            egress.proxy.request("f", "ann", request, is_wanted=lambda: not server.received)
    give_up = time.monotonic() + 60
    while not (written := [one for one in egress.audit.read() if one]):  # it comes to its own end
        assert time.monotonic() < give_up
        time.sleep(0.005)
    assert [one.outcome for one in written] == ["CallAbandoned"]


# -- TLS and HTTP/2 ----------------------------------------------------------------------------------


def test_http_2_is_spoken_over_one_connection(make: Make) -> None:
    serving, trusting = contexts("api.example")
    with Http2Server(serving) as server, ThreadPoolExecutor(16) as threads:
        egress = make(tls=trusting)
        egress.allow(f"api.example:{server.port}")
        egress.names.lead("api.example", ["127.0.0.1"])
        url = f"https://api.example:{server.port}/"
        assert egress.request(url).body == b"h2"
        asked = [threads.submit(egress.request, url) for _ in range(32)]
        assert {one.result().body for one in asked} == {b"h2"}
        assert (server.connections, server.streams) == (1, 33)
        assert set(server.authorities) == {f"api.example:{server.port}"}  # by name, though connected by address


def test_a_certificate_for_another_name_is_refused(make: Make) -> None:
    serving, trusting = contexts("other.example")
    with Server(plain, tls=serving) as server:
        egress = make(EgressLimits(attempts=1), tls=trusting)
        egress.names.lead("api.example", ["127.0.0.1"])
        egress.names.lead("other.example", ["127.0.0.1"])
        for name in ("api.example", "other.example"):
            egress.allow(f"{name}:{server.port}")
        with pytest.raises(ApiUnreachable, match="TLS"):
            egress.request(f"https://api.example:{server.port}/")
        assert egress.request(f"https://other.example:{server.port}/").status == 200
