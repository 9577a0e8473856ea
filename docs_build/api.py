"""Which Python names the reference shows; mkdocstrings makes the text from their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib import import_module

import storage
from docs_build.errors import api_name, error_types


def names(*wanted: str) -> str:
    """The names given, one after another."""
    return "\n\n".join(f"::: {name}" for name in wanted)


def errors() -> str:
    """All error types, by the names under which programs import them."""
    return names(*map(api_name, error_types()))


def rest(module: str, *shown: str) -> str:
    """All public names of a module but those given, which have pages of their own, and its errors."""
    return names(*(f"{module}.{name}" for name in _public(module) if name not in shown))


def _public(module: str) -> Iterable[str]:
    loaded = import_module(module)
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if not (inspect.isclass(value) and issubclass(value, storage.StorageError)):
            yield name
