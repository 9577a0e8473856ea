"""Looks from outside whether a process is as confined as it should be, before it is trusted with anything."""

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
"""What a zygote has of these, for its calls to begin with: to change the root directory."""
_NONE_OF_CALL = b"\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"


def receive_with_pid(connection: socket.socket, most: int) -> tuple[bytes, int]:
    """Receive, and say which process sent it, as the kernel knows it; the pid is of this process's namespace.

    ``SO_PASSCRED`` must have been set on the socket before.
    """
    data, ancillary, _, _ = connection.recvmsg(most, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return data, _CREDENTIALS.unpack(content)[0]
    return data, 0


def receive_with_descriptor(connection: socket.socket, most: int) -> tuple[bytes, int, int]:
    """As `receive_with_pid`, with a descriptor that came along; -1 for none."""
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
    """Give the identity of each namespace of a process."""
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}


def require_confined(pid: int, filters: int) -> Mapping[str, str]:
    """Check a zygote and give its namespaces.

    Args:
        pid: of the process, on this machine.
        filters: how many seccomp filters it must have.

    Raises:
        SandboxUnavailable: it has a right that it should not have; the text says which.
    """
    try:
        status = status_of(pid)
        namespaces = namespaces_of(pid)
    except OSError as error:
        raise SandboxUnavailable(f"a sandboxed process could not be looked at: {error}") from error
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
    """Check that a process has no user or group id in common with this one.

    Raises:
        SandboxUnavailable: it has.
    """
    status = status_of(pid)
    own = {"Uid": {os.getuid(), os.geteuid()}, "Gid": {os.getgid(), os.getegid()}}
    shared = any(ids & set(map(int, status[kind].split())) for kind, ids in own.items())
    if shared or status["Groups"]:
        raise SandboxUnavailable(
            "a sandboxed process has a user or group id of the worker's, or further groups; it was ended"
        )


def status_of(pid: int) -> dict[str, str]:
    """Give ``/proc/PID/status`` as a mapping."""
    lines = _status(pid).decode(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def numbers_of(pid: int, *fields: bytes) -> list[int | None]:
    """Give numbers of ``/proc/PID/status``, None where the kernel does not say one.

    Every call is looked at: to make a mapping of sixty fields for some of them takes longer than to read them.
    """
    return _numbers_in(_status(pid), *fields)


def threads_of(pid: int) -> int:
    """Count the threads of a process: quicker than to have the kernel write its status."""
    return os.stat(f"/proc/{pid}/task").st_nlink - _LINKS_OF_DIRECTORY  # noqa: PTH116 - several times a call


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
    """Check that a call's process has put its second filter on and has no capability; the rest is its zygote's.

    Raises:
        SandboxUnavailable: it has not, or has one.
    """
    status = _status(pid)
    found, mode = _numbers_in(status, b"Seccomp_filters", b"Seccomp")
    if found is None:  # before Linux 5.9: one filter looks like two
        found = filters if mode == 2 else 0
    if found < filters:
        raise SandboxUnavailable(f"a call's process has {found} seccomp filters, not {filters}")
    if _NONE_OF_CALL not in status:
        raise SandboxUnavailable("a call's process has capabilities")


def require_closed(pid: int) -> None:
    """Check that a zygote has no descriptor but its socket and ``/dev/null``.

    Raises:
        SandboxUnavailable: it has another.
    """
    for name in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        if target != "/dev/null" and not target.startswith("socket:"):
            raise SandboxUnavailable(f"a sandboxed process holds {target}; it was ended")


def require_alone(zygote: int, init: int) -> None:
    """Check what the import of user code has left: no threads, which calls would not have, and no processes.

    Raises:
        FunctionBroken: it has left some.
    """
    require_one_thread(zygote)
    if processes_below(init) - {zygote, init}:
        raise FunctionBroken("the function's code starts processes while it is imported, which it may not")


def require_one_thread(zygote: int) -> None:
    """Check that a zygote runs nothing beside its own loop.

    Raises:
        FunctionBroken: it does.
    """
    if threads_of(zygote) != 1:
        raise FunctionBroken(
            "the function's code starts threads while it is imported, which its calls would not have: start them "
            "in the function itself"
        )


def processes_below(init: int) -> set[int]:
    """Name the processes of a function: its init, what it forked, and what those forked."""
    found, unvisited = {init}, [init]
    while unvisited:
        pid = unvisited.pop()
        with contextlib.suppress(OSError):  # ended meanwhile
            for task in os.listdir(f"/proc/{pid}/task"):
                children = {int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()}
                unvisited += children - found
                found |= children
    return found


def pss_bytes(pid: int) -> int:
    """A process's share of memory (proportional set size); 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
