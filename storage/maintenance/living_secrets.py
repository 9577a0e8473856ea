"""The secrets of the versions that exist, which stay when those of all others are destroyed."""

from __future__ import annotations

from collections.abc import Set

from storage.catalog import Catalog
from storage.errors import FormatError
from storage.formats.tombstones import version_key
from storage.formats.versions import outline
from storage.sealing.secret_trees import LeafSet


def living_secrets(catalog: Catalog, key_ids: Set[bytes]) -> dict[bytes, LeafSet]:
    """Return the secrets of versions that were not deleted, by id of the shredding key that gives them.

    Args:
        catalog: the store's catalog, which has to be current.
        key_ids: ids of the shredding keys that this is about.

    Raises:
        FormatError: a version cannot be read, so that it is not known which secret it needs.
    """
    living: dict[bytes, LeafSet] = {}
    for kept in catalog.versions():
        if kept.entry is None and not kept.problem and catalog.tombstone(kept.file_id) is not None:
            continue  # deleted with its file; what has no tombstone could not be rebuilt, which may be possible later
        if catalog.tombstone(version_key(kept.file_id, kept.version_id)) is not None:
            continue
        try:
            name = outline(kept.raw, kept.version_id).secret
        except FormatError as error:
            raise FormatError(
                f"nothing was shredded, since a version of file {kept.file_id.hex()} cannot be read, which would be "
                f"lost for good: {error}; delete the file, or rebuild the catalog, and try again"
            ) from error
        if name is not None and name.key_id in key_ids:
            living.setdefault(name.key_id, LeafSet()).add(name.leaf)
    return living
