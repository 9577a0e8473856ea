"""The kernel's own doors: namespaces, mounts, networks, keys, tracing, modules, and other architectures' calls."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import resource
import signal
import socket
from collections.abc import Callable
from functools import partial

from tests.sandbox.attacks.corpus import LIBC, NUMBERS, Channel, attack, call, raw

CLONE_FLAGS = {
    "user": 0x1000_0000,
    "mount": 0x0002_0000,
    "pid": 0x2000_0000,
    "net": 0x4000_0000,
    "ipc": 0x0800_0000,
    "uts": 0x0400_0000,
    "cgroup": 0x0200_0000,
}
CLONE_NEWTIME = 0x80
SO_PEERCRED = 17
SO_PEERPIDFD = 77
PR_SET_DUMPABLE = 4
PR_SET_PDEATHSIG = 1
PR_SET_MM = 35
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_SET_PTRACER = 0x59616D61
PR_SET_CHILD_SUBREAPER = 36


def _got(attempts: dict[str, Callable[[], object]]) -> list[str]:
    got = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        got.append(name)
    return got


@attack
def mount_a_file_system(_: Channel) -> object:
    return call("mount", b"none", b"/tmp", b"tmpfs", 0, b"") == 0


@attack
def mount_proc(_: Channel) -> object:
    os.mkdir("proc")
    return call("mount", b"proc", b"proc", b"proc", 0, b"") == 0


@attack
def uncover_bundles(_: Channel) -> object:
    return call("umount2", b"/bundles", 2) == 0


@attack
def remount_writable(_: Channel) -> object:
    return call("mount", b"", b"/code", b"", 32 | 4096, b"") == 0


@attack
def new_mount_calls(_: Channel) -> object:
    return _got(
        {
            "fsopen": lambda: call("fsopen", b"tmpfs", 0),
            "open_tree": lambda: call("open_tree", -100, b"/", 1),
            "move_mount": lambda: call("move_mount", -100, b"/tmp", -100, b"/code", 0),
            "mount_setattr": lambda: call("mount_setattr", -100, b"/", 0, 0, 0),
            "fspick": lambda: call("fspick", -100, b"/", 0),
        }
    )


@attack
def change_the_root(_: Channel) -> object:
    return _got({"chroot": lambda: call("chroot", b"."), "pivot_root": lambda: call("pivot_root", b".", b".")})


@attack
def make_namespaces(_: Channel) -> object:
    flags = CLONE_FLAGS | {"time": CLONE_NEWTIME}
    return _got({name: lambda flag=flag: call("unshare", flag) for name, flag in flags.items()})  # type: ignore[misc]


@attack
def clone_into_namespaces(_: Channel) -> object:
    return _got({name: lambda flag=flag: call("clone", flag | 17, 0, 0, 0, 0) for name, flag in CLONE_FLAGS.items()})  # type: ignore[misc]


@attack
def thread_into_namespaces(_: Channel) -> object:
    shared = 0x0001_0000 | 0x800 | 0x100
    return _got({name: partial(call, "clone", flag | shared, 0, 0, 0, 0) for name, flag in CLONE_FLAGS.items()})


@attack
def enter_namespaces(_: Channel) -> object:
    return _got({str(descriptor): lambda d=descriptor: call("setns", d, 0) for descriptor in range(16)})  # type: ignore[misc]


@attack
def clone3(_: Channel) -> object:
    arguments = (ctypes.c_uint64 * 11)()
    arguments[4] = signal.SIGCHLD
    try:
        return call("clone3", arguments, 88)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            return f"answered {error}, so that the C library would not fall back"
        raise


@attack
def internet_sockets(_: Channel) -> object:
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW)
    families = (socket.AF_INET, socket.AF_INET6)
    return _got({f"{f} {k}": lambda f=f, k=k: socket.socket(f, k) for f in families for k in kinds})  # type: ignore[misc]


@attack
def raw_sockets(_: Channel) -> object:
    return _got({str(f): lambda f=f: socket.socket(f, socket.SOCK_RAW) for f in (socket.AF_PACKET, socket.AF_NETLINK)})  # type: ignore[misc]


@attack
def every_socket_family(_: Channel) -> object:
    return _got({str(f): lambda f=f: call("socket", f, k, 0) for f in range(47) for k in (1, 2, 3)})  # type: ignore[misc]


@attack
def abstract_unix_socket(_: Channel) -> object:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\0dbus")
    return "connected"


@attack
def named_unix_socket(_: Channel) -> object:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.bind("socket")
    return "bound"


@attack
def use_a_socketpair_for_more(_: Channel) -> object:
    """A datagram socket of a pair can be connected elsewhere, where connect is allowed."""
    one, _other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return _got(
        {
            "connect": lambda: one.connect("\0host"),
            "bind": lambda: one.bind("\0mine"),
            "listen": lambda: one.listen(),
            "sendto": lambda: one.sendto(b"x", "\0host"),
        }
    )


@attack
def socketpair_of_other_families(_: Channel) -> object:
    return _got({str(f): lambda f=f: socket.socketpair(f, 1) for f in (2, 10, 16, 17, 30, 38, 40)})  # type: ignore[misc]


@attack
def become_root(_: Channel) -> object:
    return _got(
        {
            "setuid": lambda: os.setuid(0),
            "setgid": lambda: os.setgid(0),
            "setgroups": lambda: os.setgroups([0]),
            "setresuid": lambda: os.setresuid(0, 0, 0),
            "setfsuid": lambda: call("setfsuid", 0),
        }
    )


@attack
def take_capabilities(_: Channel) -> object:
    header = ctypes.create_string_buffer(b"\x22\x05\x08\x20\0\0\0\0")
    return call("capset", header, ctypes.create_string_buffer(b"\xff" * 24)) == 0


@attack
def keyrings(_: Channel) -> object:
    return _got(
        {
            "keyctl": lambda: call("keyctl", 0, -3, 0, 0, 0),
            "add_key": lambda: call("add_key", b"user", b"x", b"y", 1, -3),
            "request_key": lambda: call("request_key", b"user", b"x", 0, -3),
        }
    )


@attack
def bpf(_: Channel) -> object:
    return call("bpf", 0, ctypes.create_string_buffer(128), 128)


@attack
def perf_events(_: Channel) -> object:
    return call("perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0)


@attack
def userfaultfd(_: Channel) -> object:
    return call("userfaultfd", 1)


@attack
def io_uring(_: Channel) -> object:
    return call("io_uring_setup", 8, ctypes.create_string_buffer(256))


@attack
def kernel_modules_and_power(_: Channel) -> object:
    return _got(
        {
            "init_module": lambda: call("init_module", 0, 0, b""),
            "finit_module": lambda: call("finit_module", 0, b"", 0),
            "delete_module": lambda: call("delete_module", b"x", 0),
            "kexec_load": lambda: call("kexec_load", 0, 0, 0, 0),
            "reboot": lambda: call("reboot", 0, 0, 0, 0),
            "swapon": lambda: call("swapon", b"x", 0),
            "acct": lambda: call("acct", 0),
            "syslog": lambda: call("syslog", 10, 0, 0),
            "quotactl": lambda: call("quotactl", 0, 0, 0, 0),
        }
    )


@attack
def clocks_and_names(_: Channel) -> object:
    return _got(
        {
            "clock_settime": lambda: call("clock_settime", 0, ctypes.create_string_buffer(16)),
            "settimeofday": lambda: call("settimeofday", ctypes.create_string_buffer(16), 0),
            "adjtimex": lambda: call("adjtimex", ctypes.create_string_buffer(256)),
            "sethostname": lambda: call("sethostname", b"owned", 5),
            "setdomainname": lambda: call("setdomainname", b"owned", 5),
        }
    )


@attack
def input_output_ports(_: Channel) -> object:
    names = [name for name in ("iopl", "ioperm", "modify_ldt") if name in NUMBERS]
    return _got({name: partial(call, name, 3, 1, 1) for name in names})


@attack
def personality(_: Channel) -> object:
    return call("personality", 0x0040000) + 1


@attack
def system_v_and_posix_queues(_: Channel) -> object:
    return _got(
        {
            "shmget": lambda: call("shmget", 1, 4096, 0o1666),
            "msgget": lambda: call("msgget", 1, 0o1666),
            "semget": lambda: call("semget", 1, 1, 0o1666),
            "mq_open": lambda: call("mq_open", b"x", 0o102, 0o666, 0),
        }
    )


@attack
def process_controls(_: Channel) -> object:
    options = (PR_SET_DUMPABLE, PR_SET_PDEATHSIG, PR_SET_MM, PR_CAP_AMBIENT, PR_SET_PTRACER, PR_SET_CHILD_SUBREAPER)
    return _got({str(o): lambda o=o: call("prctl", o, 1, 0, 0, 0) for o in options})  # type: ignore[misc]


@attack
def install_another_filter(_: Channel) -> object:
    return _got(
        {
            "seccomp": lambda: call("seccomp", 1, 8, 0),
            "prctl": lambda: call("prctl", 22, 2, 0, 0, 0),
            "strict": lambda: call("prctl", 22, 1, 0, 0, 0),
        }
    )


@attack
def raise_own_limits(_: Channel) -> object:
    kinds = ("AS", "CPU", "NOFILE", "FSIZE", "NPROC", "DATA", "CORE", "STACK")
    pairs = {kind: getattr(resource, f"RLIMIT_{kind}") for kind in kinds}
    return _got({n: lambda k=k: resource.setrlimit(k, (2**40, 2**40)) for n, k in pairs.items()})  # type: ignore[misc]


@attack
def set_limits_of_others(_: Channel) -> object:
    return _got({str(pid): lambda p=pid: resource.prlimit(p, resource.RLIMIT_CPU, (1, 1)) for pid in (1, 2)})  # type: ignore[misc]


@attack
def scheduling_of_all(_: Channel) -> object:
    return _got(
        {
            "setpriority": lambda: os.setpriority(os.PRIO_USER, 0, 19),
            "nice": lambda: os.nice(-5),
            "fifo": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
            "affinity": lambda: os.sched_setaffinity(1, {0}),
            "ioprio": lambda: call("ioprio_set", 1, 1, 0),
        }
    )


@attack
def x32_system_calls(_: Channel) -> object:
    if platform.machine() != "x86_64":
        os._exit(0)  # only there is such a second way in
    return raw(0x4000_0000 | 39)


@attack
def i386_system_calls(_: Channel) -> object:
    if platform.machine() != "x86_64":
        os._exit(0)
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (getpid); int 0x80; ret
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()


@attack
def high_bits_of_arguments(_: Channel) -> object:
    """A filter that compares 32 bits where the kernel reads 64, or the other way round, would let these through."""
    high = 1 << 32
    return _got(
        {
            "clone": lambda: call("clone", high | 17, 0, 0, 0, 0),
            "socketpair": lambda: call("socketpair", high | 2, 1, 0, (ctypes.c_int * 2)()),
            "fcntl": lambda: call("fcntl", 1, high | 8, os.getpid()),
            "ioctl": lambda: call("ioctl", 1, high | 0x5412, b"x"),
            "prctl": lambda: call("prctl", high | PR_SET_DUMPABLE, 0, 0, 0, 0),
        }
    )


@attack
def terminal_injection(_: Channel) -> object:
    return _got({str(d): lambda d=d: call("ioctl", d, 0x5412, b"x") for d in range(4)})  # type: ignore[misc]


@attack
def memory_policies(_: Channel) -> object:
    return _got(
        {
            "move_pages": lambda: call("move_pages", 1, 0, 0, 0, 0, 0),
            "migrate_pages": lambda: call("migrate_pages", 1, 0, 0, 0),
            "process_madvise": lambda: call("process_madvise", 1, 0, 0, 0, 0),
            "mbind": lambda: call("mbind", 0, 0, 0, 0, 0, 0),
        }
    )


@attack
def vm_splice(_: Channel) -> object:
    _reader, writer = os.pipe()
    return call("vmsplice", writer, 0, 0, 0) == 0


@attack
def machine_code(_: Channel) -> object:
    """Machine code of one's own is allowed, and gets no further than Python does."""
    if platform.machine() != "x86_64":
        return None
    code = b"\xb8" + NUMBERS["socket"].to_bytes(4, "little") + b"\xbf\x02\0\0\0\xbe\x01\0\0\0\x31\xd2\x0f\x05\xc3"
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    status: int = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    return None if status == -errno.EPERM else status


@attack
def read_kernel_settings(_: Channel) -> object:
    return [path for path in ("/proc/sys", "/sys/kernel", "/proc/self/mem", "/proc/1/environ") if os.path.exists(path)]


@attack
def reach_libc_functions(_: Channel) -> object:
    return _got(
        {
            "system": lambda: _zero(LIBC.system(b"touch /tmp/out")),
            "execve": lambda: _zero(LIBC.execve(b"/python/bin/python3", None, None)),
        }
    )


def _zero(status: int) -> None:
    if status != 0:
        raise OSError(status, "refused")


@attack
def who_is_at_the_other_end(_: Channel) -> object:
    """A handle of the process that made the channel, and what it is."""
    found = []
    with socket.socket(fileno=os.dup(3)) as channel:
        for option in (SO_PEERCRED, SO_PEERPIDFD, SO_PEERPIDFD | 1 << 32):
            value, size = ctypes.create_string_buffer(64), ctypes.c_int(64)
            with contextlib.suppress(OSError):
                arguments = (channel.fileno(), socket.SOL_SOCKET, option, value, ctypes.byref(size))
                found.append((option, call("getsockopt", *arguments)))
    return found
