"""What the users of a store were told, and whether a store still says the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from storage import FileNotFound, FileStorage, Version

USERS = ("ann", "bob")
NAMES = tuple(f"file-{number}" for number in range(5))


class Key(NamedTuple):
    """Whose file, named how."""

    user: str
    name: str


KEYS = tuple(Key(user, name) for user in USERS for name in NAMES)


class Saved(NamedTuple):
    """A version and what is in it."""

    version_id: str
    content: bytes


@dataclass(frozen=True, slots=True)
class FileModel:
    """A file with its versions, oldest first."""

    file_id: str
    versions: tuple[Saved, ...]

    def followed_by(self, version: Saved) -> FileModel:
        return FileModel(self.file_id, (*self.versions, version))


@dataclass(frozen=True, slots=True)
class Operation:
    """Something a user asked for that changes what is seen: ``content`` None deletes the file."""

    key: Key
    content: bytes | None


@dataclass(slots=True)
class Ledger:
    """All that was acknowledged.

    Attributes:
        files: what exists.
        deleted: ids of files that were deleted.
        ghosts: operations that a crash undid; a rebuild may find their versions on the volumes.
        whole: every shard of every object should be in its place.
        rotten: bytes have changed on a disk at some time.
    """

    files: dict[Key, FileModel] = field(default_factory=dict)
    deleted: set[tuple[str, str]] = field(default_factory=set)
    ghosts: list[Operation] = field(default_factory=list)
    whole: bool = True
    rotten: bool = False

    def copy(self) -> Ledger:
        return Ledger(dict(self.files), set(self.deleted), list(self.ghosts), self.whole, self.rotten)

    def saved(self, key: Key, version: Version, content: bytes) -> None:
        """A push or revise has returned."""
        saved = Saved(version.version_id, content)
        known = self.files.get(key)
        if known is None:
            self.files[key] = FileModel(version.file_id, (saved,))
        elif known.versions[-1].version_id != version.version_id:
            self.files[key] = known.followed_by(saved)

    def removed(self, key: Key) -> None:
        """A delete has returned."""
        self.deleted.add((key.user, self.files.pop(key).file_id))


# -- what a store says ---------------------------------------------------------------------------


def seen(store: FileStorage, key: Key) -> FileModel | None:
    """A file as the store shows it now, every version read."""
    head = store.find(key.name, user_id=key.user)
    if head is None:
        return None
    history = store.history(head.file_id, user_id=key.user)
    return FileModel(
        head.file_id,
        tuple(
            Saved(version.version_id, store.get(head.file_id, user_id=key.user, version_id=version.version_id))
            for version in reversed(history)
        ),
    )


def check(store: FileStorage, ledger: Ledger, flying: Sequence[Operation] = ()) -> Ledger:
    """See that a store shows what was acknowledged, and of each operation in flight all or nothing.

    Args:
        store: what to look at.
        ledger: what was acknowledged.
        flying: what was under way when the store was last seen, at most one operation a file.

    Returns:
        the ledger as it is from now on: what has been seen must stay.
    """
    settled = ledger.copy()
    under_way = {operation.key: operation for operation in flying}
    for key in KEYS:
        found, before, operation = seen(store, key), ledger.files.get(key), under_way.get(key)
        if found == before:
            settled.ghosts += [operation] if operation else []
            continue
        assert operation is not None, f"{key}: {told(found)}, not {told(before)}"
        assert took_effect(found, before, operation), (
            f"{key}: {told(found)}, after {told(before)} and {told(operation)}"
        )
        _settle(settled, key, found)
    _check_listing(store, settled)
    return settled


def took_effect(found: FileModel | None, before: FileModel | None, flying: Operation) -> bool:
    """Whether this is what the operation in flight was to bring about."""
    if flying.content is None or found is None:
        return flying.content is None and found is None
    head, chain = found.versions[-1], found.versions[:-1]
    if head.content != flying.content:
        return False
    return not chain if before is None else (found.file_id, chain) == (before.file_id, before.versions)


def _settle(ledger: Ledger, key: Key, found: FileModel | None) -> None:
    if found is None:
        ledger.removed(key)
    else:
        ledger.files[key] = found


def _check_listing(store: FileStorage, ledger: Ledger) -> None:
    for user in USERS:
        listed = [(head.filename, head.file_id) for head in store.list_files(user_id=user)]
        assert listed == sorted((key.name, file.file_id) for key, file in ledger.files.items() if key.user == user)
    for user, file_id in ledger.deleted:
        with pytest.raises(FileNotFound):
            store.stat(file_id, user_id=user)
    stats = store.stats()
    assert stats.files == len(ledger.files)
    assert stats.logical_bytes == sum(len(file.versions[-1].content) for file in ledger.files.values())


def check_rebuilt(store: FileStorage, ledger: Ledger, flying: Sequence[Operation] = ()) -> None:
    """See that a rebuilt store shows what was acknowledged; what had not been may be there, whole."""
    ghosts = [*ledger.ghosts, *flying]
    deleting = {operation.key for operation in flying if operation.content is None}
    for key in KEYS:
        found, known = seen(store, key), ledger.files.get(key)
        mine = [ghost.content for ghost in ghosts if ghost.key == key and ghost.content is not None]
        if found is None:
            assert known is None or key in deleting, f"{key}: gone, not {told(known)}"
            continue
        assert (key.user, found.file_id) not in ledger.deleted, f"{key}: deleted, and there again"
        if key in deleting and known is not None and found.file_id != known.file_id:
            known = None  # its delete took effect, and an older push that was cut off is seen under its name
        _check_chain(key, found, known, mine)


def _check_chain(key: Key, found: FileModel, known: FileModel | None, ghosts: list[bytes]) -> None:
    text = f"{key}: {told(found)}, not {told(known)}"
    if known is None:
        assert all(version.content in ghosts for version in found.versions), text
        return
    assert found.file_id == known.file_id, text
    length = len(known.versions)
    assert found.versions[:length] == known.versions, text
    assert all(version.content in ghosts for version in found.versions[length:]), text


def told(what: FileModel | Operation | None) -> str:
    """Short words for a message."""
    match what:
        case None:
            return "nothing"
        case Operation(_, content):
            return "a delete" if content is None else f"a write of {len(content)} bytes"
        case FileModel(file_id, versions):
            chain = ", ".join(f"{version.version_id[:8]} of {len(version.content)} bytes" for version in versions)
            return f"file {file_id[:12]} with versions {chain}"


def contents(ledger: Ledger) -> Iterator[bytes]:
    """Everything that is or was to be stored, newest last."""
    for file in ledger.files.values():
        for version in file.versions:
            yield version.content
    for ghost in ledger.ghosts:
        if ghost.content is not None:
            yield ghost.content
