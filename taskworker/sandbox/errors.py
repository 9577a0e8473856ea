"""What can become of a sandbox and of calls in it. Texts say what was wrong and what to do."""

from __future__ import annotations

import signal
from typing import Any

from taskworker.sandbox.frames import Cause


class SandboxError(Exception):
    """The family: everything this room raises on purpose. They can be pickled, whatever they are made of."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(cls: type[SandboxError], args: tuple[Any, ...], attributes: dict[str, Any]) -> SandboxError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


class SandboxUnavailable(SandboxError):
    """Isolation that this machine cannot give, or that was found missing; nothing runs without it."""


class SandboxFull(SandboxUnavailable):
    """The machine has no room for another process now; later, or on another one, there may be."""

    def __init__(self, why: str) -> None:
        super().__init__(f"this worker's machine has no room for another process of a function now: {why}")


class FunctionBroken(SandboxError):
    """The function's code could not be imported; the text is what it raised."""


class LimitExceeded(SandboxError):
    """A call took more than it may.

    Attributes:
        limit: which one: ``memory``, ``cpu``, ``threads``, ``result``.
        value: what it was set to, in bytes, seconds or threads.
    """

    def __init__(self, limit: str, value: float) -> None:
        super().__init__(f"{limit} limit of {_said(limit, value)} exceeded")
        self.limit = limit
        self.value = value


class CallDeadline(SandboxError):
    """A call was not done within its wall time.

    Attributes:
        wall_s: the time it had, in seconds.
        of_caller: whether its caller waited no longer; else that was the function's limit.
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
        signal: the number of the signal that ended it, if one did.
        exit_code: what it exited with, if it did so itself.
    """

    def __init__(self, text: str, *, signal: int | None = None, exit_code: int | None = None) -> None:
        super().__init__(text)
        self.signal = signal
        self.exit_code = exit_code

    @classmethod
    def by_signal(cls, number: int) -> CallCrashed:
        """Say that a signal ended it."""
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return cls(f"the function's process was ended by {name}", signal=number)

    @classmethod
    def by_exit(cls, code: int) -> CallCrashed:
        """Say that it exited."""
        return cls(f"the function's process exited with code {code} before it gave a result", exit_code=code)


class CallFailed(SandboxError):
    """The program in the sandbox raised what it did not handle.

    Attributes:
        type_name: the name of the exception's class.
        text: what it says.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}")
        self.type_name = type_name
        self.text = text


class CallRefused(SandboxError):
    """The program in the sandbox ended the call without a result: not its own fault, but the call's.

    Attributes:
        cause: whose: of the arguments, the function, or what it gave.
        type_name: the name of the exception's class, if the function raised.
        text: what it says.
    """

    def __init__(self, cause: Cause, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}" if type_name else text)
        self.cause = cause
        self.type_name = type_name
        self.text = text


class ProtocolViolation(SandboxError):
    """What came out of the sandbox was not what may come; the call was ended."""


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
    """This worker runs as root, and nothing bounds how many processes a function has."""


class Unjudged(SandboxUnavailable):
    """The kernel does not hand over what processes start, so nothing but samples keeps each to its share."""
