"""The program that starts bubblewrap within bounds that hold for all sandboxes of a worker together.

What processes in a user namespace take of limits that the kernel counts for each user (processes, signals that wait)
counts for whoever made the namespace as well, up to the limits that it was made with. So a process with lower limits
than the worker's makes it. A worker run as root also maps ids into it that are not root's. Those are steps for a
process with one thread: this one runs by its path in an interpreter of its own, and imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

SHARE_OF_USER = 3, 4
"""Of a limit that counts all processes of the worker's user, what its sandboxes may fill; the rest is the worker's."""
_CLONE_NEWUSER = 0x1000_0000
_CAP_SETGID, _CAP_SETUID, _CAP_SETFCAP = 6, 7, 31
NEEDED = 1 << _CAP_SETGID | 1 << _CAP_SETUID | 1 << _CAP_SETFCAP
"""Capabilities for giving sandboxes user ids of their own."""


def command(ids: range | None, bubblewrap: Sequence[str]) -> list[str]:
    """Give the command that starts bubblewrap.

    Args:
        ids: user and group ids on this machine that sandboxes are to have; None: they have the worker's own.
        bubblewrap: its command; with ``ids``, for a process that is root of a namespace in which ``ids`` are the
            ids from 1 on.
    """
    plan = json.dumps(None if ids is None else [ids.start, len(ids)])
    return [sys.executable, "-I", "-S", "-B", str(Path(__file__).resolve()), plan, *bubblewrap]


def main() -> NoReturn:
    """Bound this process, enter the namespace if there is to be one, and become bubblewrap."""
    leave_a_share(resource.RLIMIT_SIGPENDING)
    leave_a_share(resource.RLIMIT_NPROC)  # which the kernel does not hold root to
    if (ids := json.loads(sys.argv[1])) is not None:
        _enter_namespace(*ids)
    os.execv(sys.argv[2], sys.argv[2:])


def leave_a_share(kind: int) -> None:
    """Lower a limit for good, so that sandboxes cannot use up what the worker's user may have of it."""
    soft, _ = resource.getrlimit(kind)
    if soft != resource.RLIM_INFINITY:
        part, whole = SHARE_OF_USER
        resource.setrlimit(kind, (soft * part // whole,) * 2)


def _enter_namespace(first: int, count: int) -> None:
    """Enter a user namespace with ids from ``first`` on besides root's own, and be its root.

    Maps of ids that are not this process's own may only be written by who stays outside: a child does.
    """
    os.setgroups([])
    entered, tell_entered = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(tell_entered)
        _map_when(entered, first, count)
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER) != 0:
        sys.exit(f"a user namespace could not be made: {os.strerror(ctypes.get_errno())}")
    os.write(tell_entered, b"x")
    os.close(tell_entered)
    os.close(entered)
    _, status = os.waitpid(mapper, 0)
    if status != 0:
        sys.exit("the ids of the sandboxes could not be mapped")


def _map_when(entered: int, first: int, count: int) -> NoReturn:
    status = 1
    try:
        if os.read(entered, 1):
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{os.getppid()}/{name}").write_text(f"0 0 1\n1 {first} {count}\n")
            status = 0
    except OSError as error:
        sys.stderr.write(f"{error}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
