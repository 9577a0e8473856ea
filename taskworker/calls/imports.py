"""Tells from the text of a function's modules whether it uses only a small part of the standard library."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

BYTES_MAX = 256 << 10
"""Bytes of modules that are searched; a function with more is assumed to import a lot."""
_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+([\w.]+(?:[ \t]*,[ \t]*[\w.]+)*)", re.MULTILINE)
_ASYNC = re.compile(rb"\basync\b")


def imports_any(modules: Iterable[bytes | memoryview], dear: frozenset[str]) -> bool:
    """Whether the text of a module imports an expensive module, or has asynchronous code.

    It searches lines instead of parsing them, which is cheap but may be wrong.

    Args:
        modules: the modules' sources.
        dear: top-level names of the modules that are expensive to import.
    """
    left = BYTES_MAX
    for module in modules:
        left -= len(module)
        if left < 0 or _ASYNC.search(module):
            return True
        for found in _IMPORT.finditer(module):
            names = (name.strip().partition(b".")[0].decode(errors="replace") for name in found[1].split(b","))
            if not dear.isdisjoint(names):
                return True
    return False


def hides_any(modules: Iterable[PurePosixPath], names: Collection[str]) -> bool:
    """Whether one of these modules, or its package, shadows a module with one of these names."""
    return any(path.parts[0].removesuffix(".py") in names for path in modules)
