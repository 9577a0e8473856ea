"""Lists the Python names in the reference; mkdocstrings makes the text from their docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import get_type_hints

import storage
import taskworker.inside
from docs_build.errors import api_name, error_types

_OBJECT = """::: {home}
    options:
      heading: {name}
      toc_label: {name}
      merge_init_into_class: false
      show_symbol_type_heading: false"""


def names(*wanted: str) -> str:
    """The directives that show these names, one after another."""
    return "\n\n".join(f"::: {name}" for name in wanted)


def errors() -> str:
    """All error types, by the names under which programs import them."""
    return names(*map(api_name, error_types()))


def rest(module: str, *shown: str) -> str:
    """All public names of a module, except its errors and the names given, which have pages of their own."""
    return names(*(f"{module}.{name}" for name in _public(module) if name not in shown))


def objects_inside() -> str:
    """The classes of ``worker`` and its attributes, under the names that code of functions uses."""
    worker = taskworker.inside.worker
    caller = get_type_hints(vars(type(worker))["caller"].fget)["return"]
    known = {"worker": type(worker), "worker.storage": type(worker.storage), "worker.caller": caller}
    return "\n\n".join(
        _OBJECT.format(name=name, home=f"{one.__module__}.{one.__qualname__}") for name, one in known.items()
    )


def undescribed(html: str) -> list[str]:
    """Public methods and properties with a docstring that a page lacks, of the classes that it describes."""
    there = set(re.findall(r'id="((?:storage|taskworker)\.[\w.]+)"', html))
    lacking = []
    for name in sorted(there):
        module, _, last = name.rpartition(".")
        value = getattr(sys.modules.get(module), last, None)
        if inspect.isclass(value):
            members = (f"{name}.{member}" for member, one in inspect.getmembers(value) if _is_described(member, one))
            lacking += [member for member in members if member not in there]
    return lacking


def _is_described(name: str, member: object) -> bool:
    function = member.fget if isinstance(member, property) else member
    is_ours = str(getattr(function, "__module__", "")).partition(".")[0] in ("storage", "taskworker")
    return is_ours and not name.startswith("_") and not inspect.isclass(member) and bool(inspect.getdoc(function))


def _public(module: str) -> Iterable[str]:
    loaded = import_module(module)
    for name in sorted(loaded.__all__, key=lambda name: (not inspect.isclass(getattr(loaded, name)), name)):
        value = getattr(loaded, name)
        if not (inspect.isclass(value) and issubclass(value, storage.StorageError)):
            yield name
