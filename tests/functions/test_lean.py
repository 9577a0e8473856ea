"""Functions that use little of the standard library are forked from a process that has loaded little."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, cast

import pytest

from storage.errors import InvalidArgument
from taskworker.calls.bundle import packed
from taskworker.calls.call import Call, RunningCall
from taskworker.calls.imports import BYTES_MAX, imports_any
from taskworker.calls.spec import FunctionSpec
from taskworker.functions.hosting.bridge import UserFiles
from taskworker.functions.hosting.host import FunctionHost

DEAR = frozenset({"asyncio", "pydantic"})
LOADED = "[name for name in ('asyncio', 'pydantic', 'datetime') if name in sys.modules]"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionHost]:
    def files(_call: Call, _timeout_s: float | None) -> UserFiles:
        return cast("UserFiles", None)  # none is wanted

    def called(_call: Call, _timeout_s: float | None, _asking: RunningCall) -> str:
        raise AssertionError("no other function is called")

    with contextlib.closing(FunctionHost(tmp_path_factory.mktemp("bundles"), files, called)) as host:
        yield host


def result_of(host: FunctionHost, source: str | dict[str, bytes], *args: str) -> Any:
    """What the function ``f`` of the module ``app`` gives."""
    files = {"app/app.py": source.encode()} if isinstance(source, str) else source
    host.register(packed(FunctionSpec("f", "app:f"), files))
    call = Call(function="f", args=args, kwargs={}, user_id="u", call_id="c")
    report = host.run(host.own_function("f"), call, 60.0, RunningCall())
    if report.error is not None:
        raise report.error
    return json.loads(report.result)


@pytest.mark.parametrize(
    ("source", "dear"),
    [
        ("import json, re\nfrom os import path", False),
        ("import asyncio", True),
        ("import json , pydantic.types", True),
        ("def f():\n\tfrom  pydantic import BaseModel", True),
        ("async def f(): ...", True),
        ("# of asyncio and pydantic", False),
        ("from .asyncio import f", False),
        ("x = 1\n" * BYTES_MAX, True),  # not looked through
    ],
)
def test_what_is_dear_is_found_in_the_text(source: str, dear: bool) -> None:
    assert imports_any([b"pass", source.encode()], DEAR) is dear


def test_functions_have_loaded_what_they_use(host: FunctionHost) -> None:
    assert result_of(host, f"import sys\ndef f(a: int, b: list[str] | None = None): return {LOADED}", "1") == []
    assert result_of(host, f"import asyncio, sys\ndef f(): return {LOADED}") == ["asyncio", "pydantic", "datetime"]
    typed = f"import sys\ndef f(a: bytes): return a.decode(), {LOADED}"  # a type that pydantic takes
    assert result_of(host, typed, "aGk=")[0] == "hi"
    assert "pydantic" in result_of(host, typed, "aGk=")[1]


def test_modules_named_as_those_of_the_standard_library_hide_nothing_that_calls_need(host: FunctionHost) -> None:
    files = {"app/app.py": b"def f(a: int): return a", "app/decimal.py": b"", "app/uuid/__init__.py": b""}
    assert result_of(host, files, '"4"') == 4  # by pydantic, which imports modules of these names


def test_what_was_not_foreseen_is_loaded_by_the_call(host: FunctionHost) -> None:
    adds = "def f(a: int, b: int = 2): return a + b"
    assert result_of(host, adds, "1") == 3
    assert result_of(host, adds, "1", '"4"') == 5  # a number as a text: pydantic's affair
    with pytest.raises(InvalidArgument, match="parameter 'b': Input should be a valid integer"):
        result_of(host, adds, "1", "x")
    hidden = "def f(): return __import__('datetime').date(2026, 1, 2), __import__('decimal').Decimal('1.50')"
    assert result_of(host, hidden) == ["2026-01-02", "1.50"]
    waits = "import types\n@types.coroutine\ndef f():\n    yield\n    return 7"
    assert result_of(host, waits) == 7
    where = "def f(): return __import__('tempfile').gettempdir()"
    assert result_of(host, where) == "/tmp"
