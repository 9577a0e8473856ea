"""Pages of versions, small enough for one message whatever attributes the versions have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from storage import Version
from taskworker.rpc.limits import MIB

_ATTRIBUTES_BYTES_MAX = MIB
"""Bytes of attributes in a page. The rest of as many versions as a page may have takes up to 3 MiB."""


def with_attributes(version: Version, names: Collection[str]) -> Version:
    """The version with those attributes only that have one of these names."""
    if not version.attributes:
        return version
    return replace(version, attributes={name: version.attributes[name] for name in names if name in version.attributes})


def within_page(versions: Iterable[Version]) -> Iterator[Version]:
    """The first of the versions, at least one, up to as many as fit into one message."""
    size = 0
    for version in versions:
        size += sum(len(name) + len(value) for name, value in version.attributes.items())
        if size > _ATTRIBUTES_BYTES_MAX:
            return
        yield version
