"""The engine's answers as JSON documents; their keys are part of the command line's contract."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage import Version


def document(record: Any) -> dict[str, Any]:
    """Any of the engine's records, with the names of its fields."""
    return {field.name: _value(getattr(record, field.name)) for field in dataclasses.fields(record)}


def version_document(version: Version, **more: object) -> dict[str, Any]:
    """A version, and what a command adds to it."""
    found = document(version)
    del found["unchanged"]  # no property of the version, but what a push or revise says
    return found | more


def _value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return document(value)
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value
