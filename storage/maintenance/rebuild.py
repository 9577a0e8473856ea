"""Rebuild: the whole catalog again, from what the volumes hold alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

import msgspec

from storage.batching import batched
from storage.catalog import Catalog, CatalogTransaction, Counters, FileEntry, name_key, user_key
from storage.errors import DataLossError, FormatError, InsufficientWorkers, InvalidArgument, ShardsUnavailable
from storage.keys import ID_BYTES, Kind, StripeKey
from storage.limits import check_filename, check_user_id
from storage.live import node_loader
from storage.maintenance.belief import Belief
from storage.manifest import LoadNode, Manifest, differing_chunks, object_id
from storage.reports import Progress, RebuildReport
from storage.shards import Shard, VolumeFailed
from storage.stripes import StripeStore
from storage.upload import chunk_stripe
from storage.versions import StoredVersion, decode_tombstone, decode_version, read_version

_BATCH = 2000
_LOCATED_TOGETHER = 256
_SKIPPED_LISTED_MAX = 10_000
_METADATA = frozenset({Kind.NODE, Kind.VERSION, Kind.TOMBSTONE})


def rebuild(
    catalog: Catalog, stripes: StripeStore, metadata_copies: int, belief: Belief, progress: Progress | None
) -> RebuildReport:
    """Enter every file, owner, name and version found on the volumes into a catalog that lacks them.

    The catalog is empty, or older than the volumes; what is in it already is believed. A file's head is its latest
    version that is wholly there; a version that a crash kept from being acknowledged may appear if all of it had
    reached the disks. What is left out is reported. May be cut short and begun again at any time.

    Args:
        catalog: what to fill.
        stripes: the volumes.
        metadata_copies: copies of metadata objects.
        belief: what to believe of the volumes; closed at the end.
        progress: called with (metadata records and files taken in, 0).

    Raises:
        InsufficientWorkers: volumes came or went meanwhile, and what is on them was left out; or the store's secret is
            not known, and too few volumes agree on what it signed. Nothing is dropped; run it again.
    """
    tally = _Tally(progress, sequence=catalog.counters().sequence)
    attendance = stripes.volumes.attendance()
    try:
        _gather(catalog, stripes, belief, tally)
        _report_refused(belief, stripes, tally)
    finally:
        belief.close()
    load_node = node_loader(catalog, stripes, metadata_copies)
    buried: set[bytes] = set()
    for file_id, raw in catalog.tombstones():
        buried.add(file_id)
        try:
            tally.sequence = max(tally.sequence, decode_tombstone(raw).sequence)
        except FormatError as error:
            tally.skip(f"the tombstone of file {file_id.hex()}, which stays deleted: {error}")
    for batch in batched(_files(catalog, buried, tally), _BATCH):
        chosen = [_choose(file_id, versions, buried, stripes, load_node, tally) for file_id, versions in batch]
        _enter(catalog, [file for file in chosen if file is not None], load_node, tally)
        _drop(catalog, [group for group, file in zip(batch, chosen, strict=True) if file is None], buried)
    if stripes.volumes.attendance() != attendance:
        raise InsufficientWorkers(
            "volumes came or went while the catalog was being made again, which may have left out what is on them; "
            "run rebuild again"
        )
    totals = catalog.transact(lambda txn: _settle(txn, tally.sequence))
    return RebuildReport(totals.files, totals.versions, tally.skipped)


@dataclass(slots=True)
class _Tally:
    progress: Progress | None
    sequence: int
    done: int = 0
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


def _gather(catalog: Catalog, stripes: StripeStore, belief: Belief, tally: _Tally) -> None:
    """Copy every metadata object that is intact and believed into the catalog; further copies change nothing."""
    volumes = stripes.volumes
    for slot, volume in volumes.online():
        if not volumes.trusts(slot):
            tally.skip(f"all that {volumes.name(slot)} shows: it gave wrong answers")
            continue
        try:
            for batch in batched(volume.records(_METADATA), _BATCH):
                believed = [shard for shard in batch if _is_believed(catalog, shard, slot, belief, tally)]
                catalog.transact(lambda txn, batch=believed: _take_all(txn, batch))  # type: ignore[misc]
                tally.step(len(batch))
        except VolumeFailed as error:
            # Nothing is left out for a failure. A worker that answers nonsense loses trust by it, in the end.
            volumes.set_offline(slot, str(error), volume)
            raise


def _is_believed(catalog: Catalog, shard: Shard, slot: int, belief: Belief, tally: _Tally) -> bool:
    """Whether an object is well formed, and the store's own."""
    identifier, kind, raw = shard.key[:ID_BYTES], shard.key[ID_BYTES], bytes(shard.payload)
    try:
        if kind == Kind.VERSION:
            stored = decode_version(raw, identifier)
            check_filename(stored.record.filename)
            check_user_id(stored.record.user_id)
            known = catalog.version(stored.record.file_id, identifier) is not None
            return known or belief.in_version(stored, slot)
        if object_id(raw) != identifier:
            raise FormatError("does not match its id")
        return kind == Kind.NODE or belief.in_tombstone(identifier, raw, decode_tombstone(raw), slot)
    except (FormatError, InvalidArgument) as error:
        lost = "; unless another volume tells of it, the file that it deleted is back" if kind == Kind.TOMBSTONE else ""
        tally.skip(f"{Kind(kind).name.lower()} {identifier.hex()}: {error}{lost}")
        return False


def _take_all(txn: CatalogTransaction, batch: list[Shard]) -> None:
    added = 0
    for shard in batch:
        identifier, kind, raw = shard.key[:ID_BYTES], shard.key[ID_BYTES], bytes(shard.payload)
        if kind == Kind.NODE:
            txn.put_nodes([(identifier, raw)])
        elif kind == Kind.TOMBSTONE:
            txn.bury(decode_tombstone(raw).file_id, raw)
        else:
            file_id = decode_version(raw).record.file_id
            known = txn.version(file_id, identifier)
            if known != raw:  # which is what the id says; what the catalog has instead is damaged
                txn.put_version(file_id, identifier, raw)
                added += known is None
    if added:
        counters = txn.counters()
        txn.set_counters(msgspec.structs.replace(counters, versions=counters.versions + added))


def _report_refused(belief: Belief, stripes: StripeStore, tally: _Tally) -> None:
    undecided = 0
    for object_id_, kind, holders, unchecked in belief.refused():
        undecided += unchecked
        names = ", ".join(stripes.volumes.name(slot) for slot in holders)
        tally.skip(
            f"{kind.name.lower()} {object_id_.hex()} is not signed by this store, and {len(holders)} of the "
            f"{belief.quorum} volumes that must agree on it then hold it ({names}); it is not believed"
        )
    if undecided:
        # To go on without them, and collect then, would destroy files that are there.
        raise InsufficientWorkers(
            f"{undecided:,} versions or deletions are signed, and whether by this store cannot be told: too few "
            f"workers show their share of its secret, and fewer than {belief.quorum} agree; bring more workers back "
            "and run rebuild again"
        )


def _files(catalog: Catalog, buried: set[bytes], tally: _Tally) -> Iterator[tuple[bytes, list[StoredVersion]]]:
    """The versions of each file that can be read. A file whose entry or head cannot be read is left as it is."""
    for file_id, group in groupby(catalog.versions(), key=attrgetter("file_id")):
        versions: list[StoredVersion] = []
        unreadable: set[bytes] = set()
        head, problem = b"", ""
        for kept in group:
            head = kept.entry.head if kept.entry is not None else head
            problem = problem or kept.problem
            try:
                stored = read_version(kept.raw, kept.version_id)
                versions.append(stored)
                tally.sequence = max(tally.sequence, stored.record.sequence)
            except FormatError as error:
                unreadable.add(kept.version_id)
                tally.skip(f"file {file_id.hex()}: {error}")
        if problem:
            tally.skip(f"file {file_id.hex()}: {problem}")
            continue
        is_newest = head in unreadable and all(stored.record.parent != head for stored in versions)
        if file_id in buried or (versions and not is_newest):
            yield file_id, versions


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
                present = head.root.n - where.lost
                if present < head.root.k:
                    return f"chunk {chunk_id.hex()} has {present} shards left, {head.root.k} are needed"
    except (DataLossError, ShardsUnavailable, FormatError) as error:
        return f"its manifest is not whole ({error})"
    return None


def _enter(catalog: Catalog, files: list[_File], load_node: LoadNode, tally: _Tally) -> None:
    def work(txn: CatalogTransaction) -> list[tuple[bytes, bytes]]:
        dropped: list[tuple[bytes, bytes]] = []
        for file in files:
            _enter_file(txn, file, load_node, tally, dropped)
        return dropped

    catalog.drop_versions(catalog.transact(work), counted=True)


def _enter_file(
    txn: CatalogTransaction,
    file: _File,
    load_node: LoadNode,
    tally: _Tally,
    dropped: list[tuple[bytes, bytes]],
) -> None:
    record = file.head.record
    user = user_key(record.user_id.encode())
    key = name_key(user, record.filename.encode())
    rival_id = txn.find(key)
    rival = _entry(txn, rival_id, tally) if rival_id is not None else None
    if rival_id is not None and rival is not None and rival_id != file.file_id:
        # Names are unique, so the earlier of the two was never acknowledged, or is a leftover.
        if _sequence_of_head(txn, rival_id, rival) > record.sequence:
            tally.skip(f"{record.filename!r} ({file.file_id.hex()}): a later file has this name")
            dropped.extend((file.file_id, stored.version_id) for stored in file.chain + file.others)
            return
        tally.skip(f"{rival.filename!r} ({rival_id.hex()}): a later file has this name")
        _forget(txn, rival_id, rival)
    _count(txn, txn.file(file.file_id), record.size)
    txn.set_file(file.file_id, FileEntry(record.user_id, record.filename, file.head.version_id, record.size), key)
    for stored in file.chain:
        txn.hold(user, _claims(stored, file, load_node), None)
    for stored in file.others:
        tally.skip(f"{record.filename!r} version {stored.version_id.hex()} is not on the chain of the head")
        dropped.append((file.file_id, stored.version_id))


def _settle(txn: CatalogTransaction, sequence: int) -> Counters:
    """Note how far the catalog has come: as far as anything on the volumes, be it entered, deleted or left out."""
    counters = txn.counters()
    settled = msgspec.structs.replace(counters, sequence=max(counters.sequence, sequence), committed=None)
    txn.set_counters(settled)
    return settled


def _entry(txn: CatalogTransaction, file_id: bytes, tally: _Tally) -> FileEntry | None:
    try:
        return txn.file(file_id)
    except FormatError as error:
        tally.skip(f"file {file_id.hex()} loses its name to a later one: {error}")
        return None


def _sequence_of_head(txn: CatalogTransaction, file_id: bytes, entry: FileEntry) -> int:
    """0 for one that cannot be read: nothing was stored after it under its name unless it was deleted."""
    raw = txn.version(file_id, entry.head)
    try:
        return 0 if raw is None else read_version(raw, entry.head).record.sequence
    except FormatError:
        return 0


def _count(txn: CatalogTransaction, before: FileEntry | None, size: int | None) -> None:
    """Keep the totals in step with an entry that is set, or removed (None)."""
    counters = txn.counters()
    txn.set_counters(
        msgspec.structs.replace(
            counters,
            files=counters.files + (size is not None) - (before is not None),
            logical_bytes=counters.logical_bytes + (size or 0) - (before.size if before is not None else 0),
        )
    )


def _forget(txn: CatalogTransaction, file_id: bytes, entry: FileEntry) -> None:
    _count(txn, entry, None)
    txn.forget_file(file_id)


def _drop(catalog: Catalog, groups: list[tuple[bytes, list[StoredVersion]]], buried: set[bytes]) -> None:
    """Take deleted files out of the catalog, and those of which no version is whole unless they were in it before."""

    def work(txn: CatalogTransaction) -> list[tuple[bytes, bytes]]:
        dropped: list[tuple[bytes, bytes]] = []
        for file_id, versions in groups:
            entry = txn.file(file_id)
            if entry is not None and file_id not in buried:
                continue  # what is lacking may come back
            if entry is not None:
                _forget(txn, file_id, entry)
                txn.forget_name(name_key(user_key(entry.user_id.encode()), entry.filename.encode()), file_id)
            dropped += [(file_id, stored.version_id) for stored in versions]
        return dropped

    catalog.drop_versions(catalog.transact(work), counted=True)


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
