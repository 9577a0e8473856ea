"""Calls of outside APIs from functions, compared with the same requests made directly with httpx."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks.egress_processes import HELD
from benchmarks.measure import Figure, Limit, SuiteResult, Target, seconds_of
from benchmarks.processes import ServerProcess, TaskFailed, started_together
from benchmarks.session import Session
from benchmarks.workload import USER
from taskworker import Client
from taskworker.errors import FunctionNotFound, FunctionsUnavailable

MODULE = "benchmarks.egress_processes"
OVERHEAD_MAX_MS = 2.0
WORKERS = 2
START_TIMEOUT_S = 120.0


def run(session: Session) -> SuiteResult:
    """In each round, make requests inside one warm call and with httpx; at the end, make many calls at once."""
    inside: list[float] = []
    direct: list[float] = []
    count = session.sizes.egress_requests
    with session.scratch("egress") as root, ExitStack() as stack:
        session.progress.step("starting a pool")
        outside = stack.enter_context(ServerProcess(MODULE, "outside"))
        address = _pool(stack, root, outside.address)
        url = f"http://{outside.address}/"
        client = stack.enter_context(Client(address, timeout_s=START_TIMEOUT_S))
        plain = stack.enter_context(httpx.Client(trust_env=False))
        _await_function(lambda: client.call("egress-timed", [url, 1], user_id=USER))
        for _ in session.rounds(f"{count} requests from inside a call, and directly"):
            inside.append(statistics.median(client.call("egress-timed", [url, count], user_id=USER)) * 1e3)
            direct.append(
                statistics.median(seconds_of(lambda: plain.get(url).raise_for_status()) for _ in range(count)) * 1e3
            )
        session.progress.step(f"{HELD} calls at once")
        held = _held(client, url)
    return _result(session, inside, direct, held)


def _pool(stack: ExitStack, root: Path, outside: str) -> str:
    pool = stack.enter_context(ServerProcess(MODULE, "pool", root / "pool", outside.rpartition(":")[2]))
    workers = [
        ServerProcess(MODULE, "worker", f"w{number}", pool.address, root / f"w{number}") for number in range(WORKERS)
    ]
    stack.enter_context(started_together(workers))
    return pool.address


def _await_function(call: Callable[[], object]) -> None:
    """Wait until the function can be called."""
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            call()
        except (FunctionNotFound, FunctionsUnavailable) as error:
            if time.monotonic() > until:
                raise TaskFailed(f"no worker offers the functions after {START_TIMEOUT_S:.0f} s") from error
            time.sleep(0.05)
        else:
            return


def _held(client: Client, url: str) -> int:
    """Return how many requests the server had under way at the same time, all of which it answered."""
    with ThreadPoolExecutor(HELD) as threads:
        calls = [threads.submit(client.call, "egress-held", [url], user_id=USER) for _ in range(HELD)]
        return min(int(call.result()) for call in calls)


def _result(session: Session, inside: list[float], direct: list[float], held: int) -> SuiteResult:
    overhead = tuple(mine - bare for mine, bare in zip(inside, direct, strict=True))
    return SuiteResult(
        "egress",
        (
            Figure(
                "call_external_api, 1 KiB back, p50",
                "ms",
                tuple(inside),
                better="lower",
                limit=Limit("httpx directly", tuple(direct)),
                note="inside a warm call: sandbox, worker, pool, outside, and back",
            ),
            Figure("more than httpx directly, p50", "ms", overhead, better="lower"),
            Figure("requests under way at once", "", (float(held),)),
        ),
        (
            Target(
                "d", "call_external_api costs more than httpx directly, p50", "at most", OVERHEAD_MAX_MS, "ms", overhead
            ),
            Target("d", "calls held at once", "at least", HELD, "", (float(held),)),
        ),
    )
