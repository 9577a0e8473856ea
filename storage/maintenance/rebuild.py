"""Rebuild: restores the whole catalog from nothing but the volumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from operator import attrgetter
from typing import NamedTuple

import msgspec

from storage.batching import batched, batched_by_size
from storage.catalog import Catalog, CatalogTransaction, Counters, FileEntry, name_key, user_key
from storage.catalog.port import UNKNOWN_ORIGIN
from storage.errors import DataLossError, FormatError, KeyRequired, ShardsUnavailable
from storage.formats.differences import differing_stored
from storage.formats.manifest import plain_id, stored_id
from storage.formats.sealed_nodes import VersionReader
from storage.formats.versions import StoredVersion, outline
from storage.keys import StripeKey, object_id_of
from storage.limits import MIB
from storage.maintenance.belief import Belief
from storage.maintenance.examined import Examined
from storage.maintenance.graves import Ends, Graves
from storage.maintenance.intake import Intake, Tally
from storage.maintenance.node_taker import NodeTaker
from storage.maintenance.required_keys import require_keys
from storage.progress import Progress
from storage.reports import RebuildReport
from storage.sealing.user_keys import KeyFinder, UserKey
from storage.stripes.shard_map import ShardMap
from storage.stripes.stripes import StripeStore, chunk_stripe
from storage.write.quotas import shards_bytes

_BATCH = 2000
_BATCH_BYTES = 4 * MIB
_LOCATED_TOGETHER = 256
_SMALL_CHUNKS = 4
_CLAIMED_TOGETHER = 4096


def rebuild(
    catalog: Catalog,
    stripes: StripeStore,
    metadata_copies: int,
    keys: KeyFinder,
    belief: Belief,
    liars_max: int,
    clock_s: Callable[[], float],
    progress: Progress | None,
) -> RebuildReport:
    """Enter every file, owner, name and version found on the volumes into a catalog that lacks them.

    The catalog is empty, or older than the volumes; its contents are trusted. A file's head is its latest complete
    version. A version that was never acknowledged because of a crash may appear if all of it had reached the disks.
    What is left out is reported. A rebuild may be interrupted and repeated at any time.

    Unreachable objects do not count as absent: if a store that was not examined may have what a file lacks, the file
    stays as it is in the catalog, and is reported as undecided. As long as anything is undecided, the volumes may hold
    more than the catalog knows.

    Args:
        catalog: the catalog to fill.
        stripes: reads from the volumes.
        metadata_copies: number of copies of metadata objects.
        keys: finds the keys of sealed versions.
        belief: decides which objects to accept; closed at the end.
        liars_max: how many volumes may lie at once.
        clock_s: monotonic seconds.
        progress: called with (metadata records and files entered, 0).

    Raises:
        KeyRequired: what the volumes show is sealed, and no key of it is here. The text says how much that is.
        InsufficientWorkers: the store's secret is unknown, and too few volumes agree on signed objects. Nothing was
            dropped; run it again.
    """
    tally = Tally(progress, sequence=catalog.counters().sequence)
    examined = Examined(stripes.volumes, liars_max)
    try:
        Intake(catalog, stripes.volumes, belief, metadata_copies, liars_max, clock_s, tally).run(examined)
    finally:
        belief.close()
    require_keys(catalog, stripes.volumes, keys, tally.key_ids)
    nodes = NodeTaker(catalog, stripes, metadata_copies)
    versions = VersionReader(keys, nodes.load)
    judge = _Judge(stripes, nodes, versions, examined, tally, metadata_copies)
    for batch in batched_by_size(_files(catalog, versions, tally), _BATCH, _BATCH_BYTES, _Found.size):
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


class _Found(NamedTuple):
    """A file in the catalog, after everything that volumes show was entered.

    ``versions`` are those that have not ended, and ``remains`` the ids of the others.
    """

    file_id: bytes
    versions: list[StoredVersion]
    ends: Ends
    remains: list[bytes]

    @property
    def deleted(self) -> bool:
        """Whether all of the file has ended."""
        return self.ends.deleted

    def size(self) -> int:
        """Approximate bytes that it takes in memory."""
        return sum(len(stored.raw) for stored in self.versions)


def _files(catalog: Catalog, reader: VersionReader, tally: Tally) -> Iterator[_Found]:
    """The readable versions of each file. A file whose entry or head cannot be read is left as it is."""
    tombstones = Graves(catalog, tally)
    for file_id, group in groupby(catalog.versions(), key=attrgetter("file_id")):
        ends = tombstones.of(file_id)
        remains: list[bytes] = []
        versions: list[StoredVersion] = []
        unreadable: set[bytes] = set()
        head, problem = b"", ""
        for kept in group:
            head = kept.entry.head if kept.entry is not None else head
            problem = problem or kept.problem
            if kept.version_id in ends.versions and not ends.deleted:
                remains.append(kept.version_id)
                continue
            try:
                stored = reader.version(kept.raw, kept.version_id)
                versions.append(stored)
                tally.sequence = max(tally.sequence, stored.record.sequence)
            except KeyRequired as error:
                if ends.deleted:
                    remains.append(kept.version_id)  # it was shredded, which is nothing to report
                    continue
                unreadable.add(kept.version_id)
                tally.skip(f"file {file_id.hex()}: {error}")
            except FormatError as error:
                unreadable.add(kept.version_id)
                tally.skip(f"file {file_id.hex()}: {error}")
        if problem:
            tally.skip(f"file {file_id.hex()}: {problem}")
            continue
        is_newest = head in unreadable and all(stored.record.parent != head for stored in versions)
        if ends.deleted or (versions and not is_newest):
            yield _Found(file_id, versions, ends, remains)
    tombstones.read_rest()


class _UndecidedError(Exception):
    """A file's contents cannot be determined until all stores that may hold parts of it were examined."""


@dataclass(frozen=True, slots=True)
class _Judge:
    """Decides which version of a file is its head, given the parts of each that exist."""

    stripes: StripeStore
    nodes: NodeTaker
    versions: VersionReader
    examined: Examined
    tally: Tally
    metadata_copies: int
    looked_up: dict[StripeKey, ShardMap] = field(default_factory=dict)

    def look_up(self, files: Iterable[_Found]) -> None:
        """Look up the chunks of many small files at once, as each lookup costs a round trip to all stores."""
        self.looked_up.clear()
        for stripes in batched(_chunks_of_small(files), _LOCATED_TOGETHER):
            self.looked_up.update(zip(stripes, self.stripes.shard_maps(stripes), strict=True))

    def _shard_maps(self, chunks: list[StripeKey]) -> list[ShardMap]:
        known = [found for chunk in chunks if (found := self.looked_up.get(chunk)) is not None]
        return known if len(known) == len(chunks) else self.stripes.shard_maps(chunks)

    def choose(self, found: _Found) -> _File | None:
        """The head of a file and the chain below it; None if no version is complete.

        Raises:
            _UndecidedError: a preferable version may be complete.
        """
        file_id, versions, ends = found.file_id, found.versions, found.ends
        by_id = {stored.version_id: stored for stored in versions}
        for head in sorted(versions, key=_sequence, reverse=True):
            name = head.record.filename
            problem = self._problem(head)
            if problem is not None:
                self.tally.skip(f"{name!r} ({file_id.hex()}) version {head.version_id.hex()}: {problem}")
                continue
            chain = list(_chain(head, by_id, ends))
            if ends.before(chain[-1].record.parent) is not None:
                self.tally.skip(
                    f"{name!r} ({file_id.hex()}): versions before {chain[-1].version_id.hex()} are not on the volumes"
                )
            members = {stored.version_id for stored in chain}
            return _File(file_id, head, chain, [stored for stored in versions if stored.version_id not in members])
        return None

    def _problem(self, head: StoredVersion) -> str | None:
        """Why a version cannot be the head: the part of it that is missing.

        Raises:
            _UndecidedError: that part may exist on an unreachable store.
        """
        try:
            for references in batched(self.versions.manifest(head).references(), _LOCATED_TOGETHER):
                chunks = [chunk_stripe(stored_id(reference), head.root.profile) for reference in references]
                for chunk, where in zip(chunks, self._shard_maps(chunks), strict=True):
                    there = head.root.n - where.missing
                    if there < head.root.k:
                        lacks = f"chunk {object_id_of(chunk).hex()} has {there} shards left, {head.root.k} are needed"
                        return self._decided(head, lacks, may_pass=bool(where.unsure))
                if self.nodes.crowded:
                    self.nodes.keep()
        except (DataLossError, ShardsUnavailable, FormatError) as error:
            text = f"its manifest is incomplete ({error})"
            return self._decided(head, text, may_pass=isinstance(error, ShardsUnavailable))
        return None

    def _decided(self, head: StoredVersion, problem: str, *, may_pass: bool) -> str:
        if may_pass or self.examined.may_come_back():
            record = head.record
            raise _UndecidedError(
                f"{record.filename!r} ({record.file_id.hex()}) version {head.version_id.hex()}: {problem}, and "
                "unreachable stores may have the rest"
            )
        return problem


def _chunks_of_small(files: Iterable[_Found]) -> Iterator[StripeKey]:
    for found in files:
        root = max(found.versions, key=_sequence).root if found.versions and not found.deleted else None
        if root is not None and 0 < root.chunk_count <= _SMALL_CHUNKS:
            size = root.reference_bytes
            for at in range(0, len(root.children), size):
                yield chunk_stripe(stored_id(root.children[at : at + size]), root.profile)


def _sequence(stored: StoredVersion) -> int:
    return stored.record.sequence


def _chain(head: StoredVersion, by_id: dict[bytes, StoredVersion], ends: Ends) -> Iterator[StoredVersion]:
    current: StoredVersion | None = head
    while current is not None:
        yield current
        before = ends.before(current.record.parent)
        current = by_id.get(before) if before is not None else None


def _settle_files(catalog: Catalog, batch: list[_Found], judge: _Judge) -> None:
    """Enter complete files, and drop deleted and lost ones; undecided files stay as they are."""
    entered: list[_File] = []
    dropped: list[_Found] = []
    remains: list[tuple[bytes, bytes]] = []
    judge.look_up(batch)
    for found in batch:
        judge.tally.step()
        try:
            file = None if found.deleted else judge.choose(found)
        except _UndecidedError as undecided:
            judge.tally.leave_undecided(str(undecided))
            continue
        remains += [(found.file_id, version_id) for version_id in found.remains]
        if file is None:
            dropped.append(found)
        else:
            entered.append(file)
    taken = _hold(catalog, entered, judge)
    _enter(catalog, entered, taken, judge)
    _drop(catalog, dropped)
    catalog.drop_versions(remains, counted=True)


def _hold(catalog: Catalog, files: list[_File], judge: _Judge) -> Counter[bytes]:
    """Enter the claims of files, in bounded batches, before the files themselves; return what each takes, by its id.

    A collect would drop claims without a version, but none runs before the rebuild has ended.
    """
    taken: Counter[bytes] = Counter()
    claims: list[_Claim] = []
    for claim in _all_claims(files, judge, taken):
        claims.append(claim)
        if len(claims) >= _CLAIMED_TOGETHER or judge.nodes.crowded:
            _hold_together(catalog, claims, judge)
            claims = []
    _hold_together(catalog, claims, judge)
    return taken


def _hold_together(catalog: Catalog, claims: list[_Claim], judge: _Judge) -> None:
    def work(txn: CatalogTransaction) -> None:
        for user, group in groupby(claims, key=attrgetter("user")):
            of_user = list(group)
            names = {claim.stripe: claim.name for claim in of_user if claim.name}
            unknown = {claim.stripe: UNKNOWN_ORIGIN for claim in of_user if claim.is_unknown}
            txn.hold(user, [claim.stripe for claim in of_user], None, names, unknown)

    if claims:
        catalog.transact(work)
    judge.nodes.keep()


class _Claim(NamedTuple):
    """A claim to enter.

    Attributes:
        user: who has it.
        stripe: on what.
        name: the chunk's name in the catalog, if it is sealed.
        is_unknown: whether a client may have written the chunk itself.
    """

    user: bytes
    stripe: StripeKey
    name: bytes
    is_unknown: bool


def _all_claims(files: list[_File], judge: _Judge, taken: Counter[bytes]) -> Iterator[_Claim]:
    for file in files:
        user = user_key(file.head.record.user_id.encode())
        for stored, before in zip_longest(file.chain, file.chain[1:]):
            key, is_unknown = _naming_key(stored), stored.root.is_sealed and judge.stripes.volumes.remote
            taken[file.file_id] += judge.metadata_copies * len(stored.raw)
            for index, reference, takes_space in _new_references(stored, before, judge):
                taken[file.file_id] += takes_space * shards_bytes(stored.root.profile, stored.root.chunk_length(index))
                name = key.name_of(plain_id(reference)) if key is not None else b""
                yield _Claim(user, chunk_stripe(stored_id(reference), stored.root.profile), name, is_unknown)


def _naming_key(stored: StoredVersion) -> UserKey | None:
    """The key that names chunks in the catalog; None if they have no names.

    A manifest does not say which of several keys sealed a chunk. Then it gets no name, and is sent again if it is
    needed again.
    """
    keys = stored.keys if stored.root.is_sealed else None
    return keys.current if keys is not None and len(keys) == 1 else None


def _enter(catalog: Catalog, files: list[_File], taken: Counter[bytes], judge: _Judge) -> None:
    is_final = not judge.examined.may_come_back()

    def work(txn: CatalogTransaction) -> _Entering:
        entering = _Entering(is_final)  # a new one each time the transaction runs
        for file in files:
            _enter_file(txn, file, taken[file.file_id], entering)
        return entering

    entered = catalog.transact(work)
    for text in entered.skipped:
        judge.tally.skip(text)
    for text in entered.undecided:
        judge.tally.leave_undecided(text)
    if is_final:  # otherwise, unreachable objects may show where they belong
        catalog.drop_versions(entered.dropped, counted=True)


@dataclass(slots=True)
class _Entering:
    """The result of entering some files.

    Attributes:
        is_final: whether everything was examined.
        skipped, undecided: texts for the report, see :class:`Tally`.
        dropped: (file id, version id) of versions that belong to no chain.
    """

    is_final: bool
    skipped: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    dropped: list[tuple[bytes, bytes]] = field(default_factory=list)


def _enter_file(txn: CatalogTransaction, file: _File, taken: int, entering: _Entering) -> None:
    record = file.head.record
    user = user_key(record.user_id.encode())
    key = name_key(user, record.filename.encode())
    rival_id = txn.find(key)
    rival = _entry(txn, rival_id, entering) if rival_id is not None else None
    if rival_id is not None and rival is not None and rival_id != file.file_id:
        if not entering.is_final:
            entering.undecided.append(f"{record.filename!r} ({file.file_id.hex()}): another file has this name")
            return
        # Names are unique, so the earlier of the two files was never acknowledged, or is left over.
        if _sequence_of_head(txn, rival_id, rival) > record.sequence:
            entering.skipped.append(f"{record.filename!r} ({file.file_id.hex()}): a later file has this name")
            entering.dropped.extend((file.file_id, stored.version_id) for stored in file.chain + file.others)
            return
        entering.skipped.append(f"{rival.filename!r} ({rival_id.hex()}): a later file has this name")
        _forget(txn, rival_id, rival)
    _count(txn, txn.file(file.file_id), record.size)
    txn.set_file(
        file.file_id, FileEntry(record.user_id, record.filename, file.head.version_id, record.size, taken), key
    )
    for stored in file.others:
        entering.skipped.append(
            f"{record.filename!r} version {stored.version_id.hex()} is not on the chain of the head"
        )
        entering.dropped.append((file.file_id, stored.version_id))


def _settle(txn: CatalogTransaction, sequence: int) -> Counters:
    """Set the catalog's sequence to the highest on the volumes, of objects entered, deleted or left out."""
    counters = txn.counters()
    settled = msgspec.structs.replace(counters, sequence=max(counters.sequence, sequence), committed=None)
    txn.set_counters(settled)
    return settled


def _entry(txn: CatalogTransaction, file_id: bytes, entering: _Entering) -> FileEntry | None:
    try:
        return txn.file(file_id)
    except FormatError as error:
        entering.skipped.append(f"file {file_id.hex()} loses its name to a later one: {error}")
        return None


def _sequence_of_head(txn: CatalogTransaction, file_id: bytes, entry: FileEntry) -> int:
    """The head's sequence; 0 if it is unreadable, as nothing was stored later under its name unless it was deleted."""
    raw = txn.version(file_id, entry.head)
    try:
        return 0 if raw is None else outline(raw, entry.head).sequence
    except FormatError:
        return 0


def _count(txn: CatalogTransaction, before: FileEntry | None, size: int | None) -> None:
    """Update the totals for an entry that is set, or removed (None)."""
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
    """Remove deleted files from the catalog, and files without a complete version unless they were in it before."""

    def work(txn: CatalogTransaction) -> list[tuple[bytes, bytes]]:
        dropped: list[tuple[bytes, bytes]] = []
        for file_id, versions, ends, _ in groups:
            entry = txn.file(file_id)
            if entry is not None and not ends.deleted:
                continue  # the missing parts may come back
            if entry is not None:
                _forget(txn, file_id, entry)
                txn.forget_name(name_key(user_key(entry.user_id.encode()), entry.filename.encode()), file_id)
            dropped += [(file_id, stored.version_id) for stored in versions]
        return dropped

    catalog.drop_versions(catalog.transact(work), counted=True)


def _new_references(
    stored: StoredVersion, before: StoredVersion | None, judge: _Judge
) -> Iterator[tuple[int, bytes, bool]]:
    """(index, reference, whether it counts for quotas) of chunks that a version does not share with the one before."""
    root = stored.root
    try:
        manifest = judge.versions.manifest(stored)
        if before is not None and before.root.profile == root.profile and before.root.chunk_size == root.chunk_size:
            yield from differing_stored(judge.versions.manifest(before), manifest)
        else:
            yield from ((index, reference, True) for index, reference in enumerate(manifest.references()))
    except (DataLossError, FormatError):
        return  # an old version whose manifest is lost stays in the chain, without claims
    except ShardsUnavailable as error:
        judge.tally.leave_undecided(
            f"{stored.record.filename!r} ({stored.record.file_id.hex()}) version {stored.version_id.hex()}: its "
            f"manifest is out of reach ({error})"
        )
