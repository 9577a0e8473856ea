"""What the machine, or all processes of a user, share: devices, and what the kernel counts for each user."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import select
import socket
import stat
import struct
import threading
import time

from tests.sandbox.attacks.corpus import Channel, attack, call

DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
F_SETPIPE_SZ = 1031
MAP_LOCKED, MAP_HUGETLB = 0x2000, 0x4_0000
SIGEV_NONE = 1
TIMERS_MAX = 32
_LOCK = struct.Struct("hhqqi4x")
"""``struct flock``."""
_LOCKED_AT = 4242
_ENDS_S = 10.0
"""For the process of a call whose result is there already to end, and its locks with it."""
IN_FLIGHT_MAX = 64 + 253
"""As many as one call may have open, and one message more."""


@attack
def change_modes_of_devices(_: Channel) -> object:
    """By their names, to what they are: harmless where it works."""
    changed = []
    for device in DEVICES:
        with contextlib.suppress(OSError):
            os.chmod(device, stat.S_IMODE(os.stat(device).st_mode))
            changed.append(device)
    return changed


@attack
def change_mode_of_inherited_device(_: Channel) -> object:
    os.fchmod(0, stat.S_IMODE(os.fstat(0).st_mode))
    return "changed"


def _marks_of_inherited_descriptors() -> list[str]:
    """What calls leave at what their processes have of one another: flags, and a lock of an open file."""
    marked = os.O_APPEND | os.O_NONBLOCK
    found = [f"flags of {number}" for number in range(4) if fcntl.fcntl(number, fcntl.F_GETFL) & marked]
    null = os.open("/dev/null", os.O_RDWR)
    until = time.monotonic() + _ENDS_S
    while _is_locked(null):
        if time.monotonic() > until:
            return [*found, "a lock"]
        time.sleep(0.01)
    return found


def _is_locked(descriptor: int) -> bool:
    lock = fcntl.fcntl(descriptor, fcntl.F_GETLK, _LOCK.pack(fcntl.F_WRLCK, 0, _LOCKED_AT, 1, 0))
    return bool(_LOCK.unpack(lock)[0] != fcntl.F_UNLCK)


@attack
def mark_inherited_descriptors(_: Channel) -> object:
    found = _marks_of_inherited_descriptors()
    for number in range(4):
        fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_APPEND | os.O_NONBLOCK)
    fcntl.fcntl(0, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_RDLCK, 0, _LOCKED_AT, 1, 0))
    return found


@attack
def mark_inherited_descriptors_again(_: Channel) -> object:
    return _marks_of_inherited_descriptors()


@attack
def have_the_machine_s_disk_write(_: Channel) -> object:
    """An answer that says the kernel looked at the descriptor: it would have looked at the file, too."""
    asked = []
    for name in ("fsync", "fdatasync", "sync_file_range", "msync", "fadvise64"):
        try:
            call(name, -1, 0, 0, 0)
        except OSError:
            asked.append(name)
    return asked


@attack
def change_mode_of_a_device_opened_for_writing(_: Channel) -> object:
    os.fchmod(os.open("/dev/null", os.O_RDWR), 0o666)
    return "changed"


@attack
def change_times_of_devices(_: Channel) -> object:
    changed = []
    for device in DEVICES:
        for times in (None, (0, 0)):
            with contextlib.suppress(OSError):
                os.utime(device, times)
                changed.append(device)
    return changed


@attack
def give_attributes_to_devices(_: Channel) -> object:
    os.setxattr("/dev/null", "user.x", b"x")
    return "given"


@attack
def many_timers(_: Channel) -> object:
    """POSIX timers, and signals that wait, are counted for each user."""
    event = struct.pack("=QiI", 0, 0, SIGEV_NONE).ljust(64, b"\0")
    number, made = ctypes.c_int(), 0
    with contextlib.suppress(OSError):
        while made <= TIMERS_MAX:
            call("timer_create", 1, event, ctypes.byref(number))
            made += 1
    return made if made > TIMERS_MAX else None


@attack
def enlarge_pipes(_: Channel) -> object:
    enlarged = []
    reader, _writer = os.pipe()
    for descriptor in (reader, 1, 2):
        with contextlib.suppress(OSError):
            enlarged.append(fcntl.fcntl(descriptor, F_SETPIPE_SZ, 1 << 20))
    return enlarged


@attack
def lock_memory(_: Channel) -> object:
    return mmap.mmap(-1, 1 << 12, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_LOCKED)


@attack
def take_huge_pages_of_memory(_: Channel) -> object:
    """Loot wherever the machine is asked for some at all, whether or not it has any."""
    try:
        return mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    except PermissionError:
        raise
    except OSError as error:
        return error


@attack
def raise_limits_shared_by_a_user(_: Channel) -> object:
    raised = []
    for name in ("SIGPENDING", "MSGQUEUE", "MEMLOCK", "NICE", "RTPRIO", "NPROC", "NOFILE", "CORE", "STACK"):
        kind: int = getattr(resource, f"RLIMIT_{name}")
        soft, hard = resource.getrlimit(kind)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (soft, hard + 1))
            raised.append(name)
    return raised


@attack
def many_descriptors_in_flight(_: Channel) -> object:
    """Sent and not received, they count for the user, and no more for the limit of open ones."""
    sent, kept = 0, []
    with contextlib.suppress(OSError):
        while True:
            kept.append(pair := socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
            pair[0].setblocking(False)
            numbers = array.array("i", [pair[0].fileno()] * 60)
            with contextlib.suppress(BlockingIOError):
                while True:
                    pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
                    sent += len(numbers)
    return sent if sent > IN_FLIGHT_MAX else None


@attack
def many_watches(_: Channel) -> object:
    """Of epoll, which counts them for each user."""
    made, kept = 0, []
    with contextlib.suppress(OSError):
        targets = [os.eventfd(0) for _ in range(24)]
        while True:
            kept.append(poll := select.epoll())
            for target in targets:
                poll.register(target, select.EPOLLIN)
                made += 1
    return made if made > 64 * 64 else None


@attack
def threads_that_start_threads(_: Channel) -> object:
    """All at the same time, so that none is counted yet when the next one asks."""

    def start() -> None:
        for _number in range(100):
            threading.Thread(target=start, daemon=True).start()
        time.sleep(1000)

    start()
    return "all started"


@attack
def threads_without_end(_: Channel) -> object:
    """One after another, never more than two: each is judged by the worker, whose time that takes."""
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    return None


@attack
def timers_without_end(_: Channel) -> object:
    """Refused ones, from many threads."""
    event = struct.pack("=QiI", 0, 0, SIGEV_NONE).ljust(64, b"\0")
    until = time.monotonic() + 0.4
    made = []

    def take() -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                made.append(call("timer_create", 1, event, ctypes.byref(ctypes.c_int())))

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(made) if len(made) > TIMERS_MAX else None


@attack
def thread_by_bare_flags(_: Channel) -> object:
    """A thread in namespaces of its own is refused before it is judged, and so is one that shares no signals."""
    attempts = (0x0001_0000 | 0x800 | 0x100 | 0x1000_0000, 0x0001_0000)
    made = []
    for flags in attempts:
        with contextlib.suppress(OSError):
            made.append(call("clone", flags, 0, 0, 0, 0))
    return made


@attack
def judge_oneself(_: Channel) -> object:
    """Another listener, or the worker's own by descriptor."""
    got = [number for number in range(64) if _is_a_listener(number)]
    with contextlib.suppress(OSError):
        got.append(call("seccomp", 1, 8, ctypes.create_string_buffer(16)))
    return got


def _is_a_listener(descriptor: int) -> bool:
    try:
        fcntl.ioctl(descriptor, 0xC050_2100, bytearray(80))
    except OSError:
        return False
    return True
