"""What takes long, or never comes: how long the page waits for it, and whom that holds up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import httpx
import pytest

from taskworker.auth.rights import Principal
from taskworker.client import Client, RemoteFile
from taskworker.errors import ServerBusy
from taskworker.gateways import http_protocol
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.page import guard, transfers
from taskworker.gateways.page.acting import Acting
from taskworker.gateways.page.app import PageApp
from taskworker.gateways.page.sessions import IDLE_S, LASTING_S, Sessions
from taskworker.gateways.turns import Turns
from tests.functions.processes import FunctionPool
from tests.gateways.page.conftest import Clock, Person

WITHIN_S = 20.0


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    where = httpx.URL(url)
    with socket.create_connection((where.host, where.port or 80), WITHIN_S) as connection:
        yield connection


def head(url: str, line: str, **headers: str) -> bytes:
    lines = [f"{line} HTTP/1.1", f"Host: {httpx.URL(url).netloc.decode()}", f"Origin: {url}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the connection ends, or nothing more comes for a while."""
    told = b""
    while piece := connection.recv(65536):
        told += piece
        if b"</html>" in told:
            break
    return told


class Nobody:
    """Acts for nobody."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_session_does_not_end_while_a_file_is_on_its_way() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    acting = Nobody()
    text, session = sessions.begin(cast(Acting, acting), cast(Principal, Anybody()))
    with sessions.used(session):
        clock.now_s += 2 * IDLE_S
        assert sessions.is_on(session)
        assert sessions.find(text, is_use=False) is session
    clock.now_s += 0.9 * IDLE_S
    assert sessions.find(text, is_use=False) is session, "its end was a use"
    with sessions.used(session):
        clock.now_s += LASTING_S
        assert sessions.find(text) is None
    assert acting.closed


class Anybody:
    user = "anybody"


def test_a_form_that_does_not_come_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_FORM_S", 0.2)
    kind = "application/x-www-form-urlencoded"
    with connected(url) as connection:
        connection.sendall(head(url, "POST /sign-in", Content_Type=kind, Content_Length="10"))
        told = answer_of(connection)
    assert told.startswith(b"HTTP/1.1 400")
    assert b"send it again" in told


def test_a_body_that_nobody_waits_for_holds_no_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_S", 0.5)
    with connected(url) as connection:
        connection.sendall(head(url, "PUT /nothing", Content_Length="1000000000000"))
        assert connection.recv(65536).startswith(b"HTTP/1.1")
        connection.sendall(b"x")
        while connection.recv(65536):
            pass


def test_what_follows_a_refusal_of_a_body_that_was_not_sent_is_no_body(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(head(url, "PUT /nothing", Content_Length="10", Expect="100-continue"))
        answer = answer_of(connection)  # to the end: the connection is closed
        assert not answer.startswith(b"HTTP/1.1 100 ")
        assert b"connection: close\r\n" in answer


def test_an_upload_byte_by_byte_is_too_slow(url: str, ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_PIECE_S", 0.6)
    [(name, value)] = ann.browser.cookies.items()
    csrf = ann.csrf
    with connected(url) as connection:
        connection.sendall(
            head(
                url,
                "PUT /files/upload?name=slow.bin",
                Cookie=f"{name}={value}",
                X_CSRF=csrf,
                Content_Length="1000",
            )
        )
        told: list[bytes] = []
        reading = threading.Thread(target=lambda: told.append(connection.recv(65536)))
        reading.start()
        give_up_s = time.monotonic() + WITHIN_S
        with contextlib.suppress(ConnectionError):
            while reading.is_alive() and time.monotonic() < give_up_s:
                connection.sendall(b"x")
                time.sleep(0.1)
        reading.join(WITHIN_S)
    assert b"KiB of the file came" in told[0] or b"HTTP/1.1 504" in told[0]


def test_one_user_has_so_many_transfers_in_all_sessions(
    ann: Person, pool: FunctionPool, person: Callable[..., Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "TRANSFERS_EACH_MAX", 1)
    again = Person(str(ann.browser.base_url), ann.name, ann.token).sign_in()
    with Client(pool.address, token=ann.token) as files:
        stored = files.push(bytes(30_000_000), user_id=ann.name, filename="large")
    with ann.browser.stream("GET", "/file/content", params={"id": stored.file_id}) as under_way:
        assert under_way.status_code == 200
        assert again.browser.get("/file/content", params={"id": stored.file_id}).status_code == 503
        other = person().sign_in()
        assert other.upload("mine", b"x").status_code == 200
    again.browser.close()


def test_the_head_of_a_file_reads_none_of_it(ann: Person, pool: FunctionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(pool.address, token=ann.token) as files:
        stored = files.push(b"content", user_id=ann.name, filename="a")
    reads: list[int] = []

    def read(_: RemoteFile, size: int = -1) -> bytes:
        reads.append(size)
        return b""

    monkeypatch.setattr(RemoteFile, "read", read)
    answer = ann.browser.head("/file/content", params={"id": stored.file_id})
    assert (answer.status_code, answer.headers["content-length"]) == (200, "7")
    assert not reads


def test_the_cookie_is_secure_if_a_proxy_serves_the_page_by_tls(url: str, person: Callable[..., Person]) -> None:
    one = person()
    origin = url.replace("http:", "https:")
    answer = one.browser.post("/sign-in", data={"token": one.token}, headers={"origin": origin})
    assert answer.status_code == 303
    assert "Secure" in answer.headers["set-cookie"].split("; ")


# -- strangers ------------------------------------------------------------------------------------------


def test_strangers_do_not_keep_others_from_signing_in(
    url: str, person: Callable[..., Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, gone = person(), threading.Event()
    looking = threading.Semaphore(0)
    genuine = Acting.principal

    def principal(acting: Acting) -> Principal:
        if acting._token != ann.token:
            looking.release()
            gone.wait(60)
        return genuine(acting)

    monkeypatch.setattr(Acting, "principal", principal)
    with contextlib.ExitStack() as ending:
        threads = ending.enter_context(ThreadPoolExecutor(40))
        ending.callback(gone.set)

        def try_from(host: str) -> int:
            with httpx.Client(transport=httpx.HTTPTransport(local_address=host), timeout=60) as browser:
                token = {"token": "twu1." + "A" * 43}
                return browser.post(f"{url}/sign-in", data=token, headers={"origin": url}).status_code

        tried = [threads.submit(try_from, host) for host in ("127.0.0.2", "127.0.0.3") for _ in range(20)]
        for _ in range(9):  # more than were looked up at once
            assert looking.acquire(timeout=WITHIN_S)
        ann.sign_in()
        gone.set()
        assert {one.result(WITHIN_S) for one in tried} == {401}, "they get their turns"


def test_turns_that_nobody_gets_end() -> None:
    async def try_all() -> list[str]:
        turns, told = Turns(2, "people", within_s=0.1), []
        async with turns.one("a"):
            with pytest.raises(ServerBusy, match="too many people at this moment"):
                async with turns.one("a"):
                    told.append("a again")
            async with turns.one("b"):
                told.append("b")
                waiting = asyncio.ensure_future(turns.one("b").__aenter__())
                left = asyncio.ensure_future(turns.one("c").__aenter__())
                await asyncio.sleep(0)
                left.cancel()
            await waiting
        async with turns.one("c"):
            told.append("c")
        return told

    assert asyncio.run(try_all()) == ["b", "c"]


def test_one_host_cannot_have_all_connections(pool: FunctionPool) -> None:
    server = HttpServer(PageApp(pool.address), "127.0.0.1:0", connections=16)
    thread = threading.Thread(target=server.run)
    thread.start()
    host, _, port = server.address.rpartition(":")
    try:
        with contextlib.ExitStack() as ending:
            flood = [
                ending.enter_context(socket.create_connection((host, int(port)), WITHIN_S, ("127.0.0.2", 0)))
                for _ in range(16)
            ]
            assert flood[-1].recv(65536).startswith(b"HTTP/1.1 503 ")
            with contextlib.suppress(ConnectionResetError):
                assert flood[-1].recv(65536) == b""
            for _ in range(3):
                assert httpx.get(f"http://{server.address}/sign-in").status_code == 200
        again = httpx.HTTPTransport(local_address="127.0.0.2", retries=0)
        give_up_s = time.monotonic() + WITHIN_S
        with httpx.Client(transport=again) as browser:
            while browser.get(f"http://{server.address}/sign-in").status_code != 200:
                assert time.monotonic() < give_up_s, "what they had was not given back"
    finally:
        server.stop()
        thread.join(30)
