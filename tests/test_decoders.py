"""Types that msgspec reads are met by it while modules are imported, in one thread.

What msgspec 0.22 notes of a class when it first meets it is seen by other threads before it is complete: those that
read such a class at that moment crash the process, or hang it for good with the interpreter's lock held.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parents[1]
AT_ONCE = """
import threading

import msgspec._utils

from taskworker.calls.spec import FunctionSpec, limits_of

document = FunctionSpec(name="f", entry="app:f").to_json()
looked, others_are_done = threading.Event(), threading.Event()
looking = msgspec._utils.get_class_annotations


def look_slowly(cls):
    if cls.__name__ == "Limits":  # within that of a function's document
        looked.set()
        others_are_done.wait(10)
    return looking(cls)


def read():
    FunctionSpec.from_json(document)
    looked.set()


msgspec._utils.get_class_annotations = look_slowly
first = threading.Thread(target=read)
first.start()
assert looked.wait(10)
FunctionSpec.from_json(document)
assert limits_of({"wall_s": 5}).wall_s == 5
others_are_done.set()
first.join()
"""


def test_documents_are_read_by_several_threads_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", AT_ONCE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_type_is_first_met_in_a_function() -> None:
    sources = [*(TOP / "storage").rglob("*.py"), *(TOP / "taskworker").rglob("*.py")]
    found = {
        f"{path.relative_to(TOP)}:{call.lineno}: {ast.unparse(call)}"
        for path in sources
        if "msgspec" in (text := path.read_text())
        for call in _met_late(ast.parse(text))
    }
    assert {one.split(": ", 1)[1] for one in found} == {"msgspec.convert(given, Limits)"}, found  # which is met before


def _met_late(module: ast.Module) -> Iterator[ast.Call]:
    """Calls of msgspec with a type that may be new to it, which run when a function is called."""
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for call in {node for function in functions for node in ast.walk(function) if isinstance(node, ast.Call)}:
        name = ast.unparse(call.func)
        if name.startswith("msgspec.") and (
            name.endswith((".convert", "Decoder")) or any(keyword.arg == "type" for keyword in call.keywords)
        ):
            yield call
