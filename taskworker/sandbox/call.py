"""The caller's handle on one call that is under way."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import signal
import struct
import termios
import threading
from collections.abc import Callable

from taskworker.sandbox.answering import Answer, Answering
from taskworker.sandbox.errors import (
    CallCancelled,
    CallCrashed,
    CallDeadline,
    CallFailed,
    CallRefused,
    LimitExceeded,
    ProtocolViolation,
    SandboxError,
)
from taskworker.sandbox.frames import Cause, Frame, Kind, split_number
from taskworker.sandbox.function import FunctionSandbox
from taskworker.sandbox.listening import Listening
from taskworker.sandbox.prewarmed import PrewarmedProcess
from taskworker.sandbox.protocol import failure_of

Output = Callable[[str, bytes], None]
Item = Callable[[bytes, Callable[[], bool]], None]
"""Takes a part of a result, and a function that says whether the call was ended, after which it must not block."""

Check = Callable[[bytes], object]
"""Checks a result; an exception it raises fails the call and ends its process."""

SAMPLE_S = 0.1
"""How long a call waits for data before it checks its time, threads and processor time."""
CLOSE_TIMEOUT_S = 1.0
"""How long a killed call's channel may take to close; after that, the whole function is killed."""
_RECEIVE_BYTES = 256 << 10
_OUTPUT_BYTES = 64 << 10
_SMALL_BYTES = 4096
_TOGETHER_S = 0.005
"""Pause after a small piece of output, so that small pieces cause at most 200 reads a second."""
_PART_TOGETHER_S = 0.001
"""The same after a part of a frame."""
_AVAILABLE = struct.Struct("=i")
_NONE_AVAILABLE = _AVAILABLE.pack(0)
_CPU_GRACE_S = 0.2
_SIGNALS_OF_C = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
_MOST = 0.8
"""C code often aborts its process when it gets no memory. A crash is attributed to the memory limit if the process had
used this fraction of it."""


class SandboxCall:
    """A call that has begun. Call `result` once, in one thread; `cancel` may be called from any thread.

    Attributes:
        cpu_s: processor time it took, in seconds.
        wall_s: time from request to result, in seconds.
        peak_rss_bytes: peak resident memory of its process, in bytes.
        output_truncated: whether it wrote more than allowed; the rest was dropped.
    """

    def __init__(
        self,
        function: FunctionSandbox,
        prewarmed: PrewarmedProcess,
        *,
        deadline: float,
        timeout_s: float,
        answer: Answer,
        output: Output,
        item: Item | None,
        check: Check,
        ended: Callable[[SandboxCall], None],
        stopped: Callable[[], object],
        owner: str,
        clock_s: Callable[[], float],
    ) -> None:
        self._clock_s = clock_s
        self._owner = owner
        self._cpu_before_s = 0.0
        if prewarmed.served > 1:
            self._cpu_before_s = prewarmed.cpu_s()
            prewarmed.allow_cpu(function.image.limits.cpu_s)
        self._went_well = False
        self.cpu_s = 0.0
        self.wall_s = 0.0
        self.peak_rss_bytes = 0
        self.output_truncated = False
        self._function = function
        self._limits = function.image.limits
        self._prewarmed = prewarmed
        self._begun = self._clock_s()
        wall_s = self._limits.wall_s
        self._deadline = min(deadline, self._begun + wall_s)
        of_caller = deadline <= self._begun + wall_s
        self._too_late = CallDeadline(timeout_s if of_caller else wall_s, of_caller=of_caller)
        self._answering = Answering(answer, self._reply)
        self._output = output
        self._item = item
        self._check = check
        self._ended = ended
        self._tell_stopped = stopped
        self._output_left = self._limits.output_bytes
        self._lock = threading.Lock()
        self._stopped: SandboxError | None = None
        self._closes_by = math.inf
        self._closed = False

    def cancel(self) -> None:
        """End the call; `result` raises `CallCancelled`."""
        self.stop(CallCancelled())

    def result(self) -> bytes:
        """Wait for the result; meanwhile, answer the call's asks and forward its output.

        Raises:
            LimitExceeded: the call exceeded its memory, processor time, threads or result size.
            CallDeadline: the call did not finish in time.
            CallCancelled: `cancel` was called.
            CallFailed: the program in the sandbox failed with an unhandled exception.
            CallRefused: the arguments do not fit, the function raised, or its result cannot be sent.
            CallCrashed: the call's process ended without a result.
            ProtocolViolation: the sandbox violated the channel's protocol.
        """
        try:
            return self._judged(self._serve())
        except (ConnectionError, BrokenPipeError):
            raise self._why_it_ended() from None
        except SandboxError as error:
            raise self._stopped or error from None
        finally:
            self._finish()

    def send(self, frame: bytes) -> None:
        """Send the request's frame. If the call has ended, `result` reports it."""
        self._prewarmed.protocol.requested()
        with contextlib.suppress(OSError):
            self._prewarmed.send(frame, self._left_s)

    def stop(self, reason: SandboxError) -> None:
        """End the call with an error, which `result` raises. Only the first error counts."""
        with self._lock:
            if self._closed or self._stopped is not None:
                return
            self._stopped = reason
            self._closes_by = self._clock_s() + CLOSE_TIMEOUT_S
            self._prewarmed.kill()
        self._tell_stopped()

    def watch(self) -> None:
        """End the call if it exceeds its time, threads or processor time."""
        if self._clock_s() >= self._deadline:
            self.stop(self._too_late)
            return
        with self._lock:
            if self._closed or self._stopped is not None:
                return
            threads, cpu_s = self._prewarmed.threads(), self._prewarmed.cpu_s() - self._cpu_before_s
        if threads > self._limits.threads or self._prewarmed.exceeded:
            self.stop(LimitExceeded("threads", self._limits.threads))
        elif cpu_s > self._limits.cpu_s:
            self.stop(LimitExceeded("cpu", self._limits.cpu_s))

    def _serve(self) -> Frame:
        """Serve the channel until a result or a failure comes, and return that frame.

        Raises:
            ConnectionResetError: the channel was closed before.
        """
        channel = self._prewarmed.channel.fileno()
        names = {self._prewarmed.output: "stdout", self._prewarmed.errors: "stderr"}
        listening = Listening((channel, *names))
        while True:
            ready = listening.wait(max(0.0, min(SAMPLE_S, self._left_s())))
            if not ready or self._stopped is not None:
                self._look_at_time()
            for descriptor in ready:
                if descriptor == channel:
                    for frame in self._receive(listening):
                        if self._is_last(frame):
                            self._drain(names)
                            return frame
                else:
                    self._forward(descriptor, names[descriptor], listening)

    def _left_s(self) -> float:
        until = self._deadline if self._stopped is None else self._closes_by
        return until - self._clock_s()

    def _look_at_time(self) -> None:
        """End the call when its time is over. If its channel then stays open, kill the whole function."""
        if self._stopped is None:
            self.watch()
        elif self._clock_s() >= self._closes_by:
            self._function.kill()
            raise ConnectionResetError

    def _receive(self, listening: Listening) -> list[Frame]:
        channel = self._prewarmed.channel
        try:
            data = channel.recv(_RECEIVE_BYTES)
        except BlockingIOError:  # urgent data, which is not part of the stream
            listening.leave_alone(channel.fileno(), _TOGETHER_S)
            return []
        if not data:
            raise ConnectionResetError
        if self._stopped is not None:
            return []
        try:
            frames = self._prewarmed.protocol.feed(data)
        except SandboxError as error:
            self.stop(error)
            raise
        if not frames and len(data) < _SMALL_BYTES:
            listening.leave_alone(channel.fileno(), _PART_TOGETHER_S)
        return frames

    def _is_last(self, frame: Frame) -> bool:
        """Return whether a frame ends the call; handle all others: asks, withdrawn asks and parts of the result."""
        if frame.kind is Kind.ASK:
            self._answering.take(*split_number(frame.payload))
        elif frame.kind is Kind.WITHDRAW:
            self._answering.withdraw(split_number(frame.payload)[0])
        elif frame.kind is Kind.ITEM:
            if self._item is None:
                violation = ProtocolViolation("the sandbox sent a result in parts, which nobody asked for")
                self.stop(violation)
                raise violation
            self._item(frame.payload, lambda: self._stopped is not None)
            if self._stopped is not None:  # the part may not have been taken
                raise self._stopped
        else:
            return True
        return False

    def _reply(self, number: int, reply: bytes) -> None:
        self._prewarmed.protocol.answered(number)
        self._prewarmed.send(reply, self._left_s)

    def _forward(self, descriptor: int, name: str, listening: Listening) -> None:
        read = self._pass_on(descriptor, name, _OUTPUT_BYTES)
        if read == 0:
            listening.leave_out(descriptor)
        elif read is None or read < _SMALL_BYTES:
            listening.leave_alone(descriptor, _TOGETHER_S)

    def _pass_on(self, descriptor: int, name: str, most: int) -> int | None:
        """Read output and pass on what is within the limit.

        Returns:
            How many bytes were read: 0 at the end of the output, None if there are none yet.
        """
        try:
            data = os.read(descriptor, most)
        except BlockingIOError:
            return None
        passed, self._output_left = data[: self._output_left], max(0, self._output_left - len(data))
        if len(passed) < len(data):
            self.output_truncated = True
        if passed:
            self._output(name, passed)
        return len(data)

    def _drain(self, names: dict[int, str]) -> None:
        """Pass on the output written before the result, and nothing written later."""
        for descriptor, name in names.items():
            (available,) = _AVAILABLE.unpack(fcntl.ioctl(descriptor, termios.FIONREAD, _NONE_AVAILABLE))
            while available > 0 and (read := self._pass_on(descriptor, name, available)):
                available -= read

    def _judged(self, frame: Frame) -> bytes:
        if frame.kind is Kind.RESULT:
            self._check(frame.payload)
            self._went_well = True
            return frame.payload
        failure = failure_of(frame)
        too_many = failure.cause is Cause.RAISED and self._prewarmed.threads() > self._limits.threads
        if self._prewarmed.exceeded or too_many:
            raise LimitExceeded("threads", self._limits.threads)
        if failure.cause is Cause.MEMORY:
            raise LimitExceeded("memory", self._limits.memory_bytes)
        if failure.cause is Cause.RESULT_TOO_LARGE:
            raise LimitExceeded("result", self._limits.result_bytes)
        if failure.cause is Cause.RAISED:
            raise CallFailed(failure.type_name, failure.text)
        self._went_well = True  # an exception of the function does not make its process unfit
        raise CallRefused(failure.cause, failure.type_name, failure.text)

    def _why_it_ended(self) -> SandboxError:
        if self._stopped is not None:
            return self._stopped
        if self._function.failure is not None:
            return self._function.failure
        if self._prewarmed.exceeded:
            return LimitExceeded("threads", self._limits.threads)
        ending = self._function.ending_of(self._prewarmed)
        if ending is None:
            return CallCrashed("the function's process ended before it gave a result")
        status, peak_bytes = ending
        self.peak_rss_bytes = peak_bytes
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return CallCrashed.by_exit(code)
        if -code == signal.SIGXCPU or (-code == signal.SIGKILL and self._cpu_spent()):
            return LimitExceeded("cpu", self._limits.cpu_s)
        if -code in _SIGNALS_OF_C and peak_bytes >= _MOST * self._limits.memory_bytes:
            return LimitExceeded("memory", self._limits.memory_bytes)
        return CallCrashed.by_signal(-code)

    def _cpu_spent(self) -> bool:
        return self._clock_s() - self._begun >= self._limits.cpu_s - _CPU_GRACE_S

    def _finish(self) -> None:
        with self._lock:
            self._closed = True
            self.wall_s = self._clock_s() - self._begun
            self.cpu_s = max(0.0, self._prewarmed.cpu_s() - self._cpu_before_s)
            look = self._prewarmed.look()
            self.peak_rss_bytes = look.peak_bytes or self.peak_rss_bytes
        well = self._went_well and not self.output_truncated and self._stopped is None
        # Only a process that has taken all answers can be kept: otherwise a thread would block in sending them.
        taken = self._answering.close(CLOSE_TIMEOUT_S if well and self._function.image.keep is not None else 0.0)
        if well and taken:
            self._function.served(self._prewarmed, self._owner, look)
        else:
            self._function.dropped(self._prewarmed)
        self._ended(self)
