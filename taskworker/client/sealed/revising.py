"""Changes of sealed files, of which only what changed is sent or fetched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from storage import ConflictError, Version
from storage.diff.local_diff import Changed
from storage.limits import BytesLike
from storage.progress import Progress
from taskworker.client.deadline import Deadline
from taskworker.client.differences import RevisionOptions, revision_messages, version_of
from taskworker.client.fetching import Wanted
from taskworker.client.local_files import LocalFile
from taskworker.client.sealed.differences import SealedDiff, changed_content
from taskworker.client.sealed.files import SealedFiles
from taskworker.client.sealed.keys import divided
from taskworker.client.sealed.reading import SealedVersion
from taskworker.client.sending import OutgoingMessages
from taskworker.client.sources import SeekableSource


def revise(
    files: SealedFiles,
    content: SeekableSource,
    options: RevisionOptions,
    *,
    base_version_id: str | None,
    changed: Changed | None,
    deadline: Deadline,
    progress: Progress | None,
) -> Version:
    """Make local content the new version of a sealed file; see ``Client.revise``."""
    wanted = Wanted(options.file_id, options.user_id, base_version_id)
    base = files.open_version(wanted, lambda: deadline)
    key = files.keys.key_of(base.stored.file_id, base.stored.filename)
    note = key.sealed_note(options.user_id, options.note, options.sha256)
    sealed = base.sealed_like(content, note)
    sealed.require_sha256(options.sha256)
    anew = note not in ("", divided(base.stored.note)[0])
    local = SealedDiff(files.channel, base, sealed, changed=changed, anew=anew, deadline=deadline, progress=progress)
    return _send(files, base, local, sealed.size, replace(options, note=note, sha256=None), deadline)


def sync(
    files: SealedFiles,
    local_file: LocalFile,
    content: SeekableSource,
    wanted: Wanted,
    deadline: Deadline,
    progress: Progress | None,
) -> tuple[Literal["equal", "pulled", "pushed"], Version]:
    """Synchronize a local file and the head of a sealed one; see ``Client.sync``."""
    base = files.open_version(wanted, lambda: deadline)
    sealed = base.sealed_like(content, "")
    local = SealedDiff(files.channel, base, sealed, deadline=deadline, progress=progress)
    latest = Wanted(wanted.file_id, wanted.user_id)
    if not local.is_empty():
        options = RevisionOptions(wanted.file_id, wanted.user_id)
        try:
            return "pushed", _send(files, base, local, sealed.size, options, deadline)
        except ConflictError:
            head = files.open_version(latest, lambda: deadline)
            theirs = SealedDiff(files.channel, head, head.sealed_like(content, ""), deadline=deadline)
            if not theirs.is_empty():
                raise
            return "equal", head.version
    head = files.open_version(latest, lambda: deadline)
    if head.version.version_id == base.version.version_id:
        return "equal", head.version
    local_file.patch(head.layout.size, changed_content(base, head))
    return "pulled", head.version


def is_same(files: SealedFiles, version: Version, content: SeekableSource, deadline: Deadline) -> bool:
    """Whether local content equals a version's."""
    base = files.open_version(Wanted(version.file_id, version.user_id, version.version_id), lambda: deadline)
    return SealedDiff(files.channel, base, base.sealed_like(content, ""), deadline=deadline).is_empty()


def changes_since(
    files: SealedFiles, version: Version, deadline: Deadline
) -> tuple[Version, Iterator[tuple[int, BytesLike]]]:
    """The head, and (offset, bytes) of what changed from a version to it."""
    base = files.open_version(Wanted(version.file_id, version.user_id, version.version_id), lambda: deadline)
    head = files.open_version(Wanted(version.file_id, version.user_id), lambda: deadline)
    return head.version, changed_content(base, head)


def _send(
    files: SealedFiles, base: SealedVersion, local: SealedDiff, size: int, options: RevisionOptions, deadline: Deadline
) -> Version:
    header = options.header(base.stored.version_id, size, base.stored.chunk_size)
    messages = OutgoingMessages(revision_messages(header, local.patches()))
    return files.opened(version_of(files.channel.revise(messages, deadline)), options.user_id)
