"""FileService: the four operations of the public contract, for files that fit into one message."""

from __future__ import annotations

from storage import ConflictError, FileStorage, InvalidArgument, ManifestDiff, Version
from taskworker.errors import MessageTooLarge
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.rpc.authorization import note_of
from taskworker.rpc.binding import Caller, InProcess, require_active, stop_when_abandoned
from taskworker.rpc.conversion import diff_from_proto, diff_to_proto, parsed
from taskworker.rpc.limits import KIB, MIB, UNARY_BYTES_MOST
from taskworker.services.revision import Revisions

# A patch without data takes about 45 bytes; the rest of a response is small.
_FRAME_BYTES = 64 * KIB

_HERE = InProcess()


class FileService:
    """Serves a store through the messages of ``taskworker.proto``; thread-safe.

    Methods raise the engine's errors; the binding turns them into status codes. They may also be called
    directly, in process, without a ``caller``.

    Args:
        store: the store to serve.
        message_bytes: size of the largest answer.
        revisions: what this service's revisions share with others.
    """

    def __init__(
        self, store: FileStorage, message_bytes: int = UNARY_BYTES_MOST, revisions: Revisions | None = None
    ) -> None:
        self._store = store
        self._revisions = revisions or Revisions()
        self._message_bytes = message_bytes

    def Push(  # noqa: N802 - the names are the contract's
        self, request: taskworker_pb2.PushRequest, caller: Caller = _HERE
    ) -> taskworker_pb2.PushResponse:
        """Store bytes under a user's filename as a new version, unless the head has the same content."""
        require_active(caller)
        version = self._store.push(
            request.file_data,
            filename=request.filename,
            user_id=request.user_id,
            note=note_of(caller),
            progress=stop_when_abandoned(caller),
        )
        return taskworker_pb2.PushResponse(
            file_id=version.file_id, status=True, message=_outcome(version, "stored"), version_id=version.version_id
        )

    def Get(  # noqa: N802
        self, request: taskworker_pb2.GetRequest, caller: Caller = _HERE
    ) -> taskworker_pb2.GetResponse:
        """The verified bytes of a version, by default the head."""
        require_active(caller)
        with self._store.open_file(
            request.file_id, user_id=request.user_id, version_id=request.version_id or None
        ) as reader:
            if reader.size > self._message_bytes:  # anything that Push accepts fits
                raise MessageTooLarge(
                    f"file of {reader.size / MIB:.1f} MiB does not fit the limit of {self._message_bytes / MIB:.4g} "
                    "MiB for one message; fetch it with GetStream"
                )
            data = reader.read(reader.size)
            version_id = reader.version.version_id
        return taskworker_pb2.GetResponse(file_data=data, status=True, message="found", version_id=version_id)

    def Revise(  # noqa: N802
        self, request: taskworker_pb2.ReviseRequest, caller: Caller = _HERE
    ) -> taskworker_pb2.ReviseResponse:
        """Apply a diff to the head that it was made against."""
        require_active(caller)
        if not request.difference:
            raise InvalidArgument("difference is empty; it must be a serialized taskworker.store.ManifestDiff")
        message = parsed(store_pb2.ManifestDiff.FromString, request.difference, "difference")
        diff = diff_from_proto(message)
        self._revisions.nodes.take(caller, diff)
        with self._revisions.checking(caller, request.sha256):
            version = self._store.revise(
                request.file_id,
                diff,
                user_id=request.user_id,
                sha256=request.sha256 or None,
                time_ms=request.time or None,
                note=note_of(caller),
                progress=self._revisions.progress(caller, request.sha256),
            )
        return taskworker_pb2.ReviseResponse(
            file_id=version.file_id, status=True, message=_outcome(version, "revised"), version_id=version.version_id
        )

    def Synchronous(  # noqa: N802
        self, request: taskworker_pb2.SynchronousRequest, caller: Caller = _HERE
    ) -> taskworker_pb2.SynchronousResponse:
        """Synchronize the caller's copy and the head; see ``taskworker.proto`` for the outcomes."""
        require_active(caller)
        if not request.difference:
            raise InvalidArgument("difference is empty; it must be a serialized taskworker.store.SyncState")
        state = parsed(store_pb2.SyncState.FromString, request.difference, "difference")
        if not state.version_id:
            raise InvalidArgument("SyncState.version_id is empty; name the version your copy was made from")
        if state.HasField("diff"):
            return self._take_over(request.file_id, state, caller)
        return self._bring_up(request.file_id, state)

    def _bring_up(self, file_id: str, state: store_pb2.SyncState) -> taskworker_pb2.SynchronousResponse:
        diff = self._store.synchronize(
            file_id,
            have_version_id=state.version_id,
            user_id=state.user_id,
            # Patches beyond this name their chunks without data; the caller gets it with GetStream.
            data_bytes_max=self._message_bytes // 2,
        )
        head = diff.target_version_id or state.version_id
        if head == state.version_id:
            return _in_step(file_id, head, "already equal")
        serialized = diff_to_proto(diff).SerializeToString()
        if len(serialized) > self._message_bytes - _FRAME_BYTES:
            raise MessageTooLarge(
                f"{len(diff.patches)} chunks changed, more than one message can list; fetch the file with GetStream"
            )
        response = _in_step(file_id, head, "the head moved; apply the difference")
        response.difference = serialized
        return response

    def _take_over(
        self, file_id: str, state: store_pb2.SyncState, caller: Caller
    ) -> taskworker_pb2.SynchronousResponse:
        diff = diff_from_proto(state.diff)
        if diff.base_version_id != state.version_id:
            raise InvalidArgument("SyncState.diff.base_version is not SyncState.version_id; make the diff from it")
        self._revisions.nodes.take(caller, diff)
        try:
            version = self._store.revise(file_id, diff, user_id=state.user_id, note=note_of(caller))
        except ConflictError as conflict:
            if not self._leads_to_head(file_id, diff, state.user_id):
                raise
            return _in_step(file_id, conflict.head, "already equal")
        return _in_step(file_id, version.version_id, "the difference was applied")

    def _leads_to_head(self, file_id: str, diff: ManifestDiff, user_id: str) -> bool:
        """Whether both sides changed to the same content, for example after a sync whose response was lost."""
        ours = self._store.synchronize(file_id, have_version_id=diff.base_version_id, user_id=user_id, data_bytes_max=0)
        return (ours.new_size, ours.chunk_size) == (diff.new_size, diff.chunk_size) and (
            {patch.index: patch.chunk_id for patch in ours.patches}
            == {patch.index: patch.chunk_id for patch in diff.patches}
        )


def _outcome(version: Version, done: str) -> str:
    return "unchanged" if version.unchanged else done


def _in_step(file_id: str, head: str, message: str) -> taskworker_pb2.SynchronousResponse:
    return taskworker_pb2.SynchronousResponse(file_id=file_id, status=True, message=message, version_id=head)
