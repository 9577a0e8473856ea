"""Uploads: a push in progress, from the first byte to the commit, in bounded memory.

Chunks are stored by worker threads while the caller reads on. The volumes are synced in the background at intervals, so
that little is left to sync at the end.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence

from storage.catalog import CatalogTransaction
from storage.errors import IncompletePush, InvalidArgument, StorageError
from storage.formats.manifest import FAN_OUT, ManifestBuilder, RootNode, plain_id, stored_id
from storage.formats.sealed_nodes import node_namer
from storage.formats.version_records import FILE_ID_BYTES
from storage.formats.versions import StoredVersion, Version
from storage.keys import ID_BYTES, Kind, StripeKey
from storage.limits import FILE_SIZE_MAX, MIB, BytesLike, as_int, check_bytes, check_chunk_ids, shown
from storage.progress import Progress
from storage.stripes.stripes import metadata_stripe
from storage.system.forks import HomeProcess
from storage.write.background_sync import BackgroundSync
from storage.write.chunks import AcceptedChunk, reference_to, suffix_of
from storage.write.claims import require_claims, stripes_of
from storage.write.client_chunks import ClientChunks
from storage.write.context import PushContext
from storage.write.known import content_held_otherwise, content_of_held, held_length, not_held, reference_held
from storage.write.pending import PendingVersion
from storage.write.pipeline import ChunkPipeline
from storage.write.quotas import Taken
from storage.write.redundancy import settle
from storage.write.small import commit_small
from storage.write.sources import check_filled
from storage.write.target import PushTarget

log = logging.getLogger(__name__)

INLINE_BYTES_MAX = 64 * 1024  # files up to this size are written by their commit
_SYNC_EVERY_BYTES = 64 * MIB


class Upload:
    """A push in progress. Not thread-safe.

    Use it as a context manager: leaving it without :meth:`commit` aborts the upload.
    """

    def __init__(
        self, context: PushContext, target: PushTarget, progress: Progress | None = None, size_hint: int = 0
    ) -> None:
        self._home = HomeProcess(f"the upload of {target.filename!r}")
        self._context = context
        self._target = target
        self._progress = progress
        self._total = size_hint
        self._key = target.key
        self._suffix = suffix_of(target.profile)
        self._small = bytearray()
        self._buffer: bytearray | None = None
        self._filled = 0
        self._builder = ManifestBuilder(self._store_node, node_namer(target.key), target.transform)
        self._stripes: list[StripeKey] = []
        self._names: dict[StripeKey, bytes] = {}  # of sealed chunks in the catalog
        self._node_stripes: list[StripeKey] = []
        self._nodes: list[tuple[bytes, bytes]] = []
        self._number: int | None = None  # set with the first claims
        self._removals = context.pins.removals
        self._size = self._accepted = self._unsynced = 0
        self._syncing = BackgroundSync(context)
        self._digest = hashlib.sha256() if target.sha256 is not None else None
        self._ended = self._short = False
        self._epoch = target.epoch
        self._taken = Taken(context.quotas, target)
        self._pipeline = ChunkPipeline(context, target, self._taken, self._accept)
        self._hashes: dict[StripeKey, bytes] = {}  # of the shards of chunks that the client wrote
        self.client_chunks = self._chunks_of_client()
        """Chunks that the client writes itself; None: it cannot, as its chunks are not sealed, or are to be hashed."""

    def _chunks_of_client(self) -> ClientChunks | None:
        is_possible = self._key is not None and self._digest is None and self._context.stripes.volumes.remote
        return ClientChunks(self._context, self._target, self._taken) if is_possible else None

    @property
    def chunk_size(self) -> int:
        """Size of every chunk except the last one, in bytes."""
        return self._target.chunk_size

    @property
    def size(self) -> int:
        """Bytes accepted so far, including reused chunks."""
        return self._size

    # -- input -----------------------------------------------------------------------------------

    def write(self, data: BytesLike) -> None:
        """Append bytes.

        Args:
            data: any number of bytes. A ``bytes`` object, which is immutable, is not copied.

        Raises:
            InvalidArgument: a reused chunk was short and must be the last, or the file would be too large.
            StoreFull: too few volumes have space; abort the upload.
            InsufficientWorkers: too few volumes are present or take writes; abort the upload.
        """
        try:
            view = memoryview(data).cast("B")
        except TypeError:
            raise InvalidArgument(f"only bytes can be written, not {type(data).__name__}") from None
        self._take(len(view))
        if self._digest is not None:
            self._digest.update(view)
        if self._buffer is None and self._nothing_submitted() and len(self._small) + len(view) <= INLINE_BYTES_MAX:
            self._small += view
            return
        self._spill_small()
        stable = isinstance(view.obj, bytes)  # others may change what is behind a read-only view
        while len(view):
            if stable and self._filled == 0 and len(view) >= self.chunk_size == self._pipeline.buffer_bytes:
                self._pipeline.store(view[: self.chunk_size])
                view = view[self.chunk_size :]
                continue
            view = view[self._fill(view) :]

    def write_file(self, fd: int, size: int) -> None:
        """Append the first ``size`` bytes of a regular file. Worker threads read it in parallel."""
        self._take(size)
        for offset in range(0, size, self.chunk_size):
            self._pipeline.store_range(fd, offset, min(self.chunk_size, size - offset))
        self._pipeline.drain()  # the caller may close the file afterwards

    def free_space(self) -> memoryview:
        """Return the unfilled rest of the current chunk. Read into it, then call :meth:`filled`."""
        self._home.check()
        if len(self._small) < self.chunk_size:
            self._spill_small()
        if self._buffer is None:
            self._buffer = self._pipeline.take_buffer()
        return memoryview(self._buffer)[self._filled : self.chunk_size]

    def filled(self, count: int) -> None:
        """Note that ``count`` bytes were read into the memory from :meth:`free_space`."""
        count = check_filled(count, 0 if self._buffer is None else self.chunk_size - self._filled)
        if self._buffer is None or count == 0:
            return
        self._spill_small()
        self._take(count)
        if self._digest is not None:
            self._digest.update(memoryview(self._buffer)[self._filled : self._filled + count])
        self._filled += count
        if self._filled == self.chunk_size:
            if self.chunk_size <= INLINE_BYTES_MAX and self._nothing_submitted():  # it may be all of a small file
                self._small = bytearray(memoryview(self._buffer)[: self._filled])
                self._filled = 0
            else:
                self._submit_buffer()

    def reuse(self, chunk_ids: Sequence[bytes]) -> None:
        """Append chunks that this user already has, without their bytes.

        Raises:
            InvalidArgument: the upload is not at a chunk boundary, or a chunk must be sent because it is damaged or
                not this user's.
        """
        self._home.check()
        self._spill_small()
        if self._filled:
            raise InvalidArgument(f"reuse is possible at multiples of {self.chunk_size} bytes only")
        for chunk_id in check_chunk_ids(chunk_ids):
            self._spill_small()
            self._reuse_one(chunk_id)

    def _reuse_one(self, chunk_id: bytes) -> None:
        reference = reference_held(self._context, self._target, chunk_id)
        if reference is None:
            raise not_held(chunk_id)
        stripe = StripeKey(stored_id(reference) + self._suffix)
        context = self._context
        context.pins.pin(stripe)
        try:
            length = held_length(context, self._target, stripe, chunk_id)
            if length is None or length > self.chunk_size:
                self._copy_one(reference)
                context.pins.unpin([stripe])
                return
            self._take(length)
            self._short = length < self.chunk_size
            if self._digest is not None:
                self._digest.update(content_of_held(context, self._target, stripe, reference))
        except BaseException:
            context.pins.unpin([stripe])
            raise
        self._pipeline.drain()
        self._accept(AcceptedChunk(stripe, chunk_id, length))

    def accept_written(self, stored_ids: Sequence[bytes]) -> None:
        """Append chunks that the client has written itself, once :meth:`ClientChunks.settle` said that they are there.

        Raises:
            InvalidArgument: the upload is not at a chunk boundary, or a chunk was not written.
        """
        self._home.check()
        self._spill_small()
        if self._filled or self.client_chunks is None:
            raise InvalidArgument(f"written chunks can be appended at multiples of {self.chunk_size} bytes only")
        self._pipeline.drain()
        for each in check_chunk_ids(stored_ids):
            chunk, hashes = self.client_chunks.take(each)
            try:
                self._take(chunk.length)
            except BaseException:
                self._context.pins.unpin([chunk.stripe])
                raise
            self._short = chunk.length < self.chunk_size
            self._hashes[chunk.stripe] = hashes
            self._accept(chunk)

    def _copy_one(self, reference: bytes) -> None:
        """Append a chunk that this user has with another profile. It is stored again, as if its bytes had been sent."""
        data = content_held_otherwise(self._context, self._target, reference)
        if data is None:
            raise not_held(plain_id(reference))
        self.write(data)
        self._short = len(data) < self.chunk_size

    def _take(self, count: int) -> None:
        self._home.check()
        if self._ended:
            raise InvalidArgument("this upload has ended")
        if self._short and count:
            raise InvalidArgument("a chunk shorter than the chunk size can only be the last")
        if self._size + count > FILE_SIZE_MAX:
            raise InvalidArgument(f"a file has at most {FILE_SIZE_MAX} bytes")
        self._size += count

    def _nothing_submitted(self) -> bool:
        return not self._accepted and self._pipeline.is_empty

    def _spill_small(self) -> None:
        if self._small:
            small, self._small = self._small, bytearray()
            buffer, self._buffer = self._buffer, None  # what was read behind a whole chunk
            self._fill(memoryview(small))
            if buffer is not None:
                self._buffer = buffer

    def _fill(self, view: memoryview) -> int:
        """Copy bytes of ``view`` into the current chunk, up to its end; return how many."""
        if self._buffer is None:
            self._buffer = self._pipeline.take_buffer()
        count = min(len(view), self.chunk_size - self._filled)
        self._buffer[self._filled : self._filled + count] = view[:count]
        self._filled += count
        if self._filled == self.chunk_size:
            self._submit_buffer()
        return count

    def _submit_buffer(self) -> None:
        buffer, length = self._buffer, self._filled
        assert buffer is not None
        self._buffer, self._filled = None, 0
        self._pipeline.store_buffer(buffer, length)

    # -- what is stored --------------------------------------------------------------------------

    def _accept(self, chunk: AcceptedChunk) -> None:
        length = chunk.length
        self._keep(chunk)
        self._builder.add(reference_to(self._key, chunk.stripe, chunk.plain_id))
        self._accepted += length
        self._unsynced += length
        if self._progress is not None:
            self._progress(self._accepted, self._total)
        if len(self._stripes) >= FAN_OUT:
            self._checkpoint()
        if self._unsynced >= _SYNC_EVERY_BYTES:
            self._unsynced = 0
            self._syncing.start()

    def _keep(self, chunk: AcceptedChunk) -> None:
        """Have the user get a claim on a chunk, with the next checkpoint or the commit."""
        self._stripes.append(chunk.stripe)
        if self._key is not None:
            self._names[chunk.stripe] = self._key.name_of(chunk.plain_id)

    def _store_node(self, reference: bytes, raw: bytes) -> None:
        stripe = metadata_stripe(Kind.NODE, stored_id(reference), self._context.metadata_copies)
        self._context.pins.pin(stripe)
        self._node_stripes.append(stripe)
        self._context.stripes.put_absent(stripe, raw, len(raw))
        self._nodes.append((stored_id(reference), raw))

    def claim(self) -> None:
        """Enter the user's claims on the chunks accepted so far, so that other calls can already name them.

        Raises:
            InvalidArgument: the upload is not at a chunk boundary.
        """
        self._take(0)
        self._spill_small()
        if self._filled:
            raise InvalidArgument(f"claims are possible at multiples of {self.chunk_size} bytes only")
        self._pipeline.drain()
        if self._stripes:
            self._checkpoint()

    def _checkpoint(self, *, interrupted: bool = False) -> None:
        """Enter claims and nodes into the catalog, so that pins and nodes do not accumulate in memory."""
        uploads = self._context.uploads
        number = self._number = uploads.begin() if self._number is None else self._number
        record = self._taken.record(uploads.now_s() if interrupted else None)

        def work(txn: CatalogTransaction) -> None:
            uploads.enter(txn, number, record)
            txn.hold(self._target.user, self._stripes, number, self._names, self._hashes)
            txn.put_nodes(self._nodes)

        self._context.catalog.transact(work)
        if interrupted:
            uploads.interrupted(number, record)
            self._taken.end(counted=True)
        self._context.pins.unpin(self._stripes)
        self._stripes, self._nodes, self._names, self._hashes = [], [], {}, {}

    # -- the end ---------------------------------------------------------------------------------

    def commit(
        self, size: int | None = None, *, file_id: bytes | None = None, base: bytes | None = None,
        attributes: Mapping[str, bytes] | None = None,
    ) -> Version:  # fmt: skip
        """Make everything durable and the version visible.

        Args:
            size: total size announced by the sender; it is checked.
            file_id: the file of which this becomes a new version; None: find the file by name.
            base: version that must be the head; only with ``file_id``.
            attributes: of the version, in place of those given when the upload began; None: those.

        Raises:
            InvalidArgument: size or SHA-256 differ from the announced ones, or ``file_id`` has another name.
            StoreFull, InsufficientWorkers, ConflictError: see :class:`~storage.write.commit.GroupCommit`.
        """
        self._take(0)
        size = None if size is None else as_int(size, "size")
        check_bytes(file_id, FILE_ID_BYTES, "file_id")
        check_bytes(base, ID_BYTES, "base")
        if base is not None and file_id is None:
            raise InvalidArgument("a base is of a file; say its file_id as well")
        try:
            self._target = self._target.with_attributes(attributes)
            small = self._small_content()
            if small is None:
                self._finish_input()
            self._check(size)
            if small is None:
                stored = self._commit_chunks(file_id, base)
            else:
                stored = commit_small(self._context, self._target, small, file_id=file_id, base=base)
        except BaseException:
            self.abort(keep_chunks=False)
            raise
        self._close_client_chunks()
        self._taken.end(committed=True)
        self._end()
        return stored.public()

    def _commit_chunks(self, file_id: bytes | None, base: bytes | None) -> StoredVersion:
        if self._accepted != self._size or self._builder.count != -(-self._size // self.chunk_size):
            raise IncompletePush("a part of this push could not be stored, so nothing was stored; push again")
        root = self._builder.root(self._size, self.chunk_size, self._target.profile)

        def made_whole() -> PendingVersion:
            self._make_durable(root)
            return self._pending(root, file_id, base)

        return self._context.commits.commit_whole(made_whole)

    def _make_durable(self, root: RootNode) -> None:
        """Sync appended shards, unless they are so few that the commit's sync is enough; make lost ones again."""
        volumes = self._context.stripes.volumes
        self._syncing.wait()
        if self._unsynced > INLINE_BYTES_MAX or (self._unsynced and volumes.stand_ins):
            volumes.sync_most()
        removals = self._context.pins.removals != self._removals
        if removals:
            require_claims(self._context, self._target.user, self._written(root), pinned=set(self._stripes))
        self._epoch = settle(self._context.stripes, lambda: self._written(root), self._epoch, removals=removals)

    def _written(self, root: RootNode) -> Iterator[StripeKey]:
        return stripes_of(self._context, root, self._target.keys, self._nodes)

    def _small_content(self) -> bytearray | None:
        """Return the content if it is so little that the commit writes it; otherwise None."""
        if self._buffer is not None and self._nothing_submitted() and 0 < self._filled <= INLINE_BYTES_MAX:
            self._small, self._filled = bytearray(memoryview(self._buffer)[: self._filled]), 0
        if not self._small or not self._nothing_submitted():
            return None
        data, self._small = self._small, bytearray()
        return data

    def _finish_input(self) -> None:
        """Store the chunk in the buffer, and wait for those under way."""
        self._spill_small()
        if self._filled:
            self._submit_buffer()
        self._pipeline.drain()

    def _check(self, size: int | None) -> None:
        if size is not None and size != self._size:
            raise InvalidArgument(f"{shown(size)} bytes were announced, {self._size} arrived; send the file again")
        if self._digest is not None and self._digest.digest() != self._target.sha256:
            raise InvalidArgument(
                f"the content's SHA-256 is {self._digest.hexdigest()}, not the one given; nothing was stored"
            )

    def _pending(self, root: RootNode, file_id: bytes | None, base: bytes | None) -> PendingVersion:
        return PendingVersion(
            target=self._target,
            root=root,
            nodes=self._nodes,
            stripes=self._stripes,
            shards={},
            file_id=file_id,
            base=base,
            epoch=self._epoch,
            upload=self._number,
            names=self._names,
            hashes=self._hashes,
            taken=self._context.quotas.added_bytes(self._target, root, self._nodes),
            written=lambda: self._written(root),
        )

    def abort(self, *, keep_chunks: bool = True, used: bool = False) -> None:
        """End without a version.

        Args:
            keep_chunks: whether to keep the stored chunks for a day, so that a resumed push can reuse them.
            used: whether another version has the chunks already.
        """
        if self._ended or not self._home.is_here:
            return
        self._settle_in_flight()
        self._close_client_chunks()
        try:
            if keep_chunks and (self._stripes or self._number is not None):
                self._checkpoint(interrupted=True)
            elif self._number is not None:
                number = self._number
                self._context.catalog.transact(lambda txn: txn.end_upload(number))
        except StorageError as error:
            # The upload has failed already, and claims only save a resumed push some sending.
            log.warning("could not note that an upload was aborted: %s", error)
        self._end(used=used)

    def _settle_in_flight(self) -> None:
        for chunk in self._pipeline.give_up():
            self._keep(chunk)
        try:
            self._syncing.wait()
        except StorageError as error:
            log.debug("a sync of an aborted upload failed: %s", error)

    def _end(self, *, used: bool = False) -> None:
        self._ended = True
        self._taken.end(counted=used)
        if self._number is not None:
            self._context.uploads.ended(self._number)
        self._context.pins.unpin([*self._stripes, *self._node_stripes])
        self._stripes, self._node_stripes, self._buffer = [], [], None
        self._pipeline.free()

    def _close_client_chunks(self) -> None:
        """Let the client write no more, before it is counted what the upload has taken."""
        if self.client_chunks is not None:
            self.client_chunks.close()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        # After invalid input or a full disk, nothing is kept; after other errors, the sender may come back.
        self.abort(keep_chunks=not isinstance(error, StorageError))
