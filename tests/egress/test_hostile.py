"""Servers that mean harm: each ends within the limits, with a typed error, and costs others nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import multiprocessing
import socket
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import psutil
import pytest
from h2.connection import H2Connection

from storage.errors import StorageError
from taskworker.calls.capabilities import ApiRequest
from taskworker.errors import ApiBusy, ApiLimitExceeded, ApiUnreachable, CallAbandoned, DeadlineExceeded
from taskworker.outbound.egress.addresses import Address, Resolve
from taskworker.outbound.egress.audit import AuditLog
from taskworker.outbound.egress.filling import no_secrets
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.outbound.egress.proxy import EgressProxy
from tests.egress.conftest import ANN, Egress, Make
from tests.egress.servers import Behave2, Http2Server, Received, Server, Writer, answer, contexts, plain

MIB = 1 << 20
BODY_MAX = 6 * MIB
GROWTH_MAX = 96 * MIB

Hostile = Callable[[Writer], Awaitable[None]]


async def slow_head(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-A: b\r\n"[:1])
        await asyncio.sleep(0.02)


async def slow_body(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.02)


async def silence(writer: Writer) -> None:
    await asyncio.sleep(3600)


async def continue_for_ever(writer: Writer) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)


async def endless(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(bytes(65536))
        await writer.drain()


async def endless_chunks(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
        await writer.drain()


async def endless_gzip(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    while True:
        part = squeeze.compress(bytes(8 * MIB))
        if part:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
        await asyncio.sleep(0)


async def endless_empty_members(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(gzip.compress(b"") * 1000)
        await writer.drain()


def whole(body: bytes = b"", *, headers: str = "", status: str = "200 OK", length: int | None = None) -> Hostile:
    async def send(writer: Writer) -> None:
        answer(writer, body, headers=headers, status=status, length=length)
        writer.close()

    return send


def raw(data: bytes) -> Hostile:
    async def send(writer: Writer) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return send


GZIP = "Content-Encoding: gzip\r\n"
DEFLATE = "Content-Encoding: deflate\r\n"
BOMB = gzip.compress(bytes(128 * MIB), 1)
RAW_DEFLATE = zlib.compressobj(9, zlib.DEFLATED, -15)
RAW_BOMB = RAW_DEFLATE.compress(bytes(64 * MIB)) + RAW_DEFLATE.flush()

HOSTILE: dict[str, tuple[Hostile, type[StorageError]]] = {
    "slow head": (slow_head, DeadlineExceeded),
    "slow body": (slow_body, DeadlineExceeded),
    "silence": (silence, DeadlineExceeded),
    "1xx without end": (continue_for_ever, DeadlineExceeded),
    "body without end": (endless, ApiLimitExceeded),
    "chunks without end": (endless_chunks, ApiLimitExceeded),
    "gzip without end": (endless_gzip, ApiLimitExceeded),
    "gzip members without end": (endless_empty_members, ApiUnreachable),
    "gzip bomb": (whole(BOMB, headers=GZIP), ApiLimitExceeded),
    "gzip bomb called x-gzip": (whole(BOMB, headers="Content-Encoding: X-GZIP\r\n"), ApiLimitExceeded),
    "zlib bomb": (whole(zlib.compress(bytes(64 * MIB), 9), headers=DEFLATE), ApiLimitExceeded),
    "deflate bomb": (whole(RAW_BOMB, headers=DEFLATE), ApiLimitExceeded),
    "gzip in gzip": (whole(gzip.compress(BOMB), headers="Content-Encoding: gzip, gzip\r\n"), ApiUnreachable),
    "brotli": (whole(b"x", headers="Content-Encoding: br\r\n"), ApiUnreachable),
    "damaged gzip": (whole(b"not gzip at all", headers=GZIP), ApiUnreachable),
    "gzip cut off": (whole(gzip.compress(b"x" * 1000)[:-4], headers=GZIP), ApiUnreachable),
    "a byte too many": (whole(bytes(BODY_MAX + 1)), ApiLimitExceeded),
    "10,000 headers": (whole(headers="".join(f"X-{n}: y\r\n" for n in range(10_000))), ApiLimitExceeded),
    "1,000 short headers": (whole(headers="A:b\r\n" * 1000), ApiLimitExceeded),
    "a header of 1 MiB": (whole(headers=f"X: {'y' * MIB}\r\n"), ApiUnreachable),
    "a status line of 1 MiB": (raw(b"HTTP/1.1 200 " + b"x" * MIB), ApiUnreachable),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.9\r\n"), ApiUnreachable),
    "HTTP/x": (raw(b"HTTP/x.y 200 OK\r\n\r\n"), ApiUnreachable),
    "nothing": (raw(b""), ApiUnreachable),
    "status 999999": (raw(b"HTTP/1.1 999999 OK\r\n\r\n"), ApiUnreachable),
    "status -1": (raw(b"HTTP/1.1 -1 OK\r\n\r\n"), ApiUnreachable),
    "cut off": (whole(b"abc", length=1000), ApiUnreachable),
    "two lengths": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), ApiUnreachable),
    "no length": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nab"), ApiUnreachable),
    "no chunk": (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), ApiUnreachable),
    "a chunk of 2^64": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n"),
        ApiUnreachable,
    ),
    "other encoding": (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), ApiUnreachable),
    "a NUL in a header": (raw(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n"), ApiUnreachable),
    "a bare CR in a header": (raw(b"HTTP/1.1 200 OK\r\nX: a\rY: b\r\n\r\n"), ApiUnreachable),
    "upgrade": (raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), ApiUnreachable),
}
"""What servers do, and the error that comes of it."""


async def misbehave(request: Received, writer: Writer) -> None:
    await HOSTILE[bytes.fromhex(request.target[1:]).decode()][0](writer)


def target_of(name: str) -> str:
    return name.encode().hex()


@pytest.fixture
def hostile(make: Make) -> Egress:
    return make(EgressLimits(total_s=1.0, attempts=1))


@pytest.mark.parametrize("name", HOSTILE)
def test_it_ends_with_a_typed_error(hostile: Egress, name: str) -> None:
    with Server(misbehave) as server:
        hostile.allow(f"127.0.0.1:{server.port}")
        # A head may be refused as a whole before its headers are counted: that depends on how it is cut.
        kinds = (ApiLimitExceeded, ApiUnreachable) if "headers" in name else HOSTILE[name][1]
        with pytest.raises(kinds) as raised:
            hostile.request(
                f"http://127.0.0.1:{server.port}/{target_of(name)}", timeout_s=0.3 if "slow" in name else None
            )
        assert f"127.0.0.1:{server.port}" in str(raised.value)


def h2_garbage(_state: H2Connection, _stream: int, connection: socket.socket) -> None:
    connection.sendall(b"\xff" * 4096)


def h2_frame_without_end(_state: H2Connection, _stream: int, connection: socket.socket) -> None:
    connection.sendall(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01")  # DATA of 16 MiB
    while True:
        connection.sendall(bytes(65536))


def h2_reset(state: H2Connection, stream: int, _connection: socket.socket) -> None:
    state.reset_stream(stream)


def h2_goodbye(state: H2Connection, _stream: int, _connection: socket.socket) -> None:
    state.close_connection(error_code=1)


def h2_hang_up(_state: H2Connection, _stream: int, connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def h2_silence(_state: H2Connection, _stream: int, _connection: socket.socket) -> None:
    """Says nothing."""


def h2_head_without_end(state: H2Connection, stream: int, connection: socket.socket) -> None:
    connection.sendall(state.data_to_send())
    head = b"\x00\x40\x00\x01\x00" + stream.to_bytes(4, "big") + b"\x00" * 0x4000  # HEADERS, not the last
    more = b"\x00\x40\x00\x09\x00" + stream.to_bytes(4, "big") + b"\x00" * 0x4000  # CONTINUATION
    connection.sendall(head + more * 200)


def h2_many_headers(state: H2Connection, stream: int, _connection: socket.socket) -> None:
    state.send_headers(stream, [(":status", "200"), *((f"x-{n}", "y") for n in range(1000))])


def h2_compressed_head(state: H2Connection, stream: int, _connection: socket.socket) -> None:
    """One large header, referred to by a byte each time."""
    state.send_headers(stream, [(":status", "200"), *[("x", "y" * 3000)] * 1000])


def h2_pings(state: H2Connection, _stream: int, connection: socket.socket) -> None:
    while True:
        for _ in range(100):
            state.ping(b"12345678")
        connection.sendall(state.data_to_send())


def h2_bomb(state: H2Connection, stream: int, connection: socket.socket) -> None:
    state.send_headers(stream, [(":status", "200"), ("content-encoding", "gzip")])
    for start in range(0, min(len(BOMB), 60_000), 16_000):
        state.send_data(stream, BOMB[start : start + 16_000])


HOSTILE_2: dict[str, tuple[Behave2, type[StorageError]]] = {
    "garbage": (h2_garbage, ApiUnreachable),
    "frame without end": (h2_frame_without_end, ApiUnreachable),
    "reset": (h2_reset, ApiUnreachable),
    "goodbye": (h2_goodbye, ApiUnreachable),
    "hang up": (h2_hang_up, ApiUnreachable),
    "silence": (h2_silence, DeadlineExceeded),
    "head without end": (h2_head_without_end, ApiUnreachable),
    "1,000 headers": (h2_many_headers, ApiLimitExceeded),
    "compressed head": (h2_compressed_head, ApiUnreachable),
    "pings": (h2_pings, DeadlineExceeded),
    "gzip bomb": (h2_bomb, ApiLimitExceeded),
}


@pytest.mark.parametrize("name", HOSTILE_2)
def test_it_ends_over_http_2_too(make: Make, name: str) -> None:
    serving, trusting = contexts("api.example")
    egress = make(EgressLimits(total_s=1.0, attempts=1), tls=trusting)
    egress.names.lead("api.example", ["127.0.0.1"])
    with Http2Server(serving, HOSTILE_2[name][0]) as server:
        egress.allow(f"api.example:{server.port}")
        with pytest.raises(HOSTILE_2[name][1]):
            egress.request(f"https://api.example:{server.port}/")


def serve(connection: Connection) -> None:
    with Server(misbehave) as server:
        connection.send(server.port)
        connection.recv()


@contextlib.contextmanager
def hostile_process(serve: Callable[[Connection], None] = serve) -> Iterator[int]:
    """The server in a process of its own, so that its memory is not counted; its port."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs,))
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()
        ours.close()
        theirs.close()


def measure(connection: Connection, port: int) -> None:
    """Ask for all of HOSTILE at once, twice over; send the errors, another's requests served, and growth in bytes."""
    egress = Egress(EgressLimits(total_s=3, attempts=1), no_secrets)
    process = psutil.Process()
    names = [*HOSTILE] * 2
    highest, done = [process.memory_info().rss], threading.Event()
    before = highest[0]

    def watch() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], process.memory_info().rss)

    with Server(plain) as good, ThreadPoolExecutor(len(names)) as threads:
        egress.allow(f"127.0.0.1:{port}")
        egress.allow(f"127.0.0.1:{good.port}", function="g")
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            hostile = [threads.submit(egress.request, f"http://127.0.0.1:{port}/{target_of(n)}") for n in names]
            served = 0
            while not all(one.done() for one in hostile):
                assert egress.request(f"http://127.0.0.1:{good.port}/", function="g").status == 200
                served += 1
                time.sleep(0.01)
            errors = [one.exception() for one in hostile]
        finally:
            done.set()
            watcher.join()
            egress.proxy.close()
    connection.send((errors, served, highest[0] - before))


def test_memory_is_bounded_and_others_are_served_meanwhile() -> None:
    """All of them at once, several times over, by one function; another function's requests go on."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with hostile_process() as port:
        # The proxy has a process of its own, too: memory that other tests free or use in this one is not counted.
        process = spawn.Process(target=measure, args=(theirs, port))
        process.start()
        theirs.close()
        try:
            errors, served, growth = ours.recv()
        finally:
            process.kill()
            process.join()
            ours.close()
    assert all(isinstance(error, StorageError) for error in errors)
    assert served > 1
    assert growth < GROWTH_MAX


def test_one_function_s_hanging_requests_are_not_anothers(make: Make) -> None:
    egress = make(EgressLimits(total_s=20, concurrency=4))
    release = threading.Event()

    async def wait(_request: Received, writer: Writer) -> None:
        await asyncio.to_thread(release.wait, 20)
        answer(writer, b"late")

    with Server(wait) as slow, Server(plain) as quick, ThreadPoolExecutor(4) as threads:
        egress.allow(f"127.0.0.1:{slow.port}")
        egress.allow(f"127.0.0.1:{quick.port}", function="g")
        hanging = [threads.submit(egress.request, f"http://127.0.0.1:{slow.port}/") for _ in range(4)]
        while slow.connections < 4:
            time.sleep(0.005)
        with pytest.raises(ApiBusy, match="under way"):
            egress.request(f"http://127.0.0.1:{slow.port}/")
        assert egress.request(f"http://127.0.0.1:{quick.port}/", function="g").status == 200
        assert not any(one.done() for one in hanging)
        release.set()
        assert {one.result().body for one in hanging} == {b"late"}


@contextlib.contextmanager
def resolving(resolve: Resolve, limits: EgressLimits) -> Iterator[Egress]:
    """A proxy with a resolver of the test's own."""
    egress = Egress(limits, no_secrets)
    egress.proxy.close()
    egress.proxy = EgressProxy(egress.rules, AuditLog(None), limits=limits, resolve=resolve)
    try:
        yield egress
    finally:
        egress.proxy.close()


def test_names_that_do_not_resolve_in_time_end_too() -> None:
    release = threading.Event()

    def resolve(name: str) -> list[Address]:
        release.wait(20)
        return []

    with resolving(resolve, EgressLimits(connect_s=0.2, attempts=1)) as egress:
        egress.allow("slow.example")
        with pytest.raises(ApiUnreachable, match=r"not resolved within 0.2 s"):
            egress.request("http://slow.example/")
        release.set()


def test_one_function_s_slow_names_leave_threads_to_others() -> None:
    """Threads that resolve cannot be ended: a function whose names time out has no further ones until they are free."""
    release, asked = threading.Event(), threading.Semaphore(0)

    def resolve(_name: str) -> list[Address]:
        asked.release()
        release.wait(60)
        return []

    with resolving(resolve, EgressLimits(connect_s=0.5, attempts=1)) as egress, ThreadPoolExecutor(20) as threads:
        egress.allow("*.slow.example")
        try:
            for _ in range(2):  # the second time after those before have given up
                slow = [threads.submit(egress.request, f"http://a{n}.slow.example/") for n in range(20)]
                assert {type(one.exception()) for one in slow} == {ApiUnreachable}
        finally:
            release.set()
    assert sum(iter(lambda: asked.acquire(blocking=False), False)) == 8


CRUMBS = b"1\r\nx\r\n" * 10_000


async def crumbs(_request: Received, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(CRUMBS)
        await writer.drain()


def serve_crumbs(connection: Connection) -> None:
    with Server(crumbs) as server:
        connection.send(server.port)
        connection.recv()


def test_answers_that_cost_the_parser_much_hold_up_no_other_function(make: Make) -> None:
    """Of many answers in chunks of one byte, each piece takes the parser long; others have their turns in between."""
    egress = make(EgressLimits(total_s=30, attempts=1))
    under_way = threading.Event()
    with hostile_process(serve_crumbs) as port, Server(plain) as server, ThreadPoolExecutor(40) as threads:
        egress.allow(f"127.0.0.1:{port}")
        egress.allow(f"127.0.0.1:{server.port}", function="g")
        costly = [
            threads.submit(
                egress.proxy.request,
                "f",
                ANN,
                ApiRequest("GET", f"http://127.0.0.1:{port}/"),
                lambda: not under_way.is_set(),
            )
            for _ in range(40)
        ]
        try:
            served = 0
            while served < 20 and not any(one.done() for one in costly):
                assert egress.request(f"http://127.0.0.1:{server.port}/", function="g").status == 200
                served += 1
        finally:
            under_way.set()
        assert served == 20
        assert {type(one.exception()) for one in costly} == {CallAbandoned}


def test_bytes_held_at_once_are_bounded(make: Make) -> None:
    egress = make(EgressLimits(function_bytes=5 * MIB, held_bytes=8 * MIB))

    async def large(_request: Received, writer: Writer) -> None:
        answer(writer, bytes(4 * MIB))

    with Server(large) as server, ThreadPoolExecutor(8) as threads:
        egress.allow(f"127.0.0.1:{server.port}")
        asked = [threads.submit(egress.request, f"http://127.0.0.1:{server.port}/") for _ in range(8)]
        outcomes = [type(one.exception()) for one in asked]
        assert set(outcomes) <= {type(None), ApiBusy}
        assert len(egress.request(f"http://127.0.0.1:{server.port}/").body) == 4 * MIB  # all was given back


def test_what_just_fits_comes_whole(egress: Egress) -> None:
    body = bytes(range(256)) * (BODY_MAX // 256)
    sent = {
        "plain": (body, ""),
        "gzip": (gzip.compress(body, 1), GZIP),
        "members": (gzip.compress(body[:100]) + gzip.compress(body[100:], 1), GZIP),
        "zlib": (zlib.compress(body, 1), DEFLATE),
        "empty": (b"", GZIP),
    }

    async def behave(request: Received, writer: Writer) -> None:
        data, headers = sent[request.target[1:]]
        answer(writer, data, headers=headers)

    with Server(behave) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        for name in sent:
            found = egress.request(f"http://127.0.0.1:{server.port}/{name}")
            assert found.body == (b"" if name == "empty" else body)
