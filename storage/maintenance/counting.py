"""Counts again what files take of their owners' quotas, after some of their versions were removed."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from storage.catalog import CatalogTransaction, FileEntry, name_key, user_key
from storage.catalog.ended import Ended
from storage.errors import DataLossError, FormatError, ShardsUnavailable
from storage.formats.differences import differing_nodes, differing_space
from storage.formats.manifest import stored_id
from storage.formats.versions import StoredVersion
from storage.maintenance.context import MaintenanceContext
from storage.write.quotas import root_bytes, shards_bytes

log = logging.getLogger(__name__)


def count_again(context: MaintenanceContext, ended: Ended, file_ids: Iterable[bytes]) -> None:
    """Charge files with what their remaining versions take. Pushes may run meanwhile.

    A file of which something cannot be read now is charged as before.

    Args:
        context: the store.
        ended: the versions that were removed.
        file_ids: ids of the files.
    """
    for file_id in file_ids:
        try:
            entry = context.catalog.file(file_id)
            if entry is not None:
                _charge(context, file_id, _taken(context, ended, file_id, entry) - entry.counted)
        except (FormatError, DataLossError, ShardsUnavailable) as error:
            log.warning("file %s counts for its owner as before: %s", file_id.hex(), error)


def _charge(context: MaintenanceContext, file_id: bytes, more: int) -> None:
    """Add to what a file takes, with which versions that were committed meanwhile count already."""

    def work(txn: CatalogTransaction) -> None:
        entry = txn.file(file_id)
        if entry is not None:
            changed = msgspec.structs.replace(entry, taken=max(1, entry.counted + more))
            txn.set_file(file_id, changed, name_key(user_key(entry.user_id.encode()), entry.filename.encode()))

    context.catalog.transact(work)


def _taken(context: MaintenanceContext, ended: Ended, file_id: bytes, entry: FileEntry) -> int:
    """What the versions of a file take: each without what it shares with the one before it."""
    taken = 0
    version = _version(context, file_id, entry.head)
    while version is not None:
        before = _version(context, file_id, ended.before(file_id, version.record.parent))
        taken += len(version.raw) * context.metadata_copies + _added(context, before, version)
        version = before
    return taken


def _version(context: MaintenanceContext, file_id: bytes, version_id: bytes | None) -> StoredVersion | None:
    raw = None if version_id is None else context.catalog.version(file_id, version_id)
    return None if raw is None or version_id is None else context.versions.version(raw, version_id)


def _added(context: MaintenanceContext, before: StoredVersion | None, version: StoredVersion) -> int:
    """The bytes of the chunks and nodes of a version that the one before it does not have at the same place."""
    root, manifest = version.root, context.versions.manifest(version)
    if before is None or (before.root.profile, before.root.chunk_size) != (root.profile, root.chunk_size):
        chunks, nodes = root_bytes(root), manifest.node_ids()
    else:
        former = context.versions.manifest(before)
        differing = differing_space(former, manifest)
        chunks = sum(shards_bytes(root.profile, root.chunk_length(index)) for index, _ in differing)
        nodes = (stored_id(reference) for reference in differing_nodes(former, manifest))
    return chunks + context.metadata_copies * sum(len(context.versions.load(node_id)) for node_id in nodes)
