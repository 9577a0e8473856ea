"""Checks arguments of the client's methods before anything is sent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from io import TextIOBase
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from storage.arguments import anything, checked, instance, path, seconds, text, whole_number
from storage.errors import InvalidArgument
from taskworker.client.differences import (
    changed_places,
)
from taskworker.rpc.limits import TAIL_MAX

if TYPE_CHECKING:
    pass


def _target(value: Any) -> Any:
    """Check that ``value`` is a path, or a file to write bytes to."""
    if isinstance(value, str | os.PathLike):
        return path(value)
    if isinstance(value, TextIOBase) or not callable(getattr(value, "write", None)):
        raise InvalidArgument(f"target must be a path or a writable binary file, not {type(value).__name__}")
    return value


def _args(value: Any) -> list[Any]:
    if isinstance(value, str | bytes | bytearray):
        raise InvalidArgument(f"args are the function's arguments in a list: write [{value[:40]!r}] for one")
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"args are the function's arguments in a list, not {type(value).__name__}")
    return list(value)


def _kwargs(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"kwargs must be a mapping of names to values, not {type(value).__name__}")
    return {text("a name in kwargs")(name): argument for name, argument in value.items()}


def _texts(name: str) -> Callable[[Any], list[str]]:
    def convert(value: Any) -> list[str]:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise InvalidArgument(f"{name} must be a list of names or patterns, not {type(value).__name__}")
        return [text(f"a name in {name}")(one) for one in value]

    return convert


_RULES = {
    "offset": whole_number("offset", 0),
    "length": whole_number("length", 0),
    "timeout_s": seconds("timeout_s"),
    "function": text("function"),
    "name": text("name"),
    "type": text("type"),
    "with_user": text("with_user"),
    "link_id": text("link_id"),
    "write": instance(bool, "write"),
    "ttl_s": seconds("ttl_s"),
    "target": _target,
    "changed": changed_places,
    "args": _args,
    "kwargs": _kwargs,
    "entry": text("entry"),
    "directory": path,
    "include": _texts("include"),
    "exclude": _texts("exclude"),
    "exclude_caches": instance(bool, "exclude_caches"),
    "one_file_system": instance(bool, "one_file_system"),
    "xattrs": instance(bool, "xattrs"),
    "delete": instance(bool, "delete"),
    "allow_empty": instance(bool, "allow_empty"),
    "told": anything,
    "privileged": instance(bool, "privileged"),
    "problem": anything,
    "requirements": path,
    "dry_run": instance(bool, "dry_run"),
    "call_id": text("call_id"),
    "since_ms": whole_number("since_ms", 0),
    "tail": whole_number("tail", 0, TAIL_MAX),
    "follow": instance(bool, "follow"),
    "buffer": anything,  # checked by fetching.writable
    "options": anything,  # checked by spec_from_options
}


ClientT = TypeVar("ClientT")
P = ParamSpec("P")


ResultT = TypeVar("ResultT")


def _as_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"an argument cannot be sent as JSON: {error}") from None


def texts_of(args: Sequence[object], kwargs: Mapping[str, object] | None) -> tuple[list[str], dict[str, str]]:
    """Convert the arguments of a function, each to JSON.

    Raises:
        InvalidArgument: an argument has no JSON form, or ``args`` is a string, whose characters would be the arguments.
    """
    args = _args(args)
    return [_as_json(value) for value in args], {name: _as_json(value) for name, value in (kwargs or {}).items()}


def check_texts(args: Sequence[str], kwargs: Mapping[str, str]) -> None:
    """Check that all of a function's arguments are strings.

    Raises:
        InvalidArgument: an argument is not a string.
    """
    for value in (*args, *kwargs.values()):
        text("an argument")(value)


def arguments_checked(
    method: Callable[Concatenate[ClientT, P], ResultT],
) -> Callable[Concatenate[ClientT, P], ResultT]:
    """Check arguments as the engine does; values that no message can hold raise InvalidArgument as well."""
    checked_method = checked(method, _RULES)

    @wraps(method)
    def at_the_door(self: ClientT, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        try:
            return checked_method(self, *args, **kwargs)
        except UnicodeEncodeError:
            raise InvalidArgument("a text has characters that UTF-8 cannot encode (lone surrogates)") from None
        except ValueError as error:
            if "out of range" not in str(error):
                raise
            raise InvalidArgument(f"a number is too small or too large ({error})") from None

    return at_the_door
