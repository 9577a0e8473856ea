"""The seccomp filters: which system calls user code may make.

They are compiled on the host by libseccomp, which knows the numbers on every architecture. A system call by the
numbers of another architecture (including x32) kills the process. One that is not listed is refused with EPERM.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any

from taskworker.sandbox.errors import SandboxUnavailable

_ALLOWED = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range open openat
    openat2 creat stat fstat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents
    getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat
    symlink symlinkat chmod fchmod fchmodat fchmodat2 umask truncate ftruncate fallocate
    utime utimes utimensat futimesat sendfile copy_file_range splice tee statfs
    fstatfs dup dup2 dup3 pipe pipe2 eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime poll ppoll
    select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 sendto recvfrom
    recvmsg recvmmsg shutdown getsockname getpeername mprotect munmap mremap madvise
    mincore brk membarrier fork vfork wait4 waitid exit exit_group set_tid_address set_robust_list
    rseq futex futex_waitv futex_wait futex_wake sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min getcpu rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
    rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall pause alarm getitimer setitimer nanosleep
    clock_nanosleep clock_gettime clock_getres gettimeofday time times timer_create timer_settime timer_gettime
    timer_getoverrun timer_delete getpid gettid getppid getpgrp getpgid getsid setsid getuid geteuid getgid
    getegid getresuid getresgid getgroups getpriority getrlimit getrusage sysinfo uname getrandom
"""
"""Missing on purpose: new process images, network, signals to other processes, mounts, keys, tracing and anything about
other processes. Also sendmsg: descriptors in flight on sockets cause kernel work that everyone who sends or receives
descriptors, such as the host, has to wait for. `_zygote_filter` adds the system calls that depend on arguments."""

_TO_BEGIN_WITH = ("chroot", "capset")
"""System calls of a call before it installs its own filter, which refuses them: it enters its own root directory and
drops the capability for that."""

_ERRNO_ENOSYS = ("clone3", "flock")
"""Refused with ENOSYS, as by a kernel without them. Instead of clone3, the C library then uses clone, whose flags a
filter can see; ``inside.locks`` replaces flock."""

_DONE_ALREADY = ("fsync", "fdatasync", "sync_file_range", "msync", "fadvise64")
"""Reported as successful without being executed: everything a call may write to is in memory. On a file that it may
only read, they would make the machine flush what others wrote, and wait for the disk, or drop pages that others use."""

_MAP_TYPE = 0x0F
_MAP_PRIVATE = 0x02
_MAP_SHARED = 0x01
_MAP_ANONYMOUS = 0x20
"""Refused together with `_MAP_SHARED`: a zygote would share such memory with all its calls."""
_MAP_HUGETLB = 0x4_0000
"""Refused: huge pages are few, reserved for other programs, and not counted by any memory limit."""
_CLONE_THREAD = 0x0001_0000
_CLONE_NAMESPACES = 0x7E02_0000
"""All CLONE_NEW* flags that clone takes."""
_AF_UNIX = 1
_PR_SET_SECCOMP = 22
_PR_SET_NAME = 15
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032, 1033, 1034, 37, 38)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ,
F_ADD_SEALS, F_GET_SEALS, and the locks of open files. Missing: owners, signals, leases and notifications, and
F_SETPIPE_SZ, as the memory of a call's output pipes counts for the worker's user, and that of other pipes for the
function's."""
_O_ASYNC = 0x2000
_SOCKET_OPTIONS = (3, 4, 7, 8, 30, 38, 39)
"""SO_TYPE, SO_ERROR, SO_SNDBUF, SO_RCVBUF, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN: those used by the standard library.
Missing: SO_PEERCRED and SO_PEERPIDFD, which would tell about the host at the other end."""
_IOCTL_REQUESTS = (0x5401, 0x5421, 0x541B, 0x5413, 0x5451, 0x5450)
"""TCGETS, FIONBIO, FIONREAD, TIOCGWINSZ, FIOCLEX, FIONCLEX: those that the standard library uses on any descriptor."""


@dataclass(frozen=True, slots=True)
class Filters:
    """BPF programs, and numbers of system calls.

    Attributes:
        starts: passes starts of threads and timers to the host. It is installed first, as the later filters prevent
            sending its descriptor to the host.
        zygote: installed before user code is imported.
        call: installed on top of it in each call; it only refuses.
        seccomp: number of the system call seccomp; 0 if the host does not judge starts.
        timer_create: number of the system call timer_create.
    """

    starts: bytes
    zygote: bytes
    call: bytes
    seccomp: int = 0
    timer_create: int = 0


def compile_filters(*, judged: bool = True) -> Filters:
    """Compile all filters.

    Args:
        judged: whether the host judges starts of threads and timers.

    Raises:
        SandboxUnavailable: libseccomp is not on this machine.
    """
    seccomp = _library()
    native = seccomp.Arch.NATIVE
    return Filters(
        starts=_exported(_starts_filter(seccomp)),
        zygote=_exported(_zygote_filter(seccomp)),
        call=_exported(_call_filter(seccomp)),
        seccomp=seccomp.resolve_syscall(native, "seccomp") if judged else 0,
        timer_create=seccomp.resolve_syscall(native, "timer_create"),
    )


def _library() -> Any:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise SandboxUnavailable(
            f"functions need libseccomp, which could not be loaded ({error}); install it "
            "(Debian and Ubuntu: libseccomp2; Fedora: libseccomp; Alpine: libseccomp)"
        ) from error
    return pyseccomp


def _starts_filter(seccomp: Any) -> Any:
    rules = _Rules(seccomp, seccomp.ALLOW)
    rules.add(seccomp.NOTIFY, "clone", (0, seccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
    rules.add(seccomp.NOTIFY, "timer_create")
    return rules.filter


def _zygote_filter(seccomp: Any) -> Any:
    rules = _Rules(seccomp, seccomp.ERRNO(errno.EPERM))
    for name in (*_ALLOWED.split(), *_TO_BEGIN_WITH):
        rules.add(seccomp.ALLOW, name)
    for name in _ERRNO_ENOSYS:
        rules.add(seccomp.ERRNO(errno.ENOSYS), name)
    for name in _DONE_ALREADY:
        rules.add(seccomp.ERRNO(0), name)
    masked = seccomp.MASKED_EQ
    rules.add(seccomp.ALLOW, "mmap", (3, masked, _MAP_TYPE | _MAP_HUGETLB, _MAP_PRIVATE))
    rules.add(seccomp.ALLOW, "mmap", (3, masked, _MAP_TYPE | _MAP_ANONYMOUS | _MAP_HUGETLB, _MAP_SHARED))
    rules.add(seccomp.ALLOW, "clone", (0, masked, _CLONE_NAMESPACES, 0))
    rules.add(seccomp.ALLOW, "socketpair", (0, seccomp.EQ, _AF_UNIX))
    rules.add(seccomp.ALLOW, "prctl", (0, seccomp.EQ, _PR_SET_SECCOMP))
    rules.add(seccomp.ALLOW, "prctl", (0, seccomp.EQ, _PR_SET_NAME))
    rules.add(seccomp.ALLOW, "prlimit64", (0, seccomp.EQ, 0), (2, seccomp.EQ, 0))
    for command in _FCNTL_COMMANDS:
        if command == 4:
            rules.add(seccomp.ALLOW, "fcntl", (1, masked, 0xFFFF_FFFF, command), (2, masked, _O_ASYNC, 0))
        else:
            rules.add(seccomp.ALLOW, "fcntl", (1, masked, 0xFFFF_FFFF, command))
    for option in _SOCKET_OPTIONS:
        rules.add(seccomp.ALLOW, "getsockopt", (2, masked, 0xFFFF_FFFF, option))
    for request in _IOCTL_REQUESTS:
        rules.add(seccomp.ALLOW, "ioctl", (1, masked, 0xFFFF_FFFF, request))
    return rules.filter


def _call_filter(seccomp: Any) -> Any:
    rules = _Rules(seccomp, seccomp.ALLOW)
    refused = seccomp.ERRNO(errno.EPERM)
    for name in ("fork", "vfork", "prctl", "seccomp", "setrlimit", "setsid", *_TO_BEGIN_WITH):
        rules.add(refused, name)
    rules.add(refused, "clone", (0, seccomp.MASKED_EQ, _CLONE_THREAD, 0))
    return rules.filter


class _Rules:
    """A filter under construction. Names unknown to this libseccomp or architecture get no rule: they are refused."""

    def __init__(self, seccomp: Any, default: int) -> None:
        self._seccomp = seccomp
        self.filter = seccomp.SyscallFilter(default)
        self.filter.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)

    def add(self, action: int, name: str, *arguments: tuple[int, int, int] | tuple[int, int, int, int]) -> None:
        if self._known(name):
            self.filter.add_rule(action, name, *(self._seccomp.Arg(*argument) for argument in arguments))

    def _known(self, name: str) -> bool:
        try:
            number: int = self._seccomp.resolve_syscall(self._seccomp.Arch.NATIVE, name)
        except (OSError, ValueError):
            return False
        return number >= 0


def _exported(made: Any) -> bytes:
    descriptor = os.memfd_create("filter", os.MFD_CLOEXEC)
    with open(descriptor, "w+b", buffering=0) as file:  # noqa: PTH123 - the file has no path
        made.export_bpf(file)
        file.seek(0)
        return file.read()
