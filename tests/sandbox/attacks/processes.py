"""Other processes: to read them, to signal them, to outlive one's call, to be many."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Process
from pathlib import Path

from tests.sandbox.attacks.corpus import Channel, attack, call

PTRACE_ATTACH = 16
PTRACE_SEIZE = 0x4206


@attack
def fork(_: Channel) -> object:
    if os.fork() == 0:
        os._exit(0)
    return "forked"


@attack
def fork_bomb(_: Channel) -> object:
    made = 0
    for _attempt in range(1000):
        try:
            if os.fork() == 0:
                os._exit(0)
            made += 1
        except OSError:
            continue
    return made


@attack
def double_fork(_: Channel) -> object:
    if call("clone", signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os.setsid()
        if call("clone", signal.SIGCHLD, 0, 0, 0, 0) == 0:
            time.sleep(60)
        os._exit(0)
    return "a survivor"


@attack
def vfork(_: Channel) -> object:
    return call("clone", 0x4000 | 0x100 | signal.SIGCHLD, 0, 0, 0, 0)


@attack
def clone_with_shared_memory_only(_: Channel) -> object:
    """A process that shares memory but is no thread."""
    return call("clone", 0x100 | signal.SIGCHLD, 0, 0, 0, 0)


@attack
def clone_as_sibling(_: Channel) -> object:
    """A child of the zygote's, so that this call would not be its parent."""
    return call("clone", 0x8000 | signal.SIGCHLD, 0, 0, 0, 0)


@attack
def run_a_program(_: Channel) -> object:
    return subprocess.run([sys.executable or "/python/bin/python3", "-c", "print(1)"], check=False).returncode == 0


@attack
def run_a_shell(_: Channel) -> object:
    return os.popen("id").read()


@attack
def spawn(_: Channel) -> object:
    return os.posix_spawn("/python/bin/python3", ["python3"], {})


@attack
def start_a_process_by_multiprocessing(_: Channel) -> object:
    process = Process(target=print)
    process.start()
    return process.pid


@attack
def replace_this_process(_: Channel) -> object:
    directory = "/python/bin"
    os.execv(f"{directory}/{os.listdir(directory)[0]}", ["python", "-c", "print(1)"])


@attack
def execute_by_descriptor(_: Channel) -> object:
    descriptor = os.open(f"/python/bin/{os.listdir('/python/bin')[0]}", os.O_RDONLY)
    return call("execveat", descriptor, b"", 0, 0, 0x1000)


@attack
def signal_everyone(_: Channel) -> object:
    reached = []
    for pid in [*range(-1, 400)]:
        try:
            os.kill(pid, 0 if pid in (0, -1) else signal.SIGKILL)
        except OSError:
            continue
        reached.append(pid)
    return reached


@attack
def signal_threads(_: Channel) -> object:
    reached = []
    for pid in range(1, 50):
        for name, arguments in (("tkill", (pid, 9)), ("tgkill", (pid, pid, 9)), ("rt_sigqueueinfo", (pid, 9, 0))):
            try:
                call(name, *arguments)
            except OSError:
                continue
            reached.append((name, pid))
    return reached


@attack
def signal_through_descriptors(_: Channel) -> object:
    descriptor = call("pidfd_open", 1, 0)
    return call("pidfd_send_signal", descriptor, signal.SIGKILL, 0, 0)


@attack
def steal_descriptors(_: Channel) -> object:
    return call("pidfd_getfd", call("pidfd_open", os.getppid(), 0), 3, 0)


@attack
def signal_by_owned_descriptor(_: Channel) -> object:
    import fcntl

    reader, writer = os.pipe()
    fcntl.fcntl(reader, 8, os.getppid())  # F_SETOWN
    fcntl.fcntl(reader, 10, signal.SIGKILL)  # F_SETSIG
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    os.write(writer, b"x")
    return "signalled"


@attack
def ask_for_signals_on_input(_: Channel) -> object:
    import fcntl

    reader, _writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    return "asked"


@attack
def trace_others(_: Channel) -> object:
    traced = []
    for pid in range(1, 50):
        for request in (PTRACE_ATTACH, PTRACE_SEIZE):
            try:
                call("ptrace", request, pid, 0, 0)
            except OSError:
                continue
            traced.append(pid)
    return traced


@attack
def trace_me(_: Channel) -> object:
    return call("ptrace", 0, 0, 0, 0) == 0


@attack
def read_memory_of_the_zygote(_: Channel) -> object:
    buffer = ctypes.create_string_buffer(64)
    local = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 64)
    remote = (ctypes.c_uint64 * 2)(id(sys), 64)
    return call("process_vm_readv", os.getppid(), local, 1, remote, 1, 0)


@attack
def write_memory_of_the_zygote(_: Channel) -> object:
    buffer = ctypes.create_string_buffer(64)
    local = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 64)
    remote = (ctypes.c_uint64 * 2)(id(sys), 64)
    return call("process_vm_writev", os.getppid(), local, 1, remote, 1, 0)


@attack
def compare_with_others(_: Channel) -> object:
    return call("kcmp", os.getpid(), os.getppid(), 0, 3, 3) >= 0


@attack
def read_through_proc(_: Channel) -> object:
    return [name for name in ("maps", "mem", "environ", "cmdline", "root", "fd") if Path("/proc/1", name).exists()]


@attack
def read_own_memory_file(_: Channel) -> object:
    return os.open("/proc/self/mem", os.O_RDWR)


@attack
def orphan_a_thread(_: Channel) -> object:
    """A thread that would outlive its call; that it is gone is checked outside."""

    def forever() -> None:
        while True:
            time.sleep(0.01)

    threading.Thread(target=forever, daemon=True).start()
    return None


@attack
def ignore_every_signal(_: Channel) -> object:
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    while True:
        time.sleep(1)


@attack
def leave_the_session(_: Channel) -> object:
    moved = []
    for name, attempt in (("setsid", os.setsid), ("setpgid", lambda: os.setpgid(0, 0))):
        try:
            attempt()
        except OSError:
            continue
        moved.append(name)
    return moved


@attack
def exit_early(_: Channel) -> object:
    os._exit(0)


@attack
def exit_by_exception(_: Channel) -> object:
    raise SystemExit(3)


@attack
def crash(_: Channel) -> object:
    return ctypes.string_at(0)


@attack
def abort(_: Channel) -> object:
    os.abort()
