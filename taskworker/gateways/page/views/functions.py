"""Functions: their calls, errors and latencies, their logs, and calling one by a form."""

from __future__ import annotations

import json
import re
from typing import Any

from storage.errors import StorageError
from taskworker.auth.rights import Right
from taskworker.client.functions import FunctionStatus, LogLine
from taskworker.errors import FunctionNotFound
from taskworker.gateways.page.rendering import url
from taskworker.gateways.page.sessions import Notice
from taskworker.gateways.page.viewing import Action, Asked, Done, View
from taskworker.readable import one_line

_LINES = 200
_CALL_S = 60.0
_RESULT_CHARACTERS_MAX = 65_536
_NAMED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def load_all(asked: Asked) -> dict[str, Any]:
    """All functions that the person may see."""
    return {"functions": asked.acting.functions().functions()}


def load(asked: Asked) -> dict[str, Any]:
    """One function."""
    name = asked.field("name")
    found = _function(asked, name)
    may_watch = any(asked.principal.may(right, name) for right in (Right.DEPLOY, Right.AUDIT))
    return {
        "function": found,
        "versions": asked.acting.functions().history(name)[:20] if found.version_id else [],
        "lines": _lines(asked, name) if may_watch else None,
        "may_call": asked.principal.may(Right.CALL, name),
        "seconds": int(_CALL_S),
    }


def _function(asked: Asked, name: str) -> FunctionStatus:
    found = next((one for one in asked.acting.functions().functions() if one.function == name), None)
    if found is None:
        raise FunctionNotFound(f"there is no function {name[:200]!r}; it may have been removed")
    return found


def _lines(asked: Asked, name: str) -> list[LogLine]:
    """The last lines that calls of a function wrote; none if there are no logs of it."""
    try:
        return list(asked.acting.functions().logs(name, tail=_LINES))
    except FunctionNotFound:
        return []


def call(asked: Asked) -> Done:
    """Call a function, and show its result."""
    name = asked.field("name")
    args, kwargs = arguments_in(asked.fields.get("arguments", ""))
    here = url("/function", name=name)
    try:
        result = asked.acting.files().call_texts(name, args, kwargs, user_id=asked.principal.user, timeout_s=_CALL_S)
    except StorageError as error:
        return Done(here, Notice(one_line(f"The call of {name} failed:"), is_problem=True, detail=str(error)))
    return Done(here, Notice(one_line(f"The result of {name}:"), detail=_shown(result)))


def arguments_in(text: str) -> tuple[list[str], dict[str, str]]:
    """The arguments in a form: one a line, those with a name as ``NAME=VALUE``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [(line, _NAMED.fullmatch(line)) for line in lines]
    return (
        [line for line, match in named if match is None],
        {match[1]: match[2].strip() for _, match in named if match is not None},
    )


def _shown(result: str) -> str:
    try:
        text = json.dumps(json.loads(result), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        text = result
    if len(text) > _RESULT_CHARACTERS_MAX:
        return f"{text[:_RESULT_CHARACTERS_MAX]}\n… (the first {_RESULT_CHARACTERS_MAX:,} of {len(text):,} characters)"
    return text


VIEWS = (
    View("/functions", "Functions", "functions.html", ("functions",), load_all, "functions", Right.CALL),
    View("/function", "Function", "function.html", ("function", "logs"), load, "functions"),
)
ACTIONS = (Action("/function/call", call, is_long=True),)
