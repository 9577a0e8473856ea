"""An exception of user code, as it may be told to callers: the user's own frames, no paths of the machine."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Mapping
from types import TracebackType

CODE = "/code/"
_TEXT_MAX = 4_000
_FRAMES_MAX = 20
_FRAME_CHARS_MAX = 400
_LIMITS: Mapping[int | None, str] = {errno.EFBIG: "disk", errno.ENOSPC: "disk", errno.EMFILE: "files"}


def type_name(error: BaseException) -> str:
    """The exception's class, with its module unless it is built in."""
    cls = type(error)
    plain = cls.__module__ in ("builtins", "__main__") or cls.__module__.startswith("taskworker.")
    return cls.__qualname__ if plain else f"{cls.__module__}.{cls.__qualname__}"


def text_of(error: BaseException) -> str:
    """What the exception says, bounded; an exception that cannot even say it is told as such."""
    try:
        text = str(error) + _limit_met(error)
    except Exception as failure:
        text = f"(its text cannot be had: {type(failure).__name__})"
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."


def _limit_met(error: BaseException) -> str:
    limit = _LIMITS.get(error.errno) if isinstance(error, OSError) else None
    return f" (this call's limit {limit} is met; `deploy --limits {limit}=...` allows more)" if limit else ""


def frames_of(trace: TracebackType | None) -> list[str]:
    """The user's own frames that an exception went through, outermost first: ``file:line in function: source``."""
    frames = []
    for frame in traceback.extract_tb(trace):
        if frame.filename.startswith(CODE):
            source = f": {frame.line}" if frame.line else ""
            text = f"{frame.filename.removeprefix(CODE)}:{frame.lineno} in {frame.name}{source}"
            frames.append(text if len(text) <= _FRAME_CHARS_MAX else f"{text[:_FRAME_CHARS_MAX]}...")
    if len(frames) > _FRAMES_MAX:
        half = _FRAMES_MAX // 2
        frames = [*frames[:half], f"... {len(frames) - 2 * half} more ...", *frames[-half:]]
    return frames
