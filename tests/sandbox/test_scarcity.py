"""Calls of one function share its processes fairly; what the kernel refuses is waited for, or told; nothing dies."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from taskworker.sandbox import (
    CallDeadline,
    FunctionBroken,
    FunctionImage,
    Keep,
    LimitExceeded,
    Limits,
    SandboxError,
    SandboxFull,
    SandboxHost,
    WarmView,
    proof,
    room,
)
from taskworker.sandbox import (
    prewarmed as prewarmed,
)
from taskworker.sandbox.filters import Filters
from taskworker.sandbox.inside import init, zygote
from tests.sandbox.bundles import ECHO, begin, program
from tests.storage.helpers import python_environment

HOLDS_THREADS = """
import threading

def prepare(document):
    pass

def run(request, channel):
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(int(request))]
    for thread in threads:
        thread.start()
    channel.ask(b"all are there")
    stop.set()
    for thread in threads:
        thread.join()
    return str(len(threads)).encode()
"""
WAITS = """
def prepare(document):
    pass

def run(request, channel):
    return channel.ask(request)
"""
RESUMES_S = 60.0


def view_of(host: SandboxHost, image: FunctionImage) -> WarmView:
    [view] = [view for view in host.views() if view.key == image.key]
    return view


@contextlib.contextmanager
def limited(pid: int, kind: int, most: int) -> Iterator[None]:
    """Have the kernel refuse something to a process of a sandbox, as it does to all where there is none left."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (most, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, before)


def refused(host: SandboxHost, image: FunctionImage) -> None:
    """Have calls begin until one is refused: those before found processes that were forked ahead."""
    for _ in range(prewarmed.processes_max(image.limits)):
        begin(host, image, b"x").result()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (room, sys.modules["taskworker.sandbox.host"]):
        monkeypatch.setattr(module, "PATIENCE_S", 0.3)


def test_calls_have_all_their_threads_at_the_same_time(host: SandboxHost, bundles: Path) -> None:
    """More of them than a function once had processes and threads in all; another user's call gets its own as well."""
    image = program(bundles, HOLDS_THREADS, limits=Limits(threads=101, memory_bytes=512 << 20))
    calls = 6
    together = threading.Barrier(calls)

    def answer(_ask: bytes) -> bytes:
        together.wait(RESUMES_S)
        return b""

    with ThreadPoolExecutor(calls) as pool:
        running = [pool.submit(lambda: begin(host, image, b"100", answer=answer).result()) for _ in range(calls)]
        assert [one.result() for one in running] == [b"100"] * calls


def test_calls_that_would_have_no_share_wait_for_one(
    host: SandboxHost, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prewarmed, "FUNCTION_TASKS_MAX", 96 + 3 * 32)
    image = program(bundles, WAITS, document=b"three at once")
    more = threading.Semaphore(0)
    waiting = threading.Semaphore(0)

    def answer(ask: bytes) -> bytes:
        waiting.release()
        assert more.acquire(timeout=RESUMES_S)
        return ask

    with ThreadPoolExecutor(9) as pool:
        running = [pool.submit(lambda: begin(host, image, b"x", answer=answer).result()) for _ in range(9)]
        for _ in range(3):
            assert waiting.acquire(timeout=RESUMES_S)
        assert not waiting.acquire(timeout=0.3)  # a fourth would have begun by now, or the test cannot see it
        more.release(9)
        assert [one.result() for one in running] == [b"x"] * 9


def test_kept_processes_make_room_for_others_calls(
    host: SandboxHost, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prewarmed, "FUNCTION_TASKS_MAX", 96 + 3 * 32)
    image = program(bundles, ECHO, keep=Keep(calls=100, seconds=100.0))
    for number in range(8):
        assert begin(host, image, b"x", owner=f"user {number}").result() == b"x"


def test_a_process_that_waits_gives_its_room_where_the_machine_has_none(bundles: Path, impatient: None) -> None:
    keeps = program(bundles, ECHO, document=b"keeps", keep=Keep(calls=100, seconds=100.0))
    scarce = program(bundles, ECHO, document=b"no processes for another")
    with contextlib.closing(SandboxHost(bundles)) as host:
        host.start()
        host.warm(scarce)
        assert begin(host, keeps, b"x", owner="ann").result() == b"x"
        assert view_of(host, keeps).kept == 1
        with limited(view_of(host, scarce).pids[1], resource.RLIMIT_NPROC, 1), pytest.raises(SandboxFull):
            refused(host, scarce)
        assert view_of(host, keeps).kept == 0
        assert begin(host, keeps, b"y", owner="ann").result() == b"y"


def test_a_zygote_that_may_not_fork_waits(host: SandboxHost, bundles: Path, impatient: None) -> None:
    image = program(bundles, WAITS, document=b"no processes")
    during = begin(host, image, b"under way", answer=lambda ask: _when(refusal, ask))
    refusal = threading.Event()
    pids = view_of(host, image).pids
    with limited(pids[1], resource.RLIMIT_NPROC, 1), pytest.raises(SandboxFull, match="no room for another process"):
        refused(host, image)
    refusal.set()
    assert during.result() == b"under way"
    assert begin(host, image, b"again").result() == b"again"
    assert view_of(host, image).pids == pids


@pytest.mark.parametrize(
    ("reads", "kind"), [("receive_with_pid", zygote.REFUSED), ("receive_with_descriptor", init.MOUNTED)]
)
def test_a_message_that_was_read_already_ends_nothing(
    host: SandboxHost, bundles: Path, monkeypatch: pytest.MonkeyPatch, reads: str, kind: bytes
) -> None:
    """A loop that heard of a message and of a process's end at once is told of the message when it was read."""
    image = program(bundles, WAITS, document=f"read by {reads}".encode())
    during = begin(host, image, b"under way")
    pids = view_of(host, image).pids
    receive, late = getattr(proof, reads), threading.Event()

    def received(connection: socket.socket, most: int) -> Any:
        if not late.is_set() and connection.recv(1, socket.MSG_PEEK) == kind:
            late.set()
            raise BlockingIOError
        return receive(connection, most)

    monkeypatch.setattr(proof, reads, received)
    with limited(pids[1], resource.RLIMIT_NPROC, 1):
        while not late.is_set():  # all that were forked ahead are used up, and another one is refused
            with contextlib.suppress(CallDeadline):
                begin(host, image, b"x", timeout_s=0.3).result()
    assert during.result() == b"under way"
    assert begin(host, image, b"again").result() == b"again"
    assert view_of(host, image).pids == pids


def _when(event: threading.Event, ask: bytes) -> bytes:
    assert event.wait(RESUMES_S)
    return ask


def test_a_call_waits_until_its_zygote_may_fork_again(
    host: SandboxHost, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PATIENCE_S", RESUMES_S)
    image = program(bundles, ECHO, document=b"few processes")
    begin(host, image).result()
    pids = view_of(host, image).pids
    with ThreadPoolExecutor(1) as pool:
        with limited(pids[1], resource.RLIMIT_NPROC, 1):
            calls: list[Future[bytes]] = [
                pool.submit(lambda: begin(host, image, b"at last").result()) for _ in range(20)
            ]
        assert {call.result() for call in calls} == {b"at last"}
    assert view_of(host, image).pids == pids


def test_an_init_without_descriptors_goes_on(host: SandboxHost, bundles: Path, impatient: None) -> None:
    image = program(bundles, ECHO, document=b"no descriptors")
    begin(host, image).result()
    pids = view_of(host, image).pids
    with limited(pids[0], resource.RLIMIT_NOFILE, 3), pytest.raises(SandboxFull):
        refused(host, image)
    assert begin(host, image, b"again").result() == b"again"
    assert view_of(host, image).pids == pids


def base_processes(init: int) -> tuple[int, int]:
    """The lean process of the base of a function's init, and its complete one, the first that it has forked."""
    lean = psutil.Process(init).parent()
    assert lean is not None
    return lean.pid, min(lean.children(), key=psutil.Process.create_time).pid


@pytest.mark.parametrize("scarce", ["processes", "descriptors"])
@pytest.mark.parametrize("lean", [False, True], ids=["complete", "lean"])
def test_a_base_that_lacks_something_starts_no_function_and_ends_none(
    host: SandboxHost, bundles: Path, impatient: None, lean: bool, scarce: str
) -> None:
    warm = program(bundles, ECHO, document=f"warm before {scarce}".encode())
    begin(host, warm).result()
    pids = view_of(host, warm).pids
    base = base_processes(pids[0])[0 if lean else 1]
    cold = replace(program(bundles, ECHO, document=f"cold {scarce} {lean}".encode()), lean=lean)
    # With room for one descriptor more, it has the socket to answer on, and none besides.
    kind, most = (
        (resource.RLIMIT_NPROC, 0)
        if scarce == "processes"
        else (resource.RLIMIT_NOFILE, psutil.Process(base).num_fds() + 1)
    )
    with limited(base, kind, most), pytest.raises(SandboxFull):
        begin(host, cold)
    assert begin(host, warm, b"x").result() == b"x"
    assert view_of(host, warm).pids == pids
    assert begin(host, cold, b"now").result() == b"now"


NO_DESCRIPTORS = """
import contextlib, os, pathlib, resource, sys
from taskworker.sandbox import SandboxFull, SandboxHost, room
from tests.sandbox.bundles import ECHO, begin, program

room.PATIENCE_S = sys.modules["taskworker.sandbox.host"].PATIENCE_S = 0.3
bundles = pathlib.Path(sys.argv[1])
with contextlib.closing(SandboxHost(bundles)) as host:
    host.start()
    warm, cold = (program(bundles, ECHO, document=name) for name in (b"warm here", b"cold here"))
    begin(host, warm).result()
    [pids] = [view.pids for view in host.views()]
    taken, refused = [], 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 64, hard))
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    for image in (warm, cold) * 20:
        try:
            begin(host, image, b"x").result()
        except SandboxFull:
            refused += 1
        if refused == 4:
            break
    assert refused, "no call was refused"
    for descriptor in taken:
        os.close(descriptor)
    assert begin(host, warm, b"again").result() == b"again"
    assert begin(host, cold, b"again").result() == b"again"
    assert pids in [view.pids for view in host.views()]
"""


def test_a_worker_without_descriptors_goes_on(bundles: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS, str(bundles)],
        env=python_environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_processes_that_never_begin_end_their_function_alone(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, f"import os\nos.setsid = lambda: os._exit(1)\n{ECHO}")
    with pytest.raises(SandboxError):
        begin(host, image, timeout_s=RESUMES_S)
    assert begin(host, program(bundles, ECHO), b"x").result() == b"x"


TAKES_ALL_THREADS = """
import threading, time

def prepare(document):
    pass

def run(request, channel):
    while True:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
"""


def test_a_call_with_too_many_threads_ends_alone(host: SandboxHost, bundles: Path) -> None:
    """Others of the same function get all theirs meanwhile."""
    source = HOLDS_THREADS.replace("def run(", "def hold(") + TAKES_ALL_THREADS.replace("def run(", "def take(")
    image = program(bundles, source + "run = lambda *asked: take(*asked) if asked[0] == b'take' else hold(*asked)\n")
    pids: list[WarmView] = []

    def take(_: int) -> None:
        with pytest.raises(LimitExceeded, match="threads limit of 32 exceeded"):
            begin(host, image, b"take").result()

    with ThreadPoolExecutor(4) as pool:
        taking = [pool.submit(take, number) for number in range(4)]
        for _ in range(4):
            assert begin(host, image, b"31").result() == b"31"
            pids.append(view_of(host, image))
        for one in taking:
            one.result()
    assert len({view.pids for view in pids}) == 1


def test_threads_that_were_joined_make_room_at_once(host: SandboxHost, bundles: Path) -> None:
    source = HOLDS_THREADS.replace("def run(", "def hold(")
    image = program(bundles, source + "run = lambda *asked: b''.join(hold(*asked) for _ in range(5))\n")
    assert begin(host, image, b"31").result() == b"31" * 5


def test_an_import_starts_no_more_threads_than_a_call(host: SandboxHost, bundles: Path) -> None:
    starts = "import threading, time\nfor _ in range(40): threading.Thread(target=time.sleep, args=(9,)).start()\n"
    with pytest.raises(FunctionBroken, match="can't start new thread"):
        begin(host, program(bundles, starts + ECHO))


def test_where_the_kernel_hands_nothing_over_calls_run_all_the_same(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose runtime listens to system calls itself: threads are counted now and then."""
    host_module = sys.modules["taskworker.sandbox.host"]
    compile_filters = host_module.__dict__["compile_filters"]
    unknown = 0xFFFF

    def compiled(*, judged: bool = True) -> Filters:
        made: Filters = replace(compile_filters(judged=judged), seccomp=unknown if judged else 0)
        return made

    monkeypatch.setattr(host_module, "compile_filters", compiled)
    with contextlib.closing(SandboxHost(bundles)) as host:
        host.start()
        assert begin(host, program(bundles, HOLDS_THREADS), b"31").result() == b"31"
        with pytest.raises(LimitExceeded, match="threads"):
            begin(host, program(bundles, TAKES_ALL_THREADS)).result()
