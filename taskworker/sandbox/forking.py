"""Forks processes ahead of their calls: init mounts a root directory, the zygote forks, the process sends a hello."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import select
import socket
from collections import deque
from typing import NamedTuple, Protocol

from taskworker.sandbox.call_processes import PENDING_MAX
from taskworker.sandbox.errors import CallCrashed, SandboxError
from taskworker.sandbox.image import FunctionImage
from taskworker.sandbox.inside import init, zygote
from taskworker.sandbox.prewarmed import CallLimits, PrewarmedProcess
from taskworker.sandbox.room import SCARCE

SPAWN_TIMEOUT_S = 10.0
STILLBORN_MAX = 8
"""After this many processes in a row that ended before their call began, the function is ended."""
_RETRY_S = 0.01
_log = logging.getLogger(__name__)


class Zygote(NamedTuple):
    """A confined zygote, and what every process that it forks must have.

    Attributes:
        pid: process id of the zygote.
        pid_namespace: pid namespace of its processes, as named in /proc.
        filters: how many seccomp filters a call's process must have.
        limits: limits for the host to set on each process.
    """

    pid: int
    pid_namespace: str
    filters: int
    limits: CallLimits


class Maker(Protocol):
    """The owner of a `Forking`, which it notifies."""

    def made(self, prewarmed: PrewarmedProcess) -> None:
        """A process is ready for a call."""

    def no_room(self, prewarmed: PrewarmedProcess | None, why: str) -> None:
        """A process was given up because the machine has no room; None if it could not even be begun."""

    def hear_zygote(self) -> None:
        """Read one message of the zygote, if there is one, and act on it."""

    def kill(self) -> None:
        """Kill the function because its init does not answer."""

    def close(self, failure: SandboxError) -> None:
        """End the function with this failure."""

    def lost_zygote(self) -> SandboxError:
        """Return the failure for a zygote that has ended."""


class Forking:
    """Forks the processes of one function. All methods must be called in the thread of the host's event loop.

    Args:
        loop: event loop of the host.
        image: image of the function.
        connections: sockets to its init and its zygote.
        maker: notified of what becomes of each process.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        image: FunctionImage,
        connections: tuple[socket.socket, socket.socket],
        maker: Maker,
    ) -> None:
        self._loop = loop
        self._image = image
        self._init, self._connection = connections
        self._maker = maker
        self._zygote: Zygote | None = None
        self._pending: dict[str, PrewarmedProcess] = {}
        self._mounted: list[str] = []
        self._numbers = itertools.count()
        self._refusable: deque[str] = deque(maxlen=2 * PENDING_MAX)
        self._stillborn = 0

    def __len__(self) -> int:
        return len(self._pending)

    def begin(self) -> None:
        """Begin to make a process by asking init for its root directory."""
        try:
            prewarmed = PrewarmedProcess(f"{next(self._numbers):0{init.NAME_CHARS}x}", self._image.limits.result_bytes)
        except OSError as error:
            self._maker.no_room(None, str(error))
            return
        self._pending[prewarmed.name] = prewarmed
        self._ask_for_root(prewarmed.name)

    def use(self, zygote: Zygote) -> None:
        """Note that the zygote has imported the function's code, and fork the processes that have a root directory."""
        self._zygote = zygote
        for name in self._mounted:
            self._fork(name)
        self._mounted.clear()

    def mounted(self, name: str, root: int) -> None:
        """Take the root directory of a process, which is forked as soon as the code is imported."""
        prewarmed = self._pending.get(name)
        if prewarmed is None:
            os.close(root)
            return
        try:
            prewarmed.rooted(root, watched=self._image.keep is not None)
        except OSError as error:
            self.refused(name, str(error))
            return
        if self._zygote is None:
            self._mounted.append(name)
        else:
            self._fork(name)

    def refused_by_zygote(self, name: str, why: str) -> bool:
        """Take the zygote's refusal to fork a process; return False if it was not asked to fork this one."""
        if name not in self._refusable:
            return False
        self._refusable.remove(name)
        self.refused(name, why)
        return True

    def refused(self, name: str, why: str) -> None:
        """Give up a process for which the machine has no room."""
        prewarmed = self._pending.pop(name, None)
        if prewarmed is not None:
            self._loop.remove_reader(prewarmed.channel.fileno())
        self._maker.no_room(prewarmed, why)

    def close(self) -> list[PrewarmedProcess]:
        """Stop making processes; return the unfinished ones, to be ended."""
        pending = list(self._pending.values())
        for prewarmed in pending:
            self._loop.remove_reader(prewarmed.channel.fileno())
        self._pending.clear()
        return pending

    def _ask_for_root(self, name: str) -> None:
        try:
            self._init.send(init.MOUNT + name.encode(), socket.MSG_NOSIGNAL)
        except BlockingIOError:  # init has too many messages to read
            self._loop.call_later(_RETRY_S, self._ask_for_root, name)
        except OSError:
            self._maker.kill()

    def _fork(self, name: str) -> None:
        prewarmed = self._pending.get(name)
        if prewarmed is None:  # refused meanwhile
            return
        try:
            socket.send_fds(self._connection, [zygote.SPAWN + name.encode()], prewarmed.theirs, socket.MSG_NOSIGNAL)
        except BlockingIOError:  # the zygote has too many messages to read
            self._loop.call_later(_RETRY_S, self._fork, name)
            return
        except OSError:
            self._maker.close(self._maker.lost_zygote())
            return
        prewarmed.handed_over()
        self._refusable.append(name)
        self._loop.call_later(SPAWN_TIMEOUT_S, self._spawn_too_long, prewarmed)
        self._await_hello(prewarmed)

    def _await_hello(self, prewarmed: PrewarmedProcess) -> None:
        if self._pending.get(prewarmed.name) is prewarmed:
            self._loop.add_reader(prewarmed.channel.fileno(), self._greet, prewarmed)

    def _greet(self, prewarmed: PrewarmedProcess) -> None:
        parent = self._zygote
        assert parent is not None  # set before the first fork
        try:
            if not prewarmed.greet(parent.limits, parent.pid_namespace, parent.pid, parent.filters):
                return
        except BlockingIOError:
            self._loop.remove_reader(prewarmed.channel.fileno())
            self._loop.call_later(_RETRY_S, self._await_hello, prewarmed)
            return
        except SandboxError as error:
            _log.warning("a call's process was refused: %s", error)
            self._maker.close(error)
            return
        except OSError as error:
            self._ended_early(prewarmed, error)
            return
        self._loop.remove_reader(prewarmed.channel.fileno())
        del self._pending[prewarmed.name]
        self._stillborn = 0
        self._maker.made(prewarmed)

    def _ended_early(self, prewarmed: PrewarmedProcess, error: OSError) -> None:
        """Handle a process that ended, or could not be taken over, before its call began."""
        for _ in range(PENDING_MAX):  # if the zygote refused to fork it, its message is there
            if prewarmed.name in self._pending and self._zygote_has_spoken():
                self._maker.hear_zygote()
        if prewarmed.name not in self._pending:
            return
        self._stillborn += 1
        if self._stillborn < STILLBORN_MAX or error.errno in SCARCE:
            self.refused(prewarmed.name, str(error))
        else:
            _log.warning("processes of calls end before their calls begin: %s", error)
            self._maker.close(self._maker.lost_zygote())

    def _zygote_has_spoken(self) -> bool:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def _spawn_too_long(self, prewarmed: PrewarmedProcess) -> None:
        if self._pending.get(prewarmed.name) is prewarmed:
            self._maker.close(CallCrashed(f"the function's zygote did not fork a call within {SPAWN_TIMEOUT_S:g} s"))
