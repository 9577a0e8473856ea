"""Errors of sandboxes and of calls in them. Their texts say what was wrong and what to do."""

from __future__ import annotations

import signal
from typing import Any

from taskworker.sandbox.frames import Cause


class SandboxError(Exception):
    """Base class of all errors that this package raises. All of them can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(cls: type[SandboxError], args: tuple[Any, ...], attributes: dict[str, Any]) -> SandboxError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


class SandboxUnavailable(SandboxError):
    """This machine cannot isolate functions, or a check found the isolation incomplete. Nothing runs without it."""


class SandboxFull(SandboxUnavailable):
    """The machine has no room for another process now. A later attempt, or another machine, may succeed."""

    def __init__(self, why: str) -> None:
        super().__init__(f"this worker's machine has no room for another process of a function now: {why}")


class FunctionBroken(SandboxError):
    """The function's code could not be imported; the text says what the import raised."""


class LimitExceeded(SandboxError):
    """A call exceeded one of its limits.

    Attributes:
        limit: which limit: ``memory``, ``cpu``, ``threads`` or ``result``.
        value: value of the limit, in bytes, seconds or threads.
    """

    def __init__(self, limit: str, value: float) -> None:
        super().__init__(f"{limit} limit of {_said(limit, value)} exceeded")
        self.limit = limit
        self.value = value


class CallDeadline(SandboxError):
    """A call did not finish in time.

    Attributes:
        wall_s: the time it had, in seconds.
        of_caller: whether that was its caller's deadline; otherwise it was the function's wall time limit.
    """

    def __init__(self, wall_s: float, *, of_caller: bool) -> None:
        whose = "caller's time" if of_caller else "wall time limit"
        super().__init__(f"{whose} of {wall_s:g} s exceeded")
        self.wall_s = wall_s
        self.of_caller = of_caller


class CallCancelled(SandboxError):
    """The caller cancelled the call; its process was ended."""

    def __init__(self) -> None:
        super().__init__("the call was cancelled")


class CallCrashed(SandboxError):
    """A call's process ended without a result.

    Attributes:
        signal: number of the signal that ended the process; None if no signal did.
        exit_code: exit code of the process; None if it did not exit by itself.
    """

    def __init__(self, text: str, *, signal: int | None = None, exit_code: int | None = None) -> None:
        super().__init__(text)
        self.signal = signal
        self.exit_code = exit_code

    @classmethod
    def by_signal(cls, number: int) -> CallCrashed:
        """Make the error for a process ended by a signal."""
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return cls(f"the function's process was ended by {name}", signal=number)

    @classmethod
    def by_exit(cls, code: int) -> CallCrashed:
        """Make the error for a process that exited."""
        return cls(f"the function's process exited with code {code} before it gave a result", exit_code=code)


class CallFailed(SandboxError):
    """The program in the sandbox failed with an unhandled exception.

    Attributes:
        type_name: name of the exception's class.
        text: text of the exception.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}")
        self.type_name = type_name
        self.text = text


class CallRefused(SandboxError):
    """The call has no result because of its arguments, its function or the returned value.

    Attributes:
        cause: which of these: ``ARGUMENTS``, ``EXCEPTION`` (the function raised one) or ``RESULT``.
        type_name: name of the exception's class if the function raised one; otherwise empty.
        text: what went wrong.
    """

    def __init__(self, cause: Cause, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}" if type_name else text)
        self.cause = cause
        self.type_name = type_name
        self.text = text


class ProtocolViolation(SandboxError):
    """The sandbox violated the protocol of its channel; the call was ended."""


def _said(limit: str, value: float) -> str:
    if limit in ("memory", "result"):
        return _bytes(int(value))
    return f"{value:g} s" if limit == "cpu" else f"{value:g}"


def _bytes(value: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value} bytes"


class Unbounded(SandboxUnavailable):
    """This worker runs as root, and nothing bounds the number of a function's processes."""


class Unjudged(SandboxUnavailable):
    """The kernel does not report starts of threads to the host, so that the thread limit is only checked in samples."""
