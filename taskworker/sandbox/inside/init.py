"""A function's init: process 1 of its namespaces. Trusted; it alone may mount there.

It puts the function's code at ``/code`` and the other bundles out of sight, forks the zygote, and from then on
mounts and unmounts the private directories of calls. When it ends, by the host's hand or because the zygote
ended, the kernel ends everything in the namespace.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from taskworker.sandbox.inside import kernel

NAMESPACES = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWNET
DESCRIPTORS = 5
"""That come with a start: the init's socket, the zygote's, the document, and the two filters."""
BUNDLES = "/bundles"
CODE = "/code"
CALLS = "/tmp"
NAME_CHARS = 32
"""Of a private directory: 128 bits in hex, not to be guessed."""
MOUNT = b"M"
DROP = b"D"
MOUNTED = b"m"
ZYGOTE_ENDED = b"e"
"""The last that the init says, if it ends because its zygote did; whatever the zygote said was sent before."""
BOUNDED = b"b"
UNBOUNDED = b"u"
"""What the init says first: whether the kernel bounds the pids of its namespace."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the host says of a function to start.

    Attributes:
        code: the bundle's directory, relative to the bundles'; empty for none.
        disk_bytes: the size of each call's private directory.
        files: how many files and directories it may hold.
        result_bytes: how large a result may be.
        pids: the bound of the function's pid namespace, where the kernel has such a bound.
    """

    code: str
    disk_bytes: int
    files: int
    result_bytes: int
    pids: int


Zygote = Callable[[Start, int, int, int, int], None]


def main(start: Start, descriptors: list[int], proc: int, zygote: Zygote) -> None:
    """Set the namespace up, fork the zygote and serve; does not return."""
    own, to_zygote, document, *filters = descriptors
    bounded = kernel.limit_pids(proc, start.pids)
    os.close(proc)
    calls = _mount_all(start)
    child = os.fork()
    if child == 0:
        os.close(own)
        os.close(calls)
        zygote(start, to_zygote, document, *filters)
    for descriptor in (to_zygote, document, *filters):
        os.close(descriptor)
    connection = socket.socket(fileno=own)
    signal.signal(signal.SIGCHLD, lambda *_: _reap(child, connection))
    _reap(child, connection)
    connection.send(BOUNDED if bounded else UNBOUNDED)
    _serve(connection, calls, start)


def _mount_all(start: Start) -> int:
    """Mount what the function sees; give a descriptor of the directory of private directories.

    That one is mounted twice: writable through the descriptor only, and read-only, not to be listed, at
    ``/tmp``, so that nothing without the descriptor can make, remove or find a name in it.
    """
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    if start.code:
        kernel.mount(f"{BUNDLES}/{start.code}", CODE, "", kernel.MS_BIND)
    hidden = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("none", BUNDLES, "tmpfs", hidden, "size=4k,nr_inodes=2,mode=0111")
    private = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("none", CALLS, "tmpfs", private, "size=64k,mode=0311")
    writable = os.open(CALLS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    kernel.mount(CALLS, CALLS, "", kernel.MS_BIND)
    kernel.mount("", CALLS, "", kernel.MS_BIND | kernel.MS_REMOUNT | hidden)
    return writable


def _serve(connection: socket.socket, calls: int, start: Start) -> None:
    while message := connection.recv(1 + NAME_CHARS):
        name = message[1:].decode()
        if message[:1] == MOUNT:
            os.mkdir(name, 0o700, dir_fd=calls)
            flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
            kernel.mount(
                "none",
                f"{CALLS}/{name}",
                "tmpfs",
                flags,
                f"size={start.disk_bytes},nr_inodes={start.files},mode=0700",
            )
            connection.send(MOUNTED + message[1:])
        else:
            kernel.unmount(f"{CALLS}/{name}")
            os.rmdir(name, dir_fd=calls)
    os._exit(0)


def _reap(zygote: int, connection: socket.socket) -> None:
    """Reap what was left to this process; without its zygote, it ends."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            if ended == zygote:
                with contextlib.suppress(OSError):  # the host may have hung up
                    connection.send(ZYGOTE_ENDED, socket.MSG_NOSIGNAL)
                os._exit(0)
    except ChildProcessError:
        sys.exit(0)
