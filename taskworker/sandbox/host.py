"""The host of all sandboxes of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import secrets
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from taskworker.sandbox import bubblewrap, ids
from taskworker.sandbox.answering import Answer
from taskworker.sandbox.base_process import BaseProcess
from taskworker.sandbox.call import Check, Item, Output, SandboxCall
from taskworker.sandbox.errors import CallCrashed, SandboxError, SandboxFull, SandboxUnavailable, Unbounded, Unjudged
from taskworker.sandbox.filters import Filters, compile_filters
from taskworker.sandbox.frames import Kind, encode
from taskworker.sandbox.function import FunctionSandbox
from taskworker.sandbox.ids import FunctionIds
from taskworker.sandbox.image import FunctionImage, Limits, WarmView
from taskworker.sandbox.kept import KeptLoad
from taskworker.sandbox.pids_cgroup import PidsCgroup
from taskworker.sandbox.prewarmed import PrewarmedProcess
from taskworker.sandbox.room import PATIENCE_S, memory_bytes

SPARES_IDLE_S = 60.0
"""After so many seconds without a call, a function's prewarmed processes are ended; its zygote stays."""
_TICK_S = 0.25
_INSPECT_S = 5.0
"""How often functions are searched for processes that do not belong to a call."""
_START_TIMEOUT_S = 90.0

_SELFTEST = b"program:taskworker.sandbox.inside.selftest\n"
_BEGIN_TIMEOUT_S = 60.0
"""How long a call without a deadline waits for a process: its function may have to be imported first."""
_ATTEMPTS = 3
"""Attempts to begin a call: one may meet a function that just ended, one a base that just ended; the last must work."""
_ROOM_RETRY_S = 0.05
_DESCRIPTORS_WANTED = 16_384
"""A warm function takes three descriptors, and each of its processes four. The usual limit of 1024 would be too low."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class SandboxHost:
    """Runs functions in processes that the kernel confines. Thread-safe.

    Args:
        bundles: the directory that contains the roots of all images; it must exist.
        warm_max: how many functions stay warm; beyond that, the one that was unused the longest is ended.
        idle_s: after so many seconds without a call, a function is ended.
        pids_cgroup: bound functions' processes by a cgroup. For root before Linux 6.14, this happens automatically.
        kept_max: how many processes are kept for their owners' next calls; beyond that, the one that has waited the
            longest is ended.
        kept_bytes_max: how much memory and scratch files the kept processes may hold; None: a quarter of the machine's
            memory.
        clock_s: monotonic seconds.
        wall_s: seconds since 1970.
    """

    def __init__(
        self,
        bundles: Path,
        *,
        warm_max: int = 128,
        idle_s: float = 600.0,
        pids_cgroup: bool = False,
        kept_max: int = 256,
        kept_bytes_max: int | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._clock_s = clock_s
        self._wall_s = wall_s
        self._bundles = bundles.resolve()
        self._warm_max = warm_max
        self._idle_s = idle_s
        self._kept_max = kept_max
        self._kept_bytes_max = memory_bytes() // 4 if kept_bytes_max is None else kept_bytes_max
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox-host", daemon=True)
        self._functions: dict[str, FunctionSandbox] = {}
        self._lock = threading.Lock()
        self._calls: set[SandboxCall] = set()
        self._base: BaseProcess | None = None
        self._ids: range | None = None
        self._function_ids = FunctionIds(None)
        self._pids_cgroup = pids_cgroup
        self._fence: PidsCgroup | None = None
        self._unfenced: list[FunctionSandbox] = []
        self._bwrap = ""
        self._filters = Filters(b"", b"", b"")
        self._closed = False

    def start(self) -> None:
        """Start the base, and check that a sandbox really confines.

        Raises:
            SandboxUnavailable: this machine cannot confine as it is set up; the text says what to do.
        """
        try:
            self._bwrap = bubblewrap.find()
            self._filters = compile_filters()
            if self._pids_cgroup:
                self._fence = PidsCgroup()
            _allow_descriptors()
            self._give_ids()
            self._thread.start()
            self._in_loop(self._started_base)
            self.check()
        except (OSError, RuntimeError) as error:  # no processes, threads or descriptors are left for the moment
            self.close()
            why = str(error) or type(error).__name__
            raise SandboxUnavailable(f"the sandbox could not be started: {why}") from error
        except BaseException:
            self.close()
            raise
        self._loop.call_soon_threadsafe(self._tick)
        self._loop.call_soon_threadsafe(self._inspect)

    def _give_ids(self) -> None:
        """Choose the user ids of sandboxes; with ids of their own, they need access to the bundles."""
        self._ids = ids.find()
        self._function_ids = FunctionIds(self._ids)
        if self._ids is not None:
            self._bundles.chmod(stat.S_IMODE(self._bundles.stat().st_mode) | stat.S_IXOTH)

    def check(self) -> None:
        """Run the self-test, a program that tries what a sandbox must prevent.

        Raises:
            SandboxUnavailable: one of its attempts succeeded, or the self-test failed.
        """
        image = FunctionImage(f"selftest-{secrets.token_hex(8)}", self._bundles, _SELFTEST, Limits())
        while True:
            try:
                worked = self._tried(image)
                break
            except Unbounded:
                self._fence = PidsCgroup()
            except Unjudged as error:
                _log.warning("on this machine, calls that exceed their thread limit are noticed late: %s", error)
                self._filters = compile_filters(judged=False)
        if worked:
            raise SandboxUnavailable(
                f"the sandbox does not confine; this was possible: {worked.replace(chr(10), ', ')}"
            )
        self._in_loop(lambda: self._functions[image.key].close(CallCrashed("the self-test is over")))

    def close(self) -> None:
        """End all sandboxes; calls under way raise. Further calls of this method do nothing."""
        if self._closed:
            return
        self._closed = True
        if self._thread.is_alive():
            self._in_loop(self._end_all)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(asyncio.sleep(0))  # callbacks of calls that just ended
        self._loop.close()
        if self._fence is not None:
            self._fence.close()

    def warm(self, image: FunctionImage) -> None:
        """Import the function's code, unless it is imported already.

        Raises:
            FunctionBroken: the import failed; the text says what it raised.
            SandboxUnavailable: the sandbox does not confine.
        """
        self._patiently(self._clock_s() + PATIENCE_S, lambda: self._function(image).await_warm())

    def begin(
        self,
        image: FunctionImage,
        request: bytes,
        *,
        timeout_s: float | None,
        answer: Answer,
        output: Output,
        item: Item | None = None,
        check: Check = lambda _result: None,
        stopped: Callable[[], object] = lambda: None,
        owner: str = "",
    ) -> SandboxCall:
        """Begin a call; the function is warmed first if necessary.

        Args:
            image: the function to call.
            request: bytes for the program inside the sandbox; opaque to the host.
            timeout_s: seconds left until the caller's deadline, including the wait for a process; None: no deadline.
                The image's ``wall_s``, counted from the request, applies as well.
            answer: computes the reply to an ask. It is called in several threads at the same time, one for each ask
                under way. An exception it raises is sent to the call.
            output: receives the call's output: ``"stdout"`` or ``"stderr"``, and bytes.
            item: receives the parts of a result that comes in parts, in the thread of `SandboxCall.result`; None: such
                a result is refused. An exception it raises ends the call.
            check: checks the result in the same thread. `SandboxCall.result` raises its exception, which also ends the
                process.
            stopped: called when the call is ended early, so that ``answer`` can give up. It must not block.
            owner: owner of the call; processes kept for this owner may serve it.

        Raises:
            FunctionBroken: the function's code cannot be imported.
            CallDeadline: the call could not begin in time.
            SandboxUnavailable: the sandbox does not confine.
            FrameError: the request is larger than 8 MiB.
        """
        frame = encode(Kind.REQUEST, request)
        timeout_s = _BEGIN_TIMEOUT_S + image.limits.wall_s if timeout_s is None else timeout_s
        now = self._clock_s()
        deadline, until = now + timeout_s, now + min(timeout_s, PATIENCE_S)
        function, prewarmed = self._patiently(until, lambda: self._taken(image, deadline, timeout_s, owner))
        call = SandboxCall(
            function,
            prewarmed,
            deadline=deadline,
            timeout_s=timeout_s,
            answer=answer,
            output=output,
            item=item,
            check=check,
            ended=self._calls.discard,
            stopped=stopped,
            owner=owner,
            clock_s=self._clock_s,
        )
        self._calls.add(call)
        call.send(frame)
        return call

    def _tried(self, image: FunctionImage) -> str:
        try:
            self.warm(image)
            return (
                self.begin(image, b"", timeout_s=None, answer=lambda ask, _: ask, output=lambda _name, _data: None)
                .result()
                .decode()
            )
        except SandboxUnavailable:
            raise
        except SandboxError as error:
            raise SandboxUnavailable(f"the sandbox's self-test failed: {error}") from error

    def views(self) -> list[WarmView]:
        """Return the state of all warm functions."""
        with self._lock:
            functions = list(self._functions.values())
        return [view for function in functions if (view := function.view()) is not None]

    def end_when_idle(self, key: str) -> None:
        """End an image's processes soon, but those of calls under way only after their calls.

        For images that are not expected to be called again. If another call comes nevertheless, they stay.
        """
        with self._lock:
            function = self._functions.get(key)
        if function is not None:
            function.keep_none()

    def keys(self) -> set[str]:
        """Return the keys of images that have processes or are being started."""
        with self._lock:
            return set(self._functions)

    def _taken(
        self, image: FunctionImage, deadline: float, timeout_s: float, owner: str
    ) -> tuple[FunctionSandbox, PrewarmedProcess]:
        """Take a process for a call; if the sandbox ends before the call begins, start it again."""
        for _ in range(_ATTEMPTS - 1):
            function = self._function(image)
            with contextlib.suppress(CallCrashed):
                return function, function.take(deadline, timeout_s, owner)
        function = self._function(image)
        return function, function.take(deadline, timeout_s, owner)

    def _patiently(self, until: float, act: Callable[[], T]) -> T:
        """Call ``act``; while the machine has no room for processes or descriptors, retry until ``until``."""
        while True:
            try:
                return act()
            except SandboxFull:
                if self._clock_s() >= until:
                    raise
            time.sleep(_ROOM_RETRY_S)

    def _function(self, image: FunctionImage) -> FunctionSandbox:
        with self._lock:
            function = self._functions.get(image.key)
        return function if function is not None else self._in_loop(lambda: self._started_function(image))

    def _in_loop(self, act: Callable[[], T]) -> T:
        if self._loop.is_closed():
            raise SandboxUnavailable("the sandbox host is closed")

        async def acting() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(acting(), self._loop).result(_START_TIMEOUT_S)

    # In the loop's thread.

    def _started_base(self) -> BaseProcess:
        if self._base is None:
            self._base = BaseProcess(self._bwrap, self._bundles, self._ids)
            for control in self._base.controls:
                self._loop.add_reader(control, self._base_ended)
        return self._base

    def _forget(self, base: BaseProcess) -> None:
        for control in base.controls:
            self._loop.remove_reader(control)

    def _base_ended(self) -> None:
        if self._base is not None:
            self._forget(self._base)
            self._base.end()
            threading.Thread(target=self._base.await_end, name="sandbox-base-end", daemon=True).start()
            self._base = None
        for function in list(self._functions.values()):
            function.close(CallCrashed("all sandboxes of this worker ended; the next call starts them again"))

    def _started_function(self, image: FunctionImage) -> FunctionSandbox:
        if (function := self._functions.get(image.key)) is not None:
            return function
        self._make_room()
        code = self._code_of(image)
        try:
            function = self._new_function(image, code)
        except ConnectionError:
            self._base_ended()
            function = self._new_function(image, code)
        except OSError as error:  # running functions are not affected
            self._drop_oldest_kept()
            raise SandboxFull(str(error)) from error
        with self._lock:
            self._functions[image.key] = function
        return function

    def _new_function(self, image: FunctionImage, code: str) -> FunctionSandbox:
        return FunctionSandbox(
            self._loop,
            self._started_base(),
            image,
            code,
            self._filters,
            fence=self._fence,
            ids=self._function_ids,
            ended=self._function_ended,
            scarce=self._drop_oldest_kept,
            clock_s=self._clock_s,
            wall_s=self._wall_s,
        )

    def _code_of(self, image: FunctionImage) -> str:
        relative = os.path.relpath(image.root.resolve(), self._bundles)
        if relative.startswith("..") or not image.root.is_dir():
            raise SandboxUnavailable(f"the bundle {image.root} is not a directory below {self._bundles}")
        return "" if relative == "." else relative

    def _make_room(self) -> None:
        """If there are `warm_max` functions, end the idle one that was unused the longest."""
        idle = [function for function in self._functions.values() if not function.busy]
        if len(self._functions) >= self._warm_max and idle:
            max(idle, key=lambda function: function.idle_s).close(CallCrashed("the function made room for another"))

    def _bound_kept(self) -> None:
        """End the kept processes that have waited the longest, of any function, until the rest is within bounds."""
        loads = self._kept_loads()
        while (
            sum(load.processes for load in loads.values()) > self._kept_max
            or sum(load.holds_bytes for load in loads.values()) > self._kept_bytes_max
        ):
            oldest = _waits_longest(loads)
            oldest.drop_oldest_kept()
            loads[oldest] = oldest.kept_load

    def _drop_oldest_kept(self) -> None:
        """End the kept process that has waited the longest, as the machine has no room for another process."""
        if loads := self._kept_loads():
            _waits_longest(loads).drop_oldest_kept()

    def _kept_loads(self) -> dict[FunctionSandbox, KeptLoad]:
        return {function: function.kept_load for function in self._functions.values()}

    def _function_ended(self, function: FunctionSandbox) -> None:
        with self._lock:
            if self._functions.get(function.image.key) is function:
                del self._functions[function.image.key]
        self._unfenced.append(function)

    def _tick(self) -> None:
        for call in list(self._calls):
            _despite_faults(call.watch)
        self._unfenced = [function for function in self._unfenced if not function.fenced_off()]
        for function in list(self._functions.values()):
            _despite_faults(lambda function=function: self._look_after(function))  # type: ignore[misc]
        _despite_faults(self._bound_kept)
        self._loop.call_later(_TICK_S, self._tick)

    def _look_after(self, function: FunctionSandbox) -> None:
        function.drop_spent()
        if function.ended_unused(self._idle_s):
            return
        if function.idle_s > SPARES_IDLE_S:
            function.rest()
        else:
            function.refill()

    def _inspect(self) -> None:
        for function in list(self._functions.values()):
            _despite_faults(function.inspect)
        self._loop.call_later(_INSPECT_S, self._inspect)

    def _end_all(self) -> None:
        for function in list(self._functions.values()):
            function.close(CallCrashed("the worker is shutting down"))
        if self._base is not None:
            with contextlib.suppress(OSError):
                self._forget(self._base)
            self._base.end()
            self._base.await_end()
            self._base = None


def _despite_faults(act: Callable[[], object]) -> None:
    """Do something for one call or function; whatever happens, the others come next, and this one again later."""
    try:
        act()
    except Exception:
        _log.exception("looking after a sandbox failed; trying again")


def _waits_longest(loads: Mapping[FunctionSandbox, KeptLoad]) -> FunctionSandbox:
    return min(loads, key=lambda function: loads[function].waits_since)


def _allow_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
