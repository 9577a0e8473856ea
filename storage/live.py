"""What is live: every object that some version of some existing file needs, from the catalog."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

from storage.catalog import Catalog, FileEntry
from storage.errors import DataLossError
from storage.keys import ID_BYTES, Kind, StripeKey
from storage.manifest import LoadNode, Manifest, differing_chunks, object_id
from storage.stripes import StripeStore, metadata_stripe
from storage.upload import chunk_stripe
from storage.versions import StoredVersion, read_version


class LiveObject(NamedTuple):
    """An object and the file it was met in (file_id empty for tombstones)."""

    stripe: StripeKey
    user_id: str
    filename: str
    file_id: bytes


def node_loader(catalog: Catalog, stripes: StripeStore, copies: int) -> LoadNode:
    """Loads manifest nodes from the catalog, or from the volumes where it has lost one."""

    def load(node_id: bytes) -> bytes:
        raw = catalog.node(node_id)
        return stripes.read(metadata_stripe(Kind.NODE, node_id, copies)) if raw is None else raw

    return load


def live_versions(catalog: Catalog) -> Iterator[tuple[FileEntry | None, StoredVersion]]:
    """Every version kept, by file, with the file's entry (None: the file was deleted). Bounded memory."""
    for stored in catalog.versions():
        yield stored.entry, read_version(stored.raw, stored.version_id)


def live_objects(
    catalog: Catalog,
    load_node: LoadNode,
    copies: int,
    seen_version: Callable[[], None] = lambda: None,
    in_use: Container[bytes] = (),
) -> Iterator[LiveObject]:
    """Every live object at least once; what a version shares with its parent is not told again.

    Deleted files whose id is ``in_use`` count as live and nobody's.
    """
    for entry, stored in live_versions(catalog):
        if entry is None and stored.record.file_id in in_use:
            entry = FileEntry("", stored.record.filename, stored.version_id, stored.record.size)
        if entry is not None:
            try:
                yield from _objects_of(catalog, load_node, copies, entry, stored)
            except DataLossError:
                if catalog.file(stored.record.file_id) is not None:
                    raise
                # Otherwise the file was deleted, and its nodes collected, during the walk: nothing of it is live.
        seen_version()
    for _, raw in catalog.tombstones():
        yield LiveObject(metadata_stripe(Kind.TOMBSTONE, object_id(raw), copies), "", "", b"")


def is_live(catalog: Catalog, live: LiveObject) -> bool:
    """Whether the file that an object was met in is still there; what else needs the object meets it as well.

    To be asked once an object was found to be missing: its file may have been deleted, and what only that
    one needed collected, since the walk met it.
    """
    return not live.file_id or catalog.file(live.file_id) is not None


def _objects_of(
    catalog: Catalog, load_node: LoadNode, copies: int, entry: FileEntry, stored: StoredVersion
) -> Iterator[LiveObject]:
    record = stored.record

    def live(stripe: StripeKey) -> LiveObject:
        return LiveObject(stripe, entry.user_id, entry.filename, record.file_id)

    yield live(metadata_stripe(Kind.VERSION, stored.version_id, copies))
    manifest = Manifest(stored.root, load_node)
    for node_id in manifest.node_ids():
        yield live(metadata_stripe(Kind.NODE, node_id, copies))
    user_id, filename, file_id = entry.user_id, entry.filename, record.file_id
    profile = chunk_stripe(bytes(ID_BYTES), stored.root.profile)[ID_BYTES:]  # once, not for each of millions
    for chunk_id in _new_chunks(catalog, load_node, stored, manifest):
        yield LiveObject(StripeKey(chunk_id + profile), user_id, filename, file_id)


def _new_chunks(catalog: Catalog, load_node: LoadNode, stored: StoredVersion, manifest: Manifest) -> Iterator[bytes]:
    parent = stored.record.parent
    raw = catalog.version(stored.record.file_id, parent) if parent is not None else None
    if parent is None or raw is None:
        return manifest.chunk_ids()
    before = read_version(raw, parent).root
    after = stored.root
    if (before.k, before.n, before.chunk_size) != (after.k, after.n, after.chunk_size):
        return manifest.chunk_ids()
    return (chunk_id for _, chunk_id in differing_chunks(Manifest(before, load_node), manifest))
