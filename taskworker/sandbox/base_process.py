"""The host's handle on the base: starts it, has it start functions, and ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from taskworker.sandbox import bubblewrap, runtime_root
from taskworker.sandbox.errors import SandboxUnavailable
from taskworker.sandbox.inside.init import START

_READY_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


class BaseProcess:
    """A running base.

    The kernel kills the base when the thread that created it ends, so create it in a thread that lives long enough.

    Args:
        bwrap: path of bubblewrap.
        bundles: directory of all bundles.
        ids: user and group ids on this machine for the sandboxes; None: they have the worker's own.

    Raises:
        SandboxUnavailable: the base could not be started; the text quotes bubblewrap and says what to do.
    """

    def __init__(self, bwrap: str, bundles: Path, ids: range | None) -> None:
        self._root = runtime_root.take(bundles)
        try:
            self.controls, self._process = self._started(bwrap, bundles, ids)
        except BaseException:
            self._root.close()
            raise
        self._said: list[str] = []
        self._listener = threading.Thread(target=self._listen, name="sandbox-base-errors", daemon=True)
        self._listener.start()
        self._await_ready()

    def _started(
        self, bwrap: str, bundles: Path, ids: range | None
    ) -> tuple[tuple[socket.socket, ...], subprocess.Popen[bytes]]:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in ("lean", "complete")]
        controls, theirs = tuple(own for own, _ in pairs), [other for _, other in pairs]
        numbers = [other.fileno() for other in theirs]
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        try:
            os.set_inheritable(proc, True)
            process = subprocess.Popen(
                bubblewrap.command(bwrap, self._root, bundles, numbers, proc, ids),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(*numbers, proc),
                cwd="/",
                env={},
            )
        except BaseException:
            for control in controls:
                control.close()
            raise
        finally:
            for other in theirs:
                other.close()
            os.close(proc)
        return controls, process

    def start_function(self, descriptors: Sequence[int], *, lean: bool) -> None:
        """Have the base fork a function's processes.

        Args:
            descriptors: descriptors for the function; its processes get copies.
            lean: whether to fork it from the lean base process, which has fewer modules loaded. This makes its calls
                cheaper.

        Raises:
            OSError: the base has ended, or did not accept the message.
        """
        control = self.controls[0 if lean else 1]
        socket.send_fds(control, [START], list(descriptors), socket.MSG_NOSIGNAL)

    def end(self) -> None:
        """Kill the base, and thereby every process in every sandbox, without waiting for their end."""
        for control in self.controls:
            control.close()
        self._process.kill()
        self._root.close()

    def await_end(self) -> None:
        """After `end`, wait until all processes have ended, within a time limit: they may take long to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT_S)
        self._listener.join(_END_TIMEOUT_S)

    @property
    def alive(self) -> bool:
        """Whether the base is running."""
        return self._process.poll() is None

    def _await_ready(self) -> None:
        if not all(map(_is_ready, self.controls)):
            self.end()
            self.await_end()
            raise SandboxUnavailable(_explained(" ".join(self._said).strip()))

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                self._said = [*self._said[-20:], text]
                _log.warning("sandbox base: %s", text)


def _is_ready(control: socket.socket) -> bool:
    control.settimeout(_READY_TIMEOUT_S)
    try:
        return control.recv(16) == b"ready"
    except OSError:
        return False
    finally:
        control.setblocking(False)


def _explained(said: str) -> str:
    """Return an error text that says why namespaces cannot be made on this machine, and how to allow them."""
    reasons = [text for path, refuses, text in SETTINGS if _read(path) in refuses]
    if not reasons:
        reasons.append("if this is a container, it must be allowed to make user namespaces and to mount")
    return f"the sandbox could not be started: {said or 'no answer'}; {'; '.join(reasons)}"


SETTINGS = (
    (
        "/proc/sys/user/max_user_namespaces",
        ("0",),
        "user namespaces are turned off: as root, sysctl -w user.max_user_namespaces=15000",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        ("0",),
        "user namespaces are for root only: as root, sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        ("1", "2"),
        "AppArmor restricts user namespaces: as root, sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, "
        "or give bwrap a profile that allows userns",
    ),
)
"""Kernel settings: the file, the values that forbid user namespaces, and the remedy."""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def in_memory(content: bytes) -> int:
    """Make a file in memory that can be passed to another process; return its descriptor."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor
