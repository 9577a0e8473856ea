"""Counts of files and versions for each erasure profile, kept up to date with the catalog."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from storage.catalog.port import FileEntry, ProfileCount, StoredEntry
from storage.errors import FormatError
from storage.formats.versions import outline

Profile = tuple[int, int]
"""(k, n)."""

Profiles = dict[Profile, tuple[int, int]]
"""(k, n) → (files, versions)."""

_decode = msgspec.msgpack.Decoder(list[ProfileCount]).decode


def packed(profiles: Profiles) -> bytes:
    """Encode counts for the catalog; see :func:`unpacked`."""
    return msgspec.msgpack.encode([(*profile, *counts) for profile, counts in sorted(profiles.items())])


def unpacked(raw: bytes) -> Profiles:
    """Decode counts encoded by :func:`packed`; return no counts if they cannot be read (see :func:`is_whole`)."""
    try:
        return {(one.k, one.n): (one.files, one.versions) for one in _decode(raw)}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def is_whole(raw: bytes | None) -> bool:
    """Whether there are readable counts; if not, they have to be made again."""
    try:
        return raw is not None and bool(_decode(raw) or True)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


def as_counts(profiles: Profiles) -> list[ProfileCount]:
    """Convert counts to a list, sorted by profile."""
    return [ProfileCount(*profile, *counts) for profile, counts in sorted(profiles.items())]


def profile_in(raw: bytes | None, version_id: bytes) -> tuple[int, int] | None:
    """Return the profile of a version object; None if there is no object or it cannot be read."""
    if raw is None:
        return None
    try:
        found = outline(raw, version_id)
    except FormatError:
        return None  # reads of this version report it
    return found.k, found.n


class ProfileChanges:
    """Changes of the counts by one transaction.

    Args:
        raw: the encoded counts before the transaction; None if there are none.
        is_counted: whether the catalog keeps counts already.
    """

    __slots__ = ("_changed", "_is_counted", "_profiles")

    def __init__(self, raw: bytes | None, *, is_counted: bool) -> None:
        self._profiles: Profiles = {} if raw is None else unpacked(raw)
        self._is_counted = is_counted
        self._changed = False

    def add(self, profile: Profile, files: int, versions: int) -> None:
        """Add to the counts of a profile."""
        if not self._is_counted:
            return
        before = self._profiles.get(profile, (0, 0))
        after = (max(0, before[0] + files), max(0, before[1] + versions))
        self._changed = self._changed or after != before
        if any(after):
            self._profiles[profile] = after
        else:
            self._profiles.pop(profile, None)

    def packed(self) -> bytes | None:
        """Return the encoded counts for the catalog; None if they have not changed."""
        return packed(self._profiles) if self._changed else None


def count_all(stored: Iterable[StoredEntry]) -> Profiles:
    """Count the profiles of all versions."""
    profiles: dict[tuple[int, int], list[int]] = {}
    for one in stored:
        profile = profile_in(one.raw, one.version_id)
        if profile is not None:
            counts = profiles.setdefault(profile, [0, 0])
            counts[0] += _is_head(one.entry, one.version_id)
            counts[1] += 1
    return {profile: (files, versions) for profile, (files, versions) in profiles.items()}


def _is_head(entry: FileEntry | None, version_id: bytes) -> bool:
    return entry is not None and entry.head == version_id
