"""The engine's results as JSON documents; their keys are part of the command line's contract."""

from __future__ import annotations

import dataclasses
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage import Version


def document(record: Any) -> dict[str, Any]:
    """A record of the engine as a document, keyed by its fields."""
    return {field.name: _value(getattr(record, field.name)) for field in dataclasses.fields(record)}


def version_document(version: Version, **more: object) -> dict[str, Any]:
    """A version as a document, with entries that a command adds. Values of attributes are in base64."""
    found = document(version)
    del found["unchanged"]  # a result of push or revise, not a property of the version
    if not version.attributes:
        del found["attributes"]
    return found | more


def listed_document(version: Version) -> dict[str, Any]:
    """A version in a list of files as a document. It has no attributes, as servers do not send them with lists."""
    return {name: value for name, value in version_document(version).items() if name != "attributes"}


def _value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return document(value)
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _value(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    return str(value) if isinstance(value, Path) else value
