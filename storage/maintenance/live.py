"""Lists the live objects: those that some version of an existing file needs, by the catalog."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

from storage.batching import batched
from storage.catalog import Catalog, FileEntry
from storage.catalog.ended import Ended
from storage.catalog.port import StoredEntry
from storage.errors import DataLossError, FormatError
from storage.formats.differences import differing_chunks
from storage.formats.manifest import FAN_OUT, Manifest, object_id, stored_id
from storage.formats.sealed_nodes import LoadObject, VersionReader
from storage.formats.versions import StoredVersion
from storage.keys import ID_BYTES, Kind, StripeKey
from storage.maintenance.set_aside import SetAside
from storage.stripes.stripes import StripeStore, chunk_stripe, metadata_stripe


class LiveObject(NamedTuple):
    """An object, and the file in which the walk found it (``file_id`` empty for tombstones)."""

    stripe: StripeKey
    user_id: str
    filename: str
    file_id: bytes


class LiveRun(NamedTuple):
    """Consecutive objects of one file; a few thousand at most."""

    stripes: list[StripeKey]
    user_id: str
    filename: str
    file_id: bytes

    def object(self, index: int) -> LiveObject:
        """The object at ``index``."""
        return LiveObject(self.stripes[index], self.user_id, self.filename, self.file_id)


def node_loader(catalog: Catalog, stripes: StripeStore, copies: int) -> LoadObject:
    """A function that loads stored manifest nodes from the catalog, or from the volumes if the catalog has lost one."""

    def load(node_id: bytes) -> bytes:
        raw = catalog.node(node_id)
        return stripes.read(metadata_stripe(Kind.NODE, node_id, copies)) if raw is None else raw

    return load


def live_objects(
    catalog: Catalog,
    versions: VersionReader,
    copies: int,
    set_aside: SetAside,
    ended: Ended,
    seen_version: Callable[[], None] = lambda: None,
    in_use: Container[bytes] = (),
) -> Iterator[LiveObject]:
    """Every live object at least once, without those that a version shares with the one before it. Bounded memory.

    Versions of files that are ``in_use`` count as live even if they were deleted; if the whole file was, without an
    owner. If a version or its manifest cannot be read, only its known objects are listed, and it is set aside.

    Args:
        catalog: the store's catalog.
        versions: reads versions.
        copies: how many copies there are of each metadata object.
        set_aside: takes what cannot be read.
        ended: the versions that were deleted when the walk began; see :mod:`storage.maintenance.walks`.
        seen_version: called after each version.
        in_use: ids of files that are open for reading.
    """
    for run in live_runs(catalog, versions, copies, set_aside, ended, seen_version, in_use):
        for index in range(len(run.stripes)):
            yield run.object(index)


def live_runs(
    catalog: Catalog,
    versions: VersionReader,
    copies: int,
    set_aside: SetAside,
    ended: Ended,
    seen_version: Callable[[], None] = lambda: None,
    in_use: Container[bytes] = (),
) -> Iterator[LiveRun]:
    """Like :func:`live_objects`, in runs: there are millions of objects, and few are handled individually."""
    for kept in catalog.versions():
        yield from _live_in(catalog, versions, copies, set_aside, ended, kept, in_use)
        seen_version()
    for _, raw in catalog.tombstones():
        yield LiveRun([metadata_stripe(Kind.TOMBSTONE, object_id(raw), copies)], "", "", b"")


def _live_in(
    catalog: Catalog,
    versions: VersionReader,
    copies: int,
    set_aside: SetAside,
    ended: Ended,
    kept: StoredEntry,
    in_use: Container[bytes],
) -> Iterator[LiveRun]:
    """The live objects of one version."""
    entry, stripe = kept.entry, metadata_stripe(Kind.VERSION, kept.version_id, copies)
    has_ended = ended.has(kept.file_id, kept.version_id)
    if (has_ended or (entry is None and not kept.problem)) and kept.file_id not in in_use:
        return  # it was deleted, alone or with its file
    try:
        if kept.problem:
            raise FormatError(kept.problem)
        stored = versions.version(kept.raw, kept.version_id)
        if entry is None:
            entry = FileEntry("", stored.record.filename, stored.version_id, stored.record.size)
        yield from _objects_of(catalog, versions, copies, ended, entry, stored)
    except (DataLossError, FormatError) as error:
        if has_ended or (entry is not None and catalog.file(kept.file_id) is None):
            return  # deleted, and its nodes collected, before or during the walk: nothing of it is live
        name = "a file" if entry is None else f"{entry.filename!r} of {entry.user_id!r}"
        set_aside.add(
            stripe,
            None if entry is None else entry.user_id,
            f"version {kept.version_id.hex()} of {name} ({kept.file_id.hex()}) cannot be used: {error}; "
            "delete the file if this persists",
        )


def is_live(catalog: Catalog, live: LiveObject) -> bool:
    """Whether the file in which an object was found still exists; other files that need the object list it as well.

    Call this if an object is missing: since the walk found it, its file may have been deleted and its objects
    collected.
    """
    return not live.file_id or catalog.file(live.file_id) is not None


def _objects_of(
    catalog: Catalog, versions: VersionReader, copies: int, ended: Ended, entry: FileEntry, stored: StoredVersion
) -> Iterator[LiveRun]:
    def run(stripes: list[StripeKey]) -> LiveRun:
        return LiveRun(stripes, entry.user_id, entry.filename, stored.record.file_id)

    yield run([metadata_stripe(Kind.VERSION, stored.version_id, copies)])
    manifest = versions.manifest(stored)
    for node_id in manifest.node_ids():
        yield run([metadata_stripe(Kind.NODE, node_id, copies)])
    code = chunk_stripe(bytes(ID_BYTES), stored.root.profile)[ID_BYTES:]  # once, instead of for each of millions
    for references in _new_chunks(catalog, versions, ended, stored, manifest):
        yield run([StripeKey(stored_id(reference) + code) for reference in references])


def _new_chunks(
    catalog: Catalog, versions: VersionReader, ended: Ended, stored: StoredVersion, manifest: Manifest
) -> Iterator[list[bytes]]:
    parent = ended.before(stored.record.file_id, stored.record.parent)
    raw = catalog.version(stored.record.file_id, parent) if parent is not None else None
    if parent is None or raw is None:
        return manifest.leaves()
    try:
        before = versions.version(raw, parent)
    except FormatError:
        return manifest.leaves()  # the walk sets the parent aside when it gets there
    old, new = before.root, stored.root
    if (old.k, old.n, old.chunk_size) != (new.k, new.n, new.chunk_size):
        return manifest.leaves()
    return batched((reference for _, reference in differing_chunks(versions.manifest(before), manifest)), FAN_OUT)
