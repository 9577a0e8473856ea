"""One batch of commits: what its versions build on, and what becomes of each."""

from __future__ import annotations

from collections.abc import Callable

from storage.catalog import Counters, FileEntry
from storage.errors import (
    ConflictError,
    FileNotFound,
    InvalidArgument,
)
from storage.formats.versions import (
    StoredVersion,
)
from storage.keys import StripeKey
from storage.shards import Shard
from storage.write.pending import PendingVersion


class BatchState:
    """What a batch adds up to."""

    def __init__(self, before: Counters, pinned: list[StripeKey]) -> None:
        self.pinned = pinned
        self._files = before.files
        self._versions = before.versions
        self._logical_bytes = before.logical_bytes
        self.sequence = before.sequence
        self.reserved = before.reserved
        self.committed = before.reached
        self._latest = before.latest
        self._enter: Callable[[], None] | None = None
        self.shards: dict[int, list[Shard]] = {}
        self.restored = False

    def enter_last(self) -> None:
        """Write what the last version added puts into the catalog."""
        enter, self._enter = self._enter, None
        if enter is not None:
            enter()

    def add(self, stored: StoredVersion, replaced: FileEntry | None, enter: Callable[[], None]) -> None:
        """Count a version; ``enter`` writes what it puts into the catalog."""
        self._enter = enter
        self._latest = stored.record.file_id + stored.version_id
        self._versions += 1
        self._files += replaced is None
        self._logical_bytes += stored.record.size - (replaced.size if replaced is not None else 0)

    def add_shards(self, shards: dict[int, list[Shard]]) -> None:
        """Have shards appended with the batch, by volume slot."""
        for slot, batch in shards.items():
            self.shards.setdefault(slot, []).extend(batch)

    def restore(self, shards: dict[int, list[Shard]]) -> None:
        """Content that is the head already: what was missing of it has been sent again."""
        self.add_shards(shards)
        self.restored = True

    def counters(self) -> Counters:
        """What the catalog counts once the batch is in it."""
        return Counters(
            self._files, self._versions, self._logical_bytes, self.sequence, self._latest, reserved=self.reserved
        )


def revisable(entry: FileEntry | None, pending: PendingVersion) -> FileEntry:
    """The entry of the file that a version is of.

    Raises:
        FileNotFound: it was deleted, or is another user's.
        InvalidArgument: the file has another name.
        ConflictError: its head is not what the version was made from.
    """
    if entry is None:
        raise FileNotFound("the file was deleted meanwhile")
    if entry.user_id != pending.target.user_id:
        raise FileNotFound("the file was deleted meanwhile")  # others' files must not show
    if entry.filename != pending.target.filename:
        raise InvalidArgument(f"the file is called {entry.filename!r}; a version of it cannot have another name")
    if pending.base is not None and entry.head != pending.base:
        raise ConflictError(
            f"head is {entry.head.hex()}, the change was made against {pending.base.hex()}; "
            "synchronize, make the change again and retry",
            head=entry.head.hex(),
            base=pending.base.hex(),
        )
    return entry
