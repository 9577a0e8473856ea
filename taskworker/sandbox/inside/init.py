"""A function's init: process 1 of its pid namespace. It runs trusted code only, and only it may mount there.

It forks the zygote, mounts the function's code at ``/code`` and hides all other bundles. Then it makes the root
directories of calls. Each is a copy of the function's mounts with an empty in-memory directory at ``/tmp``. The copy is
attached nowhere, so only a process that is given its descriptor can reach it. The kernel unmounts it when its last
process ends. When init ends, because the host kills it or because the zygote has ended, the kernel kills everything in
the namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from taskworker.sandbox.inside import kernel

NAMESPACES = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWNET
DESCRIPTORS = 6
"""Descriptors that come with a start: init's socket, the zygote's socket, the document, and the three filters."""
MESSAGE_BYTES_MAX = 64 << 10
"""Size of the host's messages about a function."""
START = b"s"
"""Message to the base; everything else is on the socket of the function's init."""
BUNDLES = "/bundles"
CODE = "/code"
DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
"""Devices of the machine that sandboxes have. Not ``zero``: calls could share memory by mapping it."""
SCRATCH = "/tmp"
"""Every call has its own; in the zygote it is an empty directory of the read-only root."""
NAME_CHARS = 16
"""Length of the name of a call's process, a hexadecimal number that host, init and zygote use. Not a secret."""
MOUNT = b"M"
REFUSED = b"r"
"""Sent with the name and the reason: there was no room for a root directory."""
NOT_STARTED = b"f"
"""Sent alone, with an error number and a text: the function's processes could not be started."""
MOUNTED = b"m"
"""Sent with the name and a descriptor of the root directory."""
ZYGOTE_ENDED = b"e"
"""Init's last message if it ends because its zygote did; all messages of the zygote were sent before."""
BOUNDED = b"b"
UNBOUNDED = b"u"
"""Init's first message: whether the kernel bounds the number of processes in its namespace."""


@dataclass(frozen=True, slots=True)
class Start:
    """The host's first message about a function, on the socket of its init. All of its processes inherit it.

    Attributes:
        result_bytes: the largest size of a result.
        pids: bound on the pids of the function's namespace, where the kernel has such a bound.
        uid: user and group id of its processes, in the base's namespace; 0: those of the base.
        seccomp: number of the system call seccomp if the host judges starts of threads and timers; otherwise 0.
    """

    result_bytes: int
    pids: int
    uid: int
    seccomp: int


@dataclass(frozen=True, slots=True)
class Place:
    """The host's second message. Init reads it after it has forked the zygote, so that calls do not inherit it.

    Attributes:
        code: the bundle's directory, relative to the directory of bundles; empty for none.
        disk_bytes: size of each call's scratch directory.
        files: how many files and directories the scratch directory may contain.
    """

    code: str
    disk_bytes: int
    files: int


Zygote = Callable[[Start, int, int, int, int, int], None]


def main(start: Start, descriptors: list[int], proc: int, zygote: Zygote) -> None:
    """Set up the namespace, fork the zygote, and make root directories for calls; does not return."""
    own, to_zygote, document, *filters = descriptors
    bounded = kernel.limit_pids(proc, start.pids)
    child = os.fork()
    if child == 0:
        os.close(own)
        os.close(proc)
        zygote(start, to_zygote, document, *filters)
    place = Place(**json.loads(os.read(own, MESSAGE_BYTES_MAX)))
    _mount_all(place.code)  # before this process reports to the host, which then lets the zygote go on
    kernel.unshare(kernel.CLONE_NEWNS)  # later mounts are invisible to the zygote
    kernel.forbid_counted(proc, mounts=start.pids)
    os.close(proc)
    for descriptor in (to_zygote, document, *filters):
        os.close(descriptor)
    connection = socket.socket(fileno=own)
    signal.signal(signal.SIGCHLD, lambda *_: _reap(child, connection))
    _reap(child, connection)
    connection.send(BOUNDED if bounded else UNBOUNDED)
    _serve(connection, place)


def _mount_all(code: str) -> None:
    """Make devices read-only, mount the function's code, and hide the bundles."""
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    for device in DEVICES:
        kernel.make_read_only(device)
    if code:
        kernel.mount(f"{BUNDLES}/{code}", CODE, "", kernel.MS_BIND)
    hidden = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("none", BUNDLES, "tmpfs", hidden, "size=4k,nr_inodes=2,mode=0111")


def _serve(connection: socket.socket, place: Place) -> None:
    """Make a root directory for each message, until the host hangs up."""
    options = f"size={place.disk_bytes},nr_inodes={place.files},mode=0700"
    while message := connection.recv(1 + NAME_CHARS):
        try:
            root = _root_with_scratch(options)
        except OSError as error:  # running calls go on, and there may be room later
            connection.send(REFUSED + message[1:] + str(error).encode())
            continue
        socket.send_fds(connection, [MOUNTED + message[1:]], [root])
        os.close(root)
    os._exit(0)


def _root_with_scratch(options: str) -> int:
    """Make a root directory that is attached nowhere; return its only descriptor."""
    kernel.mount("none", SCRATCH, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
    try:
        return kernel.copy_mounts("/")
    finally:
        kernel.unmount(SCRATCH)


def _reap(zygote: int, connection: socket.socket) -> None:
    """Reap orphaned processes; end if the zygote has ended."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            if ended == zygote:
                with contextlib.suppress(OSError):  # the host may have hung up
                    connection.send(ZYGOTE_ENDED, socket.MSG_NOSIGNAL)
                os._exit(0)
    except ChildProcessError:
        sys.exit(0)
