"""Packing functions: those of a program that runs here, and those of modules on disk."""

from __future__ import annotations

import inspect
import io
import pickle
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import SOURCE_SUFFIXES
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle
import msgspec

from storage.errors import InvalidArgument
from taskworker.functions.bundles import APP, packed
from taskworker.functions.dependencies import PROVIDED, installed
from taskworker.functions.spec import FunctionSpec
from taskworker.sandbox.inside import guards
from taskworker.sandbox.inside.facade import inert_worker
from taskworker.sandbox.inside.failures import CODE

_PICKLE = "function.pickle"
_NO_FILE = "<dynamic-code>"  # what cloudpickle writes for the file of any code
_LEFT_OUT = {"__pycache__", ".git", ".venv", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


@dataclass(frozen=True, slots=True)
class PackedFunction:
    """A bundle and the document in it."""

    spec: FunctionSpec
    bundle: bytes


# -- a function of this program ---------------------------------------------------------------------


def pack_function(function: Callable[..., Any], spec: FunctionSpec, stand_ins: tuple[type, ...] = ()) -> PackedFunction:
    """Pack a function as it stands in this program, with what it refers to.

    What is defined in the user's own modules travels by value; the standard library and the packages
    that every sandbox has are found there.

    Args:
        function: of this program.
        spec: how it is called; its entry is filled in.
        stand_ins: classes whose objects become ``worker`` inside.

    Raises:
        InvalidArgument: it refers to something that cannot travel, or is not to be had inside.
    """
    own = frozenset(_own_modules(function))
    pickled, referred = _pickled(function, spec.name, stand_ins)
    for module in sorted(referred - own):
        _require_available(module, spec.name)
    spec = msgspec.structs.replace(
        spec,
        entry=f"pickle:{_PICKLE}",
        own_modules=tuple(sorted(own)),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
    ).checked()
    return PackedFunction(spec, packed(spec, {f"{APP}/{_PICKLE}": pickled}))


class _FunctionPickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Pickles a function, and notes the modules that it refers to."""

    def __init__(self, file: io.BytesIO, stand_ins: tuple[type, ...]) -> None:
        super().__init__(file, protocol=pickle.DEFAULT_PROTOCOL)
        self._stand_ins = stand_ins
        self.referred: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ModuleType):
            self.referred.add(obj.__name__)
        elif isinstance(obj, type | FunctionType | BuiltinFunctionType) and isinstance(obj.__module__, str):
            self.referred.add(obj.__module__)
        if isinstance(obj, CodeType):
            return self._code(obj)
        if self._stand_ins and isinstance(obj, self._stand_ins):
            return inert_worker, ()
        if isinstance(obj, type) and obj in self._stand_ins:
            return getattr, (sys.modules[inert_worker.__module__], "inert_worker")
        return super().reducer_override(obj)

    def _function_getnewargs(self, func: FunctionType) -> Any:
        """As cloudpickle has it, but without the path of the function's file on this machine."""
        parts = super()._function_getnewargs(func)
        parts[1].pop("__file__", None)
        return parts

    def _code(self, code: CodeType) -> Any:
        """As cloudpickle packs it, but with the name of its file, for tracebacks; not the way there."""
        build, parts = self.dispatch_table[CodeType](code)
        shown = CODE + Path(code.co_filename).name
        return build, tuple(shown if part == _NO_FILE else part for part in parts)


def _pickled(function: Callable[..., Any], name: str, stand_ins: tuple[type, ...]) -> tuple[bytes, set[str]]:
    """The pickle, all that is the user's own in it by value, and the modules it refers to."""
    by_value = [module for module in list(sys.modules.values()) if _is_users(module) and module.__name__ != "__main__"]
    registered = []
    buffer = io.BytesIO()
    pickler = _FunctionPickler(buffer, stand_ins)
    try:
        for module in by_value:
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
        pickler.dump(function)
    except Exception as error:
        raise InvalidArgument(
            f"function {name!r} cannot be sent into a sandbox: it refers to {_culprit(function)}, which "
            f"cannot be packed ({error}); make it inside the function, or pass it as an argument"
        ) from error
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
    return buffer.getvalue(), pickler.referred


def _culprit(function: Callable[..., Any]) -> str:
    """Names the variable that a function cannot take along, where that can be told."""
    unknown = "something"
    if not isinstance(function, FunctionType):
        return unknown
    try:
        outer = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return unknown
    for name, value in {**outer.nonlocals, **outer.globals}.items():
        try:
            cloudpickle.dumps(value)
        except Exception:
            return f"{name!r}, a {type(value).__qualname__}"
    return unknown


def _is_users(module: ModuleType) -> bool:
    """Whether a module is neither of the standard library, nor of an installed package, nor of this one."""
    path = getattr(module, "__file__", None)
    name = getattr(module, "__name__", "")
    if not isinstance(path, str) or not path.endswith(tuple(SOURCE_SUFFIXES)) or sys.modules.get(name) is not module:
        return False
    return name.partition(".")[0] not in ("taskworker", "storage") and not _is_installed(path)


def _is_installed(path: str) -> bool:
    return any(Path(path).is_relative_to(place) for place in _INSTALLED)


_INSTALLED = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib") if sysconfig.get_path(name)}
)


def _own_modules(function: Callable[..., Any]) -> Iterator[str]:
    yield getattr(function, "__module__", None) or "__main__"
    yield from (name for name, module in list(sys.modules.items()) if _is_users(module))


def _require_available(module: str, function: str) -> None:
    top = module.partition(".")[0]
    refusal = guards.refusal(module)
    if refusal is not None:
        raise InvalidArgument(f"function {function!r} uses module {module!r}: {refusal}")
    if top in sys.stdlib_module_names or top in PROVIDED or top == "taskworker":
        return
    raise InvalidArgument(
        f"function {function!r} uses module {module!r}, which a sandbox does not have; put the function into a "
        f"module of its own and deploy that with its requirements: taskworker deploy {function} MODULE:FUNCTION "
        "--requirements FILE"
    )


# -- a module on disk ---------------------------------------------------------------------------------


def pack_module(entry: str, spec: FunctionSpec, *, root: Path, requirements: Path | None = None) -> PackedFunction:
    """Pack a module or package, ``module:function``, found below ``root``, and what a requirements file names.

    A top-level module brings its file alone; a package all files in it.

    Raises:
        InvalidArgument: no such module, or something that functions do not take.
    """
    module, separator, function = entry.partition(":")
    if not separator or not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise InvalidArgument(f"{entry!r} is not module:function")
    files = dict(_module_files(module, root))
    dependencies = installed(requirements) if requirements is not None else None
    if dependencies is not None:
        files |= dependencies.files
    locked = dependencies.locked if dependencies is not None else ()
    spec = msgspec.structs.replace(spec, entry=entry, requirements=locked).checked()
    return PackedFunction(spec, packed(spec, files))


def _module_files(module: str, root: Path) -> Mapping[str, bytes]:
    top = module.partition(".")[0]
    package, single = root / top, root / f"{top}.py"
    if package.is_dir():
        found = [
            path
            for path in sorted(package.rglob("*"))
            if path.is_file() and not path.is_symlink() and not set(path.relative_to(root).parts) & _LEFT_OUT
        ]
    elif single.is_file():
        found = [single]
    else:
        raise InvalidArgument(f"there is no module {top!r} in {root}: neither {single.name} nor a directory {top}")
    within = root.joinpath(*module.split("."))
    if not within.with_suffix(".py").is_file() and not (within / "__init__.py").is_file():
        raise InvalidArgument(f"there is no module {module!r} in {root}")
    return {f"{APP}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in found}
