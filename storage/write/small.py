"""Small files: pushed in one step, with their shards appended by the commit."""

from __future__ import annotations

from storage.formats.manifest import ROOT_FORMAT, TRANSFORM_IDENTITY, RootNode
from storage.formats.versions import StoredVersion, Version
from storage.keys import StripeKey
from storage.limits import BytesLike
from storage.shards import Shard
from storage.write.chunks import StoredChunk, lasting_bytes, reference_to, stored_chunk, stripe_to
from storage.write.context import PushContext
from storage.write.known import is_new, write_missing
from storage.write.pending import PendingVersion
from storage.write.redundancy import make_whole
from storage.write.target import PushTarget


class SmallVersion(PendingVersion):
    """A version of one small chunk. The thread that commits its batch also hashes and encodes it.

    With 16 threads, this is faster than if each of them does so for itself, since they take Python's lock from each
    other (measured with 2 cores: 1.3 times the pushes of 4 KiB, 1.5 times those of 64 KiB).

    Args:
        context: parts of the store.
        target: the file.
        data: the content, 1 byte or more; must not change until the commit has ended.
        file_id: see :class:`PendingVersion`.
        base: see :class:`PendingVersion`.
    """

    __slots__ = ("_context", "_data", "chunk")

    def __init__(
        self, context: PushContext, target: PushTarget, data: BytesLike, file_id: bytes | None, base: bytes | None
    ) -> None:
        super().__init__(
            target=target,
            root=_UNKNOWN,
            nodes=[],
            stripes=[],
            shards={},
            file_id=file_id,
            base=base,
            epoch=target.epoch,
        )
        self._context = context
        self._data = data
        self.chunk: StoredChunk | None = None  # once it is prepared

    def prepare(self) -> None:
        """See :class:`PendingVersion`.

        Raises:
            MayBeStored: the content may be stored already. Looking for it takes longer than others should wait.
        """
        context = self._context
        chunk = self.chunk = inline_chunk(self.target, self._data)
        self.root = root_of_one(self.target, len(self._data), chunk)
        self.names = names_of(self.target, chunk)
        context.pins.pin(chunk.stripe)
        self.stripes.append(chunk.stripe)
        if not is_new(context, chunk.stripe):
            raise MayBeStored
        self.shards = context.stripes.by_volume(chunk.stripe, _all_shards(context, chunk))
        self.chunk_bytes = lasting_bytes(self.target.key, chunk)


class MayBeStored(Exception):
    """The content of a small file may be stored already; see :meth:`SmallVersion.prepare`."""


_UNKNOWN = RootNode(ROOT_FORMAT, 0, 0, 1, 1, TRANSFORM_IDENTITY, 0, b"")


def push_small(context: PushContext, target: PushTarget, data: BytesLike) -> Version:
    """Push up to 64 KiB in one step, like an :class:`Upload` without what only large files need."""
    return commit_small(context, target, data).public()


def commit_small(
    context: PushContext,
    target: PushTarget,
    data: BytesLike,
    *,
    file_id: bytes | None = None,
    base: bytes | None = None,
) -> StoredVersion:
    """Commit a version of one small chunk.

    Args:
        context: parts of the store.
        target: the file.
        data: the content, 1 byte or more.
        file_id: the file to revise; None: find the file by name, or make a new one.
        base: version that must be the head; None: any.

    Raises:
        StoreFull, InsufficientWorkers, ConflictError: see :meth:`~storage.write.commit.GroupCommit.commit`.
    """
    context.activity.note()
    version = SmallVersion(context, target, data, file_id, base)
    try:
        try:
            return with_whole_head(context, version, context.commits.commit(version), data)
        except MayBeStored:
            chunk = version.chunk
            assert chunk is not None
        pending = PendingVersion(
            target=target,
            root=version.root,
            nodes=[],
            stripes=version.stripes,
            shards=inline_shards(context, chunk),
            file_id=file_id,
            base=base,
            epoch=target.epoch,
            names=version.names,
        )
        return with_whole_head(context, pending, context.commits.commit(pending), data)
    finally:
        context.pins.unpin(version.stripes)


def root_of_one(target: PushTarget, size: int, chunk: StoredChunk | None) -> RootNode:
    """Return the manifest root of a file of one chunk, or of an empty one, which has none."""
    profile = target.profile_of(size)
    children = b"" if chunk is None else reference_to(target.key, chunk.stripe, chunk.plain_id)
    return RootNode(ROOT_FORMAT, size, target.chunk_size, profile.k, profile.n, target.transform, 0, children)


def inline_chunk(target: PushTarget, data: BytesLike) -> StoredChunk:
    """Return the only chunk of a file with this content."""
    return stored_chunk(target.key, target.profile_of(len(data)), data)


def names_of(target: PushTarget, chunk: StoredChunk) -> dict[StripeKey, bytes]:
    """Return the name of a chunk in the catalog, by its stripe; nothing if it is not sealed."""
    return {} if target.key is None else {chunk.stripe: target.key.name_of(chunk.plain_id)}


def with_whole_head(
    context: PushContext, pending: PendingVersion, stored: StoredVersion, data: BytesLike
) -> StoredVersion:
    """Return the outcome of a commit; if it is a head with another profile, write what its chunk lacks.

    The commit itself does this for a head with the same profile.

    Args:
        context: parts of the store.
        pending: the version that was committed.
        stored: the outcome.
        data: the content.

    Raises:
        StoreFull, InsufficientWorkers: the head would not survive one more loss.
    """
    if not stored.unchanged or stored.root.profile == pending.root.profile or not data:
        return stored
    stripe, volumes = stripe_to(stored.root.children, stored.root.profile), context.stripes.volumes
    context.pins.pin(stripe)
    try:
        since = volumes.epoch()
        if write_missing(context, stored_chunk(pending.target.key, stored.root.profile, data)):
            volumes.sync_most()
        make_whole(context.stripes, lambda: [stripe], since)
        volumes.require_writable(pending.target.profile, since)
    finally:
        context.pins.unpin([stripe])
    return stored


def inline_shards(context: PushContext, chunk: StoredChunk) -> dict[int, list[Shard]]:
    """Return the shards of a small chunk that have to be written, by volume slot."""
    stripes, stripe = context.stripes, chunk.stripe
    known = None if is_new(context, stripe) else stripes.look_for(stripe)
    absent, targets = (None, None) if known is None else (known.slots, known.targets)
    unsound = absent == [] and not stripes.is_sound(stripe, chunk.length)
    if absent == [] and not unsound:
        return {}
    shards = _all_shards(context, chunk)
    if unsound:
        absent, targets = stripes.unsound_slots(stripe, shards), None
    return stripes.by_volume(stripe, shards if absent is None else [shards[slot] for slot in absent], targets)


def _all_shards(context: PushContext, chunk: StoredChunk) -> list[Shard]:
    return context.stripes.shards_of(chunk.stripe, chunk.data, chunk.length)
