"""One warm function on the host's side: its init, its zygote, and processes forked ahead of their calls."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import secrets
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from taskworker.sandbox import proof
from taskworker.sandbox.base_process import BaseProcess
from taskworker.sandbox.errors import (
    CallCrashed,
    CallDeadline,
    FunctionBroken,
    ProtocolViolation,
    SandboxError,
    SandboxFull,
    SandboxUnavailable,
)
from taskworker.sandbox.filters import Filters
from taskworker.sandbox.ids import FunctionIds
from taskworker.sandbox.image import FunctionImage, WarmView
from taskworker.sandbox.inside import init, zygote
from taskworker.sandbox.kept import KeptLoad, KeptProcesses
from taskworker.sandbox.pids_cgroup import PidsCgroup
from taskworker.sandbox.prewarmed import (
    FUNCTION_TASKS_MAX,
    CallLimits,
    Look,
    PrewarmedProcess,
    limit_calls,
    limit_zygote,
    processes_max,
    size_of,
)
from taskworker.sandbox.room import SCARCE, Room
from taskworker.sandbox.starts import Starts

SPARES_MAX = 8
PENDING_MAX = 32
"""Processes being forked at once: a crowd of callers is served in turns, and queues to init and zygote stay short."""
IMPORT_TIMEOUT_S = 60.0
SPAWN_TIMEOUT_S = 10.0
ENDING_TIMEOUT_S = 3.0
STRANGER_S = 15.0
"""How long a process may be there that is no call's: longer than one being forked, or being reaped, takes."""
FILES_PER_MIB = 64
"""Files and directories that a call may make, by its disk: an inode takes about a kilobyte of kernel memory."""
FILES_MIN = 256
STILLBORN_MAX = 8
"""Processes that end before their call begins, one after another, until all of the function is ended."""
_LOGGED_CHARS = 500
_RETRY_S = 0.01
_ASK_AGAIN_S = 0.05
_LAST_WORDS_MAX = 1024
"""Messages of a zygote that are read after its end."""
_MESSAGE_BYTES = 64 << 10
_log = logging.getLogger(__name__)


class Unbounded(SandboxUnavailable):
    """This worker runs as root, and nothing bounds how many processes a function has."""


class Unjudged(SandboxUnavailable):
    """The kernel does not hand over what processes start, so nothing but samples keeps each to its share."""


class FunctionSandbox:
    """Belongs to the host's loop: all but what stands under "from any thread" is called in its thread.

    Args:
        loop: the host's.
        base: that forks its processes.
        image: what to run.
        code: the bundle's directory relative to the bundles'; empty for none.
        filters: the compiled seccomp filters.
        fence: bounds the processes of functions, where the kernel does not.
        ids: gives it an id.
        ended: called in the loop's thread when it is about to go.
        scarce: called there when the machine had no room for a process.
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
    ) -> None:
        self.image = image
        self.started = self.used = time.time()
        self._used_s = time.monotonic()
        self._loop = loop
        self._ended = ended
        self._scarce = scarce
        self._fence = fence
        self._fence_name = secrets.token_hex(8)
        self._ids = ids
        self._uid = ids.take()
        self._strangers: dict[int, float] = {}
        self._calls: dict[int, PrewarmedProcess] = {}
        self._confined = False
        self._bounded = False
        self._changed = threading.Condition()
        self._failure: SandboxError | None = None
        self._warm = False
        self._ready: deque[PrewarmedProcess] = deque()
        self._kept = KeptProcesses(image.keep, image.limits)
        self._pending: dict[str, PrewarmedProcess] = {}
        self._mounted: list[str] = []
        self._numbers = itertools.count()
        self._waiting = 0
        self._replaced = False
        self._target = 1
        self._processes_max = processes_max(image.limits)
        self._pid_namespace = ""
        self._call_limits: CallLimits = ()
        self._init_pid = self._zygote_pid = 0
        self._init_pidfd = -1
        self._endings: dict[str, bytes] = {}
        self._endings_asked = 0
        self._room = Room()
        self._stillborn = 0
        self._refusable: deque[str] = deque(maxlen=2 * PENDING_MAX)
        self._init, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._zygote, zygotes = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for own in (self._init, self._zygote):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            own.setblocking(False)
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
            files.extend(map(_in_memory, (image.document, filters.starts, filters.zygote, filters.call)))
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
        loop.add_reader(self._zygote, self._zygote_readable)
        self._timer = loop.call_later(IMPORT_TIMEOUT_S, self._import_too_long)

    # From any thread.

    def await_warm(self) -> None:
        """Wait until the code is imported.

        Raises:
            FunctionBroken: it could not be.
            SandboxError: the sandbox is gone.
        """
        with self._changed:
            while not self._warm:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            self._replaced = False

    def take(self, deadline: float, timeout_s: float, owner: str) -> PrewarmedProcess:
        """Take a process for a call; another one is forked in its place when the call has ended, or one is missed.

        Args:
            deadline: on the monotonic clock.
            timeout_s: how long that was when the call came, for the error's text.
            owner: whose processes that were kept may serve the call.

        Raises:
            CallDeadline: there was none in time.
            SandboxFull: the machine had no room for one for long.
            SandboxError: the sandbox is gone.
        """
        begun = time.monotonic()
        waited = False
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    if self._failure is not None:
                        raise self._failure
                    self._replaced = False
                    prewarmed = self._kept.take(owner) or self._ready_one()
                    if prewarmed is not None:
                        prewarmed.begin_call()
                        self._calls[prewarmed.pid] = prewarmed
                        self.used, self._used_s = time.time(), time.monotonic()
                        return prewarmed
                    self._room.require(begun)
                    self._loop.call_soon_threadsafe(self.refill)
                    if not waited:
                        waited = True
                        self._target = min(SPARES_MAX, self._target + 1)
                    if not self._changed.wait(deadline - time.monotonic()):
                        raise CallDeadline(timeout_s, of_caller=True)
            finally:
                self._waiting -= 1

    def _ready_one(self) -> PrewarmedProcess | None:
        """A process forked ahead; the lock is held."""
        while self._ready:
            prewarmed = self._ready.pop()  # the latest: the caches know it best
            if prewarmed.alive:
                return prewarmed
            self._loop.call_soon_threadsafe(self._end, prewarmed)
        return None

    def served(self, prewarmed: PrewarmedProcess, owner: str, look: Look) -> None:
        """Take back the process of a call that ended well: it may serve the owner's next one, if it still can."""
        timers = 0 if self._starts is None else self._starts.timers_of(prewarmed.pid)
        with self._changed:
            self._calls.pop(prewarmed.pid, None)
            kept = self._failure is None and not self._replaced and self._kept.put(owner, prewarmed, look, timers)
        if not kept:
            self.dropped(prewarmed)

    def keep_none(self) -> None:
        """There is another version in its place: no process serves a further call, unless there is one after all."""
        with self._changed:
            self._replaced = True

    @property
    def failure(self) -> SandboxError | None:
        """Why it is gone, if it is."""
        return self._failure

    @property
    def busy(self) -> bool:
        """Whether calls are under way or waiting."""
        with self._changed:
            return bool(self._calls) or self._waiting > 0

    def dropped(self, prewarmed: PrewarmedProcess) -> None:
        """Take back the process of a call that has ended: it and its scratch files go, and one is made anew."""
        with self._changed:
            self._calls.pop(prewarmed.pid, None)
            self._endings.pop(prewarmed.name, None)
        try:
            self._loop.call_soon_threadsafe(self._replace, prewarmed)
        except RuntimeError:  # the host is closed
            prewarmed.close()

    def ending_of(self, prewarmed: PrewarmedProcess) -> tuple[int, int] | None:
        """Ask the zygote how a call's process ended: its wait status and peak bytes; None if it does not say."""
        deadline = time.monotonic() + ENDING_TIMEOUT_S
        with self._changed:
            while self._failure is None and time.monotonic() < deadline:
                self._endings_asked += 1  # first: the loop's thread may have the answer before this one goes on
                try:
                    self._zygote.send(zygote.STATUS + prewarmed.name.encode(), socket.MSG_NOSIGNAL)
                except OSError:
                    self._endings_asked -= 1
                # What others are told wakes this one up, too, which must not ask again for that.
                if self._changed.wait_for(lambda: self._failure or prewarmed.name in self._endings, _ASK_AGAIN_S):
                    said = self._endings.pop(prewarmed.name, None)
                    return None if said is None else zygote.ENDING.unpack(said)
        return None

    def kill(self) -> None:
        """End everything in it at once; `ended` is called soon."""
        with self._changed:
            if self._init_pidfd >= 0:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._init_pidfd, signal.SIGKILL)

    @property
    def idle_s(self) -> float:
        """For how long it has not been called."""
        return time.monotonic() - self._used_s

    def view(self) -> WarmView | None:
        """Say what it is doing; None unless it is warm."""
        with self._changed:
            if not self._warm or self._failure is not None:
                return None
            pids = (self._init_pid, self._zygote_pid)
            running, prewarmed_processes, kept = len(self._calls), len(self._ready), len(self._kept)
        pss = sum(_pss_bytes(pid) for pid in pids)
        return WarmView(self.image.key, pids, running, prewarmed_processes, kept, pss, self.started, self.used)

    # In the loop's thread.

    def close(self, failure: SandboxError) -> None:
        """End it; whoever waits, or comes, gets ``failure``."""
        if self._failure is not None:
            return
        self._ended(self)  # first, so that who gets the failure finds another one when coming again
        with self._changed:
            self._failure = failure
            prewarmed_processes = [*self._ready, *self._pending.values(), *self._kept.drop_all()]
            self._ready.clear()
            self._changed.notify_all()
        self._timer.cancel()
        self.kill()
        if self._starts is not None:
            self._starts.close()
        for prewarmed in self._pending.values():
            self._loop.remove_reader(prewarmed.channel.fileno())
        self._pending.clear()
        for prewarmed in prewarmed_processes:
            self._end(prewarmed)
        for connection in (self._init, self._zygote):
            self._loop.remove_reader(connection)
            connection.close()
        with self._changed:
            if self._init_pidfd >= 0:
                os.close(self._init_pidfd)
                self._init_pidfd = -1
        self._ids.give_back(self._uid)

    def fenced_off(self) -> bool:
        """Remove its cgroup, if it has one; False while something in it has not ended."""
        return self._fence is None or self._fence.remove(self._fence_name)

    def inspect(self) -> None:
        """End it if something runs in it that is no call's: forked by user code that got hold of its zygote."""
        if not self._warm or self._failure is not None:
            return
        with self._changed:
            ready = {prewarmed.pid for prewarmed in self._ready}
            known = ready | self._kept.pids() | {self._init_pid, self._zygote_pid}
        try:
            strangers = proof.processes_below(self._init_pid) - known - set(self._calls)
            proof.require_one_thread(self._zygote_pid)
        except OSError:
            return
        except SandboxError as error:
            self.close(error)
            return
        now = time.monotonic()
        self._strangers = {pid: self._strangers.get(pid, now) for pid in strangers}
        if strangers:  # most likely calls that ended after the zygote was last told something
            with contextlib.suppress(OSError):  # it is told much at once, or gone, which is heard of elsewhere
                self._zygote.send(zygote.REAP, socket.MSG_NOSIGNAL)
        if any(now - seen > STRANGER_S for seen in self._strangers.values()):
            self.close(ProtocolViolation("processes that are no calls were found in the function's sandbox"))

    def refill(self) -> None:
        """Have as many processes forked as calls that come soon will need."""
        if not self._warm or self._failure is not None:
            return
        with self._changed:
            if self._room.pausing:
                return
            wanted = min(PENDING_MAX, self._target + self._waiting - len(self._ready)) - len(self._pending)
            left = self._processes_max - len(self._ready) - len(self._calls) - len(self._kept) - len(self._pending)
            oldest = self._kept.drop_oldest() if self._waiting and wanted > 0 and left <= 0 else None
        if oldest is not None:
            self._end(oldest)
            left += 1
        for _ in range(min(wanted, left)):
            self._mount()

    def ended_unused(self, idle_s: float) -> bool:
        """End it if it was replaced, or not called for so long, and no calls are under way or waiting."""
        with self._changed:  # no call may begin meanwhile
            if self._calls or self._waiting:
                return False
            if self._replaced:
                self.close(CallCrashed("the function was replaced"))
            elif self.idle_s > idle_s:
                self.close(CallCrashed("the function was not used for long"))
            return self._failure is not None

    def drop_spent(self) -> None:
        """End the processes that were kept and have served for long enough."""
        with self._changed:
            spent = self._kept.drop_all() if self._replaced else self._kept.drop_spent()
        for prewarmed in spent:
            self._end(prewarmed)

    @property
    def kept_load(self) -> KeptLoad:
        """The processes that were kept and wait."""
        with self._changed:
            return self._kept.load

    def drop_oldest_kept(self) -> None:
        """End the one that waits for longest."""
        with self._changed:
            oldest = self._kept.drop_oldest()
        if oldest is not None:
            self._end(oldest)

    def rest(self) -> None:
        """End the processes that wait for calls; the zygote stays warm."""
        with self._changed:
            prewarmed_processes = list(self._ready)
            self._ready.clear()
            self._target = 0
        for prewarmed in prewarmed_processes:
            self._end(prewarmed)

    def _init_readable(self) -> None:
        try:
            message, pid, root = proof.receive_with_descriptor(self._init, _MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message, pid, root = b"", 0, -1
        if root >= 0:
            self._mounted_for(message.removeprefix(init.MOUNTED).decode(), root)
        elif not message:
            self.close(CallCrashed("the function's sandbox ended"))
        elif message[:1] == init.NOT_STARTED:
            self.close(_not_started(message[1:].decode(errors="replace")))
        elif message[:1] == init.REFUSED:
            name, why = message[1 : 1 + init.NAME_CHARS].decode(), message[1 + init.NAME_CHARS :]
            self._refused(name, why.decode(errors="replace"))
        elif message == init.ZYGOTE_ENDED:
            self._hear_last_words()
        elif message[:1] == init.MOUNTED:  # the kernel drops a descriptor that a full table has no room for
            self._refused(message[1:].decode(), "the worker has no descriptors left")
        else:
            self._init_began(pid, bounded=message == init.BOUNDED)

    def _hear_last_words(self) -> None:
        """Read what the zygote said before it ended: that is why it did."""
        for _ in range(_LAST_WORDS_MAX):
            if self._failure is None:
                self._zygote_readable()
        self.close(self._lost_zygote())

    def _init_began(self, pid: int, *, bounded: bool) -> None:
        try:
            self._init_pidfd = os.pidfd_open(pid)
        except OSError as error:
            self.close(SandboxFull(str(error)))
            return
        self._bounded = bounded
        self._init_pid = pid
        self._trust()

    def _zygote_readable(self) -> None:
        if self._judging and self._starts is None:
            self._hear_of_judging()
            return
        try:
            message, pid = proof.receive_with_pid(self._zygote, _MESSAGE_BYTES)
        except BlockingIOError:  # what there was to read was read when a process it refused was seen to have ended
            return
        except OSError:
            message, pid = b"", 0
        kind, content = message[:1], message[1:]
        if kind == zygote.CONFINED and not self._zygote_pid:
            self._zygote_pid = pid
            self._trust()
        elif kind == zygote.READY and self._confined and not self._warm:
            self._imported()
        elif kind == zygote.BROKEN:
            self.close(self._broken(content.decode(errors="replace")))
        elif kind == zygote.ENDED and self._endings_asked > 0:
            self._remember_ending(content)
        elif (
            kind == zygote.REFUSED and (name := content[: init.NAME_CHARS].decode(errors="replace")) in self._refusable
        ):
            self._refusable.remove(name)
            self._refused(name, content[init.NAME_CHARS :].decode(errors="replace")[:_LOGGED_CHARS])
        else:
            self.close(self._lost_zygote())

    def _hear_of_judging(self) -> None:
        """Take the zygote's first message, which no user's code had a hand in."""
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
            self.close(self._lost_zygote())

    def _exceeded(self, pid: int) -> None:
        """End a process that started more threads than it may; if it is the zygote, that is refused, and no more."""
        with self._changed:
            prewarmed = self._calls.get(pid) or next((one for one in self._ready if one.pid == pid), None)
        if prewarmed is not None:
            prewarmed.exceeded = True
            prewarmed.kill()

    def _end(self, prewarmed: PrewarmedProcess) -> None:
        """End a process for good."""
        if self._starts is not None:
            self._starts.forget(prewarmed.pid)
        prewarmed.close()

    def _broken(self, text: str) -> SandboxError:
        if not self._warm:
            return FunctionBroken(text)
        _log.warning("the zygote of function %s ended: %s", self.image.key, text[:_LOGGED_CHARS])
        return CallCrashed(f"the function's zygote ended: {text[:_LOGGED_CHARS]}")

    def _lost_zygote(self) -> SandboxError:
        if self._warm:
            return CallCrashed("the function's zygote ended")
        return FunctionBroken("the function's process ended while its code was imported")

    def _trust(self) -> None:
        """Look at the zygote from outside, and bound it, before it may import anything."""
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
            self.close(self._lost_zygote())
        else:
            self._confined = True
            self._mount()  # while the code is imported

    def _imported(self) -> None:
        self._timer.cancel()
        try:
            proof.require_alone(self._zygote_pid, self._init_pid)
            limits, keep = self.image.limits, self.image.keep
            self._kept.imported_bytes = size_of(self._zygote_pid).data
            self._call_limits = limit_calls(self._zygote_pid, limits, 1 if keep is None else keep.calls)
        except OSError:
            self.close(self._lost_zygote())
            return
        except SandboxError as error:
            self.close(error)
            return
        with self._changed:
            self._warm = True
            self._changed.notify_all()
        for name in self._mounted:
            self._fork(name)
        self.refill()

    def _import_too_long(self) -> None:
        self.close(FunctionBroken(f"the function's code was not imported within {IMPORT_TIMEOUT_S:g} s"))

    def _remember_ending(self, content: bytes) -> None:
        name = content[: init.NAME_CHARS].decode(errors="replace")
        with self._changed:
            self._endings_asked -= 1
            known = len(content) == init.NAME_CHARS + zygote.ENDING.size
            if known and any(prewarmed.name == name for prewarmed in self._calls.values()):
                self._endings[name] = content[init.NAME_CHARS :]
            self._changed.notify_all()

    def _mount(self) -> None:
        """Begin to make a process ahead of its call: first its root directory."""
        try:
            prewarmed = PrewarmedProcess(f"{next(self._numbers):0{init.NAME_CHARS}x}", self.image.limits.result_bytes)
        except OSError as error:
            self._refused("", str(error))
            return
        self._pending[prewarmed.name] = prewarmed
        self._ask_for_root(prewarmed.name)

    def _mounted_for(self, name: str, root: int) -> None:
        """Take a root directory; its process is forked as soon as the code is imported."""
        prewarmed = self._pending.get(name)
        if prewarmed is None:
            os.close(root)
            return
        try:
            prewarmed.rooted(root, watched=self.image.keep is not None)
        except OSError as error:
            self._refused(name, str(error))
            return
        if self._warm:
            self._fork(name)
        else:
            self._mounted.append(name)

    def _fork(self, name: str) -> None:
        prewarmed = self._pending.get(name)
        if prewarmed is None:  # refused meanwhile
            return
        try:
            socket.send_fds(self._zygote, [zygote.SPAWN + name.encode()], prewarmed.theirs, socket.MSG_NOSIGNAL)
        except BlockingIOError:  # it is told much at once, and gets no time
            self._loop.call_later(_RETRY_S, self._fork, name)
            return
        except OSError:
            self.close(self._lost_zygote())
            return
        prewarmed.handed_over()
        self._refusable.append(name)
        self._loop.call_later(SPAWN_TIMEOUT_S, self._spawn_too_long, prewarmed)
        self._await_hello(prewarmed)

    def _await_hello(self, prewarmed: PrewarmedProcess) -> None:
        if self._pending.get(prewarmed.name) is prewarmed:
            self._loop.add_reader(prewarmed.channel.fileno(), self._greet, prewarmed)

    def _greet(self, prewarmed: PrewarmedProcess) -> None:
        try:
            if not prewarmed.greet(self._call_limits, self._pid_namespace, self._zygote_pid, self._filters + 1):
                return
        except BlockingIOError:
            self._loop.remove_reader(prewarmed.channel.fileno())
            self._loop.call_later(_RETRY_S, self._await_hello, prewarmed)
            return
        except SandboxError as error:
            _log.warning("a call's process was refused: %s", error)
            self.close(error)
            return
        except OSError as error:
            self._ended_early(prewarmed, error)
            return
        self._loop.remove_reader(prewarmed.channel.fileno())
        del self._pending[prewarmed.name]
        self._stillborn = 0
        with self._changed:
            self._room.given()
            self._ready.append(prewarmed)
            self._changed.notify()
        self.refill()

    def _ended_early(self, prewarmed: PrewarmedProcess, error: OSError) -> None:
        """Note that a process ended, or could not be taken, before its call began."""
        for _ in range(PENDING_MAX):  # if it was refused, its zygote has said so
            if prewarmed.name in self._pending and self._zygote_has_spoken():
                self._zygote_readable()
        if prewarmed.name not in self._pending:
            return
        self._stillborn += 1
        if self._stillborn < STILLBORN_MAX or error.errno in SCARCE:
            self._refused(prewarmed.name, str(error))
        else:
            _log.warning("processes of calls end before they begin: %s", error)
            self.close(self._lost_zygote())

    def _zygote_has_spoken(self) -> bool:
        poll = select.poll()
        poll.register(self._zygote, select.POLLIN)
        return bool(poll.poll(0))

    def _refused(self, name: str, why: str) -> None:
        """Give a process up that there was no room for; others are tried after a pause."""
        prewarmed = self._pending.pop(name, None)
        if prewarmed is not None:
            self._loop.remove_reader(prewarmed.channel.fileno())
            self._end(prewarmed)
        with self._changed:
            pause_s = self._room.refused(why)
            self._changed.notify_all()
        self._scarce()
        self._loop.call_later(pause_s, self.refill)

    def _spawn_too_long(self, prewarmed: PrewarmedProcess) -> None:
        if self._pending.get(prewarmed.name) is prewarmed:
            self.close(CallCrashed(f"the function's zygote did not fork a call within {SPAWN_TIMEOUT_S:g} s"))

    def _replace(self, prewarmed: PrewarmedProcess) -> None:
        self._end(prewarmed)
        self._target = max(1, self._target)
        self.refill()

    def _ask_for_root(self, name: str) -> None:
        try:
            self._init.send(init.MOUNT + name.encode(), socket.MSG_NOSIGNAL)
        except BlockingIOError:  # many are wanted at once, and it gets no time
            self._loop.call_later(_RETRY_S, self._ask_for_root, name)
        except OSError:
            self.kill()


def _not_started(said: str) -> SandboxError:
    number, _, text = said.partition(" ")
    if number.isdecimal() and int(number) in SCARCE:
        return SandboxFull(text)
    return SandboxUnavailable(f"a function's sandbox could not be started: {text}")


def _in_memory(content: bytes) -> int:
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor


def _pss_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
