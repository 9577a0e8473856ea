"""Cached DNS answers over UDP, compared with a bare echo in Python with the same message sizes, and with dnsmasq."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import dns.message

from benchmarks.datagrams import Exchange, exchange
from benchmarks.dns_server import WORKERS
from benchmarks.measure import Figure, Limit, SuiteResult, Target
from benchmarks.processes import ServerProcess
from benchmarks.session import Session

RATIO_MIN = 0.5
NAMES = 100
IN_FLIGHT = 32
ECHO = "bare asyncio UDP echo in Python, messages of the same sizes"
START_S = 10.0


@dataclass(slots=True)
class Samples:
    """Measurements by round."""

    cached: list[Exchange] = field(default_factory=list)
    internal: list[Exchange] = field(default_factory=list)
    echo: list[Exchange] = field(default_factory=list)
    one_by_one: list[Exchange] = field(default_factory=list)
    echo_one_by_one: list[Exchange] = field(default_factory=list)
    dnsmasq: list[Exchange] = field(default_factory=list)


def run(session: Session) -> SuiteResult:
    """In each round, measure the server, the echo and dnsmasq one after another. All of them keep running."""
    count = session.sizes.dns_questions
    outside = [_question(f"host-{number:03}.example.com") for number in range(NAMES)]
    internal = [_question(f"worker_{number:03}.worker.hive") for number in range(WORKERS)]
    samples = Samples()
    with ExitStack() as stack:
        session.progress.step("starting the servers")
        upstream = _port(stack.enter_context(ServerProcess("benchmarks.bare_upstream")))
        server = _port(stack.enter_context(ServerProcess("benchmarks.dns_server", "names", upstream)))
        echo = _port(
            stack.enter_context(ServerProcess("benchmarks.dns_server", "echo", _added_bytes(server, outside[0])))
        )
        dnsmasq = stack.enter_context(_dnsmasq(upstream))
        for port in (server, echo, *([] if dnsmasq is None else [dnsmasq])):
            exchange(port, outside, NAMES, 1)
        for _ in session.rounds(f"{count:,} questions about {NAMES} names, {IN_FLIGHT} at a time"):
            samples.cached.append(exchange(server, outside, count, IN_FLIGHT))
            samples.echo.append(exchange(echo, outside, count, IN_FLIGHT))
            samples.internal.append(exchange(server, internal, count, IN_FLIGHT))
            samples.one_by_one.append(exchange(server, outside, count // 4, 1))
            samples.echo_one_by_one.append(exchange(echo, outside, count // 4, 1))
            if dnsmasq is not None:
                samples.dnsmasq.append(exchange(dnsmasq, outside, count, IN_FLIGHT))
    return _result(samples)


def _question(name: str) -> bytes:
    """Return a question as a stub resolver sends it, without its id."""
    return dns.message.make_query(name, "A", use_edns=0, payload=1232).to_wire()[2:]


def _port(server: ServerProcess) -> int:
    return int(server.address.rpartition(":")[2])


def _added_bytes(port: int, question: bytes) -> int:
    """Return how much longer an answer is than its question, in bytes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", port))
        one.settimeout(START_S)
        one.send(b"\0\0" + question)
        return len(one.recv(4096)) - len(question) - 2


@contextmanager
def _dnsmasq(upstream: int) -> Iterator[int | None]:
    """Run dnsmasq, if it is installed, as a cache for the same upstream server; yield its port."""
    program = shutil.which("dnsmasq", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        yield None
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--cache-size=10000"]
    options += ["--bind-interfaces", "--listen-address=127.0.0.1", f"--port={port}", f"--server=127.0.0.1#{upstream}"]
    with subprocess.Popen([program, *options, "--pid-file=", "--user="], stderr=subprocess.DEVNULL) as process:
        try:
            _await_answer(port)
            yield port
        finally:
            process.terminate()


def _await_answer(port: int) -> None:
    give_up = time.monotonic() + START_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", port))
        one.settimeout(0.2)
        while time.monotonic() < give_up:
            try:
                one.send(b"\0\0" + _question("host-000.example.com"))
                one.recv(4096)
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.05)
            else:
                return
    raise TimeoutError("dnsmasq does not answer")


def _result(samples: Samples) -> SuiteResult:
    echo = _rates(samples.echo)
    cached = Figure("cached answers", "/s", _rates(samples.cached), limit=Limit(ECHO, echo))
    figures = [
        cached,
        Figure("answers of the pool's own zone", "/s", _rates(samples.internal), limit=Limit(ECHO, echo)),
        _latency(f"cached answers, p99, {IN_FLIGHT} at a time", samples.cached, samples.echo, ECHO),
        _latency("cached answers, p99, one at a time", samples.one_by_one, samples.echo_one_by_one, ECHO),
    ]
    remarks = ["The client is one thread of Python, which bounds what the faster of the servers can show."]
    if samples.dnsmasq:
        beside = Limit("dnsmasq, the same names cached", _rates(samples.dnsmasq))
        figures.append(Figure("cached answers, beside dnsmasq", "/s", _rates(samples.cached), limit=beside))
        figures.append(_latency("cached answers, p99, beside dnsmasq", samples.cached, samples.dnsmasq, beside.name))
    else:
        remarks.append("dnsmasq is not installed (Debian: dnsmasq-base), so nothing stands beside the names.")
    cut = sum(one.truncated for one in (*samples.cached, *samples.internal, *samples.one_by_one))
    remarks.append(f"{cut} answers were sent to TCP by the limit against amplification, which is the pool's own.")
    text = "cached answers / bare echo"
    target = Target("c", text, "at least", RATIO_MIN, "x", cached.ratios, cached.name)
    return SuiteResult("dns", tuple(figures), (target,), tuple(remarks))


def _rates(exchanges: Sequence[Exchange]) -> tuple[float, ...]:
    return tuple(one.rate for one in exchanges)


def _latency(name: str, mine: Sequence[Exchange], theirs: Sequence[Exchange], whose: str) -> Figure:
    limit = Limit(f"{whose}, p99", tuple(one.p99_ms for one in theirs))
    return Figure(name, "ms", tuple(one.p99_ms for one in mine), "lower", limit)
