"""Streams with TLS: what they carry, whom they trust, and how they fail."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskworker.auth.authority import Authority
from taskworker.auth.certificates import identity_of
from taskworker.auth.tls import MemberCredentials
from taskworker.transport.wire.secure import SecureStream, accept_secure, dial_secure
from taskworker.transport.wire.sending import Outbox
from taskworker.transport.wire.streams import Stream
from tests.auth.members import POOL, Members, pool, worker

MIB = 1 << 20


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return Members.in_directory(tmp_path_factory.mktemp("authority"))


def ignore(certificate: bytes) -> None:
    """Have to do with everybody whose certificate is valid."""


@contextmanager
def joined(members: Members) -> Iterator[tuple[Stream, Stream]]:
    """Both ends of a stream: the pool's and the worker's."""
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    client = SecureStream(ours, members.pool.client, members.worker.identity.dns_name, ignore)
    server = accept_secure(theirs, members.worker.server, ignore)
    thread = threading.Thread(target=lambda: server.receive([memoryview(bytearray(1))], wait=True))
    thread.start()
    client.shake_hands(10)
    thread.join()
    try:
        yield client, server
    finally:
        client.close()
        server.close()


def send_all(stream: Stream, parts: list[bytes]) -> None:
    """Send parts as the transport does: what was not taken is given again, cut otherwise."""
    left = b"".join(parts)
    sent = stream.send(parts, wait=True)
    while sent < len(left):
        left = left[sent:]
        sent = stream.send([left[:100], left[100:]] if len(left) > 100 else [left], wait=True)


def receive_all(stream: Stream, length: int, portion: Callable[[], int]) -> bytes:
    received = bytearray()
    while len(received) < length:
        size = max(1, min(portion(), length - len(received)))
        buffers = [memoryview(bytearray(size // 2 + 1)), memoryview(bytearray(size))]
        count = stream.receive(buffers, wait=True)
        assert count != 0
        received += b"".join(buffers)[: count or 0]
        if count is None:
            assert not stream.has_more
    return bytes(received)


@given(
    parts=st.lists(st.binary(max_size=300) | st.integers(0, 100_000).map(lambda n: random.Random(n).randbytes(n))),
    portions=st.lists(st.integers(1, 50_000), min_size=1),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_sent_arrives_in_order(members: Members, parts: list[bytes], portions: list[int]) -> None:
    with joined(members) as (client, server):
        for one, other in ((client, server), (server, client)):
            at = iter(portions * 100_000)
            sending = threading.Thread(target=send_all, args=(one, parts))
            sending.start()
            received = receive_all(other, sum(map(len, parts)), lambda at=at: next(at))  # type: ignore[misc]
            sending.join()
            assert received == b"".join(parts)


def test_both_directions_at_once(members: Members) -> None:
    data = [random.Random(seed).randbytes(3 * MIB) for seed in range(2)]
    with joined(members) as (client, server):
        sending = [
            threading.Thread(target=send_all, args=(stream, [data[at]])) for at, stream in enumerate((client, server))
        ]
        for thread in sending:
            thread.start()
        received: list[bytes] = []
        receiving = threading.Thread(target=lambda: received.append(receive_all(server, 3 * MIB, lambda: 40_000)))
        receiving.start()
        assert receive_all(client, 3 * MIB, lambda: 70_000) == data[1]
        receiving.join()
        for thread in sending:
            thread.join()
        assert received == [data[0]]


def test_files_are_sent(members: Members, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(700_000)
    (tmp_path / "file").write_bytes(data)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with joined(members) as (client, server):

            def send() -> None:
                at = 5
                while at < len(data):
                    at += server.send_file(descriptor, at, len(data) - at)

            thread = threading.Thread(target=send)
            thread.start()
            assert receive_all(client, len(data) - 5, lambda: 10_000) == data[5:]
            thread.join()
            with pytest.raises(EOFError):
                server.send_file(descriptor, len(data), 10)
    finally:
        os.close(descriptor)


def test_nothing_can_be_read_on_the_way(members: Members) -> None:
    """Nor is it the same twice."""
    seen: list[bytes] = []
    for _ in range(2):
        ours, tap = socket.socketpair()
        tap_out, theirs = socket.socketpair()
        client = SecureStream(ours, members.pool.client, members.worker.identity.dns_name, ignore)
        server = accept_secure(theirs, members.worker.server, ignore)
        passed = bytearray()

        def relay(source: socket.socket, target: socket.socket, passed: bytearray) -> None:
            while piece := source.recv(65536):
                passed += piece
                target.sendall(piece)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        threads = [
            threading.Thread(target=relay, args=(tap, tap_out, passed)),
            threading.Thread(target=relay, args=(tap_out, tap, passed)),
            threading.Thread(target=receive_all, args=(server, 1000, lambda: 1000)),
        ]
        for thread in threads:
            thread.start()
        client.shake_hands(10)
        send_all(client, [b"plain" * 200])
        threads[2].join()
        assert b"plainplain" not in passed
        assert POOL.encode() not in passed  # certificates are encrypted as well
        seen.append(bytes(passed[-500:]))
        client.close()
        server.close()
        for thread, one in zip(threads, (tap, tap_out), strict=False):
            thread.join()
            one.close()
    assert seen[0] != seen[1]


# -- whom they trust -------------------------------------------------------------------------------


def outcome(client: Callable[[], Stream], listening: socket.socket, context: ssl.SSLContext) -> BaseException | None:
    """What a client that connects is told; the server's end is used until it fails."""
    failures: list[BaseException] = []

    def serve() -> None:
        accepted, _ = listening.accept()
        stream = accept_secure(accepted, context, ignore)
        try:
            while stream.receive([memoryview(bytearray(1))], wait=True) is None:
                pass
            send_all(stream, [b"hello"])
        except OSError as error:
            failures.append(error)
        stream.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with contextlib.closing(client()) as stream:
            send_all(stream, [b"x"])
            receive_all(stream, 5, lambda: 5)
    except (OSError, AssertionError) as error:
        return error
    finally:
        thread.join()
    return None


@pytest.mark.parametrize(
    ("who", "expected", "accepted"),
    [
        ("the pool", "w1", True),
        ("the pool", "w2", False),
        ("another worker", "w1", True),  # whom to serve, the server decides by the identity
        ("a member of another pool", "w1", False),
        ("nobody", "w1", False),
        ("an expired member", "w1", False),
    ],
)
def test_only_members_are_trusted_and_only_the_one_that_was_expected(
    members: Members, tmp_path: Path, who: str, expected: str, *, accepted: bool
) -> None:
    match who:
        case "the pool":
            context = members.pool.client
        case "another worker":
            context = MemberCredentials(members.authority.issue_own(worker("w9"))).client
        case "a member of another pool":
            stranger = MemberCredentials(Authority(tmp_path / "other.pem", POOL).issue_own(pool()))
            context = stranger.client
            context.load_verify_locations(cadata=members.authority.certificates_pem.decode())  # it knows the worker's
        case "an expired member":
            context = MemberCredentials(members.authority.issue_own(pool(), lifetime_s=-1.0)).client
        case _:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=members.authority.certificates_pem.decode())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        error = outcome(
            lambda: dial_secure(address, 5, context, worker(expected).dns_name, ignore),
            listening,
            members.worker.server,
        )
    assert (error is None) is accepted, error


def test_a_member_may_have_nothing_to_do_with_another(members: Members) -> None:
    def refuse(certificate: bytes) -> None:
        from cryptography import x509

        raise ConnectionError(f"not {identity_of(x509.load_der_x509_certificate(certificate)).name}")

    ours, theirs = socket.socketpair()
    client = SecureStream(ours, members.pool.client, members.worker.identity.dns_name, ignore)
    server = accept_secure(theirs, members.worker.server, refuse)
    raised: list[BaseException] = []

    def serve() -> None:
        try:
            while server.receive([memoryview(bytearray(1))], wait=True) is None:
                pass
        except ConnectionError as error:
            raised.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    client.shake_hands(10)
    thread.join()
    assert [str(error) for error in raised] == ["not pool"]
    client.close()
    server.close()


def test_old_protocols_are_refused(members: Members) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    ours, theirs = socket.socketpair()
    server = accept_secure(theirs, members.worker.server, ignore)
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            while server.receive([memoryview(bytearray(1))], wait=True) is None:
                pass
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(OSError, match=r"(?i)version|eof|reset"):
        old.wrap_socket(ours)
    thread.join()
    assert failures
    server.close()


@pytest.mark.parametrize("greeting", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100)])
def test_noise_ends_the_stream_and_silence_does_not_hold_it_up(members: Members, greeting: bytes) -> None:
    ours, theirs = socket.socketpair()
    server = accept_secure(theirs, members.worker.server, ignore)
    assert server.receive([memoryview(bytearray(1))], wait=False) is None
    ours.sendall(greeting)
    if greeting[:1] == b"G":
        with pytest.raises(ssl.SSLError):
            server.receive([memoryview(bytearray(1))], wait=False)
    ours.close()
    try:
        ended = server.receive([memoryview(bytearray(1))], wait=True) in (0, None)
    except OSError as error:
        ended = not isinstance(error, (ssl.SSLWantReadError, ssl.SSLWantWriteError))
    assert ended
    server.close()


def test_dialling_gives_up_on_a_server_that_says_nothing(members: Members) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(TimeoutError, match="handshake"):
            dial_secure(address, 0.3, members.pool.client, members.worker.identity.dns_name, ignore)


@pytest.mark.timeout(20)
def test_dialling_gives_up_on_a_server_that_sends_byte_after_byte(members: Members) -> None:
    ended = threading.Event()

    def drip(listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        with accepted, contextlib.suppress(OSError):
            accepted.sendall(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb")  # the beginning of a long message
            for _ in range(40):
                accepted.sendall(b"\0")
                if ended.wait(0.2):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        try:
            with pytest.raises(TimeoutError, match="handshake"):
                dial_secure(address, 0.5, members.pool.client, members.worker.identity.dns_name, ignore)
        finally:
            ended.set()
            thread.join()


def test_a_stream_can_be_ended_while_it_is_used(members: Members) -> None:
    with joined(members) as (client, _):
        thread = threading.Timer(0.2, client.shutdown)
        thread.start()
        try:
            while client.receive([memoryview(bytearray(1))], wait=True) is None:
                pass
        except OSError:
            pass
        thread.join()


def test_frames_of_many_parts_arrive_though_they_wait(members: Members) -> None:
    """What a full socket did not take is given again in fewer parts than OpenSSL has begun to send."""
    frames = [[random.Random(100 * frame + part).randbytes(90) for part in range(100)] for frame in range(60)]
    wanted = b"".join(part for frame in frames for part in frame)
    with joined(members) as (client, server):
        outbox = Outbox(client)
        for frame in frames:
            outbox.put(frame)
        assert outbox, "the socket takes all; make it smaller"
        received: list[bytes] = []
        thread = threading.Thread(target=lambda: received.append(receive_all(server, len(wanted), lambda: 5_000)))
        thread.start()
        while outbox:
            outbox.flush()
        thread.join()
        assert received == [wanted]


def test_small_messages_arrive_one_after_another(members: Members) -> None:
    """Also those that were sent together, before the receiver looks."""
    messages = [bytes([number]) * (number + 1) for number in range(50)]
    with joined(members) as (client, server):
        for message in messages:
            assert client.send([message[:1], message[1:]], wait=True) == len(message)
        received, empty = bytearray(), 0
        while len(received) < sum(map(len, messages)) and empty < 2:
            buffer = memoryview(bytearray(200))
            count = server.receive([buffer], wait=False)
            received += buffer[: count or 0]
            empty = 0 if count else empty + 1
        assert received == b"".join(messages)
        assert server.receive([memoryview(bytearray(1))], wait=False) is None
        client.send([b"x"], wait=True)
        buffer = memoryview(bytearray(1))
        assert server.receive([buffer], wait=True) == 1
