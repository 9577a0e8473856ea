"""The program in a function's sandbox: loads the function in the zygote, and answers calls in forks of it.

Requests are JSON documents::

    {"args": [text], "kwargs": {name: text}, "user_id": text, "call_id": text, "left_s": number,
     "in_parts": true to send the items of a generator as they come, "traceparent": text, if the call is traced}

The result is a JSON document, or empty if it was sent in parts.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Protocol

from taskworker.sandbox.frames import Cause
from taskworker.sandbox.inside import facade, failures, guards
from taskworker.sandbox.inside.arguments import Parameters
from taskworker.sandbox.inside.channel import CallFailure
from taskworker.sandbox.inside.refusals import ArgumentRefused
from taskworker.sandbox.inside.results import NoJson, json_of

_scan: Callable[[str, int], tuple[Any, int]] = vars(json.JSONDecoder())["scan_once"]
"""Reads the JSON value at the beginning of a text."""
_PLAIN = (int, str, float, bool, bytes, list, dict, tuple, type(None))
"""Types that are surely not awaitable: faster than asking an abstract base class."""
_TAKEN = object()
"""Stands for a result whose items have been taken from a generator."""
_CODE, _APP = "/code", "/code/app"
_TRACE = "TRACEPARENT"


class EntryNotFound(Exception):
    """The bundle does not contain the function that its document names."""


class CannotLoad(Exception):
    """Loading the function's code raised an exception.

    Attributes:
        broken_text: description of the exception for callers.
    """

    def __init__(self, error: BaseException) -> None:
        said = f"{failures.type_name(error)}: {failures.text_of(error)}"
        lines = [said, *failures.frames_of(error.__traceback__), *failures.causes_of(error)]
        super().__init__(lines[0])
        self.broken_text = "\n  ".join(lines)


REHEARSAL = (
    b'{"args": ["1", "a word"], "kwargs": {"c": "[2.5]"}, "user_id": "", "call_id": "", "left_s": 1, "in_parts": false}'
)
"""Request of a rehearsal, which calls `_rehearsed` before a function is loaded."""


def _rehearsed(a: int, b: str, c: list[float]) -> dict[str, object]:
    return {"a": a, "b": b, "c": c}


class _Loaded:
    """The function of this sandbox."""

    __slots__ = ("function", "parameters")

    def __init__(self) -> None:
        self.load(_rehearsed)

    def load(self, function: Callable[..., Any]) -> None:
        """Set the function to call."""
        self.parameters = Parameters(function)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            importlib.import_module("asyncio")
        self.function = function


_loaded = _Loaded()


def prepare(document: bytes) -> None:
    """Load the function that the document names: ``{"entry": "module:function" | "pickle:FILE", ...}``.

    Raises:
        CannotLoad: importing its code failed, or the code does not contain the function.
    """
    told = json.loads(document)
    sys.path[:0] = [_APP, *(f"{_CODE}/{directory}" for directory in told.get("packages", ()))]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _offer_worker()
    facade.configure(told.get("config", {}))
    guards.install(frozenset(told.get("own_modules", ())))
    facade.connect(None)
    try:
        _loaded.load(_load(told["entry"]))
    except BaseException as error:
        raise CannotLoad(error) from error


def _offer_worker() -> None:
    """Make ``from taskworker.inside import worker`` and ``TaskWorker(...)`` work in modules, as they do outside."""
    sys.modules["taskworker.inside"] = facade
    vars(sys.modules["taskworker"])["TaskWorker"] = facade.inert_worker


def _load(entry: str) -> Callable[..., Any]:
    place, _, name = entry.partition(":")
    if place == "pickle":
        import pickle  # few functions are pickled

        function: Any = pickle.loads(Path(_APP, name).read_bytes())
    else:
        function = importlib.import_module(place)
        try:
            function = functools.reduce(getattr, name.split("."), function)
        except AttributeError:
            raise EntryNotFound(f"module {place!r} has no {name!r}{_meant(place, name)}") from None
    if not callable(function):
        raise EntryNotFound(f"{entry} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def _meant(place: str, name: str) -> str:
    import difflib  # rarely needed

    offered = [other for other, value in vars(sys.modules[place]).items() if callable(value)]
    near = difflib.get_close_matches(name, offered, 1)
    return f"; is {near[0]!r} meant?" if near else ""


class _Channel(facade.Asker, Protocol):
    def item(self, content: bytes) -> None:
        """Send a part of the result."""


def run(request: bytes, channel: _Channel) -> bytes:
    """Answer one call.

    Returns:
        The result as JSON; empty if it was sent in parts.

    Raises:
        CallFailure: the arguments do not fit, the function raised, or its result has no JSON form.
    """
    told, _ = _scan(request.decode(), 0)
    trace = told.get("traceparent", "")
    facade.connect(channel, (told["user_id"], told["call_id"], time.monotonic() + told["left_s"], trace))
    _show_trace(trace)
    give = channel.item if told["in_parts"] else None
    try:
        return _result(told["args"], told["kwargs"], give)
    except (MemoryError, CallFailure):
        raise  # the caller of `run` reports these itself
    except ArgumentRefused as error:
        raise CallFailure(Cause.ARGUMENTS, "", str(error)) from None
    except BaseException as error:
        frames, causes = failures.frames_of(error.__traceback__), failures.causes_of(error)
        text = "\n  ".join((f"{failures.text_of(error)}{failures.how_to_bring(error)}", *frames, *causes))
        raise CallFailure(Cause.EXCEPTION, failures.type_name(error), text) from None
    finally:
        facade.finish()


def _show_trace(traceparent: str) -> None:
    """Show the call's trace to libraries that look for it in the environment, and none of a former call."""
    if traceparent:
        os.environ[_TRACE] = traceparent
    elif _TRACE in os.environ:
        del os.environ[_TRACE]


def _result(args: list[str], kwargs: dict[str, str], give: Callable[[bytes], None] | None) -> bytes:
    positional, named = _loaded.parameters.take(args, kwargs)  # may run the function's own checks
    value = _loaded.function(*positional, **named)
    if type(value) in _PLAIN:
        return _told(value)
    kept: list[Any] = []
    take = kept.append if give is None else functools.partial(_give, give)
    if inspect.isawaitable(value) or isinstance(value, AsyncGeneratorType):
        import asyncio  # large; `load` has imported it for functions that are coroutines

        value = asyncio.run(_awaited(value, take))
    if isinstance(value, GeneratorType):
        for item in value:
            take(item)
        value = _TAKEN
    if value is not _TAKEN:
        return _told(value)
    return b"" if give is not None else _told(kept)


def _told(value: Any) -> bytes:
    try:
        return json_of(value, "the result").encode()
    except NoJson as error:
        raise CallFailure(Cause.RESULT, "", str(error)) from None


async def _awaited(value: Any, take: Callable[[Any], None]) -> Any:
    """Return an awaitable's result; if that is an asynchronous generator, take its items in the same event loop."""
    if not isinstance(value, AsyncGeneratorType):
        value = await value
    if not isinstance(value, AsyncGeneratorType):
        return value
    async for item in value:
        take(item)
    return _TAKEN


def _give(give: Callable[[bytes], None], item: Any) -> None:
    give(_told(item))
