"""A function's init: process 1 of its namespaces. Trusted; it alone may mount there.

It forks the zygote, puts the function's code at ``/code`` and the other bundles out of sight, and from then on
makes the root directories of calls: each is a copy of the function's mounts with an empty directory in memory at
``/tmp``, attached nowhere, so that no process but one that is given its descriptor can reach it, whatever it knows.
The kernel unmounts it with the last process in it. When init ends, by the host's hand or because the zygote ended,
the kernel ends everything in the namespace.
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
"""That come with a start: the init's socket, the zygote's, the document, and the three filters."""
MESSAGE_BYTES_MAX = 64 << 10
"""Of what the host says of a function."""
START = b"s"
"""What the base is told; the socket of the init has the rest."""
BUNDLES = "/bundles"
CODE = "/code"
DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
"""The machine's own. No ``zero``: mapped shared, it would be memory that calls have in common."""
SCRATCH = "/tmp"
"""Each call's own; in the zygote it is an empty directory of the root, which is read-only."""
NAME_CHARS = 16
"""Of the number, in hex, that a call's process is named by among host, init and zygote. It is no secret."""
MOUNT = b"M"
REFUSED = b"r"
"""With the name and the reason: there was no room for a root directory."""
NOT_STARTED = b"f"
"""With an error number and a text, instead of anything else: the function's processes could not be started."""
MOUNTED = b"m"
"""With a descriptor of the root directory."""
ZYGOTE_ENDED = b"e"
"""The last that the init says, if it ends because its zygote did; whatever the zygote said was sent before."""
BOUNDED = b"b"
UNBOUNDED = b"u"
"""What the init says first: whether the kernel bounds the pids of its namespace."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the host says first of a function to start, on the socket of its init. All its processes inherit it.

    Attributes:
        result_bytes: how large a result may be.
        pids: the bound of the function's pid namespace, where the kernel has such a bound.
        uid: the user and group id of its processes, as the base knows them; 0: those of the base.
        seccomp: number of that system call, if the host judges what processes start; else 0.
    """

    result_bytes: int
    pids: int
    uid: int
    seccomp: int


@dataclass(frozen=True, slots=True)
class Place:
    """What the host says next, which the init reads once it has forked the zygote: so calls know nothing of it.

    Attributes:
        code: the bundle's directory, relative to the bundles'; empty for none.
        disk_bytes: the size of each call's directory for scratch files.
        files: how many files and directories it may hold.
    """

    code: str
    disk_bytes: int
    files: int


Zygote = Callable[[Start, int, int, int, int, int], None]


def main(start: Start, descriptors: list[int], proc: int, zygote: Zygote) -> None:
    """Set the namespace up, fork the zygote and serve; does not return."""
    own, to_zygote, document, *filters = descriptors
    bounded = kernel.limit_pids(proc, start.pids)
    child = os.fork()
    if child == 0:
        os.close(own)
        os.close(proc)
        zygote(start, to_zygote, document, *filters)
    place = Place(**json.loads(os.read(own, MESSAGE_BYTES_MAX)))
    _mount_all(place.code)  # before the host, which waits for a word of this process, lets the zygote go on
    kernel.unshare(kernel.CLONE_NEWNS)  # the zygote does not see what is mounted from here on
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
    """Mount what the function sees."""
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    for device in DEVICES:
        kernel.make_read_only(device)
    if code:
        kernel.mount(f"{BUNDLES}/{code}", CODE, "", kernel.MS_BIND)
    hidden = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("none", BUNDLES, "tmpfs", hidden, "size=4k,nr_inodes=2,mode=0111")


def _serve(connection: socket.socket, place: Place) -> None:
    """Make a root directory for every message, until the host hangs up."""
    options = f"size={place.disk_bytes},nr_inodes={place.files},mode=0700"
    while message := connection.recv(1 + NAME_CHARS):
        try:
            root = _root_with_scratch(options)
        except OSError as error:  # there are calls to go on, and there may be room again
            connection.send(REFUSED + message[1:] + str(error).encode())
            continue
        socket.send_fds(connection, [MOUNTED + message[1:]], [root])
        os.close(root)
    os._exit(0)


def _root_with_scratch(options: str) -> int:
    """Give a descriptor of a root directory of which there is no other one."""
    kernel.mount("none", SCRATCH, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
    try:
        return kernel.copy_mounts("/")
    finally:
        kernel.unmount(SCRATCH)


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
