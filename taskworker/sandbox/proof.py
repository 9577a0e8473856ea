"""Looks from outside whether a process is as confined as it should be, before it is trusted with anything."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from taskworker.sandbox.errors import SandboxUnavailable

NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
_CREDENTIALS = struct.Struct("=3i")
_NO_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def receive_with_pid(connection: socket.socket, most: int) -> tuple[bytes, int]:
    """Receive, and say which process sent it, as the kernel knows it; the pid is of this process's namespace.

    ``SO_PASSCRED`` must have been set on the socket before.
    """
    data, ancillary, _, _ = connection.recvmsg(most, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return data, _CREDENTIALS.unpack(content)[0]
    return data, 0


def namespaces_of(pid: int | str) -> Mapping[str, str]:
    """Give the identity of each namespace of a process."""
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}


def require_confined(pid: int, filters: int) -> Mapping[str, str]:
    """Check a process and give its namespaces.

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
    wrong = [f"{name} is {status.get(name)}" for name in _NO_CAPABILITIES if int(status.get(name, "1"), 16) != 0]
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


def status_of(pid: int) -> dict[str, str]:
    """Give ``/proc/PID/status`` as a mapping."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def require_filters(pid: int, filters: int) -> None:
    """Check that a call's process has put its second filter on; what its zygote lacks, it cannot have.

    Raises:
        SandboxUnavailable: it has not.
    """
    status = status_of(pid)
    if status.get("Seccomp") != "2" or int(status.get("Seccomp_filters", filters)) < filters:
        raise SandboxUnavailable(f"a call's process has {status.get('Seccomp_filters')} seccomp filters, not {filters}")
