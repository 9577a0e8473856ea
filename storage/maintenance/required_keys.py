"""Refuses a rebuild for which there is no key, and says what is there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

from storage.catalog import Catalog
from storage.errors import KeyRequired
from storage.fleet.fleet import Fleet
from storage.formats.versions import outline
from storage.sealing.user_keys import KeyFinder


def require_keys(catalog: Catalog, volumes: Fleet[Any], keys: KeyFinder, key_ids: Collection[bytes]) -> None:
    """Check that there is a key for some of the sealed versions that were found, if there are any.

    Args:
        catalog: has the versions.
        volumes: the store's volumes.
        keys: the keys at hand.
        key_ids: ids of the keys that the versions need.

    Raises:
        KeyRequired: there is none. The text says what is on the volumes.
    """
    if key_ids and not any(_has_key(keys, key_id) for key_id in key_ids):
        _raise_locked(catalog, volumes, keys)


def _has_key(keys: KeyFinder, key_id: bytes) -> bool:
    try:
        keys.find(key_id)
    except KeyRequired:
        return False
    return True


def _raise_locked(catalog: Catalog, volumes: Fleet[Any], keys: KeyFinder) -> NoReturn:
    """Raise that a key is needed, with what can be known without it."""
    sealed: set[bytes] = set()
    versions = 0
    key_id = b""
    for kept in catalog.versions():
        found = outline(kept.raw, kept.version_id)
        if found.key_id:
            key_id = found.key_id
            versions += 1
            sealed.add(found.file_id)
    size = 0
    for slot, volume in volumes.online():
        with volumes.guard(slot, volume):
            size += volume.usage().bytes_live
    try:
        keys.find(key_id)
    except KeyRequired as error:
        raise KeyRequired(
            f"encrypted: {len(sealed):,} files with {versions:,} versions, in {size:,} bytes on the volumes; nothing "
            f"more can be said of them without their key: {error}, then run rebuild again"
        ) from error
    raise AssertionError("the key was not here a moment ago")
