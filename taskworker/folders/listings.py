"""Listings of folders, which name the versions of their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from taskworker.folders.entries import Entry, decode_listing, encode_listing
from taskworker.folders.problems import FolderDamaged


def with_new_versions(became: Mapping[str, str]) -> Callable[[bytes], bytes]:
    """Return what replaces versions in a listing.

    Args:
        became: by id of a version, in hex, the id of the one that takes its place.
    """
    by_id = {bytes.fromhex(former): bytes.fromhex(anew) for former, anew in became.items()}

    def replaced(entry: Entry) -> Entry:
        anew = by_id.get(entry.content[0]) if entry.content else None
        return entry if anew is None else msgspec.structs.replace(entry, content=(anew, *entry.content[1:]))

    def remap(listing: bytes) -> bytes:
        try:
            entries = decode_listing(listing)
        except FolderDamaged:
            return listing  # it is something else, or nobody can read it
        return encode_listing([replaced(entry) for entry in entries])

    return remap
