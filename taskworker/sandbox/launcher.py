"""The program that starts bubblewrap with limits on all sandboxes of a worker together.

The kernel counts some resources per user, such as processes and pending signals. What processes in a user namespace
use also counts for the user who made the namespace, up to the limits of the process that made it. Therefore a process
with lower limits than the worker's makes the namespace. For a worker run as root, it also maps ids other than root's
into the namespace. These steps need a process with a single thread: this program is run by its path in its own
interpreter, and imports nothing else of this project.
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
"""The fraction of a per-user limit that sandboxes may use; the rest is left to the worker."""
_CLONE_NEWUSER = 0x1000_0000
_CAP_SETGID, _CAP_SETUID, _CAP_SETFCAP = 6, 7, 31
NEEDED = 1 << _CAP_SETGID | 1 << _CAP_SETUID | 1 << _CAP_SETFCAP
"""Capabilities that a worker needs to give sandboxes user ids of their own."""


def command(ids: range | None, bubblewrap: Sequence[str]) -> list[str]:
    """Return the command that starts bubblewrap through this program.

    Args:
        ids: user and group ids on this machine for the sandboxes; None: they have the worker's own.
        bubblewrap: the command of bubblewrap. With ``ids``, it runs as root of a user namespace in which ``ids`` are
            mapped to 1 and up.
    """
    plan = json.dumps(None if ids is None else [ids.start, len(ids)])
    return [sys.executable, "-I", "-S", "-B", str(Path(__file__).resolve()), plan, *bubblewrap]


def main() -> NoReturn:
    """Lower this process's limits, enter the user namespace if ids are given, and execute bubblewrap."""
    leave_a_share(resource.RLIMIT_SIGPENDING)
    leave_a_share(resource.RLIMIT_NPROC)  # the kernel does not apply this one to root
    if (ids := json.loads(sys.argv[1])) is not None:
        _enter_namespace(*ids)
    os.execv(sys.argv[2], sys.argv[2:])


def leave_a_share(kind: int) -> None:
    """Lower a limit permanently, so that sandboxes cannot use up all that the worker's user may have."""
    soft, _ = resource.getrlimit(kind)
    if soft != resource.RLIM_INFINITY:
        part, whole = SHARE_OF_USER
        resource.setrlimit(kind, (soft * part // whole,) * 2)


def _enter_namespace(first: int, count: int) -> None:
    """Enter a user namespace as its root, with ``count`` ids from ``first`` on mapped besides root's own.

    Only a process outside the namespace may map ids other than this process's own: a forked child does it.
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
