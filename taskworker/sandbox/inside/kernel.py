"""System calls that Python does not offer, and the steps by which a process gives up its rights."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct

CLONE_NEWNS = 0x0002_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_PRIVATE = 1 << 18
MS_REC = 16384
MNT_DETACH = 2

_SYS_OPEN_TREE = 428
"""The same number on every architecture; glibc has no function for it before 2.36."""
_OPEN_TREE_CLONE = 1
_AT_RECURSIVE = 0x8000
_AT_FDCWD = -100

_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
_SECCOMP_SET_MODE_FILTER = 1
_NEW_LISTENER = 1 << 3
_WAIT_KILLABLE = 1 << 5
"""Since Linux 5.19: a thread that waits for a judgement does not restart its system call at every signal."""
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAPABILITIES_MAX = 64
_CAP_SYS_CHROOT = 18
_INSTRUCTION_BYTES = 8
_MADV_COLLAPSE = 25
_HUGE_PAGE_BYTES = 2 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
_capset = _libc.capset
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_wait4 = _libc.wait4

_MAX_RSS = struct.Struct("32x l")
"""The field of ``struct rusage`` after its two times, in KiB."""
_RUSAGE_BYTES = 256
"""Larger than ``struct rusage``."""
_CAPABILITY_HEADER = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)


class Waiting:
    """Reaps this process's children like `os.wait4`, but writes to thirty fewer pages of memory.

    Attributes:
        status: wait status of the child that `ended` returned last.
        peak_bytes: peak memory of that child, in bytes.
    """

    __slots__ = ("_any", "_no_hang", "_status", "_status_at", "_usage", "_usage_at", "peak_bytes", "status")

    def __init__(self) -> None:
        self.status = self.peak_bytes = 0
        self._any, self._no_hang = ctypes.c_int(-1), ctypes.c_int(os.WNOHANG)
        self._status, self._usage = ctypes.c_int(), ctypes.create_string_buffer(_RUSAGE_BYTES)
        self._status_at, self._usage_at = ctypes.byref(self._status), ctypes.byref(self._usage)

    def ended(self) -> int:
        """Reap a child that has ended, and return its process id; 0 if there is none."""
        child: int = _wait4(self._any, self._status_at, self._no_hang, self._usage_at)
        if child <= 0:  # no child has ended, or there are no children
            return 0
        self.status = self._status.value
        self.peak_bytes = _MAX_RSS.unpack_from(self._usage)[0] << 10
        return child


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def unshare(flags: int) -> None:
    """Move this process to new namespaces of the kinds in ``flags``."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system, or with MS_BIND another directory or file, at ``target``."""
    done = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(done, f"mount {kind or 'bind'} on {target}")


def make_read_only(target: str) -> None:
    """Make the mount ``target`` read-only, including its attributes. Devices still work."""
    mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC)


def unmount(target: str) -> None:
    """Detach a mount at once; it disappears when the last process stops using it."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def copy_mounts(top: str) -> int:
    """Copy the mounts at and below ``top``; return a descriptor of the copy, which is attached nowhere."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    descriptor: int = _libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(_AT_FDCWD), top.encode(), ctypes.c_uint(flags)
    )
    if descriptor < 0:
        _check(descriptor, f"copy the mounts at {top}")
    return descriptor


def drop_capabilities_but_chroot() -> None:
    """Drop all capabilities except CAP_SYS_CHROOT, also from the bounding, ambient and inheritable sets.

    Forked processes drop that one with `RightToChroot`.
    """
    for capability in range(_CAPABILITIES_MAX):
        if _prctl(_PR_CAPBSET_DROP, capability, None, 0, 0) != 0:
            break  # EINVAL: the kernel has no more capabilities
    _check(_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, None, 0, 0), "drop ambient capabilities")
    kept = 1 << _CAP_SYS_CHROOT
    _check(_capset(_CAPABILITY_HEADER, struct.pack("=6I", kept, kept, 0, 0, 0, 0)), "drop capabilities")


class RightToChroot:
    """The only capability of a zygote, CAP_SYS_CHROOT, which its calls drop after they begin.

    Made before the fork, so that calls write to less memory, which would be copied.
    """

    __slots__ = ("_header", "_none")

    def __init__(self) -> None:
        self._header = ctypes.c_char_p(_CAPABILITY_HEADER)
        self._none = ctypes.c_char_p(bytes(24))

    def drop(self) -> None:
        """Drop the capability permanently."""
        _check(_capset(self._header, self._none), "drop the capability to change the root directory")


def forbid_new_privileges() -> None:
    """Set no_new_privs: programs that this process executes get no more rights than it has."""
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0), "set no_new_privs")


class Filter:
    """A seccomp filter that is ready to be installed.

    Args:
        program: the filter, compiled to BPF.
    """

    __slots__ = ("_address", "_kept", "_made")

    def __init__(self, program: bytes) -> None:
        instructions = ctypes.create_string_buffer(program, len(program))
        made = _Program(len(program) // _INSTRUCTION_BYTES, ctypes.addressof(instructions))
        self._kept = (instructions, made)
        self._made = ctypes.byref(made)
        self._address = ctypes.addressof(made)

    def install(self) -> None:
        """Install the filter on this process and all that it forks."""
        _check(_prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._address, 0, 0), "install the seccomp filter")

    def install_judged(self, seccomp: int) -> int:
        """Install the filter, and return a descriptor for judging the system calls that it reports.

        Args:
            seccomp: number of the system call seccomp, for which the C library has no function.
        """
        for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
            descriptor: int = _libc.syscall(
                ctypes.c_long(seccomp), ctypes.c_uint(_SECCOMP_SET_MODE_FILTER), ctypes.c_uint(flags), self._made
            )
            if descriptor >= 0:
                return descriptor
        _check(descriptor, "install the seccomp filter with a listener")
        return descriptor


def map_own_ids(proc: int, inside: int, uid: int, gid: int) -> None:
    """Map a single user and group id in the user namespace that this process has just entered.

    Args:
        proc: descriptor of a ``/proc`` that contains this process.
        inside: user and group id inside the namespace.
        uid: user id of this process in the parent namespace.
        gid: group id of this process in the parent namespace.
    """
    _write(proc, "self/setgroups", "deny")
    _write(proc, "self/uid_map", f"{inside} {uid} 1")
    _write(proc, "self/gid_map", f"{inside} {gid} 1")


def limit_pids(proc: int, most: int) -> bool:
    """Bound the pids of this process's pid namespace; return False if the kernel cannot (before Linux 6.14)."""
    try:
        _write(proc, "sys/kernel/pid_max", str(most))
    except OSError:
        return False
    return True


def forbid_counted(proc: int, mounts: int) -> None:
    """Forbid new objects that the kernel counts per user, in this process's user namespace.

    These are namespaces, and instances and watches of inotify and fanotify.

    Args:
        proc: descriptor of a ``/proc``.
        mounts: how many copies of mounts are still allowed; each counts as a mount namespace.
    """
    directory = os.open("sys/user", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        for name in os.listdir(directory):
            _write(directory, name, str(mounts) if name == "max_mnt_namespaces" else "0")
    finally:
        os.close(directory)


def join_pages(proc: int) -> None:
    """Ask the kernel to move this process's anonymous memory into huge pages (since Linux 6.1).

    The memory stays shared with forked processes, and is still copied in small pages. But since Linux 6.9, a fork
    copies and an exit drops the entries of neighbouring small pages together, which makes both a fifth faster.

    Args:
        proc: descriptor of a ``/proc`` that contains this process.
    """
    for area, rights, path in _mappings(proc):
        begin, end = (int(address, 16) for address in area.split("-"))
        begin, end = -(-begin // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES, end // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
        if rights == "rw-p" and not path and begin < end:
            _madvise(begin, end - begin, _MADV_COLLAPSE)  # only advice: the kernel may ignore it


def hand_down_pages(proc: int, names: tuple[str, ...]) -> None:
    """Let forked processes inherit the mapped pages of code, where the kernel permits it.

    At a fork, the kernel does not copy the page table of a file's mapping, and the child has a page fault for every
    sixteen pages, unless the process has a private copy of a page in it. Therefore this makes one private page in each
    mapping by overwriting a byte with itself, through ``/proc/self/mem``.

    Args:
        proc: descriptor of a ``/proc`` that contains this process.
        names: beginnings of the names of the files.
    """
    with contextlib.suppress(OSError):  # only an optimisation: some kernels forbid such writes
        memory = os.open("self/mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=proc)
        try:
            for area, rights, path in _mappings(proc):
                if rights[1] == "-" and path.rpartition("/")[2].startswith(names):
                    begin = int(area.split("-")[0], 16)
                    os.pwrite(memory, os.pread(memory, 1, begin), begin)
        finally:
            os.close(memory)


def _mappings(proc: int) -> list[tuple[str, str, str]]:
    """Return addresses, rights and file name of each mapping; the name is empty for anonymous memory."""
    with open("self/maps", opener=lambda name, flags: os.open(name, flags, dir_fd=proc)) as maps:
        lines = [line.split(None, 5) for line in maps]
    return [(line[0], line[1], line[5].rstrip() if line[4] != "0" else "") for line in lines]


def close_all_but(kept: set[int]) -> None:
    """Close all descriptors from 3 on except those in ``kept``."""
    start = 3
    for descriptor in sorted(kept | {2}):
        if descriptor >= start:
            os.closerange(start, descriptor)
            start = descriptor + 1
    os.closerange(start, descriptors_end())


def to_null(*descriptors: int) -> None:
    """Connect descriptors to ``/dev/null``."""
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    if null not in descriptors:
        os.close(null)


def descriptors_end() -> int:
    """Return a number higher than all descriptors of this process."""
    return max(os.sysconf("SC_OPEN_MAX"), 1024)


def _write(directory: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _check(status: int, doing: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")
