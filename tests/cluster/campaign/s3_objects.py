"""The model of a bucket: the versions and delete markers of each key, as S3 defines them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

NULL = "null"


@dataclass(frozen=True, slots=True)
class Entry:
    """A version of an object, or a delete marker, which has no content.

    Attributes:
        version_id: ``null`` if it was made while the bucket had no versioning.
        content: None: it is a delete marker.
        metadata: as the user gave it.
    """

    version_id: str
    content: bytes | None
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Bucket:
    """A bucket's objects.

    Attributes:
        versioning: empty before it was ever on, then ``Enabled`` or ``Suspended``.
        keys: the entries of each key, oldest first; none is empty.
    """

    versioning: str = ""
    keys: dict[str, list[Entry]] = field(default_factory=dict)

    def head(self, key: str) -> Entry | None:
        """The newest version of a key; None if there is none, or a delete marker."""
        entries = self.keys.get(key)
        return None if not entries or entries[-1].content is None else entries[-1]

    def put(self, key: str, version_id: str | None, content: bytes | None, metadata: Iterable[tuple[str, str]]) -> None:
        """An object was stored, or a delete marker; without versioning they replace the entry without an id."""
        entries = self.keys.setdefault(key, [])
        if self.versioning != "Enabled":
            entries[:] = [entry for entry in entries if entry.version_id != NULL]
            version_id = NULL
        entries.append(Entry(version_id or "", content, tuple(metadata)))

    def delete(self, key: str, version_id: str | None) -> None:
        """An object was deleted without a version's id: with versioning, that makes a delete marker."""
        if self.versioning:
            self.put(key, version_id, None, ())
        else:
            self.keys.pop(key, None)

    def remove(self, key: str, entry: Entry) -> None:
        """A version or delete marker was deleted."""
        self.keys[key].remove(entry)
        if not self.keys[key]:
            del self.keys[key]

    def listing(self, prefix: str, delimiter: str) -> tuple[list[tuple[str, int]], list[str]]:
        """Keys with sizes, and common prefixes, as ListObjectsV2 shows them, in the order of their UTF-8."""
        objects: list[tuple[str, int]] = []
        prefixes: set[str] = set()
        for key in self.keys:
            head = self.head(key)
            if head is None or head.content is None or not key.startswith(prefix):
                continue
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0:
                prefixes.add(key[: end + len(delimiter)])
            else:
                objects.append((key, len(head.content)))
        return sorted(objects, key=lambda each: each[0].encode()), sorted(prefixes, key=str.encode)
