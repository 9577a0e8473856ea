"""The host's handle on one warm function: its init, its zygote, and the processes of its calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

from taskworker.sandbox import proof
from taskworker.sandbox.base_process import BaseProcess, in_memory
from taskworker.sandbox.call_processes import CallProcesses
from taskworker.sandbox.endings import Endings, name_of
from taskworker.sandbox.errors import (
    CallCrashed,
    FunctionBroken,
    ProtocolViolation,
    SandboxError,
    SandboxFull,
    SandboxUnavailable,
    Unbounded,
    Unjudged,
)
from taskworker.sandbox.filters import Filters
from taskworker.sandbox.forking import Forking, Zygote
from taskworker.sandbox.ids import FunctionIds
from taskworker.sandbox.image import FunctionImage, WarmView
from taskworker.sandbox.inside import init, zygote
from taskworker.sandbox.kept import KeptLoad
from taskworker.sandbox.pids_cgroup import PidsCgroup
from taskworker.sandbox.prewarmed import FUNCTION_TASKS_MAX, Look, PrewarmedProcess, limit_calls, limit_zygote, size_of
from taskworker.sandbox.room import start_failure
from taskworker.sandbox.starts import Starts
from taskworker.sandbox.strangers import Strangers

IMPORT_TIMEOUT_S = 60.0
FILES_PER_MIB = 64
"""Files and directories that a call may make per MiB of its disk: an inode takes about a kilobyte of kernel memory."""
FILES_MIN = 256
_LOGGED_CHARS = 500
_LAST_WORDS_MAX = 1024
"""How many messages of a zygote are read after its end."""
_MESSAGE_BYTES = 64 << 10
_log = logging.getLogger(__name__)


class FunctionSandbox:
    """One function's sandbox.

    The methods under "From any thread" are thread-safe; all others must be called in the thread of the host's loop.

    Args:
        loop: event loop of the host.
        base: the base, which forks the function's processes.
        image: image of the function.
        code: the bundle's directory, relative to the directory of bundles; empty for none.
        filters: the compiled seccomp filters.
        fence: cgroup that bounds the processes of functions where the kernel does not; None: not needed.
        ids: gives the function its user id.
        ended: called in the loop's thread when the sandbox is about to end.
        scarce: called in the loop's thread when the machine had no room for a process.
        clock_s: monotonic seconds.
        wall_s: seconds since 1970.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        base: BaseProcess,
        image: FunctionImage,
        code: str,
        filters: Filters,
        *,
        fence: PidsCgroup | None,
        ids: FunctionIds,
        ended: Callable[[FunctionSandbox], None],
        scarce: Callable[[], None],
        clock_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.image = image
        self.started = wall_s()
        self._loop = loop
        self._ended = ended
        self._scarce = scarce
        self._fence = fence
        self._fence_name = secrets.token_hex(8)
        self._ids = ids
        self._uid = ids.take()
        self._strangers = Strangers(clock_s)
        self._confined = False
        self._bounded = False
        self._pid_namespace = ""
        self._init_pid = self._zygote_pid = 0
        self._init_pidfd = -1
        self._pidfd_open = threading.Lock()
        self._processes = CallProcesses(
            image,
            missing=lambda: loop.call_soon_threadsafe(self.refill),
            ended=lambda prewarmed: loop.call_soon_threadsafe(self._end, prewarmed),
            clock_s=clock_s,
            wall_s=wall_s,
        )
        self._init, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._zygote, zygotes = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for own in (self._init, self._zygote):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            own.setblocking(False)
        self._endings = Endings(self._zygote)
        self._forking = Forking(loop, image, (self._init, self._zygote), self)
        disk_bytes = image.limits.disk_bytes
        place = init.Place(code, disk_bytes, files=max(FILES_MIN, (disk_bytes >> 20) * FILES_PER_MIB))
        start = init.Start(
            result_bytes=image.limits.result_bytes,
            pids=FUNCTION_TASKS_MAX,
            uid=self._uid,
            seccomp=filters.seccomp,
        )
        self._judging = filters.seccomp != 0
        self._filters = 2 if self._judging else 1
        self._timer_create = filters.timer_create
        self._starts: Starts | None = None
        files: list[int] = []
        try:
            for told in (start, place):
                self._init.send(json.dumps(asdict(told)).encode(), socket.MSG_NOSIGNAL)
            files.extend(map(in_memory, (image.document, filters.starts, filters.zygote, filters.call)))
            base.start_function([theirs.fileno(), zygotes.fileno(), *files], lean=image.lean)
        except OSError:
            ids.give_back(self._uid)
            self._init.close()
            self._zygote.close()
            raise
        finally:
            theirs.close()
            zygotes.close()
            for file in files:
                os.close(file)
        loop.add_reader(self._init, self._init_readable)
        loop.add_reader(self._zygote, self.hear_zygote)
        self._timer = loop.call_later(IMPORT_TIMEOUT_S, self._import_too_long)

    # From any thread.

    def await_warm(self) -> None:
        """Wait until the code is imported; see :meth:`CallProcesses.await_warm`."""
        self._processes.await_warm()

    def take(self, deadline: float, timeout_s: float, owner: str) -> PrewarmedProcess:
        """Take a process for a call; see :meth:`CallProcesses.take`."""
        return self._processes.take(deadline, timeout_s, owner)

    def served(self, prewarmed: PrewarmedProcess, owner: str, look: Look) -> None:
        """Take back the process of a successful call, and keep it for the owner's next call if it is still fit."""
        timers = 0 if self._starts is None else self._starts.timers_of(prewarmed.pid)
        if not self._processes.keep(owner, prewarmed, look, timers):
            self.dropped(prewarmed)

    def dropped(self, prewarmed: PrewarmedProcess) -> None:
        """Take back the process of a call that has ended; end it with its scratch files, and fork another one."""
        self._processes.give_up(prewarmed)
        self._endings.forget(prewarmed.name)
        try:
            self._loop.call_soon_threadsafe(self._replace, prewarmed)
        except RuntimeError:  # the host is closed
            prewarmed.close()

    def keep_none(self) -> None:
        """Note that another version has replaced this one: keep no process, unless another call comes nevertheless."""
        self._processes.keep_none()

    @property
    def failure(self) -> SandboxError | None:
        """Why the sandbox has ended; None while it runs."""
        return self._processes.failure

    @property
    def busy(self) -> bool:
        """Whether calls are under way or waiting."""
        return self._processes.busy

    @property
    def idle_s(self) -> float:
        """Seconds since a call last took a process."""
        return self._processes.idle_s

    def ending_of(self, prewarmed: PrewarmedProcess) -> tuple[int, int] | None:
        """Ask the zygote how a call's process ended; see :meth:`Endings.ask`."""
        return self._endings.ask(prewarmed.name)

    def kill(self) -> None:
        """Kill all processes of the function; ``ended`` is called soon after."""
        with self._pidfd_open:
            if self._init_pidfd >= 0:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._init_pidfd, signal.SIGKILL)

    def view(self) -> WarmView | None:
        """Return the function's state; None unless it is warm."""
        with self._processes.lock:
            if not self._is_serving():
                return None
            pids, counts = (self._init_pid, self._zygote_pid), self._processes.counts
        pss = sum(proof.pss_bytes(pid) for pid in pids)
        return WarmView(self.image.key, pids, *counts, pss, self.started, self._processes.used)

    def _is_serving(self) -> bool:
        return self._processes.warm and self._processes.failure is None

    # In the loop's thread.

    def close(self, failure: SandboxError) -> None:
        """End the sandbox; waiting and later calls raise ``failure``."""
        if self.failure is not None:
            return
        self._ended(self)  # first, so that callers that get the failure and retry find a new sandbox
        processes = self._processes.close(failure)
        self._endings.close()
        self._timer.cancel()
        self.kill()
        if self._starts is not None:
            self._starts.close()
        for prewarmed in (*processes, *self._forking.close()):
            self._end(prewarmed)
        for connection in (self._init, self._zygote):
            self._loop.remove_reader(connection)
            connection.close()
        with self._pidfd_open:
            if self._init_pidfd >= 0:
                os.close(self._init_pidfd)
                self._init_pidfd = -1
        self._ids.give_back(self._uid)

    def fenced_off(self) -> bool:
        """Remove the function's cgroup, if there is one; return False while a process in it is still running."""
        return self._fence is None or self._fence.remove(self._fence_name)

    def inspect(self) -> None:
        """End the sandbox if it has processes that belong to no call: user code in the zygote must have forked them."""
        if not self._is_serving():
            return
        before = self._processes.pids() | {self._init_pid, self._zygote_pid}
        try:
            strangers = proof.processes_below(self._init_pid) - before - self._processes.pids()
            proof.require_one_thread(self._zygote_pid)
        except OSError:
            return
        except SandboxError as error:
            self.close(error)
            return
        if strangers:  # most likely ended calls that the zygote has not reaped, as it only does so at a message
            with contextlib.suppress(OSError):  # too many messages at once, or it has ended, which is noticed elsewhere
                self._zygote.send(zygote.REAP, socket.MSG_NOSIGNAL)
        if self._strangers.stay(strangers):
            self.close(ProtocolViolation("processes that are no calls were found in the function's sandbox"))

    def refill(self) -> None:
        """Fork processes for waiting calls and for those expected soon."""
        wanted = self._processes.wanted(len(self._forking))
        if wanted.displaced is not None:
            self._end(wanted.displaced)
        for _ in range(wanted.processes):
            self._forking.begin()

    def ended_unused(self, idle_s: float) -> bool:
        """End the sandbox if it is idle, and was replaced or not called for long.

        Args:
            idle_s: after so many seconds without a call, it is ended.

        Returns:
            Whether it has ended.
        """
        with self._processes.lock:  # no call may begin meanwhile
            if self._processes.busy:
                return False
            if self._processes.replaced:
                self.close(CallCrashed("the function was replaced"))
            elif self.idle_s > idle_s:
                self.close(CallCrashed("the function was not used for long"))
            return self.failure is not None

    def drop_spent(self) -> None:
        """End the kept processes that have served or waited long enough."""
        for prewarmed in self._processes.drop_spent():
            self._end(prewarmed)

    @property
    def kept_load(self) -> KeptLoad:
        """What the kept processes use."""
        return self._processes.kept_load

    def drop_oldest_kept(self) -> None:
        """End the kept process that has waited the longest."""
        oldest = self._processes.drop_oldest_kept()
        if oldest is not None:
            self._end(oldest)

    def rest(self) -> None:
        """End the processes that are ready for calls; the zygote stays warm."""
        for prewarmed in self._processes.rest():
            self._end(prewarmed)

    # As the `Maker` of its `Forking`.

    def made(self, prewarmed: PrewarmedProcess) -> None:
        """Add the new process to those ready for a call."""
        self._processes.add(prewarmed)
        self.refill()

    def no_room(self, prewarmed: PrewarmedProcess | None, why: str) -> None:
        """End the process, and fork others after a pause."""
        if prewarmed is not None:
            self._end(prewarmed)
        pause_s = self._processes.refused(why)
        self._scarce()
        self._loop.call_later(pause_s, self.refill)

    def _replace(self, prewarmed: PrewarmedProcess) -> None:
        self._end(prewarmed)
        self._processes.expect_more()
        self.refill()

    def _end(self, prewarmed: PrewarmedProcess) -> None:
        """End a process and close its descriptors."""
        if self._starts is not None:
            self._starts.forget(prewarmed.pid)
        prewarmed.close()

    def _exceeded(self, pid: int) -> None:
        """End a call's process that tried to start too many threads. For the zygote, the refusal is enough."""
        prewarmed = self._processes.by_pid(pid)
        if prewarmed is not None:
            prewarmed.exceeded = True
            prewarmed.kill()

    # What init and zygote say.

    def _init_readable(self) -> None:
        try:
            message, pid, root = proof.receive_with_descriptor(self._init, _MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message, pid, root = b"", 0, -1
        if root >= 0:
            self._forking.mounted(message.removeprefix(init.MOUNTED).decode(), root)
        elif not message:
            self.close(CallCrashed("the function's sandbox ended"))
        elif message[:1] == init.NOT_STARTED:
            self.close(start_failure(message[1:].decode(errors="replace")))
        elif message[:1] == init.REFUSED:
            name, why = message[1 : 1 + init.NAME_CHARS].decode(), message[1 + init.NAME_CHARS :]
            self._forking.refused(name, why.decode(errors="replace"))
        elif message == init.ZYGOTE_ENDED:
            self._hear_last_words()
        elif message[:1] == init.MOUNTED:  # the kernel drops a descriptor that a full table has no room for
            self._forking.refused(message[1:].decode(), "the worker has no descriptors left")
        else:
            self._init_began(pid, bounded=message == init.BOUNDED)

    def _hear_last_words(self) -> None:
        """Read the zygote's last messages, which may say why it ended, and end the sandbox."""
        for _ in range(_LAST_WORDS_MAX):
            if self.failure is None:
                self.hear_zygote()
        self.close(self.lost_zygote())

    def _init_began(self, pid: int, *, bounded: bool) -> None:
        try:
            self._init_pidfd = os.pidfd_open(pid)
        except OSError as error:
            self.close(SandboxFull(str(error)))
            return
        self._bounded = bounded
        self._init_pid = pid
        self._trust()

    def hear_zygote(self) -> None:
        """Read one message of the zygote, if there is one, and act on it."""
        if self._judging and self._starts is None:
            self._hear_of_judging()
            return
        try:
            message, pid = proof.receive_with_pid(self._zygote, _MESSAGE_BYTES)
        except BlockingIOError:  # `Forking` has read the message already, after a process had ended
            return
        except OSError:
            message, pid = b"", 0
        kind, content = message[:1], message[1:]
        if kind == zygote.CONFINED and not self._zygote_pid:
            self._zygote_pid = pid
            self._trust()
        elif kind == zygote.READY and self._confined and not self._processes.warm:
            self._imported()
        elif kind == zygote.BROKEN:
            self.close(self._broken(content.decode(errors="replace")))
        elif kind == zygote.ENDED and self._endings.awaited:
            self._endings.hear(content, known=self._processes.is_running(name_of(content)))
        elif not (kind == zygote.REFUSED and self._forking.refused_by_zygote(name_of(content), _why_refused(content))):
            self.close(self.lost_zygote())

    def _hear_of_judging(self) -> None:
        """Take the zygote's first message, which it sends before it runs any user code."""
        try:
            message, _, listener = proof.receive_with_descriptor(self._zygote, _MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message, listener = b"", -1
        if message == zygote.JUDGED and listener >= 0:
            self._starts = Starts(
                self._loop,
                listener,
                timer_create=self._timer_create,
                threads_max=self.image.limits.threads,
                exceeded=self._exceeded,
            )
        elif message == zygote.JUDGED:  # the kernel drops a descriptor that a full table has no room for
            self.close(SandboxFull("the worker has no descriptors left"))
        elif message[:1] == zygote.UNJUDGED:
            self.close(Unjudged(message[1:].decode(errors="replace")))
        elif message[:1] == zygote.BROKEN:
            self.close(self._broken(message[1:].decode(errors="replace")))
        else:
            self.close(self.lost_zygote())

    def _broken(self, text: str) -> SandboxError:
        if not self._processes.warm:
            return FunctionBroken(text)
        _log.warning("the zygote of function %s ended: %s", self.image.key, text[:_LOGGED_CHARS])
        return CallCrashed(f"the function's zygote ended: {text[:_LOGGED_CHARS]}")

    def lost_zygote(self) -> SandboxError:
        """Return the failure for a zygote that has ended."""
        if self._processes.warm:
            return CallCrashed("the function's zygote ended")
        return FunctionBroken("the function's process ended while its code was imported")

    def _trust(self) -> None:
        """Once init and zygote have reported, check and limit the zygote from outside, then let it import user code."""
        if not self._init_pid or not self._zygote_pid:
            return
        try:
            self._pid_namespace = proof.require_confined(self._zygote_pid, self._filters)["pid"]
            proof.require_closed(self._zygote_pid)
            if self._uid:
                proof.require_other_user(self._zygote_pid)
            limit_zygote(self._zygote_pid, self.image.limits)
            if self._fence is not None:
                self._fence.enclose(self._fence_name, (self._init_pid, self._zygote_pid), FUNCTION_TASKS_MAX)
            elif not self._bounded and not self._uid and os.geteuid() == 0:
                raise Unbounded("nothing bounds the processes of this function")
            self._zygote.send(zygote.GO, socket.MSG_NOSIGNAL)
        except Unbounded as error:
            self.close(error)
        except SandboxUnavailable as error:
            _log.error("%s", error)
            self.close(error)
        except OSError:
            self.close(self.lost_zygote())
        else:
            self._confined = True
            self._forking.begin()  # while the code is imported

    def _imported(self) -> None:
        self._timer.cancel()
        try:
            proof.require_alone(self._zygote_pid, self._init_pid)
            limits, keep = self.image.limits, self.image.keep
            imported_bytes = size_of(self._zygote_pid).data
            call_limits = limit_calls(self._zygote_pid, limits, 1 if keep is None else keep.calls)
        except OSError:
            self.close(self.lost_zygote())
            return
        except SandboxError as error:
            self.close(error)
            return
        self._processes.warmed(imported_bytes)
        self._forking.use(Zygote(self._zygote_pid, self._pid_namespace, self._filters + 1, call_limits))
        self.refill()

    def _import_too_long(self) -> None:
        self.close(FunctionBroken(f"the function's code was not imported within {IMPORT_TIMEOUT_S:g} s"))


def _why_refused(content: bytes) -> str:
    return content[init.NAME_CHARS :].decode(errors="replace")[:_LOGGED_CHARS]
