"""Revisions: applying diffs to versions, and making diffs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from storage.diff.manifest_diff import ManifestDiff, Patch, check_diff, expected_length
from storage.errors import InvalidArgument
from storage.formats.differences import differing_content
from storage.formats.manifest import Manifest, RootNode, edited, object_id, plain_id, stored_id
from storage.formats.sealed_nodes import LoadObject, manifest_of, node_namer
from storage.formats.versions import StoredVersion, Version
from storage.keys import Kind, StripeKey
from storage.limits import FILE_SIZE_MAX, BytesLike
from storage.progress import Progress
from storage.sealing.user_keys import UserKeys
from storage.stripes.contents import ContentRead
from storage.stripes.stripes import metadata_stripe
from storage.write.chunks import reference_to, stored_chunk, stripe_to
from storage.write.context import PushContext
from storage.write.copies import with_profile
from storage.write.known import held_length, held_otherwise, reference_held, write_missing
from storage.write.pending import PendingVersion
from storage.write.redundancy import settle
from storage.write.sources import Source, check_filled, feed
from storage.write.target import PushTarget
from storage.write.upload import Upload

_BULK_BYTES = 64 * 1024
_LOOK_EVERY = 256  # patches, between looks whether the caller still waits


def revise(
    context: PushContext,
    target: PushTarget,
    base: StoredVersion,
    diff: ManifestDiff,
    load_node: LoadObject,
    progress: Progress | None = None,
) -> Version:
    """Apply a diff to its base and commit the result as the file's next version.

    Nothing is stored before the whole diff has been checked. Meanwhile, ``progress`` is called with (bytes read, total
    bytes), for a diff with a SHA-256 after each chunk. If it raises, nothing is stored.

    Raises:
        InvalidArgument: the diff is malformed, or the result's SHA-256 is not the one given.
        ConflictError: the base is not the head any more.
    """
    check_diff(diff, base.root)
    return _Revision(context, target, base, diff, load_node, progress).run()


class _Elsewhere(NamedTuple):
    """A chunk that is stored otherwise than the revision needs it: its stripe, its length, and keys that open it."""

    stripe: StripeKey
    length: int
    keys: UserKeys | None


class _Revision:
    def __init__(
        self,
        context: PushContext,
        target: PushTarget,
        base: StoredVersion,
        diff: ManifestDiff,
        load_node: LoadObject,
        progress: Progress | None,
    ) -> None:
        self._progress = progress
        self._context = context
        self._target = target
        self._base = base
        self._diff = diff
        self._manifest = manifest_of(base, load_node)
        self._profile = target.profile
        self._pinned: list[StripeKey] = []
        self._references: dict[bytes, bytes] = {}  # by the hash of a chunk's content
        self._elsewhere: dict[bytes, _Elsewhere] = {}  # likewise
        self._removals = context.pins.removals
        self._epoch = target.epoch
        self._nodes: list[tuple[bytes, bytes]] = []
        self._name_node = node_namer(target.key)

    def run(self) -> Version:
        try:
            self._carry_over()
            self._check_references()
            if self._target.transform != self._base.root.transform:
                return self._rewritten()
            if self._target.sha256 is not None:
                self._check_sha256(self._target.sha256)
            stored_bytes = self._store_chunks()
            changes = [(patch.index, self._references[patch.chunk_id]) for patch in self._diff.patches]
            root = edited(self._manifest, self._diff.new_size, changes, self._store_node, self._name_node)
            root = with_profile(root, self._profile)
            volumes = self._context.stripes.volumes
            if volumes.stand_ins:
                volumes.sync_most()
            elif stored_bytes > _BULK_BYTES:
                volumes.sync()
            return self._context.commits.commit_whole(lambda: self._made_whole(root)).public()
        finally:
            self._context.pins.unpin(self._pinned)
            self._context.pins.unpin([found.stripe for found in self._elsewhere.values()])

    def _made_whole(self, root: RootNode) -> PendingVersion:
        removals = self._context.pins.removals != self._removals
        self._epoch = settle(self._context.stripes, lambda: self._pinned, self._epoch, removals=removals)
        return self._pending(root)

    def _pending(self, root: RootNode) -> PendingVersion:
        key = self._target.key
        stripes = {patch.chunk_id: self._stripe(patch.chunk_id) for patch in self._diff.patches}
        return PendingVersion(
            target=self._target,
            root=root,
            nodes=self._nodes,
            stripes=[stripes[patch.chunk_id] for patch in self._diff.patches],
            shards={},
            file_id=self._base.record.file_id,
            base=self._base.version_id,
            epoch=self._epoch,
            names={} if key is None else {stripe: key.name_of(chunk_id) for chunk_id, stripe in stripes.items()},
            taken=self._context.quotas.added_bytes(self._target, root, self._nodes),
            written=lambda: self._pinned,
        )

    def _rewritten(self) -> Version:
        """Store the whole file again, because it was not sealed before."""
        patches = {patch.index: patch for patch in self._diff.patches}
        given = self._given()
        target = replace(self._target, is_chosen=True)  # the file keeps its profile
        with Upload(self._context, target) as upload:
            for index in range(-(-self._diff.new_size // self._base.root.chunk_size)):
                upload.write(self._content(index, patches.get(index), given))
            file_id, base = self._base.record.file_id, self._base.version_id
            return upload.commit(self._diff.new_size, file_id=file_id, base=base)

    def _stripe(self, chunk_id: bytes) -> StripeKey:
        return stripe_to(self._references[chunk_id], self._profile)

    def _pin(self, stripe: StripeKey) -> None:
        self._context.pins.pin(stripe)
        self._pinned.append(stripe)

    def _carry_over(self) -> None:
        """If the profile changes, have a chunk that the diff leaves alone stored again.

        There is at most one, see :meth:`~storage.write.copies.SmallCopies.profile_after`.
        """
        base = self._base.root
        if self._profile == base.profile or any(patch.index == 0 for patch in self._diff.patches):
            return
        for reference in self._manifest.references():
            stripe, chunk_id = stripe_to(reference, base.profile), plain_id(reference)
            self._context.pins.pin(stripe)
            self._elsewhere[chunk_id] = _Elsewhere(stripe, base.size, self._base_keys)
            self._diff = replace(self._diff, patches=(Patch(0, chunk_id), *self._diff.patches))

    @property
    def _base_keys(self) -> UserKeys | None:
        """The keys that open the base's chunks; None if it is not sealed."""
        return self._base.keys if self._base.root.is_sealed else None

    def _given(self) -> dict[bytes, bytes]:
        return {patch.chunk_id: patch.data for patch in self._diff.patches if patch.data is not None}

    def _length(self, chunk_id: bytes) -> int | None:
        """Return the length of a chunk of this user, with whichever profile it is stored; None if there is none."""
        if chunk_id in self._elsewhere:
            return self._elsewhere[chunk_id].length
        reference = reference_held(self._context, self._target, chunk_id)
        if reference is None:
            return None
        self._references[chunk_id] = reference
        stripe = self._stripe(chunk_id)
        self._pin(stripe)
        length = held_length(self._context, self._target, stripe, chunk_id)
        if length is not None:
            return length
        found = held_otherwise(self._context, self._target, reference)
        if found is None:
            return None
        self._elsewhere[chunk_id] = _Elsewhere(*found, self._target.keys)
        return self._elsewhere[chunk_id].length

    def _check_references(self) -> None:
        """Check that chunks named without data are this user's and have the right length for their place."""
        known: dict[bytes, int | None] = {chunk_id: len(data) for chunk_id, data in self._given().items()}
        for count, patch in enumerate(self._diff.patches):
            if patch.data is not None:
                continue
            if self._progress is not None and not count % _LOOK_EVERY:
                self._progress(0, self._diff.new_size)
            if patch.chunk_id not in known:
                known[patch.chunk_id] = self._length(patch.chunk_id)
            length = known[patch.chunk_id]
            expected = expected_length(self._diff.new_size, self._base.root.chunk_size, patch.index)
            # The same text if the chunk is not stored, not this user's, or of another length: it must not reveal
            # whether other users have it.
            if length != expected:
                raise InvalidArgument(
                    f"patch {patch.index}: chunk {patch.chunk_id.hex()} of {expected} bytes is not among this user's "
                    "chunks; send its data"
                )

    def _content(self, index: int, patch: Patch | None, given: Mapping[bytes, bytes]) -> BytesLike:
        """Return the content of a chunk of the result."""
        length = expected_length(self._diff.new_size, self._base.root.chunk_size, index)
        if patch is not None:
            return given.get(patch.chunk_id) or self._read(patch.chunk_id, length)
        reference = self._manifest.reference(index)
        chunk_id = plain_id(reference)
        return given.get(chunk_id) or self._read_from(
            stripe_to(reference, self._base.root.profile), chunk_id, self._base_keys, length
        )

    def _read(self, chunk_id: bytes, length: int) -> BytesLike:
        """Return the content of a chunk that is named without data."""
        found = self._elsewhere.get(chunk_id)
        if found is not None:
            return self._read_from(found.stripe, chunk_id, found.keys, length)
        return self._read_from(self._stripe(chunk_id), chunk_id, self._target.keys, length)

    def _read_from(self, stripe: StripeKey, chunk_id: bytes, keys: UserKeys | None, length: int) -> BytesLike:
        content = memoryview(bytearray(length))
        self._context.contents.read_all([ContentRead(stripe, chunk_id, keys, content)])
        return content

    def _check_sha256(self, expected: bytes) -> None:
        digest = hashlib.sha256()
        patches = {patch.index: patch for patch in self._diff.patches}
        given = self._given()
        size = self._base.root.chunk_size
        for index in range(-(-self._diff.new_size // size)):
            data = self._content(index, patches.get(index), given)
            digest.update(data)
            if self._progress is not None:
                self._progress(index * size + len(data), self._diff.new_size)
        if digest.digest() != expected:
            raise InvalidArgument(
                f"the resulting content has SHA-256 {digest.hexdigest()}, not the one given; nothing was stored"
            )

    def _store_chunks(self) -> int:
        stored = 0
        for patch in self._diff.patches:
            data = patch.data
            if data is None and patch.chunk_id in self._elsewhere:
                data = bytes(self._read(patch.chunk_id, self._elsewhere[patch.chunk_id].length))
            if data is None:
                continue
            chunk = stored_chunk(self._target.key, self._profile, data)
            self._references[patch.chunk_id] = reference_to(self._target.key, chunk.stripe, chunk.plain_id)
            self._pin(chunk.stripe)
            if write_missing(self._context, chunk):
                self._context.stripes.volumes.require_taken(self._profile, self._epoch)
                stored += len(data)
        return stored

    def _store_node(self, reference: bytes, raw: bytes) -> None:
        node_id = stored_id(reference)
        stripe = metadata_stripe(Kind.NODE, node_id, self._context.metadata_copies)
        self._pin(stripe)
        self._context.stripes.put_absent(stripe, raw, len(raw))
        self._nodes.append((node_id, raw))


def diff_source(base: StoredVersion, load_node: LoadObject, source: Source) -> ManifestDiff:
    """Return the diff from ``base`` to the content of ``source``. It contains the bytes of each new chunk once."""
    differ = _Differ(base, manifest_of(base, load_node))
    feed(source, differ, in_order=True)
    return differ.finish()


class _Differ:
    """A sink that keeps only the chunks that differ from a manifest."""

    def __init__(self, base: StoredVersion, manifest: Manifest) -> None:
        self._base = base
        self._ids = manifest.chunk_ids()
        self._buffer = bytearray(base.root.chunk_size)
        self._filled = 0
        self._index = 0
        self._size = 0
        self._patches: list[Patch] = []
        self._sent: set[bytes] = set()

    def write(self, data: BytesLike) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            count = min(len(view), len(self.free_space()))
            self._buffer[self._filled : self._filled + count] = view[:count]
            self.filled(count)
            view = view[count:]

    def write_file(self, fd: int, size: int) -> None:
        raise NotImplementedError("diffs read their source in order")

    def free_space(self) -> memoryview:
        return memoryview(self._buffer)[self._filled :]

    def filled(self, count: int) -> None:
        count = check_filled(count, len(self._buffer) - self._filled)
        self._filled += count
        self._size += count
        if self._size > FILE_SIZE_MAX:
            raise InvalidArgument(f"a file has at most {FILE_SIZE_MAX} bytes")
        if self._filled == len(self._buffer):
            self._chunk()

    def _chunk(self) -> None:
        content = memoryview(self._buffer)[: self._filled]
        chunk_id = object_id(content)
        if next(self._ids, None) != chunk_id:
            data = None if chunk_id in self._sent else bytes(content)
            self._sent.add(chunk_id)
            self._patches.append(Patch(self._index, chunk_id, data))
        self._index += 1
        self._filled = 0

    def finish(self) -> ManifestDiff:
        if self._filled:
            self._chunk()
        return ManifestDiff(self._base.version_id.hex(), self._size, self._base.root.chunk_size, tuple(self._patches))


def diff_versions(
    context: PushContext, old: StoredVersion, new: StoredVersion, load_node: LoadObject, data_bytes_max: int
) -> ManifestDiff:
    """Return the diff between two versions of a file. Chunks beyond ``data_bytes_max`` come without data.

    Raises:
        InvalidArgument: the versions have different chunk sizes; get the file instead.
    """
    if old.root.chunk_size != new.root.chunk_size:
        raise InvalidArgument("the file was stored again with another chunk size; get it instead of synchronizing")
    patches: list[Patch] = []
    carried = 0
    keys = new.keys if new.root.is_sealed else None
    for index, reference in differing_content(manifest_of(old, load_node), manifest_of(new, load_node)):
        chunk_id, stripe = plain_id(reference), stripe_to(reference, new.root.profile)
        length = new.root.chunk_length(index)
        data = None
        if carried + length <= data_bytes_max:
            buffer = bytearray(length)
            context.contents.read_all([ContentRead(stripe, chunk_id, keys, memoryview(buffer))])
            data = bytes(buffer)
            carried += length
        patches.append(Patch(index, chunk_id, data))
    return ManifestDiff(old.version_id.hex(), new.root.size, new.root.chunk_size, tuple(patches), new.version_id.hex())
