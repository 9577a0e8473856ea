"""Does what a sync has decided, in an order that loses nothing if it ends half way."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from storage.clocks import wall_ms
from storage.errors import InvalidArgument
from taskworker.folders.entries import Kind
from taskworker.folders.ports import Files
from taskworker.folders.problems import Problem, Problems, text_of
from taskworker.folders.pushing import Progress, prefix_of
from taskworker.folders.restoring import make_root
from taskworker.folders.rules import Exclusions
from taskworker.folders.syncing.planning import with_directories
from taskworker.folders.syncing.replica import Moved, Replica
from taskworker.folders.syncing.report import SyncReport, Told
from taskworker.folders.syncing.state import SyncState
from taskworker.folders.syncing.stored import read_folder, store_listing
from taskworker.folders.syncing.transferring import Transferring

_ROUNDS = 3


def sync_tree(
    files: Files,
    root: Path,
    name: str,
    *,
    place: str,
    exclusions: Exclusions | None = None,
    dry_run: bool = False,
    allow_empty: bool = False,
    problem: Problem | None = None,
    told: Told | None = None,
    progress: Progress | None = None,
    host: str | None = None,
    state_home: Path | None = None,
    now_ms: Callable[[], int] = wall_ms,
) -> SyncReport:
    """Bring a directory and the files whose names start with ``NAME/`` to the same state, whichever of them changed.

    What both had at the last sync is kept on this machine, so that changes and deletions of each side are known. If a
    file was changed on both sides, the stored one keeps the name, and the other one is kept beside it, under a name
    with this machine and the time. A change wins over a deletion. Names that one of the sides cannot have are told,
    and left alone.

    Args:
        files: where the folder is.
        root: the directory; it is made if it does not exist.
        name: the folder's name.
        place: which store that is, and whose files: directories know by it with what they were synced.
        exclusions: what is left alone on both sides.
        dry_run: only tell what would be done.
        allow_empty: whether to go on if one side has become empty, and delete everything on the other.
        problem: told of each file that could not be synced. Default: FolderIncomplete is raised once all others are.
        told: told of each file that is sent, fetched, deleted or kept twice.
        progress: called with the number of files that were sent or fetched, and of their bytes.
        host: name of this machine; default: that of the operating system.
        state_home: directory for what both had at the last sync; default: below ``$XDG_STATE_HOME``.
        now_ms: the clock, ms since 1970.

    Raises:
        InvalidArgument: the name or a pattern is malformed; or one side has become empty.
        StoreLocked: another sync of the directory is running on this machine.
        FolderDamaged: the listing of the folder, or what was kept of the last sync, is damaged.
        FolderIncomplete: some files could not be synced, and ``problem`` was not given.
        OSError: the directory cannot be read.
        StorageError: the store cannot be reached. What was done until then stays, and the next sync goes on.
    """
    prefix = prefix_of(name)
    problems = Problems(problem)
    if not root.exists() and dry_run:
        raise InvalidArgument(f"there is no directory {root}; without dry_run, it would be made")
    make_root(root)
    state = SyncState(root, place, prefix, state_home)
    sync = _Sync(
        files,
        prefix,
        state,
        root,
        exclusions or Exclusions(),
        problems,
        told or (lambda _what, _path: None),
        progress,
        text_of(os.fsencode(host or socket.gethostname())),
        now_ms,
        dry_run,
        allow_empty,
    )
    with state.locked():
        where = state.home.stat()  # as what is synced may be the home directory
        left_out = sync.exclusions.paths | {(where.st_dev, where.st_ino)}
        sync.exclusions = replace(sync.exclusions, paths=left_out)
        report = sync.run()
    problems.raise_if_any("synced")
    return report


class _Sync(Transferring):
    __slots__ = ()

    def run(self) -> SyncReport:
        """Do it all."""
        self.report = SyncReport(self.prefix)
        self._common = self.state.load()
        self._replica = Replica(self.root, self.exclusions, self._failure)
        try:
            for _ in range(1 if self.dry_run else _ROUNDS):
                self._passing = {}
                self._round()
                if not self._passing:
                    break
        finally:
            try:
                if not self.dry_run:
                    self._save()
            finally:
                self._replica.close()
        for path, error in self._passing.items():
            self._failure(path, error)
        for path, error in self._failed.items():
            self.problem(path, error)
        self.report.failed = len(self._failed)
        self.report.files = sum(entry.kind is Kind.FILE for entry in self._common.values())
        return self.report

    def _round(self) -> None:
        self._began_ns = self.now_ms() * 1_000_000
        self._failed.clear()
        self._digests.clear()
        self._gone.clear()
        self._unlisted.clear()
        self._replica.target.leave()
        self._local = self._replica.scan()
        if b"" in self._replica.left_out:
            raise self._failed[b""]
        self._stored = read_folder(self.files, self.prefix, self._failure)
        in_scope = self._scope()
        self._forget_what_is_gone(in_scope)
        self._refuse_emptiness(in_scope)
        paths = sorted(path for path in {*self._common, *self._local, *self._stored.entries} if in_scope(path))
        steps = with_directories({path: self._step(path) for path in paths}, self._local, self._stored.entries)
        self._tell_of_cases(steps)
        if self.dry_run:
            self._tell(steps)
            return
        self._keep_ours_aside(steps)
        self._settle(steps)
        self._delete_here(steps)
        self._replica.target.leave()  # directories may be others than before
        self._fetch(steps)
        self._replica.target.finish()
        self._send(steps)
        self._delete_there(steps)
        self._store_listing(in_scope)

    def _store_listing(self, in_scope: Callable[[bytes], bool]) -> None:
        """Describe in the store what is no file, and only then count it as what both sides have."""
        sent = {path: entry for path, entry in self._unlisted.items() if entry is not None}
        both = {path: entry for path, entry in self._common.items() if in_scope(path) and path not in self._unlisted}
        lost = store_listing(self.files, self.prefix, self._stored, both | sent, gone=self._gone, sent=sent.keys())
        for path, entry in self._unlisted.items():
            if entry is None or path in lost:
                self._common.pop(path, None)
            else:
                self._common[path] = entry
        for path in lost:
            self._passing[path] = Moved("somebody else has changed it, too")
