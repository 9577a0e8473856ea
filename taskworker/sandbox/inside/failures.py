"""Describes an exception of user code for callers: with the user's own frames, but without paths of the machine."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType

CODE = "/code/"
_TEXT_MAX = 4_000
_FRAMES_MAX = 20
_FRAME_CHARS_MAX = 400
_CAUSES_MAX = 4
_CAUSE_CHARS_MAX = 500
_LIMITS: Mapping[int | None, str] = {errno.EFBIG: "disk", errno.ENOSPC: "disk", errno.EMFILE: "files"}
_NAME_OF = type.__dict__["__qualname__"].__get__
"""Returns the name of a class, without calling its metaclass."""


def type_name(error: BaseException) -> str:
    """Return the name of the exception's class, with its module unless it is built in."""
    cls = type(error)
    name: str = _NAME_OF(cls)
    said: object = cls.__module__  # a user's class may set it to anything
    module = _of_class_str(said) if isinstance(said, str) else "builtins"
    plain = module in ("builtins", "__main__") or module.startswith("taskworker.")
    return name if plain else f"{module}.{name}"


def text_of(error: BaseException) -> str:
    """Return the exception's text, cut to a limit; a note in its place if the text cannot be computed."""
    try:
        text = _of_class_str(str(error)) + _limit_met(error)
    except BaseException as failure:  # the user's own __str__ may raise anything, even SystemExit
        text = f"(its text is not available: {_NAME_OF(type(failure))})"
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."


def how_to_bring(error: BaseException) -> str:
    """Return advice for a module that was not found when it was imported; empty for other exceptions."""
    if type(error) is not ModuleNotFoundError or type(error.name) is not str:
        return ""
    if error.name.partition(".")[0] in sys.stdlib_module_names:
        return "; sandboxes have no such module"
    return "; `deploy --include` brings modules of the function's directory, and `--requirements FILE` brings packages"


def _of_class_str(text: str) -> str:
    """Return the beginning of a text, without surrogates. Calls no methods of a user's subclass of ``str``."""
    beginning = str.__getitem__(text, slice(_TEXT_MAX + 1))
    return beginning.encode("utf-8", "replace").decode()


def _limit_met(error: BaseException) -> str:
    limit = _LIMITS.get(error.errno) if isinstance(error, OSError) else None
    return f" (this call has reached its limit {limit}; `deploy --limits {limit}=...` allows more)" if limit else ""


def frames_of(trace: TracebackType | None) -> list[str]:
    """Return the user's own frames of a traceback, outermost first, as ``file:line in function: source``."""
    try:
        frames = [_told(frame) for frame in traceback.extract_tb(trace) if frame.filename.startswith(CODE)]
    except BaseException as failure:  # a user's module may set its source to anything
        return [f"(its frames are not available: {_NAME_OF(type(failure))})"]
    if len(frames) > _FRAMES_MAX:
        half = _FRAMES_MAX // 2
        frames = [*frames[:half], f"... {len(frames) - 2 * half} more ...", *frames[-half:]]
    return frames


def causes_of(error: BaseException) -> list[str]:
    """Return descriptions of an exception's causes (``__cause__`` or ``__context__``), the nearest first."""
    causes: list[str] = []
    try:
        for _ in range(_CAUSES_MAX):
            how, cause = "caused by", error.__cause__
            if cause is None and not error.__suppress_context__:
                how, cause = "while handling", error.__context__
            if not isinstance(cause, BaseException):
                break
            text = text_of(cause)
            text = text if len(text) <= _CAUSE_CHARS_MAX else f"{text[:_CAUSE_CHARS_MAX]}..."
            causes.append(f"{how} {type_name(cause)}: {text}")
            error = cause
    except BaseException as failure:  # a user's class may override anything
        causes.append(f"(its cause is not available: {_NAME_OF(type(failure))})")
    return causes


def _told(frame: traceback.FrameSummary) -> str:
    source = f": {frame.line}" if frame.line else ""
    text = f"{frame.filename.removeprefix(CODE)}:{frame.lineno} in {frame.name}{source}"
    return text if len(text) <= _FRAME_CHARS_MAX else f"{text[:_FRAME_CHARS_MAX]}..."
