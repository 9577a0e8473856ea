"""The engine's results as JSON documents; their keys are part of the command line's contract."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage import Version


def document(record: Any) -> dict[str, Any]:
    """A record of the engine as a document, keyed by its fields."""
    return {field.name: _value(getattr(record, field.name)) for field in dataclasses.fields(record)}


def version_document(version: Version, **more: object) -> dict[str, Any]:
    """A version as a document, with entries that a command adds."""
    found = document(version)
    del found["unchanged"]  # a result of push or revise, not a property of the version
    return found | more


def _value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return document(value)
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value
