"""Helpful import errors for modules that do not work in a sandbox. No protection: the kernel confines the code."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_FILES = (
    "files of the pool are at worker.storage (get, push, open, list); scratch files: pathlib, tempfile, open(); "
    "settings: worker.config"
)
_NETWORK = "a function has no network; outside services are reached by worker.call_external_api"
_PROCESSES = (
    "a function cannot start processes; call another function with worker.call, or several at once with worker.acall"
)
_MEMORY = "a function cannot reach machine memory or native code"

INSTEAD: Mapping[str, str] = {
    "os": _FILES,
    "posix": _FILES,
    "shutil": _FILES,
    "glob": _FILES,
    "socket": _NETWORK,
    "_socket": _NETWORK,
    "socketserver": _NETWORK,
    "ssl": _NETWORK,
    "http.client": _NETWORK,
    "http.server": _NETWORK,
    "urllib.request": _NETWORK,
    "ftplib": _NETWORK,
    "smtplib": _NETWORK,
    "telnetlib": _NETWORK,
    "xmlrpc": _NETWORK,
    "subprocess": _PROCESSES,
    "multiprocessing": _PROCESSES,
    "concurrent.futures.process": _PROCESSES,
    "concurrent.futures.ProcessPoolExecutor": _PROCESSES,
    "pty": _PROCESSES,
    "signal": _PROCESSES,
    "ctypes": _MEMORY,
    "_ctypes": _MEMORY,
    "cffi": _MEMORY,
    "mmap": _MEMORY,
    "resource": "limits are set where the function is declared or deployed",
}
"""Modules that a function's own code cannot import, and what to use instead."""

# Only the user's code is refused; the standard library and dependencies may import these modules.
_USER_CODE = "/code/app/"
_VENDORED = frozenset({"vendor", "_vendor", "vendored", "_vendored", "third_party", "site-packages"})
"""Directories below the user's code that contain other people's libraries."""


class ForbiddenImport(ImportError):
    """User code imports a module that functions cannot use."""


def refusal(module: str) -> str | None:
    """Return why user code cannot import ``module``; None if it can."""
    for name in (module, module.partition(".")[0]):
        if name in INSTEAD:
            return f"functions have no module {name!r}: {INSTEAD[name]}"
    return None


def install(own_modules: frozenset[str]) -> None:
    """Make imports of the modules in ``INSTEAD`` fail in user code.

    Args:
        own_modules: names of further modules that are user code, besides the files in the bundle's app directory.
    """
    real: Callable[..., Any] = builtins.__import__

    def checked(
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - the names are those of __import__
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and globals is not None and _is_users(globals, own_modules):
            text = refusal(name) or next(filter(None, (refusal(f"{name}.{one}") for one in fromlist or ())), None)
            if text is not None:
                raise ForbiddenImport(text, name=name)
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = checked


def _is_users(module: Mapping[str, object], own_modules: frozenset[str]) -> bool:
    directories = str(module.get("__file__", "")).split("/")[:-1]
    if "/".join(directories[:3]) + "/" == _USER_CODE:
        return _VENDORED.isdisjoint(directories[3:])
    return module.get("__name__") in own_modules
