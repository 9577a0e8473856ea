"""Functions on one host, without a network: warm calls, cold starts and memory, compared with Python in bubblewrap."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import MIB, Figure, Limit, SuiteResult, Target, seconds_of
from benchmarks.session import Session
from taskworker.sandbox import FunctionImage, Limits, SandboxHost, bubblewrap, runtime_root

THREADS = 16
REQUEST = b'{"name": "world"}'
PAUSE_S = 0.01
"""Pause between single calls, about as long as a caller's own work."""
MARK = "7a"
PROGRAM = """
import json
import pydantic

class Greeting(pydantic.BaseModel):
    name: str

def prepare(document):
    pass

def run(request, channel):
    greeting = Greeting.model_validate_json(request)
    return json.dumps({"text": f"Hello, {greeting.name}!"}).encode()
"""
SCRIPT = """
import json, sys
print(json.dumps({"text": f"Hello, {json.load(sys.stdin)['name']}!"}))
"""
PASS_LIMIT = "bwrap with the same root, python -I -c pass"
SCRIPT_LIMIT = "bwrap with the same root, python and a script for every call"


@dataclass(slots=True)
class Samples:
    """Samples by round; times are in milliseconds."""

    warm: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    nothing: list[float] = field(default_factory=list)
    script: list[float] = field(default_factory=list)
    idle_mib: list[float] = field(default_factory=list)
    warm_functions: list[float] = field(default_factory=list)


def run(session: Session) -> SuiteResult:
    """Measure everything in each round, on one host with many warm functions."""
    sizes, samples = session.sizes, Samples()
    with session.scratch("sandbox") as bundles:
        host = SandboxHost(bundles, warm_max=sizes.sandbox_functions + sizes.rounds * sizes.sandbox_cold_starts * 2 + 1)
        root = runtime_root.take(bundles)
        plain = bubblewrap.interpreter(bubblewrap.find(), root, bundles)
        images = _images(bundles)
        host.start()
        try:
            session.progress.step(f"warming {sizes.sandbox_functions} functions")
            image = next(images)
            for one in (image, *itertools.islice(images, sizes.sandbox_functions - 1)):
                host.warm(one)
            for _ in session.rounds("calls and cold starts"):
                _memory(host, samples)
                samples.warm.append(_warm_p50(host, image, sizes.sandbox_calls))
                samples.script.append(_median(lambda: _script(plain), sizes.sandbox_cold_starts))
                samples.cold.append(_median(lambda: _call(host, next(images)), sizes.sandbox_cold_starts))
                samples.nothing.append(_median(lambda: _nothing(plain), sizes.sandbox_cold_starts))
                samples.ready.append(_median(lambda: host.warm(next(images)), sizes.sandbox_cold_starts))
                samples.rate.append(_rate(host, image, sizes.sandbox_calls))
        finally:
            host.close()
            root.close()
    return _result(samples)


def _images(bundles: Path) -> Iterator[FunctionImage]:
    """Make functions, each with its own bundle."""
    for number in itertools.count():
        root = bundles / str(number)
        root.mkdir()
        (root / "program.py").write_text(PROGRAM)
        yield FunctionImage(str(number), root, b"program:program\n", Limits())


def _call(host: SandboxHost, image: FunctionImage) -> None:
    call = host.begin(image, REQUEST, timeout_s=None, answer=lambda ask, _: ask, output=lambda _name, _data: None)
    if call.result() != b'{"text": "Hello, world!"}':
        raise AssertionError("the function did not greet")


def _warm_p50(host: SandboxHost, image: FunctionImage, calls: int) -> float:
    return _median(lambda: _call(host, image), calls, PAUSE_S)


def _rate(host: SandboxHost, image: FunctionImage, calls: int) -> float:
    def share(_: int) -> None:
        for _number in range(calls // 4):
            _call(host, image)

    with ThreadPoolExecutor(THREADS) as pool:
        return THREADS * (calls // 4) / seconds_of(lambda: list(pool.map(share, range(THREADS))))


def _nothing(plain: list[str]) -> None:
    subprocess.run([*plain, "-I", "-c", "pass"], check=True, stdin=subprocess.DEVNULL, env={})


def _script(plain: list[str]) -> None:
    subprocess.run([*plain, "-I", "-c", SCRIPT], check=True, input=REQUEST, capture_output=True, env={})


def _memory(host: SandboxHost, samples: Samples) -> None:
    views = host.views()
    samples.warm_functions.append(len(views))
    samples.idle_mib.append(statistics.median(view.pss_bytes for view in views) / MIB)


def _median(action: Callable[[], object], count: int, pause_s: float = 0.0) -> float:
    """Return the median of the milliseconds that ``action`` takes."""
    taken = []
    for _ in range(count):
        time.sleep(pause_s)
        taken.append(seconds_of(action) * 1000)
    return statistics.median(taken)


def _result(samples: Samples) -> SuiteResult:
    nothing = Limit(PASS_LIMIT, tuple(samples.nothing))
    script = Limit(SCRIPT_LIMIT, tuple(samples.script))
    warm = Figure("warm call, p50", "ms", tuple(samples.warm), "lower", script)
    cold = Figure("first call of a function, its bundle cached", "ms", tuple(samples.cold), "lower", nothing)
    ready = Figure("a function made warm", "ms", tuple(samples.ready), "lower", nothing)
    rate = Figure(f"warm calls, {THREADS} threads", "/s", tuple(samples.rate))
    idle = Figure("memory of an idle function", "MiB", tuple(samples.idle_mib), "lower")
    functions = Figure("functions warm at once", "", tuple(samples.warm_functions))
    starts = tuple(1 / ratio for ratio in cold.ratios)
    targets = (
        Target(MARK, "warm call, p50, on the host alone", "at most", 5.0, "ms", warm.samples, warm.name),
        Target(MARK, f"warm calls with {THREADS} callers, on the host alone", "at least", 300, "/s", rate.samples),
        Target(MARK, "cold start with its call / bwrap python -I -c pass", "at most", 1.5, "x", starts, cold.name),
        Target(MARK, "bwrap python script / warm call", "at least", 10, "x", warm.ratios, warm.name),
        Target(MARK, "idle warm function", "at most", 15, "MiB", idle.samples, idle.name),
        Target(MARK, "warm functions on one worker", "at least", 100, "", functions.samples, functions.name),
    )
    return SuiteResult("sandbox", (warm, rate, cold, ready, idle, functions), targets)
