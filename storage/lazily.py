"""Loads the names of a package when they are first used, so that importing one of its modules is cheap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping


def loading(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: its ``__name__``.
        homes: for each name that the package offers, the module that defines it.
    """

    def __getattr__(name: str) -> object:  # noqa: N807 - the name in tracebacks
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # import_module would not find the engine under its longer name (taskworker.engine_names).
        value: object = getattr(__import__(homes[name], fromlist=[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__
