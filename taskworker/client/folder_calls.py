"""The calls on whole directory trees."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from storage.progress import Progress
from taskworker.client.base import ClientBase
from taskworker.client.checked import arguments_checked
from taskworker.client.folders import ClientFiles

if TYPE_CHECKING:
    from taskworker.folders.fetching import FetchReport
    from taskworker.folders.problems import Problem
    from taskworker.folders.pushing import PushReport
    from taskworker.folders.syncing.report import SyncReport, Told


class FolderCalls(ClientBase):
    """The client's methods on directory trees."""

    @arguments_checked
    def push_tree(
        self,
        directory: str | os.PathLike[str],
        name: str | None = None,
        *,
        user_id: str,
        exclude: Sequence[str] = (),
        exclude_caches: bool = False,
        one_file_system: bool = False,
        xattrs: bool = False,
        delete: bool = False,
        problem: Problem | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> PushReport:
        """Store a directory tree: the file ``a/b`` in it under the name ``NAME/a/b``.

        Modes, times, links and empty directories are kept in a file named ``NAME/``. Files that are unchanged since the
        last push, by size, times and inode, are not read again. What a file ``.twignore`` names is left out.

        Args:
            directory: the directory.
            name: the folder's name; default: the directory's own.
            user_id: the owner.
            exclude: what to leave out, by the rules of ``.gitignore``.
            exclude_caches: whether to leave out what is in directories with a CACHEDIR.TAG.
            one_file_system: whether to leave out what is on other file systems.
            xattrs: whether to keep extended attributes.
            delete: whether to delete files of the folder that are not in the directory.
            problem: told of each file that could not be stored, or was changed while it was read, by its path in the
                directory. Default: FolderIncomplete is raised once all others are stored.
            progress: called with the number of files that are done, and of their bytes.
            timeout_s: seconds for all files.

        Raises:
            InvalidArgument: the name, or a pattern, is malformed.
            FolderIncomplete: some files could not be stored as they are, and ``problem`` was not given.
            OSError: the directory cannot be read.
        """
        from taskworker.folders.pushing import folder_name, push_tree
        from taskworker.folders.rules import Exclusions

        place = Path(directory)
        return push_tree(
            ClientFiles(self, user_id, self._deadline(timeout_s)),
            place,
            folder_name(place) if name is None else name,
            exclusions=Exclusions(tuple(exclude), exclude_caches, one_file_system),
            xattrs=xattrs,
            delete=delete,
            problem=problem,
            progress=progress,
        )

    @arguments_checked
    def get_tree(
        self,
        name: str,
        directory: str | os.PathLike[str],
        *,
        user_id: str,
        privileged: bool = False,
        problem: Problem | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> FetchReport:
        """Write all files whose names start with ``NAME/`` to a directory, as they were last pushed.

        Files that are there already are replaced, and others left alone. Nothing outside of the directory is written.

        Args:
            name: the folder's name.
            directory: the directory; it is made if it does not exist.
            user_id: the owner.
            privileged: whether to restore owners, set-user-ID bits and all extended attributes, which needs root.
            problem: told of each file that could not be restored, by its path in the directory. Default:
                FolderIncomplete is raised once all others are restored.
            progress: called with the number of files that are done, and of their bytes.
            timeout_s: seconds for all files.

        Raises:
            InvalidArgument: the name is malformed.
            FileNotFound: no file's name starts with this.
            FolderDamaged: the folder's listing is damaged.
            FolderIncomplete: some files could not be restored, and ``problem`` was not given.
        """
        from taskworker.folders.fetching import get_tree

        return get_tree(
            ClientFiles(self, user_id, self._deadline(timeout_s)),
            name,
            Path(directory),
            privileged=privileged,
            problem=problem,
            progress=progress,
        )

    @arguments_checked
    def sync_tree(
        self,
        directory: str | os.PathLike[str],
        name: str | None = None,
        *,
        user_id: str,
        exclude: Sequence[str] = (),
        exclude_caches: bool = False,
        one_file_system: bool = False,
        dry_run: bool = False,
        allow_empty: bool = False,
        problem: Problem | None = None,
        told: Told | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> SyncReport:
        """Bring a directory and the files whose names start with ``NAME/`` to the same state, whichever changed.

        If a file was changed on both sides, the stored one keeps the name, and the other one is kept beside it, under a
        name with this machine and the time. A change wins over a deletion. What both sides had at the last sync is kept
        in ``$XDG_STATE_HOME/taskworker/sync`` on this machine. The first time, nothing is deleted.

        Args:
            directory: the directory; it is made if it does not exist.
            name: the folder's name; default: the directory's own.
            user_id: the owner.
            exclude: what to leave alone on both sides, by the rules of ``.gitignore``.
            exclude_caches: whether to leave alone what is in directories with a CACHEDIR.TAG.
            one_file_system: whether to leave alone what is on other file systems.
            dry_run: only tell what would be done.
            allow_empty: whether to go on if one side has become empty, and delete everything on the other.
            problem: told of each file that could not be synced, by its path in the directory. Default: FolderIncomplete
                is raised once all others are.
            told: called with what is done to a file, such as "sent", and its path in the directory.
            progress: called with the number of files that were sent or fetched, and of their bytes.
            timeout_s: seconds for all files.

        Raises:
            InvalidArgument: the name or a pattern is malformed; or one side has become empty.
            StoreLocked: another sync of the directory is running on this machine.
            FolderDamaged: the folder's listing, or what was kept of the last sync, is damaged.
            FolderIncomplete: some files could not be synced, and ``problem`` was not given.
            OSError: the directory cannot be read.
        """
        from taskworker.folders.pushing import folder_name
        from taskworker.folders.rules import Exclusions
        from taskworker.folders.syncing import sync_tree

        place = Path(directory)
        return sync_tree(
            ClientFiles(self, user_id, self._deadline(timeout_s)),
            place,
            folder_name(place) if name is None else name,
            place=f"{self.address}\n{user_id}",
            exclusions=Exclusions(tuple(exclude), exclude_caches, one_file_system),
            dry_run=dry_run,
            allow_empty=allow_empty,
            problem=problem,
            told=told,
            progress=progress,
        )
