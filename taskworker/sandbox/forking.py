"""Makes processes ahead of their calls: init mounts a root directory, the zygote forks, the process says hello."""

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
"""Processes that end before their call begins, one after another, until all of the function is ended."""
_RETRY_S = 0.01
_log = logging.getLogger(__name__)


class Zygote(NamedTuple):
    """What every process forked by it must show.

    Attributes:
        pid: its own.
        pid_namespace: that its processes are in, as /proc names it.
        filters: seccomp filters that a call's process has.
        limits: that are put on each process.
    """

    pid: int
    pid_namespace: str
    filters: int
    limits: CallLimits


class Maker(Protocol):
    """Whom a :class:`Forking` tells what became of a process."""

    def made(self, prewarmed: PrewarmedProcess) -> None:
        """It is ready for a call."""

    def no_room(self, prewarmed: PrewarmedProcess | None, why: str) -> None:
        """It was given up for want of room, or could not even be begun."""

    def hear_zygote(self) -> None:
        """Read one message of the zygote, if there is one."""

    def kill(self) -> None:
        """End the function: its init does not answer."""

    def close(self, failure: SandboxError) -> None:
        """End the function for this reason."""

    def lost_zygote(self) -> SandboxError:
        """The failure that says that the zygote ended."""


class Forking:
    """Belongs to the host's loop: everything is called in its thread.

    Args:
        loop: the host's.
        image: the function's.
        connections: to its init and its zygote.
        maker: is told what became of each process.
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
        """Begin to make a process: first its root directory."""
        try:
            prewarmed = PrewarmedProcess(f"{next(self._numbers):0{init.NAME_CHARS}x}", self._image.limits.result_bytes)
        except OSError as error:
            self._maker.no_room(None, str(error))
            return
        self._pending[prewarmed.name] = prewarmed
        self._ask_for_root(prewarmed.name)

    def use(self, zygote: Zygote) -> None:
        """Fork what has its root directory: the zygote has imported the function's code."""
        self._zygote = zygote
        for name in self._mounted:
            self._fork(name)
        self._mounted.clear()

    def mounted(self, name: str, root: int) -> None:
        """Take a root directory; its process is forked as soon as the code is imported."""
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
        """Take a refusal to fork; False if the zygote was not asked to fork this one."""
        if name not in self._refusable:
            return False
        self._refusable.remove(name)
        self.refused(name, why)
        return True

    def refused(self, name: str, why: str) -> None:
        """Give a process up that there was no room for."""
        prewarmed = self._pending.pop(name, None)
        if prewarmed is not None:
            self._loop.remove_reader(prewarmed.channel.fileno())
        self._maker.no_room(prewarmed, why)

    def close(self) -> list[PrewarmedProcess]:
        """Make no more; give the unfinished ones, to end."""
        pending = list(self._pending.values())
        for prewarmed in pending:
            self._loop.remove_reader(prewarmed.channel.fileno())
        self._pending.clear()
        return pending

    def _ask_for_root(self, name: str) -> None:
        try:
            self._init.send(init.MOUNT + name.encode(), socket.MSG_NOSIGNAL)
        except BlockingIOError:  # many are wanted at once, and it gets no time
            self._loop.call_later(_RETRY_S, self._ask_for_root, name)
        except OSError:
            self._maker.kill()

    def _fork(self, name: str) -> None:
        prewarmed = self._pending.get(name)
        if prewarmed is None:  # refused meanwhile
            return
        try:
            socket.send_fds(self._connection, [zygote.SPAWN + name.encode()], prewarmed.theirs, socket.MSG_NOSIGNAL)
        except BlockingIOError:  # it is told much at once, and gets no time
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
        assert parent is not None  # nothing was forked before
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
        """Note that a process ended, or could not be taken, before its call began."""
        for _ in range(PENDING_MAX):  # if it was refused, its zygote has said so
            if prewarmed.name in self._pending and self._zygote_has_spoken():
                self._maker.hear_zygote()
        if prewarmed.name not in self._pending:
            return
        self._stillborn += 1
        if self._stillborn < STILLBORN_MAX or error.errno in SCARCE:
            self.refused(prewarmed.name, str(error))
        else:
            _log.warning("processes of calls end before they begin: %s", error)
            self._maker.close(self._maker.lost_zygote())

    def _zygote_has_spoken(self) -> bool:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def _spawn_too_long(self, prewarmed: PrewarmedProcess) -> None:
        if self._pending.get(prewarmed.name) is prewarmed:
            self._maker.close(CallCrashed(f"the function's zygote did not fork a call within {SPAWN_TIMEOUT_S:g} s"))
