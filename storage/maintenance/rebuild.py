"""Rebuild: the whole catalog again, from what the volumes hold alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from storage.batching import batched
from storage.catalog import Catalog, CatalogTransaction, Counters, FileEntry, name_key, user_key
from storage.errors import DataLossError, FormatError, InsufficientWorkers, InvalidArgument, ShardsUnavailable
from storage.keys import ID_BYTES, Kind, StripeKey
from storage.limits import check_filename, check_user_id
from storage.live import node_loader
from storage.manifest import LoadNode, Manifest, differing_chunks, object_id
from storage.reports import Progress, RebuildReport
from storage.shards import Shard
from storage.stripes import StripeStore
from storage.upload import chunk_stripe
from storage.versions import StoredVersion, decode_tombstone, decode_version, read_version

_BATCH = 2000
_LOCATED_TOGETHER = 256
_SKIPPED_LISTED_MAX = 10_000
_METADATA = frozenset({Kind.NODE, Kind.VERSION, Kind.TOMBSTONE})


def rebuild(catalog: Catalog, stripes: StripeStore, metadata_copies: int, progress: Progress | None) -> RebuildReport:
    """Fill an empty catalog with every file, owner, name and version found on the volumes.

    A file's head is its latest version that is wholly there; a version that a crash kept from being
    acknowledged may appear if all of it had reached the disks. What is left out is reported.

    Args:
        catalog: an empty catalog.
        stripes: the volumes.
        metadata_copies: copies of metadata objects.
        progress: called with (metadata records and files taken in, 0).

    Raises:
        InsufficientWorkers: volumes came or went meanwhile, and what is on them was left out; run it again.
    """
    tally = _Tally(progress)
    attendance = stripes.volumes.attendance()
    catalog.transact(lambda txn: txn.set_counters(Counters()))  # of a rebuild that was cut short
    _gather(catalog, stripes, tally)
    load_node = node_loader(catalog, stripes, metadata_copies)
    buried = {file_id for file_id, _ in catalog.tombstones()}
    for batch in batched(_files(catalog), _BATCH):
        chosen = [_choose(file_id, versions, buried, stripes, load_node, tally) for file_id, versions in batch]
        _enter(catalog, [file for file in chosen if file is not None], load_node, tally)
        for (file_id, versions), file in zip(batch, chosen, strict=True):
            if file is None:
                catalog.drop_versions([(file_id, stored.version_id) for stored in versions])
    if stripes.volumes.attendance() != attendance:
        raise InsufficientWorkers(
            "volumes came or went while the catalog was being made again, which may have left out what is on them; "
            "run rebuild again"
        )
    return RebuildReport(tally.files, tally.versions, tally.skipped)


@dataclass(slots=True)
class _Tally:
    progress: Progress | None
    done: int = 0
    files: int = 0
    versions: int = 0
    sequence: int = 0
    logical_bytes: int = 0
    skipped: list[str] = field(default_factory=list)

    def step(self, count: int = 1) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, 0)

    def skip(self, text: str) -> None:
        if len(self.skipped) < _SKIPPED_LISTED_MAX:
            self.skipped.append(text)


@dataclass(frozen=True, slots=True)
class _File:
    file_id: bytes
    head: StoredVersion
    chain: list[StoredVersion]
    others: list[StoredVersion]


def _gather(catalog: Catalog, stripes: StripeStore, tally: _Tally) -> None:
    """Copy every intact metadata object into the catalog; copies on further volumes change nothing."""
    for _, volume in stripes.volumes.online():
        for batch in batched(volume.records(_METADATA), _BATCH):
            catalog.transact(lambda txn, batch=batch: _take_all(txn, batch, tally))  # type: ignore[misc]
            tally.step(len(batch))


def _take_all(txn: CatalogTransaction, batch: list[Shard], tally: _Tally) -> None:
    for shard in batch:
        try:
            _take(txn, shard)
        except (FormatError, InvalidArgument) as error:
            tally.skip(f"object {shard.key[:ID_BYTES].hex()}: {error}")


def _take(txn: CatalogTransaction, shard: Shard) -> None:
    identifier, kind, raw = shard.key[:ID_BYTES], shard.key[ID_BYTES], bytes(shard.payload)
    if kind == Kind.VERSION:
        stored = decode_version(raw, identifier)
        check_filename(stored.record.filename)
        check_user_id(stored.record.user_id)
        txn.put_version(stored.record.file_id, stored.version_id, raw)
        return
    if object_id(raw) != identifier:
        raise FormatError("does not match its id")
    if kind == Kind.NODE:
        txn.put_nodes([(identifier, raw)])
    else:
        txn.bury(decode_tombstone(raw).file_id, raw)


def _files(catalog: Catalog) -> Iterator[tuple[bytes, list[StoredVersion]]]:
    for file_id, group in groupby(catalog.versions(), key=attrgetter("file_id")):
        yield file_id, [read_version(stored.raw, stored.version_id) for stored in group]


def _choose(
    file_id: bytes,
    versions: list[StoredVersion],
    buried: set[bytes],
    stripes: StripeStore,
    load_node: LoadNode,
    tally: _Tally,
) -> _File | None:
    """The head of one file and the chain below it."""
    tally.step()
    tally.sequence = max(tally.sequence, *(stored.record.sequence for stored in versions))
    if file_id in buried:
        return None
    by_id = {stored.version_id: stored for stored in versions}
    by_age = sorted(versions, key=lambda stored: stored.record.sequence, reverse=True)
    for head in by_age:
        name = head.record.filename
        problem = _problem(head, by_id, stripes, load_node)
        if problem is not None:
            tally.skip(f"{name!r} ({file_id.hex()}) version {head.version_id.hex()}: {problem}")
            continue
        chain = list(_chain(head, by_id))
        if chain[-1].record.parent is not None:
            tally.skip(
                f"{name!r} ({file_id.hex()}): versions before {chain[-1].version_id.hex()} are not on the volumes"
            )
        members = {stored.version_id for stored in chain}
        return _File(file_id, head, chain, [stored for stored in versions if stored.version_id not in members])
    return None


def _chain(head: StoredVersion, by_id: dict[bytes, StoredVersion]) -> Iterator[StoredVersion]:
    current: StoredVersion | None = head
    while current is not None:
        yield current
        current = by_id.get(current.record.parent) if current.record.parent is not None else None


def _problem(
    head: StoredVersion, by_id: dict[bytes, StoredVersion], stripes: StripeStore, load_node: LoadNode
) -> str | None:
    """Why a version cannot be a head: something of it is not there."""
    try:
        for chunk_ids in batched(Manifest(head.root, load_node).chunk_ids(), _LOCATED_TOGETHER):
            chunks = [chunk_stripe(chunk_id, head.root.profile) for chunk_id in chunk_ids]
            for chunk_id, where in zip(chunk_ids, stripes.whereabouts(chunks), strict=True):
                present = head.root.n - where.missing
                if present < head.root.k:
                    return f"chunk {chunk_id.hex()} has {present} shards left, {head.root.k} are needed"
    except (DataLossError, ShardsUnavailable, FormatError) as error:
        return f"its manifest is not whole ({error})"
    return None


def _enter(catalog: Catalog, files: list[_File], load_node: LoadNode, tally: _Tally) -> None:
    def work(txn: CatalogTransaction) -> list[tuple[bytes, bytes]]:
        dropped: list[tuple[bytes, bytes]] = []
        counters = txn.counters()
        for file in files:
            counters = _enter_file(txn, file, load_node, tally, counters, dropped)
        txn.set_counters(
            Counters(counters.files, counters.versions, counters.logical_bytes, max(counters.sequence, tally.sequence))
        )
        tally.files, tally.versions = counters.files, counters.versions
        return dropped

    catalog.drop_versions(catalog.transact(work))


def _enter_file(
    txn: CatalogTransaction,
    file: _File,
    load_node: LoadNode,
    tally: _Tally,
    counters: Counters,
    dropped: list[tuple[bytes, bytes]],
) -> Counters:
    record = file.head.record
    user = user_key(record.user_id.encode())
    key = name_key(user, record.filename.encode())
    rival_id = txn.find(key)
    rival = txn.file(rival_id) if rival_id is not None else None
    if rival_id is not None and rival is not None and rival_id != file.file_id:
        # Names are unique, so the earlier of the two was never acknowledged, or is a leftover.
        raw = txn.version(rival_id, rival.head)
        assert raw is not None
        if read_version(raw, rival.head).record.sequence > record.sequence:
            tally.skip(f"{record.filename!r} ({file.file_id.hex()}): a later file has this name")
            dropped.extend((file.file_id, stored.version_id) for stored in file.chain + file.others)
            return counters
        tally.skip(f"{rival.filename!r} ({rival_id.hex()}): a later file has this name")
        txn.forget_file(rival_id)
        counters = Counters(
            counters.files - 1, counters.versions, counters.logical_bytes - rival.size, counters.sequence
        )
    txn.set_file(file.file_id, FileEntry(record.user_id, record.filename, file.head.version_id, record.size), key)
    for stored in file.chain:
        txn.hold(user, _claims(stored, file, load_node), None)
    for stored in file.others:
        tally.skip(f"{record.filename!r} version {stored.version_id.hex()} is not on the chain of the head")
        dropped.append((file.file_id, stored.version_id))
    return Counters(
        counters.files + 1,
        counters.versions + len(file.chain),
        counters.logical_bytes + record.size,
        counters.sequence,
    )


def _claims(stored: StoredVersion, file: _File, load_node: LoadNode) -> list[StripeKey]:
    """Stripes of the chunks in which a version differs from its parent."""
    root = stored.root
    manifest = Manifest(root, load_node)
    parents = {version.version_id: version for version in file.chain}
    parent = parents.get(stored.record.parent) if stored.record.parent is not None else None
    try:
        if parent is not None and parent.root.profile == root.profile and parent.root.chunk_size == root.chunk_size:
            ids: Iterable[bytes] = (chunk for _, chunk in differing_chunks(Manifest(parent.root, load_node), manifest))
        else:
            ids = manifest.chunk_ids()
        return [chunk_stripe(chunk_id, root.profile) for chunk_id in ids]
    except (DataLossError, FormatError):
        return []  # an old version whose manifest is lost keeps its place in the chain, and no claims
