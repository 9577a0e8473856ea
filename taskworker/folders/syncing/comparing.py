"""Compares the sides of a sync, and decides what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from storage import FileNotFound, Version
from storage.errors import ConflictError, InvalidArgument, StorageError
from storage.limits import check_filename
from taskworker.folders.entries import Entry, Kind
from taskworker.folders.ports import Files
from taskworker.folders.problems import Problem, Unstorable, text_of
from taskworker.folders.pushing import Progress
from taskworker.folders.rules import Exclusions, Rules
from taskworker.folders.syncing.planning import Step, above_of, decide
from taskworker.folders.syncing.replica import Moved, Replica
from taskworker.folders.syncing.report import SyncReport, Told
from taskworker.folders.syncing.state import SyncState
from taskworker.folders.syncing.stored import StoredFolder

PASSING = (ConflictError, FileNotFound, Moved)
"""Errors of what somebody else changed meanwhile: the next round looks anew."""
_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class Comparing:
    """Both sides of a sync, and what they had in common. See :func:`~taskworker.folders.syncing.running.sync_tree`."""

    files: Files
    prefix: str
    state: SyncState
    root: Path
    exclusions: Exclusions
    problem: Problem
    told: Told
    progress: Progress | None
    host: str
    now_ms: Callable[[], int]
    dry_run: bool
    allow_empty: bool
    report: SyncReport = field(init=False)
    _replica: Replica = field(init=False)
    _common: dict[bytes, Entry] = field(default_factory=dict, init=False)
    _local: dict[bytes, Entry] = field(default_factory=dict, init=False)
    _stored: StoredFolder = field(default_factory=StoredFolder, init=False)
    _failed: dict[bytes, Exception] = field(default_factory=dict, init=False)
    _passing: dict[bytes, Exception] = field(default_factory=dict, init=False)
    _digests: dict[bytes, bytes] = field(default_factory=dict, init=False)
    _gone: set[bytes] = field(default_factory=set, init=False)
    _unlisted: dict[bytes, Entry | None] = field(default_factory=dict, init=False)
    """Directories and links that both sides have, or have no more, once the store has the folder's listing."""
    _unsaved: int = field(default=0, init=False)
    _unflushed: dict[int, bytes] = field(default_factory=dict, init=False)
    """File systems that something was fetched to since they were flushed: the device's number, and a file there."""
    _is_unsound: bool = field(default=False, init=False)
    """Whether something that was fetched could not be made durable."""
    _began_ns: int = field(default=0, init=False)

    def _failure(self, path: bytes, error: Exception) -> None:
        self._failed[path] = error

    def _scope(self) -> Callable[[bytes], bool]:
        """Whether a path is one that is synced: not left out, and no problem with it or what it is in."""
        given, ruled = Rules.of(self.exclusions.patterns), self._replica.rules
        out = self._replica.left_out | self._stored.told | self._unstorable()

        def in_scope(path: bytes) -> bool:
            if path in out or not out.isdisjoint(above_of(path)):
                return False
            if not given and not ruled:
                return True
            is_directory = any(
                path in side and side[path].kind is Kind.DIRECTORY for side in (self._local, self._stored.entries)
            )
            return not excluded(path, is_directory=is_directory) and not any(
                excluded(above, is_directory=True) for above in above_of(path)
            )

        def excluded(path: bytes, *, is_directory: bool) -> bool:
            rules = next((ruled[above] for above in (*above_of(path), b"") if above in ruled), given)
            return rules.excludes(os.fsdecode(path), is_directory=is_directory)

        return in_scope

    def _forget_what_is_gone(self, in_scope: Callable[[bytes], bool]) -> None:
        """Do not count as a deletion, once a rule ends, what was deleted here while the rule left it out."""
        if not self._replica.rules:
            return
        out = self._replica.left_out | self._stored.told
        for path in [path for path in self._common if path not in self._local]:
            if path not in out and out.isdisjoint(above_of(path)) and not in_scope(path):
                del self._common[path]

    def _unstorable(self) -> set[bytes]:
        """Local paths that the store cannot have; told."""
        found = set()
        for path in self._local:
            try:
                check_filename(self.prefix + path.decode())
            except UnicodeDecodeError:
                found.add(path)
                self._failure(path, Unstorable("its name is not UTF-8, as names in the store must be; rename it"))
            except StorageError as error:
                found.add(path)
                self._failure(path, error)
        return found

    def _refuse_emptiness(self, in_scope: Callable[[bytes], bool]) -> None:
        """Refuse to delete everything because one side has nothing at all, as when a disk is not mounted."""

        def has_files(side: Mapping[bytes, Entry]) -> bool:
            return any(each.kind is not Kind.DIRECTORY and in_scope(path) for path, each in side.items())

        if self.allow_empty or not has_files(self._common):
            return
        for side, what in ((self._local, "the directory is"), (self._stored.entries, "the folder in the store is")):
            if not has_files(side):
                raise InvalidArgument(
                    f"{what} empty, though there were {len(self._common):,} files and directories at the last sync; "
                    "nothing was done. If all of them shall be deleted, allow it (--allow-empty)"
                )

    def _step(self, path: bytes) -> Step:
        local, stored = self._local.get(path), self._stored.entries.get(path)
        try:
            local_changed = self._is_changed(path, local)
            stored_changed = self._is_changed_there(path, stored)
            if local_changed and stored_changed and self._has_same_content_there(path, stored):
                stored_changed = False
            return decide(
                local,
                stored,
                local_changed=local_changed,
                stored_changed=stored_changed,
                equal=lambda: self._are_equal(path),
            )
        except PASSING as error:
            self._passing[path] = error
        except (OSError, StorageError) as error:
            self._failure(path, error)
        return Step.NONE

    def _is_changed(self, path: bytes, local: Entry | None) -> bool:
        """Whether a path has something else here than at the last sync. Files are read if they do not look the same."""
        common = self._common.get(path)
        if local is None or common is None or local.kind is not common.kind:
            return local is not common
        if local.kind is Kind.SYMLINK:
            return local.target != common.target
        if local.kind is Kind.DIRECTORY or local.same_on_disk(common):
            return False
        return local.size != common.size or self._digest(path, local) != common.content[1]

    def _is_changed_there(self, path: bytes, stored: Entry | None) -> bool:
        common = self._common.get(path)
        if stored is None or common is None or stored.kind is not common.kind:
            return stored is not common
        return (stored.target, stored.content[:1]) != (common.target, common.content[:1])

    def _has_same_content_there(self, path: bytes, stored: Entry | None) -> bool:
        """Whether a file in the store has another version but the content of the last sync, as if it was encrypted."""
        common = self._common.get(path)
        if stored is None or common is None or not stored.kind is common.kind is Kind.FILE:
            return False
        return stored.size == common.size and self._digest_there(path) == common.content[1]

    def _digest_there(self, path: bytes) -> bytes:
        digest = blake3()
        for piece in self._pieces(self._stored.heads[path]):
            digest.update(piece)
        return digest.digest()

    def _digest(self, path: bytes, local: Entry) -> bytes:
        found = self._digests.get(path)
        if found is None:
            found = self._digests[path] = self._replica.digest(path, local)
        return found

    def _are_equal(self, path: bytes) -> bool:
        """Whether a file or link is the same on both sides."""
        local, stored = self._local[path], self._stored.entries[path]
        if (local.kind, local.target, local.size) != (stored.kind, stored.target, stored.size):
            return False
        if local.kind is not Kind.FILE:
            return True
        return self._digest_there(path) == self._digest(path, local)

    def _pieces(self, version: Version) -> Iterator[bytes]:
        with self.files.opened(version) as reader:
            while piece := reader.read(_PIECE_BYTES):
                yield piece

    def _tell_of_cases(self, steps: dict[bytes, Step]) -> None:
        """Leave alone what would take the place of another file, as its name differs in case only."""
        fetched = [path for path in self._chosen(steps, Step.FETCH) if path not in self._local]
        if not fetched or not self._replica.ignores_case():
            return
        there = {path.decode(errors="replace").casefold(): path for path in self._local}
        refused: set[bytes] = set()
        for path in fetched:  # directories before what is in them
            if not refused.isdisjoint(above_of(path)):
                steps[path] = Step.NONE
                continue
            other = there.setdefault(path.decode(errors="replace").casefold(), path)
            if other != path:
                steps[path] = Step.NONE
                refused.add(path)
                self._failure(path, Unstorable(f"it differs only in case from {text_of(other)}; rename one of them"))

    def _tell(self, steps: Mapping[bytes, Step]) -> None:
        """Tell what would be done."""
        for path, step in steps.items():
            local, stored = self._local.get(path), self._stored.entries.get(path)
            if step is Step.SEND:
                self.told("delete there" if local is None else "send", path)
            elif step is Step.FETCH:
                self.told("delete here" if stored is None else "fetch", path)
            elif step in (Step.KEEP_BOTH, Step.KEEP_BOTH_THERE):
                self.told("keep both", path)

    def _chosen(self, steps: Mapping[bytes, Step], *wanted: Step) -> list[bytes]:
        return [path for path, step in steps.items() if step in wanted]
