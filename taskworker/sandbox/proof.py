"""Checks from outside that a process is confined, before the host gives it anything to run."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from taskworker.sandbox.errors import FunctionBroken, SandboxUnavailable

NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
_CREDENTIALS = struct.Struct("=3i")
_DESCRIPTOR = struct.Struct("=i")
_STATUS_BYTES = 16 << 10
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_OF_ZYGOTE = ("CapPrm", "CapEff")
_LINKS_OF_DIRECTORY = 2
_CHROOT = 1 << 18
"""CAP_SYS_CHROOT, the only one of these that a zygote has: its calls begin by changing their root directory."""
_NONE_OF_CALL = b"\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"


def receive_with_pid(connection: socket.socket, most: int) -> tuple[bytes, int]:
    """Receive a message and the pid of its sender, as the kernel reports it, in this process's pid namespace.

    ``SO_PASSCRED`` must have been set on the socket before. Without credentials, the pid is 0.
    """
    data, ancillary, _, _ = connection.recvmsg(most, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return data, _CREDENTIALS.unpack(content)[0]
    return data, 0


def receive_with_descriptor(connection: socket.socket, most: int) -> tuple[bytes, int, int]:
    """Like `receive_with_pid`, and also return a descriptor that came with the message; -1 for none."""
    room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_LEN(_DESCRIPTOR.size)
    data, ancillary, _, _ = connection.recvmsg(most, room, socket.MSG_CMSG_CLOEXEC)
    pid, descriptor = 0, -1
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(content)[0]
        elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            (descriptor,) = _DESCRIPTOR.unpack(content)
    return data, pid, descriptor


def namespaces_of(pid: int | str) -> Mapping[str, str]:
    """Return the identity of each namespace of a process."""
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}


def require_confined(pid: int, filters: int) -> Mapping[str, str]:
    """Check that a zygote is confined, and return its namespaces.

    Args:
        pid: process id of the zygote, on this machine.
        filters: how many seccomp filters it must have at least.

    Raises:
        SandboxUnavailable: it has a right that it must not have; the text says which.
    """
    try:
        status = status_of(pid)
        namespaces = namespaces_of(pid)
    except OSError as error:
        raise SandboxUnavailable(f"a sandboxed process could not be inspected: {error}") from error
    wrong = [
        f"{name} is {status.get(name)}"
        for name in _CAPABILITIES
        if int(status.get(name, "1"), 16) & ~(_CHROOT if name in _OF_ZYGOTE else 0)
    ]
    if status.get("Seccomp") != "2":
        wrong.append(f"Seccomp is {status.get('Seccomp')}")
    if "Seccomp_filters" in status and int(status["Seccomp_filters"]) < filters:
        wrong.append(f"Seccomp_filters is {status['Seccomp_filters']}, not {filters}")
    if status.get("NoNewPrivs") != "1":
        wrong.append(f"NoNewPrivs is {status.get('NoNewPrivs')}")
    own = namespaces_of("self")
    wrong += [f"its {name} namespace is the worker's own" for name in NAMESPACES if own[name] == namespaces[name]]
    if wrong:
        raise SandboxUnavailable(f"a sandboxed process is not confined: {', '.join(wrong)}; it was ended")
    return namespaces


def require_other_user(pid: int) -> None:
    """Check that a process shares no user or group id with this one.

    Raises:
        SandboxUnavailable: it shares one, or has supplementary groups.
    """
    status = status_of(pid)
    own = {"Uid": {os.getuid(), os.geteuid()}, "Gid": {os.getgid(), os.getegid()}}
    shared = any(ids & set(map(int, status[kind].split())) for kind, ids in own.items())
    if shared or status["Groups"]:
        raise SandboxUnavailable(
            "a sandboxed process has a user or group id of the worker's, or further groups; it was ended"
        )


def status_of(pid: int) -> dict[str, str]:
    """Return ``/proc/PID/status`` as a mapping."""
    lines = _status(pid).decode(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def numbers_of(pid: int, *fields: bytes) -> list[int | None]:
    """Return numbers from ``/proc/PID/status``; None for fields that the kernel does not report.

    Faster than `status_of`, as this runs for every call: a mapping of sixty fields takes longer to build than to read.
    """
    return _numbers_in(_status(pid), *fields)


def threads_of(pid: int) -> int:
    """Count the threads of a process, faster than by reading its status."""
    return os.stat(f"/proc/{pid}/task").st_nlink - _LINKS_OF_DIRECTORY  # noqa: PTH116 - runs several times a call


def descriptors_of(pid: int) -> int:
    """Count the open descriptors of a process."""
    path = f"/proc/{pid}/fd"
    counted = os.stat(path).st_size  # noqa: PTH116 - as above
    return counted or len(os.listdir(path))  # before Linux 6.2, it is 0


def _numbers_in(status: bytes, *fields: bytes) -> list[int | None]:
    rests = (status.partition(b"\n" + field + b":")[2] for field in fields)
    return [int(rest.split(None, 1)[0]) if rest else None for rest in rests]


def _status(pid: int) -> bytes:
    descriptor = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _STATUS_BYTES)
    finally:
        os.close(descriptor)


def require_confined_call(pid: int, filters: int) -> None:
    """Check that a call's process has installed its second filter and has no capabilities.

    Everything else is inherited from its zygote, which was checked by `require_confined`.

    Raises:
        SandboxUnavailable: a filter is missing, or a capability is left.
    """
    status = _status(pid)
    found, mode = _numbers_in(status, b"Seccomp_filters", b"Seccomp")
    if found is None:  # before Linux 5.9, the number of filters is not reported
        found = filters if mode == 2 else 0
    if found < filters:
        raise SandboxUnavailable(f"a call's process has {found} seccomp filters, not {filters}")
    if _NONE_OF_CALL not in status:
        raise SandboxUnavailable("a call's process has capabilities")


def require_closed(pid: int) -> None:
    """Check that a zygote has no descriptors except its socket and ``/dev/null``.

    Raises:
        SandboxUnavailable: it has another one.
    """
    for name in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        if target != "/dev/null" and not target.startswith("socket:"):
            raise SandboxUnavailable(f"a sandboxed process holds {target}; it was ended")


def require_alone(zygote: int, init: int) -> None:
    """Check that the import of user code has left no threads, which forked calls would lack, and no processes.

    Raises:
        FunctionBroken: a thread or a process is left.
    """
    require_one_thread(zygote)
    if processes_below(init) - {zygote, init}:
        raise FunctionBroken("the function's code starts processes while it is imported, which is not allowed")


def require_one_thread(zygote: int) -> None:
    """Check that a zygote has a single thread.

    Raises:
        FunctionBroken: it has more.
    """
    if threads_of(zygote) != 1:
        raise FunctionBroken(
            "the function's code starts threads while it is imported, which its calls would lack: start them "
            "in the function itself"
        )


def processes_below(init: int) -> set[int]:
    """Return the process ids of a function: its init and all descendants."""
    found, unvisited = {init}, [init]
    while unvisited:
        pid = unvisited.pop()
        with contextlib.suppress(OSError):  # the process has ended
            for task in os.listdir(f"/proc/{pid}/task"):
                children = {int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()}
                unvisited += children - found
                found |= children
    return found


def pss_bytes(pid: int) -> int:
    """Return a process's share of memory (proportional set size); 0 if the process has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
