"""Packs functions of the running program."""

from __future__ import annotations

import inspect
import io
import pickle
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.machinery import SOURCE_SUFFIXES
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle
import msgspec

from storage.errors import InvalidArgument
from taskworker.calls.bundle import APP, PackedFunction, packed
from taskworker.calls.spec import FunctionSpec
from taskworker.engine_names import is_engine
from taskworker.functions.packing.dependencies import PROVIDED
from taskworker.sandbox.inside import guards
from taskworker.sandbox.inside.facade import inert_worker
from taskworker.sandbox.inside.failures import CODE

_PICKLE = "function.pickle"
_NO_FILE = "<dynamic-code>"  # what cloudpickle writes for the file of any code


def pack_function(function: Callable[..., Any], spec: FunctionSpec, stand_ins: tuple[type, ...] = ()) -> PackedFunction:
    """Pack a function of this program as it is now, with everything it refers to.

    Objects defined in the user's own modules are packed by value. The standard library and the packages that every
    sandbox has are referred to by name.

    Args:
        function: the function.
        spec: its specification; the entry is filled in.
        stand_ins: classes whose objects are replaced with ``worker`` inside.

    Raises:
        InvalidArgument: it refers to something that cannot be packed, or that sandboxes do not have.
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
    return packed(spec, {f"{APP}/{_PICKLE}": pickled})


class _FunctionPickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Pickles a function, and records the modules that it refers to."""

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
        """As in cloudpickle, but without the path of the function's file on this machine."""
        parts = super()._function_getnewargs(func)
        parts[1].pop("__file__", None)
        return parts

    def _code(self, code: CodeType) -> Any:
        """As in cloudpickle, but with the name of the file, without its directory, for tracebacks."""
        build, parts = self.dispatch_table[CodeType](code)
        shown = CODE + Path(code.co_filename).name
        return build, tuple(shown if part == _NO_FILE else part for part in parts)


def _pickled(function: Callable[..., Any], name: str, stand_ins: tuple[type, ...]) -> tuple[bytes, set[str]]:
    """The pickle, with the user's own objects by value, and the modules that it refers to."""
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
            f"cannot be packed ({error}); create it inside the function, or pass it as an argument"
        ) from error
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
    return buffer.getvalue(), pickler.referred


def _culprit(function: Callable[..., Any]) -> str:
    """Describe the variable that cannot be packed, if it can be found."""
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
    """Whether a module belongs to the user: not to the standard library, an installed package or TaskWorker."""
    path = getattr(module, "__file__", None)
    name = getattr(module, "__name__", "")
    if not isinstance(path, str) or not path.endswith(tuple(SOURCE_SUFFIXES)) or sys.modules.get(name) is not module:
        return False
    return name.partition(".")[0] != "taskworker" and not is_engine(path) and not _is_installed(path)


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
