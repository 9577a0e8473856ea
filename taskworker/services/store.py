"""StoreService: files of any size by stream, diffs and listings; its base class adds maintenance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from storage import FileNotFound, FileStorage, InvalidArgument, Upload, Version
from storage.batching import batched
from storage.progress import Progress
from taskworker.auth.rights import CANDIDATE_OWNER
from taskworker.errors import CallNotOffered
from taskworker.pool.candidates import drop_old_candidates
from taskworker.pool.direct_pushes import DirectPushes
from taskworker.pool.direct_reads import DirectReads
from taskworker.protos import store_pb2
from taskworker.rpc.admission import Gate, ServerLimits
from taskworker.rpc.authorization import is_guest, user_of
from taskworker.rpc.binding import Caller, Codec, require_active
from taskworker.rpc.conversion import (
    attributes_from_proto,
    profile_from_proto,
    profile_to_proto,
    push_options,
    version_to_proto,
)
from taskworker.rpc.data_frames import data_frame, data_of_frame
from taskworker.rpc.limits import (
    CHUNK_IDS_MAX,
    DELETE_MAX,
    GET_FILE_BYTES_MAX,
    KIB,
    MANY_BYTES_MAX,
    PAGE_MAX,
    PART_BYTES_MAX,
)
from taskworker.rpc.running import Run
from taskworker.services.direct_pushes import DirectPushService
from taskworker.services.pages import file_page_to_proto, shards_page_to_proto, version_page_to_proto, within_page
from taskworker.services.pieces import GetPieces, pieces_of
from taskworker.services.revision import Revision, Revisions

MessageT = TypeVar("MessageT")
PushMessage = memoryview | store_pb2.PushPart
GetMessage = GetPieces | store_pb2.GetPart | store_pb2.GetManyPart

# Chunk ids that are taken before the next look whether the caller still waits: each may have to be read.
_REUSED_AT_ONCE = 16

# A get of up to this size is sent in one message with its version, which wakes the client once instead of twice.
_TOGETHER_BYTES_MAX = 64 * KIB


def _read_push_message(raw: bytes) -> PushMessage:
    data = data_of_frame(raw)
    return data if data is not None else store_pb2.PushPart.FromString(raw)


def _write_get_message(message: GetMessage) -> bytes:
    return data_frame(*message) if isinstance(message, list) else message.SerializeToString()


CODECS = {
    "PushStream": Codec(deserialize=_read_push_message),
    "GetStream": Codec(serialize=_write_get_message),
    "PushFile": Codec(bytes_max=MANY_BYTES_MAX),
    "PushMany": Codec(bytes_max=MANY_BYTES_MAX),
    "GetMany": Codec(serialize=_write_get_message),
}
"""The methods that carry most of the data: pushes are read as views, gets are written as plain bytes."""


class StoreService(DirectPushService):
    """Serves a store through the messages of ``store.proto``; thread-safe.

    Methods raise the engine's errors; the binding turns them into status codes.

    Args:
        store: the store to serve.
        limits: limits on calls.
        hide: paths that must not appear in texts sent to callers.
        revisions: limits revisions that are expensive.
        direct: answers clients that read from workers themselves; None: they read from here.
        pushes: answers clients that write to workers themselves; None: they push to here.
    """

    def __init__(
        self,
        store: FileStorage,
        limits: ServerLimits,
        hide: Sequence[str] = (),
        revisions: Revisions | None = None,
        direct: DirectReads | None = None,
        pushes: DirectPushes | None = None,
    ) -> None:
        transfers = Gate(
            limits.streams, f"{limits.streams} transfers are under way, as many as this server allows", kind="transfers"
        )
        super().__init__(store, transfers, revisions or Revisions(limits.checks), hide, pushes)
        self._unary_bytes_max = limits.message_bytes
        self._direct = direct

    def Describe(  # noqa: N802 - the names are the contract's
        self, _request: store_pb2.DescribeRequest, _caller: Caller
    ) -> store_pb2.DescribeResponse:
        """The store's parameters, with which a client cuts files into chunks as the store does."""
        return store_pb2.DescribeResponse(
            chunk_size=self._store.chunk_size,
            profile=profile_to_proto(self._store.profile),
            unary_bytes_max=self._unary_bytes_max,
            part_bytes_max=PART_BYTES_MAX,
            chunk_ids_max=CHUNK_IDS_MAX,
            has_conditions=True,
            has_delete_conditions=True,
            has_direct_pushes=self.has_direct_pushes,
            has_version_delete_conditions=True,
        )

    def PushStream(  # noqa: N802
        self, parts: Iterator[PushMessage], caller: Caller
    ) -> store_pb2.PushStreamResponse:
        """Store one file. After an error, or without a commit message, nothing becomes visible."""
        with self._transfers.place(user_of(caller)):
            first = _first(parts, "PushStream")
            if isinstance(first, memoryview) or not first.HasField("header"):
                raise InvalidArgument("the first message of PushStream must carry the header; send it first")
            if first.header.user_id == CANDIDATE_OWNER:
                drop_old_candidates(self._store)
            with _upload(self._store, first.header) as upload, self.writing(upload, first.header, caller):
                reading = self._revisions.reading(caller, first.header.sha256)
                commit = _take_all(upload, chain((first,), parts), caller, reading)
                if commit is None or not caller.is_active():
                    upload.abort(keep_chunks=True)  # the sender went away, and may come back
                    raise InvalidArgument(
                        f"the stream ended after {upload.size} bytes without a commit message, so nothing was stored; "
                        "push again and only what is missing needs to be sent"
                    )
                version = upload.commit(commit.size, attributes=attributes_from_proto(commit))
                return store_pb2.PushStreamResponse(version=version_to_proto(version), unchanged=version.unchanged)

    def PushFile(  # noqa: N802
        self, part: store_pb2.PushPart, caller: Caller
    ) -> store_pb2.PushStreamResponse:
        """Store a file that comes in one message."""
        if not part.HasField("header") or not part.HasField("commit") or part.HasField("reuse"):
            raise InvalidArgument(
                "the message of PushFile must carry header, data and commit; send more with PushStream"
            )
        if part.commit.size != len(part.data):
            raise InvalidArgument(
                f"{part.commit.size} bytes were announced, {len(part.data)} arrived; send the file again"
            )
        require_active(caller)
        options = replace(push_options(part.header), attributes=attributes_from_proto(part.commit))
        version = self._store.push(part.data, **options.arguments())
        return store_pb2.PushStreamResponse(version=version_to_proto(version), unchanged=version.unchanged)

    def Concatenate(  # noqa: N802
        self, request: store_pb2.ConcatenateRequest, caller: Caller
    ) -> Iterator[store_pb2.ConcatenateEvent]:
        """Store a file that consists of others."""
        options = replace(push_options(request.header), attributes=attributes_from_proto(request))
        parts = [(part.file_id, part.version_id or None) for part in request.parts]

        def joined(progress: Progress) -> Version:
            return self._store.concatenate(parts, progress=progress, **options.arguments())

        running = Run(joined, self._revisions.giving_way(caller))
        with self._transfers.place(user_of(caller)), self._revisions.turn(caller), running as run:
            for done, total in run.progress():
                yield store_pb2.ConcatenateEvent(progress=store_pb2.Progress(done=done, total=total))
            version = run.outcome()
            stored = store_pb2.PushStreamResponse(version=version_to_proto(version), unchanged=version.unchanged)
            yield store_pb2.ConcatenateEvent(stored=stored)

    def MissingChunks(  # noqa: N802
        self, request: store_pb2.MissingChunksRequest, caller: Caller
    ) -> store_pb2.MissingChunksResponse:
        """Tell which of these chunks the user would have to send."""
        _check_count(len(request.chunk_ids))
        if is_guest(caller):  # what else the owner has is not shared
            return store_pb2.MissingChunksResponse(missing=[True] * len(request.chunk_ids))
        profile = profile_from_proto(request.profile) if request.HasField("profile") else None
        missing = self._store.missing_chunks(list(request.chunk_ids), user_id=request.user_id, profile=profile)
        return store_pb2.MissingChunksResponse(missing=missing)

    def GetStream(  # noqa: N802
        self, request: store_pb2.GetStreamRequest, caller: Caller
    ) -> Iterator[GetMessage]:
        """The version, then the bytes of the requested range."""
        with (
            self._transfers.place(user_of(caller)),
            self._store.open_file(
                request.file_id, user_id=request.user_id, version_id=request.version_id or None
            ) as reader,
        ):
            start, stop = _range(request, reader.size)
            head = store_pb2.GetPart(version=version_to_proto(reader.version))
            if stop - start <= _TOGETHER_BYTES_MAX:
                reader.seek(start)
                head.data = reader.read(stop - start)
                yield head
                return
            yield head
            yield from pieces_of(reader, start, stop)

    def LocateShards(  # noqa: N802
        self, request: store_pb2.LocateShardsRequest, caller: Caller
    ) -> store_pb2.LocateShardsResponse:
        """Where the first chunks of a range are, if they are on workers that clients may read from."""
        user = user_of(caller)
        with (
            self._transfers.place(user),
            self._store.open_file(
                request.file_id, user_id=request.user_id, version_id=request.version_id or None
            ) as reader,
        ):
            if self._direct is None:
                raise CallNotOffered("nothing is read from workers here; read it with GetStream")
            start, stop = _range(request, reader.size)
            response = store_pb2.LocateShardsResponse(version=version_to_proto(reader.version))
            if not self._direct.is_possible:
                response.all_absent = True
                return response
            page = self._direct.page(reader, user or "", start, stop) if start < stop else None
            if page is not None:
                response.page.CopyFrom(shards_page_to_proto(page))
            return response

    def GetFile(  # noqa: N802
        self, request: store_pb2.GetFileRequest, caller: Caller
    ) -> store_pb2.GetPart:
        """A version, with its bytes if they are few enough."""
        require_active(caller)
        by_name = request.WhichOneof("file") == "filename"
        if by_name:
            _check_no_version(request.version_id)
        version, data = self._store.get_small(
            request.filename if by_name else request.file_id,
            user_id=request.user_id,
            version_id=request.version_id or None,
            by_name=by_name,
            bytes_max=min(request.bytes_max, GET_FILE_BYTES_MAX)
            if request.HasField("bytes_max")
            else GET_FILE_BYTES_MAX,
        )
        return store_pb2.GetPart(version=version_to_proto(version), data=data or b"")

    def GetManifest(  # noqa: N802
        self, request: store_pb2.GetManifestRequest, _caller: Caller
    ) -> store_pb2.GetManifestResponse:
        """A page of chunk ids."""
        version = self._store.stat(request.file_id, user_id=request.user_id, version_id=request.version_id or None)
        limit = min(request.limit or CHUNK_IDS_MAX, CHUNK_IDS_MAX)
        start = min(request.start, version.chunk_count)
        ids = self._store.chunk_ids(
            request.file_id,
            user_id=request.user_id,
            version_id=version.version_id,
            start=start,
            stop=min(start + limit, version.chunk_count),
        )
        return store_pb2.GetManifestResponse(version=version_to_proto(version), chunk_ids=ids)

    def ReviseStream(  # noqa: N802
        self, parts: Iterator[store_pb2.RevisePart], caller: Caller
    ) -> store_pb2.ReviseStreamResponse:
        """Apply a diff of any size to the head that it was made against."""
        with self._transfers.place(user_of(caller)):
            first = _first(parts, "ReviseStream")
            if not first.HasField("header"):
                raise InvalidArgument("the first message of ReviseStream must carry the header; send it first")
            with Revision(self._store, first.header, self._revisions, caller) as revision:
                commit = _add_all(revision, chain((first,), parts))
                if commit is None or not caller.is_active():
                    revision.abort(keep_chunks=True)  # the sender went away, and may come back
                    raise InvalidArgument(
                        "the stream ended without a commit message, so nothing was changed; revise again and only what "
                        "is missing needs to be sent"
                    )
                version = revision.commit(commit.patch_count)
                return store_pb2.ReviseStreamResponse(version=version_to_proto(version), unchanged=version.unchanged)

    def Stat(self, request: store_pb2.StatRequest, _caller: Caller) -> store_pb2.Version:  # noqa: N802
        """A version of a file, found by id or by name."""
        if request.WhichOneof("file") == "filename":
            _check_no_version(request.version_id)
            return version_to_proto(self._named(request.filename, request.user_id))
        return version_to_proto(
            self._store.stat(request.file_id, user_id=request.user_id, version_id=request.version_id or None)
        )

    def _named(self, filename: str, user_id: str) -> Version:
        found = self._store.find(filename, user_id=user_id)
        if found is None:
            raise FileNotFound(f"there is no file named {filename[:80]!r}; list the files to see what there is")
        return found

    def History(  # noqa: N802
        self, request: store_pb2.HistoryRequest, _caller: Caller
    ) -> store_pb2.HistoryResponse:
        """A page of a file's versions, newest first."""
        limit = min(request.limit or PAGE_MAX, PAGE_MAX)
        versions = self._store.history(
            request.file_id, user_id=request.user_id, limit=limit, before=request.before or None
        )
        shown = list(within_page(versions))
        return store_pb2.HistoryResponse(
            versions=map(version_to_proto, shown),
            next_before=shown[-1].version_id if len(versions) == limit or len(shown) < len(versions) else "",
        )

    def ListFiles(  # noqa: N802
        self, request: store_pb2.ListFilesRequest, _caller: Caller
    ) -> store_pb2.ListFilesResponse:
        """A page of a user's files, by name."""
        page = self._store.list_page(
            user_id=request.user_id,
            prefix=request.prefix,
            delimiter=request.delimiter,
            after=request.after or None,
            limit=min(request.limit or PAGE_MAX, PAGE_MAX),
            hidden=request.hidden,
        )
        return file_page_to_proto(page, request.attributes)

    def ListVersions(  # noqa: N802
        self, request: store_pb2.ListVersionsRequest, _caller: Caller
    ) -> store_pb2.ListVersionsResponse:
        """A page of all versions of a user's files."""
        page = self._store.list_versions(
            user_id=request.user_id,
            prefix=request.prefix,
            delimiter=request.delimiter,
            after=request.after or None,
            before=request.before or None,
            limit=min(request.limit or PAGE_MAX, PAGE_MAX),
        )
        return version_page_to_proto(page)

    def Delete(  # noqa: N802
        self, request: store_pb2.DeleteRequest, _caller: Caller
    ) -> store_pb2.DeleteResponse:
        """Delete a file with all its versions."""
        self._store.delete(request.file_id, user_id=request.user_id, if_head=request.if_head or None)
        return store_pb2.DeleteResponse()

    def DeleteVersion(  # noqa: N802
        self, request: store_pb2.DeleteVersionRequest, _caller: Caller
    ) -> store_pb2.DeleteVersionResponse:
        """Delete one version of a file."""
        head = self._store.delete_version(
            request.file_id, request.version_id, user_id=request.user_id, if_head=request.if_head or None
        )
        return store_pb2.DeleteVersionResponse(head=None if head is None else version_to_proto(head))

    def DeleteFiles(  # noqa: N802
        self, request: store_pb2.DeleteFilesRequest, _caller: Caller
    ) -> store_pb2.DeleteFilesResponse:
        """Delete many files with all their versions."""
        if len(request.file_ids) > DELETE_MAX:
            raise InvalidArgument(
                f"{len(request.file_ids)} files in one message, at most {DELETE_MAX} are allowed; send more messages"
            )
        self._store.delete_files(list(request.file_ids), user_id=request.user_id)
        return store_pb2.DeleteFilesResponse()

    def RotateKey(  # noqa: N802
        self, request: store_pb2.RotateKeyRequest, _caller: Caller
    ) -> store_pb2.RotateKeyResponse:
        """Give a user a new key."""
        return store_pb2.RotateKeyResponse(epoch=self._store.rotate_key(user_id=request.user_id))


def _check_no_version(version_id: str) -> None:
    if version_id:
        raise InvalidArgument("version_id can be given only with file_id, not with filename; look up the file_id first")


def _first(parts: Iterator[MessageT], call: str) -> MessageT:
    first = next(parts, None)
    if first is None:
        raise InvalidArgument(f"{call} got no message; send a header, then the content, then a commit")
    return first


def _upload(store: FileStorage, header: store_pb2.PushHeader) -> Upload:
    return store.upload(**push_options(header).arguments(), size_hint=header.size_hint or None)


def _take_all(
    upload: Upload,
    parts: Iterable[PushMessage],
    caller: Caller,
    reading: Callable[[], AbstractContextManager[None]],
) -> store_pb2.PushCommit | None:
    """Read messages up to the commit message; None if the stream ends without one, or the caller goes away."""
    for position, part in enumerate(parts):
        if isinstance(part, memoryview):
            upload.write(part)
            continue
        if position and part.HasField("header"):
            raise InvalidArgument("PushStream got a second header; send one stream for each file")
        if part.data:
            upload.write(part.data)
        if part.HasField("reuse"):
            _check_count(len(part.reuse.chunk_ids))
            for ids in batched(part.reuse.chunk_ids, _REUSED_AT_ONCE):
                if not caller.is_active():
                    return None
                with reading():
                    upload.reuse(ids)
        if part.HasField("written"):
            _check_count(len(part.written.chunk_ids))
            upload.accept_written(part.written.chunk_ids)
        if part.HasField("commit"):
            return part.commit
    return None


def _add_all(revision: Revision, parts: Iterable[store_pb2.RevisePart]) -> store_pb2.ReviseCommit | None:
    """Read patches up to the commit message; None if the stream ends without one."""
    for position, part in enumerate(parts):
        if position and part.HasField("header"):
            raise InvalidArgument("ReviseStream got a second header; send one stream for each revision")
        revision.add(part.patches)
        if part.HasField("commit"):
            return part.commit
    return None


def _check_count(count: int) -> None:
    if count > CHUNK_IDS_MAX:
        raise InvalidArgument(
            f"{count} chunk ids in one message, at most {CHUNK_IDS_MAX} are allowed; send more messages"
        )


def _range(request: store_pb2.GetStreamRequest | store_pb2.LocateShardsRequest, size: int) -> tuple[int, int]:
    if request.offset > size:
        raise InvalidArgument(f"offset {request.offset} is past the end of the file at {size}; start within it")
    length = request.length if request.HasField("length") else size
    return request.offset, min(request.offset + length, size)
