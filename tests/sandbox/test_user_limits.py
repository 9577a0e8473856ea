"""What the kernel counts for each user, and what keeps a function from using it up: a table, and proof of each row.

A function of a worker run as root has a user id of its own. One of an ordinary user's worker has its worker's, so
each row names a bound that holds for both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from taskworker.sandbox import Limits, SandboxHost, WarmView, launcher, proof
from taskworker.sandbox.prewarmed import FUNCTION_TASKS_MAX, KILLED_FIRST, NO_CORE_BYTES, SIGNALS_MAX, STACK_BYTES
from taskworker.sandbox.starts import TIMERS_MAX
from tests.sandbox.attacks.corpus import ATTACKS, prepare
from tests.sandbox.bundles import ECHO, begin, program
from tests.sandbox.test_lifecycle import eventually

LIMITS = Limits(disk_bytes=1 << 20, open_files=60)
COUNTED_BY_LIMIT = {
    "Max processes": FUNCTION_TASKS_MAX,
    "Max pending signals": SIGNALS_MAX,
    "Max msgqueue size": 0,
    "Max locked memory": 0,
    "Max open files": LIMITS.open_files,  # bounds what is sent and not received, which counts for each user
}
"""What the kernel compares with what all processes of a user have, with its value in a call."""
OF_ONE_PROCESS: dict[str, int | None] = {
    "Max cpu time": 11,
    "Max file size": LIMITS.disk_bytes,
    "Max core file size": NO_CORE_BYTES,
    "Max stack size": STACK_BYTES,
    "Max nice priority": 0,
    "Max realtime priority": 0,
    "Max data size": None,  # by what the zygote has
    "Max address space": None,
}
"""The other limits that Linux has and heeds; None: a bound of any size."""
WITHOUT_EFFECT = ("Max resident set", "Max file locks", "Max realtime timeout")
"""Not heeded since Linux 2.4, or, the last one, only for processes with a realtime priority."""
COUNTED_BY_ATTACK = {
    "buffers of pipes": "enlarge_pipes",
    "descriptors in flight": "many_descriptors_in_flight",
    "watches of epoll": "many_watches",
    "timers and signals": "many_timers",
    "locked memory": "lock_memory",
    "huge pages": "take_huge_pages_of_memory",
    "keys": "keyrings",
    "message queues": "system_v_and_posix_queues",
    "inotify": "watch_the_file_system",
    "fanotify": "watch_the_file_system_whole",
    "memory of BPF": "bpf",
    "memory of perf": "perf_events",
    "memory of io_uring": "io_uring",
    "namespaces": "make_namespaces",
    "disk quotas and inodes": "write_anywhere",
    "modes and times of devices": "change_times_of_devices",
}
"""What the kernel counts by user id, and the attack that tries to have more of it than a call may."""
READ_IN_NAMESPACE = """
import ctypes, os, pathlib, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.setns(os.open(f"/proc/{sys.argv[1]}/ns/user", os.O_RDONLY), 0) == 0, os.strerror(ctypes.get_errno())
for path in sorted(pathlib.Path("/proc/sys/user").iterdir()):
    print(path.name, path.read_text())
"""


@pytest.fixture(scope="module")
def view(host: SandboxHost, bundles: Path) -> WarmView:
    image = program(bundles, ECHO, limits=LIMITS)
    begin(host, image).result()
    return next(view for view in host.views() if view.key == image.key)


def limits_of(pid: int) -> dict[str, str]:
    """The hard limits of a process, as the kernel names them."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[1] for line in lines}


def test_every_limit_of_the_kernel_is_set(view: WarmView) -> None:
    [call, *_] = sorted(proof.processes_below(view.pids[0]) - set(view.pids))
    # One that was forked just now has its zygote's until the host takes it, before it gets a call.
    eventually(lambda: limits_of(call)["Max open files"] != limits_of(view.pids[1])["Max open files"])
    limits = limits_of(call)
    expected = COUNTED_BY_LIMIT | OF_ONE_PROCESS
    assert limits.keys() == expected.keys() | set(WITHOUT_EFFECT)
    for name, most in expected.items():
        assert limits[name] != "unlimited", name
        if most is not None:
            assert int(limits[name]) == most, name


def test_a_machine_without_memory_ends_calls_before_what_they_share(view: WarmView) -> None:
    def score(pid: int | str) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    base = psutil.Process(view.pids[0]).ppid()
    [call, *_] = sorted(proof.processes_below(view.pids[0]) - set(view.pids))
    assert score(call) == score(view.pids[1]) == KILLED_FIRST
    assert max(score("self"), score(base)) < KILLED_FIRST


def test_nothing_more_is_counted_in_a_functions_namespace(view: WarmView) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", READ_IN_NAMESPACE, str(view.pids[1])],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    counted = dict(line.split() for line in ran.stdout.splitlines() if line)
    assert counted.keys() == set(os.listdir("/proc/sys/user"))
    assert counted.pop("max_mnt_namespaces") == str(FUNCTION_TASKS_MAX)  # one for each call's own root directory
    assert set(counted.values()) == {"0"}


def test_every_row_has_its_attack() -> None:
    prepare(b"{}")
    assert set(COUNTED_BY_ATTACK.values()) <= ATTACKS.keys()


def test_functions_have_a_user_of_their_own_where_there_are_others_to_give(
    view: WarmView, host: SandboxHost, bundles: Path
) -> None:
    image = program(bundles, ECHO, document=b"another user's")
    begin(host, image).result()
    other = next(view for view in host.views() if view.key == image.key)
    users = [set(proof.status_of(pid)["Uid"].split()) for pid in (*view.pids, *other.pids)]
    assert users[0] == users[1]
    assert users[2] == users[3]
    mine = {str(os.getuid())}
    assert len(users[0] | users[2] | mine) == (1 if os.getuid() else 3)


def test_all_functions_together_leave_the_worker_a_share(view: WarmView) -> None:
    """The namespace around those of all functions was made with less than the worker has."""
    part, whole = launcher.SHARE_OF_USER
    limits = Path("/proc/self/limits").read_text().splitlines()
    inits = Path(f"/proc/{view.pids[0]}/limits").read_text().splitlines()
    for name in ("Max pending signals", "Max processes"):
        [mine] = [line.split()[3 if "signals" in name else 2] for line in limits if line.startswith(name)]
        [theirs] = [line.split()[3 if "signals" in name else 2] for line in inits if line.startswith(name)]
        assert mine == "unlimited" or int(theirs) == int(mine) * part // whole


def test_nothing_of_the_machine_can_be_written_to(view: WarmView) -> None:
    for line in Path(f"/proc/{view.pids[1]}/mountinfo").read_text().splitlines():
        _, _, _, _, target, options, *rest = line.split()
        file_system = rest[rest.index("-") + 1]
        if "ro" not in options.split(","):
            assert file_system == "tmpfs", line
            assert target.startswith("/tmp"), line


TAKES_TIMERS = """
import ctypes

def prepare(document):
    pass

def run(request, channel):
    libc, number, made = ctypes.CDLL(None), ctypes.c_int(), 0
    event = (ctypes.c_char * 64)()
    event[12] = 1  # SIGEV_NONE
    while made < 100_000 and libc.timer_create(1, event, ctypes.byref(number)) == 0:
        made += 1
    channel.ask(b"as many as it gets")
    return str(made).encode()
"""


def test_timers_of_a_function_are_not_the_workers(host: SandboxHost, bundles: Path) -> None:
    """While a call has as many as it may, another one has as many, and a process of the worker's user makes one."""
    makes_one = (
        "import ctypes; event = (ctypes.c_char * 64)(); event[12] = 1; "
        "print(ctypes.CDLL(None).timer_create(1, event, ctypes.byref(ctypes.c_int())))"
    )

    image = program(bundles, TAKES_TIMERS)

    def meanwhile(_ask: bytes) -> bytes:
        assert begin(host, image).result() == b"%d" % TIMERS_MAX
        ran = subprocess.run([sys.executable, "-c", makes_one], capture_output=True, text=True, timeout=60, check=True)
        assert ran.stdout == "0\n"
        return b""

    assert begin(host, image, answer=meanwhile).result() == b"%d" % TIMERS_MAX
