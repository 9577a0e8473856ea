"""Versions that were stored before the store encrypted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from storage.catalog import Catalog
from storage.errors import FormatError
from storage.formats.sealed_versions import SEALED_FORMATS
from storage.formats.versions import outline
from storage.write.deleting import Former


class FoundHead(NamedTuple):
    """The head of a file.

    Attributes:
        file_id: hex id of the file.
        user_id: its owner.
        filename: its name.
        is_plain: whether it is not encrypted.
    """

    file_id: str
    user_id: str
    filename: str
    is_plain: bool


def heads(catalog: Catalog) -> Iterator[FoundHead]:
    """Yield the heads of all files; those that cannot be read are left out."""
    for found in catalog.versions():
        if found.entry is not None and found.entry.head == found.version_id:
            sealed = _is_sealed(found.raw, found.version_id)
            if sealed is not None:
                yield FoundHead(found.file_id.hex(), found.entry.user_id, found.entry.filename, not sealed)


def plain_versions_below_sealed_heads(catalog: Catalog, is_of: Callable[[str], bool]) -> Iterator[Former]:
    """Yield the versions that are not encrypted of files whose heads are, those that were deleted included.

    Args:
        catalog: the store's catalog.
        is_of: whether this is about files of a user.
    """
    for found in catalog.versions():
        entry = found.entry
        if entry is None or entry.head == found.version_id or not is_of(entry.user_id):
            continue
        if _is_sealed(found.raw, found.version_id) is not False:
            continue
        head = catalog.version(found.file_id, entry.head)
        if head is not None and _is_sealed(head, entry.head):
            yield Former(found.file_id, found.version_id, entry.head)


def _is_sealed(raw: bytes, version_id: bytes) -> bool | None:
    """Whether a version is encrypted; None if it cannot be read."""
    try:
        return outline(raw, version_id).format in SEALED_FORMATS
    except FormatError:
        return None
