"""The command sync: synchronizes a local copy and its stored file, whichever of them changed, or a directory.

A small JSON file beside the local copy, ``.taskworker-sync/NAME``, ties the two together. It records the version
that the copy had at the last sync, which tells apart *changed here*, *changed there* and *changed on both sides*.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.completion import complete_file
from taskworker.cli.documents import version_document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.files import existing_file
from taskworker.cli.folder_sync import sync_folder
from taskworker.cli.many import SHORT_ID_LENGTH
from taskworker.cli.references import resolve_file
from taskworker.cli.session import Session
from taskworker.cli.text import one_line, visible
from taskworker.cli.trees import Exclude, ExcludeCaches, ExcludeFrom, OneFileSystem, exclusions_of
from taskworker.client.local_files import LocalFile, replacing

if TYPE_CHECKING:
    from storage import Version
    from taskworker.cli.backend import Backend

TIES_DIRECTORY = ".taskworker-sync"
_SETTLING_NS = 2_000_000_000  # the coarsest clock among common file systems, FAT's


class Side(StrEnum):
    """The side whose changes become the newest version if both have changed."""

    LOCAL = "local"
    STORED = "stored"


class Outcome(StrEnum):
    """The outcome of a sync."""

    IN_STEP = "already in step"
    SENT = "local changes stored"
    FETCHED = "stored changes fetched"


@dataclass(frozen=True, slots=True)
class Tie:
    """The version that the local copy had at the last sync, and its file's size and times then."""

    file_id: str
    version_id: str
    size: int
    changed_ns: int
    seen_ns: int

    @classmethod
    def between(cls, version: Version, looks: os.stat_result, now_ns: Callable[[], int] = time.time_ns) -> Tie:
        """The tie of a file that had this size and these times when it had the version's content."""
        return cls(version.file_id, version.version_id, looks.st_size, _changed_ns(looks), now_ns())

    def surely_still(self, looks: os.stat_result) -> bool:
        """Whether a file with this size and these times is certainly unchanged, without reading it.

        Two changes in quick succession may leave the same modification time. So a time is trusted only if it was
        already old when it was recorded.
        """
        settled = self.seen_ns - self.changed_ns > _SETTLING_NS
        return settled and (looks.st_size, _changed_ns(looks)) == (self.size, self.changed_ns)


def _changed_ns(looks: os.stat_result) -> int:
    return max(looks.st_mtime_ns, looks.st_ctime_ns)


def sync(
    session: Session,
    path: Annotated[Path, typer.Argument(help="The local copy, or a directory.", metavar="PATH", show_default=False)],
    file: Annotated[
        str | None,
        typer.Argument(
            help="The stored file, or a folder's name with a slash; needed the first time if it is not named like the "
            "copy, and always if the directory is not.",
            metavar="ID|NAME",
            show_default=False,
            autocompletion=complete_file,
        ),
    ] = None,
    prefer: Annotated[
        Side | None, typer.Option(help="If both sides changed: whose content becomes the newest version.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of a directory: only say what would be done.", show_default=False)
    ] = False,
    allow_empty: Annotated[
        bool,
        typer.Option(
            "--allow-empty",
            help="Of a directory: go on if one side has become empty, and delete everything on the other.",
            show_default=False,
        ),
    ] = False,
    exclude: Exclude = None,
    exclude_from: ExcludeFrom = None,
    exclude_caches: ExcludeCaches = False,
    one_file_system: OneFileSystem = False,
) -> None:
    """Synchronize a local copy and its stored file, or a directory; only what changed is sent or fetched.

    If only the copy changed, it is stored as a new version. If only the stored file changed, it is fetched. If both
    changed, the command changes nothing and ends with exit code 4, unless --prefer says which content to use. The other
    content is kept: a stored version in the history, a local file beside the copy. The first time, the copy is stored,
    or fetched if it does not exist.

    Of a directory, each file is synchronized with the one whose name starts with the folder's. What is new, changed or
    deleted on one side becomes so on the other. If a file changed on both sides, the stored one keeps the name, and the
    local one is kept beside it, under a name with this machine and the time. A change wins over a deletion.

    Examples:
        taskworker sync photos
        taskworker sync photos holidays/ --dry-run
        taskworker sync notes.md
        taskworker sync work/notes.md notes.md
        taskworker sync notes.md --prefer local
    """
    if path.is_dir() or (file is not None and file.endswith("/")):
        if prefer is not None:
            raise Failure("--prefer is for files: of a directory's, both are kept", ExitCode.USAGE)
        exclusions = exclusions_of(exclude, exclude_from, caches=exclude_caches, other_file_systems=one_file_system)
        sync_folder(session, path, file, exclusions, dry_run=dry_run, allow_empty=allow_empty)
        return
    if dry_run or allow_empty or exclude or exclude_from or exclude_caches or one_file_system:
        raise Failure(f"'{visible(str(path))}' is not a directory, which these options are for", ExitCode.USAGE)
    if path.exists():
        existing_file(str(path))
    with session.backend(create=path.exists()) as backend:
        version, outcome = _Pair(session, backend, path).bring_into_step(file, prefer)
    session.terminal.result(
        version_document(version, outcome=outcome.name.lower()),
        f"{one_line(str(path))}: {outcome}, version {version.version_id[:SHORT_ID_LENGTH]}",
    )


class _Pair:
    """A local copy and its stored file."""

    def __init__(self, session: Session, backend: Backend, path: Path) -> None:
        self._session = session
        self._backend = backend
        self._path = path
        self._tie_path = path.parent / TIES_DIRECTORY / path.name

    def bring_into_step(self, reference: str | None, prefer: Side | None) -> tuple[Version, Outcome]:
        tie = self._tie()
        if tie is not None and reference is not None and resolve_file(self._backend, reference).file_id != tie.file_id:
            raise Failure(
                f"{self._shown} is a copy of another stored file; to use it for this one, remove {self._tie_path}"
            )
        if tie is None:
            return self._first_time(reference, prefer)
        return self._again(tie, prefer)

    def _first_time(self, reference: str | None, prefer: Side | None) -> tuple[Version, Outcome]:
        if reference is None:
            head = self._backend.find(self._path.name)
            if head is None and not self._path.exists():
                raise Failure(f"{self._shown} is neither here nor in the store", ExitCode.NOT_FOUND)
        else:
            head = resolve_file(self._backend, reference)
        if head is None:
            return self._push(), Outcome.SENT
        if not self._path.exists():
            return self._fetch(head), Outcome.FETCHED
        return self._both_changed(head, prefer)

    def _again(self, tie: Tie, prefer: Side | None) -> tuple[Version, Outcome]:
        from storage import VersionNotFound

        head = self._head(tie)
        if not self._path.exists():
            return self._fetch(head), Outcome.FETCHED
        try:
            changed_here = self._changed_since(tie)
        except VersionNotFound:  # it was deleted, so nobody knows who changed what
            return self._both_changed(head, prefer)
        if head.version_id == tie.version_id:
            if not changed_here:
                return head, Outcome.IN_STEP
            return self._revise(head)
        if not changed_here:
            return self._fetch_changes(tie), Outcome.FETCHED
        return self._both_changed(head, prefer)

    def _both_changed(self, head: Version, prefer: Side | None) -> tuple[Version, Outcome]:
        if self._backend.same_content(head, self._path):
            self._keep_tie(head, self._path.stat())
            return head, Outcome.IN_STEP
        if prefer is Side.LOCAL:
            return self._revise(head)
        if prefer is Side.STORED:
            return self._fetch_keeping_local(head), Outcome.FETCHED
        raise Failure(
            f"{self._shown} and the stored file (version {head.version_id[:SHORT_ID_LENGTH]}) differ, and neither "
            "was made from the other; choose with --prefer local or --prefer stored; the other content is kept",
            ExitCode.CONFLICT,
        )

    def _head(self, tie: Tie) -> Version:
        from storage import FileNotFound

        try:
            return self._backend.stat(tie.file_id)
        except FileNotFound as error:
            raise Failure(
                f"the stored file of which {self._shown} is a copy is not in this store any more; "
                f"to store the copy as a new file, remove {self._tie_path}",
                ExitCode.NOT_FOUND,
            ) from error

    # -- synchronizing ------------------------------------------------------------------------------

    def _push(self) -> Version:
        before = self._path.stat()
        with self._session.terminal.progress(self._path.name) as progress:
            version = self._backend.push(self._path, filename=self._path.name, progress=progress)
        self._keep_tie(version, before)
        return version

    def _revise(self, head: Version) -> tuple[Version, Outcome]:
        before = self._path.stat()
        with self._session.terminal.progress(head.filename) as progress:
            version = self._backend.revise(head, self._path, progress=progress)
        self._keep_tie(version, before)
        return version, Outcome.IN_STEP if version.version_id == head.version_id else Outcome.SENT

    def _fetch(self, head: Version) -> Version:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path, durable=True) as part, self._session.terminal.progress(head.filename) as progress:
            self._backend.write_to(part, head, 0, head.size, progress=progress)
        self._keep_tie(head, self._path.stat())
        return head

    def _fetch_changes(self, tie: Tie) -> Version:
        """Replace the local file with a patched copy, unless it changes meanwhile."""
        local = LocalFile(self._path)
        delta = self._backend.changes_since(tie.file_id, tie.version_id)
        local.patch(delta.head.size, delta.pieces)
        self._keep_tie(delta.head, self._path.stat())
        return delta.head

    def _fetch_keeping_local(self, head: Version) -> Version:
        number = 1
        while os.path.lexists(aside := self._path.with_name(f"{self._path.name}.local-{number}")):
            number += 1
        try:
            aside.hardlink_to(self._path)
        except OSError:  # a file system without links
            with self._path.open("rb") as local, aside.open("xb") as copy:
                shutil.copyfileobj(local, copy)
            shutil.copystat(self._path, aside, follow_symlinks=False)
        try:
            version = self._fetch(head)
        except BaseException:
            aside.unlink()
            raise
        self._session.terminal.note(f"the local content is kept as {one_line(str(aside))}")
        return version

    # -- the state of the local copy ------------------------------------------------------------------

    @property
    def _shown(self) -> str:
        return f"'{visible(str(self._path))}'"

    def _tie(self) -> Tie | None:
        self._require_own_ties()
        try:
            return Tie(**json.loads(self._tie_path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise Failure(f"{self._tie_path} is damaged; remove it and sync again") from error

    def _keep_tie(self, version: Version, looked: os.stat_result) -> None:
        from storage.system.private_files import write_private

        tie = Tie.between(version, looked)
        self._require_own_ties()
        write_private(self._tie_path, json.dumps(asdict(tie)).encode())

    def _require_own_ties(self) -> None:
        """Whoever can change a tie decides which stored file this one is a copy of."""
        for path in (self._tie_path.parent, self._tie_path):
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISLNK(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
                    raise Failure(f"{one_line(str(path))} is a link or belongs to another user: remove it")

    def _changed_since(self, tie: Tie) -> bool:
        """Whether the content differs from the tied version; reads the file only if it looks different."""
        looks = self._path.stat()
        if tie.surely_still(looks):
            return False
        version = self._backend.stat(tie.file_id, tie.version_id)
        if not self._backend.same_content(version, self._path):
            return True
        self._keep_tie(version, looks)
        return False
