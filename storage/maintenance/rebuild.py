"""Rebuild: the whole catalog again, from what the volumes hold alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import NamedTuple

import msgspec

from storage.batching import batched, batched_by_size
from storage.catalog import Catalog, CatalogTransaction, Counters, FileEntry, name_key, user_key
from storage.errors import DataLossError, FormatError, ShardsUnavailable
from storage.formats.manifest import Manifest, differing_chunks, object_id
from storage.formats.versions import StoredVersion, decode_tombstone, read_version
from storage.keys import ID_BYTES, Kind, StripeKey
from storage.limits import MIB
from storage.maintenance.belief import Belief
from storage.maintenance.examined import Examined
from storage.maintenance.intake import Intake, Tally
from storage.reports import Progress, RebuildReport
from storage.stripes.shard_map import ShardMap
from storage.stripes.stripes import StripeStore, chunk_stripe, metadata_stripe

_BATCH = 2000
_BATCH_BYTES = 4 * MIB
_LOCATED_TOGETHER = 256
_SMALL_CHUNKS = 4
_CLAIMED_TOGETHER = 4096
_NODES_MAX = 256  # 8 MiB


def rebuild(
    catalog: Catalog,
    stripes: StripeStore,
    metadata_copies: int,
    belief: Belief,
    liars_max: int,
    now_s: Callable[[], float],
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
        now_s: a clock, in seconds.
        progress: called with (metadata records and files taken in, 0).

    Raises:
        InsufficientWorkers: the store's secret is not known, and too few volumes agree on what it signed. Nothing is
            dropped; run it again.
    """
    tally = Tally(progress, sequence=catalog.counters().sequence)
    examined = Examined(stripes.volumes, liars_max)
    try:
        Intake(catalog, stripes.volumes, belief, metadata_copies, liars_max, now_s, tally).run(examined)
    finally:
        belief.close()
    nodes = _Nodes(catalog, stripes, metadata_copies)
    judge = _Judge(stripes, nodes, examined, tally)
    for batch in batched_by_size(_files(catalog, tally), _BATCH, _BATCH_BYTES, _Found.size):
        _settle_files(catalog, batch, judge)
        nodes.keep()
    lacking = [f"{stripes.volumes.name(slot)} was not examined: {reason}" for slot, reason in examined.lacking()]
    totals = catalog.transact(lambda txn: _settle(txn, tally.sequence))
    return RebuildReport(totals.files, totals.versions, tally.skipped, lacking + tally.undecided)


@dataclass(frozen=True, slots=True)
class _File:
    file_id: bytes
    head: StoredVersion
    chain: list[StoredVersion]
    others: list[StoredVersion]


class _Nodes:
    """Loads manifest nodes, and keeps those in the catalog that it lacks, or has damaged.

    Args:
        catalog: keeps them.
        stripes: has those that the catalog has not.
        copies: how many there are of each.
    """

    def __init__(self, catalog: Catalog, stripes: StripeStore, copies: int) -> None:
        self._catalog = catalog
        self._stripes = stripes
        self._copies = copies
        self._found: dict[bytes, bytes] = {}

    @property
    def crowded(self) -> bool:
        """Whether it is time to :meth:`keep` them: memory is to be bounded."""
        return len(self._found) >= _NODES_MAX

    def load(self, node_id: bytes) -> bytes:
        """A node's bytes."""
        raw = self._found.get(node_id) or self._catalog.node(node_id)
        if raw is None or object_id(raw) != node_id:
            raw = self._found[node_id] = self._stripes.read(metadata_stripe(Kind.NODE, node_id, self._copies))
        return raw

    def keep(self) -> None:
        """Put into the catalog what was found on the volumes; not inside a transaction."""
        if self._found:
            found = list(self._found.items())
            self._catalog.transact(lambda txn: txn.put_nodes(found))
            self._found.clear()


class _Found(NamedTuple):
    """What the catalog has of a file after all that volumes show was taken in."""

    file_id: bytes
    versions: list[StoredVersion]
    deleted: bool

    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return sum(len(stored.raw) for stored in self.versions)


class _Graves:
    """Which files have a tombstone, asked in the order of their ids: memory is the same for any number of them."""

    def __init__(self, catalog: Catalog, tally: Tally) -> None:
        self._left = catalog.tombstones()
        self._tally = tally
        self._next = self._read()

    def has(self, file_id: bytes) -> bool:
        """Whether a file has one; no file that was asked for before has a later id."""
        while self._next is not None and self._next < file_id:
            self._next = self._read()
        return self._next == file_id

    def read_rest(self) -> None:
        """Read those of files after the last one asked for: how late they are counts."""
        while self._next is not None:
            self._next = self._read()

    def _read(self) -> bytes | None:
        found = next(self._left, None)
        if found is None:
            return None
        file_id, raw = found
        try:
            self._tally.sequence = max(self._tally.sequence, decode_tombstone(raw).sequence)
        except FormatError as error:
            self._tally.skip(f"the tombstone of file {file_id.hex()}, which stays deleted: {error}")
        return file_id


def _files(catalog: Catalog, tally: Tally) -> Iterator[_Found]:
    """The versions of each file that can be read. A file whose entry or head cannot be read is left as it is."""
    tombstones = _Graves(catalog, tally)
    for file_id, group in groupby(catalog.versions(), key=attrgetter("file_id")):
        deleted = tombstones.has(file_id)
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
        if deleted or (versions and not is_newest):
            yield _Found(file_id, versions, deleted)
    tombstones.read_rest()


class _UndecidedError(Exception):
    """What a file consists of cannot be told before all that may hold parts of it was examined."""


@dataclass(frozen=True, slots=True)
class _Judge:
    """Decides which version of a file is its head, by what is there of each."""

    stripes: StripeStore
    nodes: _Nodes
    examined: Examined
    tally: Tally
    looked_up: dict[StripeKey, ShardMap] = field(default_factory=dict)

    def look_up(self, files: Iterable[_Found]) -> None:
        """Ask where the chunks of small files are, of many at once: each question costs a round trip to all stores."""
        self.looked_up.clear()
        for stripes in batched(_chunks_of_small(files), _LOCATED_TOGETHER):
            self.looked_up.update(zip(stripes, self.stripes.shard_maps(stripes), strict=True))

    def _shard_maps(self, chunks: list[StripeKey]) -> list[ShardMap]:
        known = [found for chunk in chunks if (found := self.looked_up.get(chunk)) is not None]
        return known if len(known) == len(chunks) else self.stripes.shard_maps(chunks)

    def choose(self, file_id: bytes, versions: list[StoredVersion]) -> _File | None:
        """The head of a file and the chain below it; None if no version is whole.

        Raises:
            _UndecidedError: a version that would come before may be whole.
        """
        by_id = {stored.version_id: stored for stored in versions}
        for head in sorted(versions, key=_sequence, reverse=True):
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
            for chunk_ids in batched(Manifest(head.root, self.nodes.load).chunk_ids(), _LOCATED_TOGETHER):
                chunks = [chunk_stripe(chunk_id, head.root.profile) for chunk_id in chunk_ids]
                for chunk_id, where in zip(chunk_ids, self._shard_maps(chunks), strict=True):
                    there = head.root.n - where.missing
                    if there < head.root.k:
                        lacks = f"chunk {chunk_id.hex()} has {there} shards left, {head.root.k} are needed"
                        return self._decided(head, lacks, may_pass=bool(where.unsure))
                if self.nodes.crowded:
                    self.nodes.keep()
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


def _chunks_of_small(files: Iterable[_Found]) -> Iterator[StripeKey]:
    for found in files:
        root = max(found.versions, key=_sequence).root if found.versions and not found.deleted else None
        if root is not None and 0 < root.chunk_count <= _SMALL_CHUNKS:
            for at in range(0, len(root.children), ID_BYTES):
                yield chunk_stripe(root.children[at : at + ID_BYTES], root.profile)


def _sequence(stored: StoredVersion) -> int:
    return stored.record.sequence


def _chain(head: StoredVersion, by_id: dict[bytes, StoredVersion]) -> Iterator[StoredVersion]:
    current: StoredVersion | None = head
    while current is not None:
        yield current
        current = by_id.get(current.record.parent) if current.record.parent is not None else None


def _settle_files(catalog: Catalog, batch: list[_Found], judge: _Judge) -> None:
    """Enter files that are whole, and drop those that are deleted or lost; those that are undecided stay as is."""
    entered: list[_File] = []
    dropped: list[_Found] = []
    judge.look_up(batch)
    for found in batch:
        judge.tally.step()
        try:
            file = None if found.deleted else judge.choose(found.file_id, found.versions)
        except _UndecidedError as undecided:
            judge.tally.leave_undecided(str(undecided))
            continue
        if file is None:
            dropped.append(found)
        else:
            entered.append(file)
    _hold(catalog, entered, judge)
    _enter(catalog, entered, judge)
    _drop(catalog, dropped)


def _hold(catalog: Catalog, files: list[_File], judge: _Judge) -> None:
    """Enter the claims of files, so many at a time that memory is bounded, before the files themselves.

    Claims without a version are dropped by a collect, and there is none before the rebuild has ended.
    """
    claims: list[tuple[bytes, StripeKey]] = []
    for claim in _all_claims(files, judge):
        claims.append(claim)
        if len(claims) >= _CLAIMED_TOGETHER or judge.nodes.crowded:
            _hold_together(catalog, claims, judge)
            claims = []
    _hold_together(catalog, claims, judge)


def _hold_together(catalog: Catalog, claims: list[tuple[bytes, StripeKey]], judge: _Judge) -> None:
    def work(txn: CatalogTransaction) -> None:
        for user, group in groupby(claims, key=itemgetter(0)):
            txn.hold(user, [stripe for _, stripe in group], None)

    if claims:
        catalog.transact(work)
    judge.nodes.keep()


def _all_claims(files: list[_File], judge: _Judge) -> Iterator[tuple[bytes, StripeKey]]:
    for file in files:
        user = user_key(file.head.record.user_id.encode())
        for stored in file.chain:
            for stripe in _claims(stored, file, judge):
                yield user, stripe


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


def _drop(catalog: Catalog, groups: list[_Found]) -> None:
    """Take deleted files out of the catalog, and those of which no version is whole unless they were in it before."""

    def work(txn: CatalogTransaction) -> list[tuple[bytes, bytes]]:
        dropped: list[tuple[bytes, bytes]] = []
        for file_id, versions, deleted in groups:
            entry = txn.file(file_id)
            if entry is not None and not deleted:
                continue  # what is lacking may come back
            if entry is not None:
                _forget(txn, file_id, entry)
                txn.forget_name(name_key(user_key(entry.user_id.encode()), entry.filename.encode()), file_id)
            dropped += [(file_id, stored.version_id) for stored in versions]
        return dropped

    catalog.drop_versions(catalog.transact(work), counted=True)


def _claims(stored: StoredVersion, file: _File, judge: _Judge) -> Iterator[StripeKey]:
    """Stripes of the chunks in which a version differs from its parent."""
    root, load = stored.root, judge.nodes.load
    manifest = Manifest(root, load)
    parents = {version.version_id: version for version in file.chain}
    parent = parents.get(stored.record.parent) if stored.record.parent is not None else None
    try:
        if parent is not None and parent.root.profile == root.profile and parent.root.chunk_size == root.chunk_size:
            ids: Iterable[bytes] = (chunk for _, chunk in differing_chunks(Manifest(parent.root, load), manifest))
        else:
            ids = manifest.chunk_ids()
        for chunk_id in ids:
            yield chunk_stripe(chunk_id, root.profile)
    except (DataLossError, FormatError):
        return  # an old version whose manifest is lost keeps its place in the chain, and no more claims
    except ShardsUnavailable as error:
        judge.tally.leave_undecided(
            f"{stored.record.filename!r} ({stored.record.file_id.hex()}) version {stored.version_id.hex()}: its "
            f"manifest is out of reach ({error})"
        )
