"""The engine's two names: ``storage``, and ``taskworker.storage``, which no other module can shadow.

Normally ``import storage`` finds the engine, and ``taskworker.storage`` is another name for the same modules.

If a user's program has a module ``storage`` of its own, the engine is loaded as ``taskworker.storage`` instead. Import
statements in ``taskworker`` and in the engine that name ``storage`` then get the engine, and everyone else's get the
user's module. Either way, each module of the engine is loaded once.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

from taskworker.former_names import another_name

_PACKAGE = "taskworker"
_SHORT = "storage"
_UNSHADOWED = f"{_PACKAGE}.{_SHORT}"

# Text, not Path: importing pathlib would take longer than all of this package.
_ROOT = __file__.rpartition(f"/{_PACKAGE}/")[0]
_ENGINE = f"{_ROOT}/{_SHORT}"


def install() -> None:
    """Have imports find the engine, whether or not another module ``storage`` comes before it."""
    if not _is_file(f"{_ENGINE}/__init__.py"):
        return  # a sandbox has no engine
    if any(isinstance(finder, EngineNames | ShadowedEngineNames) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, ShadowedEngineNames() if _is_shadowed() else EngineNames())


def is_engine(path: str | None) -> bool:
    """Whether a module's file belongs to the engine."""
    if path is None:
        return False
    if path.startswith(f"{_ENGINE}/"):
        return True
    # The same directory may be on the path under another spelling.
    top = path.rpartition(f"/{_SHORT}/")[0]
    return _is_file(f"{top}/{_SHORT}/__init__.py") and _is_same(f"{top}/{_SHORT}", _ENGINE)


class EngineNames:
    """Finds the engine as ``storage``, and gives the same modules for names below ``taskworker.storage``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The engine itself under its short name, and a module under its short name in place of the longer one."""
        if fullname == _SHORT:
            return PathFinder.find_spec(fullname, [_ROOT])
        if _is_within(_UNSHADOWED, fullname):
            return another_name(fullname, fullname.removeprefix(f"{_PACKAGE}."))
        return None


class ShadowedEngineNames:
    """Finds the engine as ``taskworker.storage``, and leaves ``storage`` to whoever has a module of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module of ours, made to import the engine as ``storage``; the engine, if nothing shadows ``storage``."""
        if fullname == _UNSHADOWED:
            return _importing_engine(PathFinder.find_spec(fullname, [_ROOT]))
        if _is_within(_PACKAGE, fullname):
            return _importing_engine(PathFinder.find_spec(fullname, path))
        if _is_within(_SHORT, fullname):
            found = PathFinder.find_spec(fullname, path)
            if found is not None and is_engine(found.origin):
                return another_name(fullname, f"{_PACKAGE}.{fullname}")
        return None


class _EngineImporter(SourceFileLoader):
    """Loads a module whose import statements get the engine when they say ``storage``.

    They do so by a function ``__import__`` among the module's own builtins: its globals have a dictionary of builtins
    that differs from the interpreter's in this one name.
    """

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module with its own builtins."""
        vars(module)["__builtins__"] = _BUILTINS
        super().exec_module(module)


def _importing_engine(found: ModuleSpec | None) -> ModuleSpec | None:
    if found is not None and isinstance(found.loader, SourceFileLoader):
        found.loader = _EngineImporter(found.loader.name, found.loader.path)
    return found


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,  # noqa: A002 - the names are those of __import__
    locals: Mapping[str, object] | None = None,  # noqa: A002
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    if level or not _is_within(_SHORT, name):
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = import_module(f"{_PACKAGE}.{name}")
    if not fromlist:  # "import storage.errors" binds the name "storage"
        return sys.modules[_UNSHADOWED]
    return builtins.__import__(module.__name__, globals, locals, fromlist)


_BUILTINS = {**vars(builtins), "__import__": _import}


def _is_shadowed() -> bool:
    """Whether ``import storage`` gives, or may yet give, a module that is not the engine.

    The current directory counts even if imports do not look there now: ``taskworker worker MODULE:NAME`` will.
    """
    if _SHORT in sys.modules:
        return not is_engine(getattr(sys.modules[_SHORT], "__file__", None))
    here = f"./{_SHORT}"
    if _is_file(f"{here}.py") or (_is_file(f"{here}/__init__.py") and not is_engine(f"{here}/__init__.py")):
        return True
    found = PathFinder.find_spec(_SHORT)
    # None: only a user's own way to import has found taskworker. A directory without __init__.py shadows no package.
    return found is not None and found.loader is not None and not is_engine(found.origin)


def _is_within(package: str, name: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _is_file(path: str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - see above


def _is_same(one: str, other: str) -> bool:
    return os.path.samefile(one, other)  # noqa: PTH121 - see above
