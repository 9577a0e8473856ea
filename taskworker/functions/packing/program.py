"""The functions that a program declares on its worker, packed for hosting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from storage.errors import InvalidArgument
from taskworker.calls.bundle import PackedFunction
from taskworker.calls.spec import FunctionSpec, spec_from_options
from taskworker.functions.packing.declared import pack_function

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Declared:
    function: Callable[..., Any]
    spec: FunctionSpec


class Declarations:
    """The functions of one worker's program, by name.

    Args:
        stand_ins: classes whose objects are replaced with ``worker`` inside a function.
    """

    def __init__(self, stand_ins: tuple[type, ...]) -> None:
        self._stand_ins = stand_ins
        self._declared: dict[str, _Declared] = {}

    def __bool__(self) -> bool:
        return bool(self._declared)

    def add(self, name: str | None, function: Callable[..., Any], options: dict[str, Any]) -> PackedFunction:
        """Declare a function under a name, by default its own.

        Raises:
            InvalidArgument: the name is taken or invalid, an option is unknown or out of bounds, or the
                function cannot be packed; the text says why.
        """
        if not callable(function):
            raise InvalidArgument(f"{function!r} is not a function")
        chosen = name if name is not None else str(getattr(function, "__name__", ""))
        if chosen in self._declared:
            raise InvalidArgument(f"there is a function {chosen!r} already; choose another name")
        declared = _Declared(function, _spec(chosen, options))
        packed = self._packed(declared)
        self._declared[chosen] = declared
        return packed

    def packed(self) -> list[PackedFunction]:
        """Pack all functions as they are now, as objects they refer to may have been defined after them."""
        return [self._packed(declared) for declared in self._declared.values()]

    def _packed(self, declared: _Declared) -> PackedFunction:
        return pack_function(declared.function, declared.spec, self._stand_ins)


def _spec(name: str, options: dict[str, Any]) -> FunctionSpec:
    if "needs" in options:
        raise InvalidArgument(f"function {name!r}: needs is for functions that are deployed; this one runs here alone")
    return spec_from_options(name, "pickle:unset", options)
