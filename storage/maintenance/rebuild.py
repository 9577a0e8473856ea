"""Rebuild: the whole catalog again, from what the volumes hold alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import msgspec

from storage.batching import batched
from storage.catalog import Catalog, CatalogTransaction, Counters, FileEntry, name_key, user_key
from storage.errors import DataLossError, FormatError, ShardsUnavailable
from storage.keys import StripeKey
from storage.live import node_loader
from storage.maintenance.belief import Belief
from storage.maintenance.intake import Examined, Tally, take_in
from storage.manifest import LoadNode, Manifest, differing_chunks
from storage.reports import Progress, RebuildReport
from storage.stripes import StripeStore
from storage.upload import chunk_stripe
from storage.versions import StoredVersion, decode_tombstone, read_version

_BATCH = 2000
_LOCATED_TOGETHER = 256


def rebuild(
    catalog: Catalog,
    stripes: StripeStore,
    metadata_copies: int,
    belief: Belief,
    liars_max: int,
    progress: Progress | None,
) -> RebuildReport:
    """Enter every file, owner, name and version found on the volumes into a catalog that lacks them.

    The catalog is empty, or older than the volumes; what is in it already is believed. A file's head is its latest
    version that is wholly there; a version that a crash kept from being acknowledged may appear if all of it had
    reached the disks. What is left out is reported. May be cut short and begun again at any time.

    What is not within reach is not taken for absent: where a store that was not examined may have what is lacking, the
    file stays as the catalog has it, and is reported as undecided. Until nothing is, more may be on the volumes than
    the catalog knows of.

    Args:
        catalog: what to fill.
        stripes: the volumes.
        metadata_copies: copies of metadata objects.
        belief: what to believe of the volumes; closed at the end.
        liars_max: how many volumes may lie at once.
        progress: called with (metadata records and files taken in, 0).

    Raises:
        InsufficientWorkers: the store's secret is not known, and too few volumes agree on what it signed. Nothing is
            dropped; run it again.
    """
    tally = Tally(progress, sequence=catalog.counters().sequence)
    examined = Examined(stripes.volumes, liars_max)
    try:
        take_in(catalog, stripes.volumes, belief, tally, examined)
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
        _settle_files(catalog, batch, buried, _Judge(stripes, load_node, examined, tally))
    lacking = [f"{stripes.volumes.name(slot)} was not examined: {reason}" for slot, reason in examined.lacking()]
    totals = catalog.transact(lambda txn: _settle(txn, tally.sequence))
    return RebuildReport(totals.files, totals.versions, tally.skipped, lacking + tally.undecided)


@dataclass(frozen=True, slots=True)
class _File:
    file_id: bytes
    head: StoredVersion
    chain: list[StoredVersion]
    others: list[StoredVersion]


def _files(catalog: Catalog, buried: set[bytes], tally: Tally) -> Iterator[tuple[bytes, list[StoredVersion]]]:
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


class _UndecidedError(Exception):
    """What a file consists of cannot be told before all that may hold parts of it was examined."""


@dataclass(frozen=True, slots=True)
class _Judge:
    """Decides which version of a file is its head, by what is there of each."""

    stripes: StripeStore
    load_node: LoadNode
    examined: Examined
    tally: Tally

    def choose(self, file_id: bytes, versions: list[StoredVersion]) -> _File | None:
        """The head of a file and the chain below it; None if no version is whole.

        Raises:
            _UndecidedError: a version that would come before may be whole.
        """
        by_id = {stored.version_id: stored for stored in versions}
        for head in sorted(versions, key=lambda stored: stored.record.sequence, reverse=True):
            name = head.record.filename
            problem = self._problem(head)
            if problem is not None:
                self.tally.skip(f"{name!r} ({file_id.hex()}) version {head.version_id.hex()}: {problem}")
                continue
            chain = list(_chain(head, by_id))
            if chain[-1].record.parent is not None:
                self.tally.skip(
                    f"{name!r} ({file_id.hex()}): versions before {chain[-1].version_id.hex()} are not on the volumes"
                )
            members = {stored.version_id for stored in chain}
            return _File(file_id, head, chain, [stored for stored in versions if stored.version_id not in members])
        return None

    def _problem(self, head: StoredVersion) -> str | None:
        """Why a version cannot be a head: something of it is not there.

        Raises:
            _UndecidedError: it may be, out of reach.
        """
        try:
            for chunk_ids in batched(Manifest(head.root, self.load_node).chunk_ids(), _LOCATED_TOGETHER):
                chunks = [chunk_stripe(chunk_id, head.root.profile) for chunk_id in chunk_ids]
                for chunk_id, where in zip(chunk_ids, self.stripes.whereabouts(chunks), strict=True):
                    there = head.root.n - where.missing
                    if there < head.root.k:
                        lacks = f"chunk {chunk_id.hex()} has {there} shards left, {head.root.k} are needed"
                        return self._decided(head, lacks, may_pass=bool(where.unsure))
        except (DataLossError, ShardsUnavailable, FormatError) as error:
            text = f"its manifest is not whole ({error})"
            return self._decided(head, text, may_pass=isinstance(error, ShardsUnavailable))
        return None

    def _decided(self, head: StoredVersion, problem: str, *, may_pass: bool) -> str:
        if may_pass or self.examined.may_come_back():
            record = head.record
            raise _UndecidedError(
                f"{record.filename!r} ({record.file_id.hex()}) version {head.version_id.hex()}: {problem}, and what is "
                "out of reach may have the rest"
            )
        return problem


def _chain(head: StoredVersion, by_id: dict[bytes, StoredVersion]) -> Iterator[StoredVersion]:
    current: StoredVersion | None = head
    while current is not None:
        yield current
        current = by_id.get(current.record.parent) if current.record.parent is not None else None


def _settle_files(
    catalog: Catalog, batch: list[tuple[bytes, list[StoredVersion]]], buried: set[bytes], judge: _Judge
) -> None:
    """Enter files that are whole, and drop those that are deleted or lost; those that are undecided stay as is."""
    entered: list[_File] = []
    dropped: list[tuple[bytes, list[StoredVersion]]] = []
    for file_id, versions in batch:
        judge.tally.step()
        try:
            file = None if file_id in buried else judge.choose(file_id, versions)
        except _UndecidedError as undecided:
            judge.tally.leave_undecided(str(undecided))
            continue
        if file is None:
            dropped.append((file_id, versions))
        else:
            entered.append(file)
    _enter(catalog, entered, judge)
    _drop(catalog, dropped, buried)


def _enter(catalog: Catalog, files: list[_File], judge: _Judge) -> None:
    is_final = not judge.examined.may_come_back()

    def work(txn: CatalogTransaction) -> list[tuple[bytes, bytes]]:
        dropped: list[tuple[bytes, bytes]] = []
        for file in files:
            _enter_file(txn, file, judge, dropped, is_final=is_final)
        return dropped

    leftovers = catalog.transact(work)
    if is_final:  # what has been out of reach may show where they belong
        catalog.drop_versions(leftovers, counted=True)


def _enter_file(
    txn: CatalogTransaction,
    file: _File,
    judge: _Judge,
    dropped: list[tuple[bytes, bytes]],
    *,
    is_final: bool,
) -> None:
    record, tally = file.head.record, judge.tally
    user = user_key(record.user_id.encode())
    key = name_key(user, record.filename.encode())
    rival_id = txn.find(key)
    rival = _entry(txn, rival_id, tally) if rival_id is not None else None
    if rival_id is not None and rival is not None and rival_id != file.file_id:
        if not is_final:
            tally.leave_undecided(f"{record.filename!r} ({file.file_id.hex()}): another file has this name")
            return
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
        txn.hold(user, _claims(stored, file, judge.load_node), None)
    for stored in file.others:
        tally.skip(f"{record.filename!r} version {stored.version_id.hex()} is not on the chain of the head")
        dropped.append((file.file_id, stored.version_id))


def _settle(txn: CatalogTransaction, sequence: int) -> Counters:
    """Note how far the catalog has come: as far as anything on the volumes, be it entered, deleted or left out."""
    counters = txn.counters()
    settled = msgspec.structs.replace(counters, sequence=max(counters.sequence, sequence), committed=None)
    txn.set_counters(settled)
    return settled


def _entry(txn: CatalogTransaction, file_id: bytes, tally: Tally) -> FileEntry | None:
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
