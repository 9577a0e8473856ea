"""The calls that change files, which send only what changed."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from storage import (
    ConflictError,
    ManifestDiff,
    Version,
)
from storage.diff.local_diff import Changed
from storage.limits import BytesLike
from storage.progress import Progress
from taskworker.client import sources
from taskworker.client.base import RETRIES, ClientBase
from taskworker.client.checked import arguments_checked
from taskworker.client.deadline import Deadline, retried
from taskworker.client.differences import (
    RemoteDiff,
    RevisionOptions,
    pieces_of,
    revision_messages,
    version_of,
)
from taskworker.client.fetching import Fetch, Wanted, write_to
from taskworker.client.local_files import LocalFile
from taskworker.client.sealed.names import require_readable
from taskworker.client.sending import OutgoingMessages
from taskworker.errors import MessageTooLarge
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.rpc import conversion as convert
from taskworker.rpc.limits import MIB, UNARY_BYTES_MOST

if TYPE_CHECKING:
    pass

ReadableAnywhere = BytesLike | str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True, slots=True)
class Synchronized:
    """The answer of Synchronous: the head, and the diff from the caller's copy to it, if they differ."""

    version_id: str
    diff: ManifestDiff | None


@dataclass(frozen=True, slots=True)
class SyncResult:
    """How a local file and the head were synchronized, and the version that both now have.

    ``outcome``: ``"equal"``: nothing had changed; ``"pulled"``: the file was updated to the head;
    ``"pushed"``: the file's changes became the new head.
    """

    outcome: Literal["equal", "pulled", "pushed"]
    version: Version


class RevisionCalls(ClientBase):
    """The client's methods for changing files."""

    @arguments_checked
    def diff(
        self,
        file_id: str,
        source: ReadableAnywhere,
        *,
        user_id: str,
        base_version_id: str | None = None,
        changed: Changed | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> ManifestDiff:
        """The diff from a version, by default the head, to local content, with data that the server lacks.

        Holds the whole diff in memory; :meth:`revise`, with the same arguments, sends changes as it finds them.

        Raises:
            PoolIsBlind: this client has a key; :meth:`revise` works with it.
        """
        self._require_clear("a diff of a sealed file would be one of ciphertext: use revise() or sync()")
        deadline = self._deadline(timeout_s)
        base = self._stat(file_id, user_id, base_version_id, deadline)
        require_readable(base)
        with sources.opened_seekable(source) as content:
            local = RemoteDiff(self._channel, base, content, changed=changed, deadline=deadline, progress=progress)
            return ManifestDiff(base.version_id, content.size, base.chunk_size, tuple(local.patches()))

    @arguments_checked
    def revise(
        self,
        file_id: str,
        source: ReadableAnywhere,
        *,
        user_id: str,
        base_version_id: str | None = None,
        changed: Changed | None = None,
        sha256: str | None = None,
        time_ms: int | None = None,
        note: str = "",
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Version:
        """Make local content the file's new version, sending only changed chunks; no new version if nothing changed.

        Args:
            file_id: the file.
            source: bytes, a path or a seekable binary file (read from its position).
            user_id: the owner.
            base_version_id: the version that must still be the head; default: the current head.
            changed: (offset, length) of all places that changed, if known; only these are read.
            sha256: hex digest of the whole content, checked before it becomes visible.
            time_ms: the author's clock, ms since 1970; default: the server's clock.
            note: up to 4,096 bytes.
            progress: called with (bytes compared, total bytes), from another thread.
            timeout_s: seconds.

        Raises:
            ConflictError: the base is no longer the head.
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            InvalidArgument: an argument is malformed or out of bounds.
            StoreFull: a disk or quota is full; nothing was stored.
            OSError: the local file cannot be read or written.
        """
        deadline = self._deadline(timeout_s)
        options = RevisionOptions(file_id, user_id, sha256=sha256, time_ms=time_ms, note=note)
        if self._sealed is not None:
            from taskworker.client.sealed import revising

            with sources.opened_seekable(source) as content:
                return revising.revise(
                    self._sealed,
                    content,
                    options,
                    base_version_id=base_version_id,
                    changed=changed,
                    deadline=deadline,
                    progress=progress,
                )
        base = self._stat(file_id, user_id, base_version_id, deadline)
        require_readable(base)
        with sources.opened_seekable(source) as content:
            local = RemoteDiff(self._channel, base, content, changed=changed, deadline=deadline, progress=progress)
            return self._send_revision(base, content.size, local, options, deadline)

    @arguments_checked
    def apply(
        self,
        file_id: str,
        diff: ManifestDiff,
        *,
        user_id: str,
        sha256: str | None = None,
        time_ms: int | None = None,
        note: str = "",
        timeout_s: float | None = None,
    ) -> Version:
        """Apply a diff to the head that it was made against, like ``FileStorage.revise``.

        Raises:
            ConflictError: the diff's base is no longer the head.
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            InvalidArgument: the diff is malformed; nothing was stored.
            StoreFull: a disk or quota is full; nothing was stored.
            PoolIsBlind: this client has a key; :meth:`revise` works with it.
        """
        self._require_clear("a diff cannot be applied to a sealed file: use revise() or sync()")
        options = RevisionOptions(file_id, user_id, sha256=sha256, time_ms=time_ms, note=note)
        header = options.header(diff.base_version_id, diff.new_size, diff.chunk_size)
        messages = OutgoingMessages(revision_messages(header, diff.patches))
        return version_of(self._channel.revise(messages, self._deadline(timeout_s)))

    @arguments_checked
    def synchronize(
        self,
        file_id: str,
        *,
        user_id: str,
        have_version_id: str,
        diff: ManifestDiff | None = None,
        timeout_s: float | None = None,
    ) -> Synchronized:
        """Synchronize two copies with one call of the public contract.

        Args:
            file_id: the file.
            user_id: the owner.
            have_version_id: the version that the caller's copy was made from.
            diff: the caller's changes since then.
            timeout_s: seconds.

        Raises:
            ConflictError: both sides changed.
            MessageTooLarge: the diff is too large for one call; :meth:`apply` accepts any size.
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            InvalidArgument: an argument is malformed or out of bounds.
            StoreFull: a disk or quota is full; nothing was stored.
            PoolIsBlind: this client has a key; :meth:`sync` works with it.
        """
        self._require_clear("a diff of a sealed file would be one of ciphertext: use sync()")
        state = store_pb2.SyncState(
            version_id=have_version_id,
            user_id=user_id,
            diff=convert.diff_to_proto(diff) if diff is not None else None,
        )
        request = taskworker_pb2.SynchronousRequest(file_id=file_id, difference=state.SerializeToString())
        if request.ByteSize() > UNARY_BYTES_MOST:
            raise MessageTooLarge(
                f"diff of {request.ByteSize() / MIB:.1f} MiB is above the limit of {UNARY_BYTES_MOST // MIB} MiB "
                "for one message; use apply() or revise()"
            )
        response = self._channel.unary(self._channel.files.Synchronous, request, self._deadline(timeout_s))
        return Synchronized(response.version_id, _diff_in(response))

    @arguments_checked
    def sync(
        self,
        file_id: str,
        path: str | os.PathLike[str],
        *,
        user_id: str,
        base_version_id: str,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> SyncResult:
        """Synchronize a local file with the head: the side that changed updates the other.

        Args:
            file_id: the file on the server.
            path: the local file; replaced as a whole if the head changed.
            user_id: the owner.
            base_version_id: the version that the local file had after the last synchronization.
            progress: called with (bytes compared, total bytes).
            timeout_s: seconds.

        Raises:
            ConflictError: both sides changed, in different ways; neither is touched.
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            InvalidArgument: an argument is malformed or out of bounds.
            StoreFull: a disk or quota is full; nothing was stored.
            OSError: the local file cannot be read or written.
        """
        deadline = self._deadline(timeout_s)
        local_file = LocalFile(Path(path))
        if self._sealed is not None:
            from taskworker.client.sealed import revising

            with sources.opened_seekable(path) as content:
                wanted = Wanted(file_id, user_id, base_version_id)
                return SyncResult(*revising.sync(self._sealed, local_file, content, wanted, deadline, progress))
        base = self._stat(file_id, user_id, base_version_id, deadline)
        require_readable(base)
        with sources.opened_seekable(path) as content:
            local = RemoteDiff(self._channel, base, content, changed=None, deadline=deadline, progress=progress)
            if not local.is_empty():
                return self._push_changes(base, content, local, deadline)
        return self._pull(base, local_file, deadline)

    def _send_revision(
        self, base: Version, size: int, local: RemoteDiff, options: RevisionOptions, deadline: Deadline
    ) -> Version:
        header = options.header(base.version_id, size, base.chunk_size)
        messages = OutgoingMessages(revision_messages(header, local.patches()))
        return version_of(self._channel.revise(messages, deadline))

    def _push_changes(
        self, base: Version, content: sources.SeekableSource, local: RemoteDiff, deadline: Deadline
    ) -> SyncResult:
        options = RevisionOptions(base.file_id, base.user_id)
        try:
            return SyncResult("pushed", self._send_revision(base, content.size, local, options, deadline))
        except ConflictError:
            head = self._stat(base.file_id, base.user_id, None, deadline)
            theirs = RemoteDiff(self._channel, head, content, changed=None, deadline=deadline)
            if not theirs.is_empty():
                raise
            return SyncResult("equal", head)

    def _pull(self, base: Version, local: LocalFile, deadline: Deadline) -> SyncResult:
        head = self._stat(base.file_id, base.user_id, None, deadline)
        if head.version_id == base.version_id:
            return SyncResult("equal", head)
        if head.chunk_size == base.chunk_size:  # otherwise, no diff is smaller than the file
            with suppress(MessageTooLarge):  # more chunks changed than a message can list
                return self._pull_diff(base, local, deadline)
        wanted = Wanted(head.file_id, head.user_id, head.version_id)
        with Fetch(self._channel, wanted, deadline=deadline, retries=RETRIES) as fetch, local.replaced() as file:
            write_to(fetch, file, None)
        return SyncResult("pulled", head)

    def _pull_diff(self, base: Version, local: LocalFile, deadline: Deadline) -> SyncResult:
        state = store_pb2.SyncState(version_id=base.version_id, user_id=base.user_id)
        request = taskworker_pb2.SynchronousRequest(file_id=base.file_id, difference=state.SerializeToString())
        # The call carries no diff and so changes nothing: it may be retried.
        response = retried(
            lambda: self._channel.unary(self._channel.files.Synchronous, request, deadline), deadline, RETRIES
        )
        diff = _diff_in(response)
        head = self._stat(base.file_id, base.user_id, response.version_id, deadline)
        if diff is None:
            return SyncResult("equal", head)

        def fetch(offset: int, length: int) -> list[memoryview]:
            wanted = Wanted(head.file_id, head.user_id, head.version_id, offset, length)
            with Fetch(self._channel, wanted, deadline=deadline, retries=RETRIES) as pieces:
                return list(pieces)

        local.patch(diff.new_size, pieces_of(diff, fetch))
        return SyncResult("pulled", head)


def _diff_in(response: taskworker_pb2.SynchronousResponse) -> ManifestDiff | None:
    if not response.difference:
        return None
    return convert.diff_from_proto(
        convert.parsed(store_pb2.ManifestDiff.FromString, response.difference, "difference from the server")
    )
