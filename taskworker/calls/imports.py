"""Whether a function uses little of the standard library, judged by the text of its modules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

BYTES_MAX = 256 << 10
"""Of modules that are looked through; functions with more are none that use little."""
_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+([\w.]+(?:[ \t]*,[ \t]*[\w.]+)*)", re.MULTILINE)
_ASYNC = re.compile(rb"\basync\b")


def imports_any(modules: Iterable[bytes | memoryview], dear: frozenset[str]) -> bool:
    """Whether the text of a module imports what is dear, or is asynchronous.

    It looks at lines, not at syntax, which costs little whatever they are: so it may be wrong.

    Args:
        modules: their sources.
        dear: names of modules, by their first part.
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
    """Whether one of these modules, or its package, would be imported in place of another of that name."""
    return any(path.parts[0].removesuffix(".py") in names for path in modules)
