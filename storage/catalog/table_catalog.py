"""A catalog kept in the tables of any database."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import msgspec

from storage.catalog.port import (
    COPIED_IN_USE,
    CatalogTransaction,
    Counters,
    FileEntry,
    FileHead,
    Holding,
    ProfileCount,
    StoredEntry,
    StoreSettings,
    StoreTime,
    UploadRecord,
    Usage,
    user_key,
)
from storage.catalog.profiles import as_counts, count_all, is_whole, packed, unpacked
from storage.catalog.records import (
    COUNTERS,
    PROFILES,
    SETTINGS,
    TIME,
    USAGE_RANGE,
    decode_counters,
    decode_entry,
    decode_settings,
    decode_time,
    decode_upload,
    decode_usage,
    document_key,
    encode,
    encode_settings,
    entry_or_problem,
    holding_of,
    usage_key,
)
from storage.catalog.recount import recounted, time_from
from storage.catalog.sealing_tables import SealingTables
from storage.catalog.tables import ROOT, TableReader, Tables, TableTransaction
from storage.catalog.transaction import RecordTransaction
from storage.errors import FormatError, StorageError, StoreFull
from storage.formats.version_records import FILE_ID_BYTES
from storage.keys import StripeKey, object_id_of

T = TypeVar("T")
D = TypeVar("D")

log = logging.getLogger(__name__)


class TableCatalog:
    """A :class:`~storage.catalog.port.Catalog` over :class:`~storage.catalog.tables.Tables`.

    A commit uses few tables, as each may cost a database time. Settings and totals are in the root table. A file's
    entry comes right before its versions in one table, under time-ordered ids.

    Args:
        tables: the tables.
        plain_documents: names of documents that are needed before the key is known, and have nothing that users wrote.
    """

    def __init__(self, tables: Tables, plain_documents: Collection[str] = ()) -> None:
        self._tables = SealingTables(tables, plain_documents)

    @property
    def sealed_with(self) -> bytes:
        return self._tables.sealed_with

    def unlock(self, secret: bytes, token_bytes: Callable[[int], bytes]) -> None:
        self._tables.unlock(secret, token_bytes)

    def seal(self, key_id: bytes, secret: bytes, token_bytes: Callable[[int], bytes]) -> None:
        self._tables.seal(key_id, secret, token_bytes)

    def trouble(self) -> str:
        return self._tables.trouble()

    def settings(self) -> StoreSettings | None:
        raw = self._tables.get(ROOT, SETTINGS)
        if raw is None:
            return None
        settings = decode_settings(raw)
        if settings.format > 1:
            raise FormatError(f"the catalog has format {settings.format}; this version reads format 1: upgrade")
        return settings

    def save_settings(self, settings: StoreSettings) -> None:
        raw = encode_settings(settings)
        self._tables.transact(lambda txn: txn.put(ROOT, SETTINGS, raw))

    def document(self, name: str) -> bytes | None:
        if name == COPIED_IN_USE and self._tables.doubtful:
            return b"1"
        return self._tables.get(ROOT, document_key(name))

    def save_document(self, name: str, raw: bytes) -> None:
        self.save_documents({name: raw})

    def save_documents(self, documents: Mapping[str, bytes]) -> None:
        kept = dict(documents)

        def work(txn: TableTransaction) -> None:
            for name, raw in kept.items():
                txn.put(ROOT, document_key(name), raw)

        self._tables.transact(work)

    def transact(self, work: Callable[[CatalogTransaction], T]) -> T:
        return self._tables.transact(lambda txn: RecordTransaction.run(txn, work))

    def freeing(self) -> AbstractContextManager[None]:
        return self._tables.freeing()

    def file(self, file_id: bytes) -> FileEntry | None:
        raw = self._tables.get("files", file_id)
        return None if raw is None else decode_entry(raw)

    def heads(self, file_ids: Sequence[bytes]) -> list[FileHead | StorageError | None]:
        return self._tables.view(lambda reader: [_head(reader, file_id) for file_id in file_ids])

    def find(self, key: bytes) -> bytes | None:
        return self._tables.get("names", key)

    def names(self, user: bytes, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        base = user + prefix[:440]
        start = base if after is None else max(base, after + b"\0")
        return self._first("names", start, _past(base), limit)

    def _first(self, table: str, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return the first keys and values of a range."""
        return next(self._tables.pages(table, start, stop, size=limit), []) if limit > 0 else []

    def version(self, file_id: bytes, version_id: bytes) -> bytes | None:
        return self._tables.get("files", file_id + version_id)

    def node(self, node_id: bytes) -> bytes | None:
        return self._tables.get("nodes", node_id)

    def is_held(self, stripe: StripeKey) -> bool:
        return self._tables.has_any("holdings", stripe)

    def unverified(self, stripe: StripeKey) -> bytes:
        hashes = [holding.hashes for holding in self.holdings(stripe, _past(stripe))]
        return hashes[0] if hashes and all(hashes) else b""

    def holds(self, user: bytes, stripes: Sequence[StripeKey]) -> list[bool]:
        return [claim is not None for claim in self._tables.get_each("holdings", [stripe + user for stripe in stripes])]

    def chunks_named(self, names: Sequence[bytes]) -> list[bytes | None]:
        return self._tables.get_each("chunk_names", names)

    def counters(self) -> Counters:
        raw = self._tables.get(ROOT, COUNTERS)
        try:
            return Counters() if raw is None else decode_counters(raw)
        except FormatError as error:
            log.warning("%s; they are counted again", error)
            return recounted(self.versions(), self.tombstones())

    def profiles(self) -> list[ProfileCount]:
        raw = self._tables.get(ROOT, PROFILES)
        if raw is not None:
            return as_counts(unpacked(raw))
        return as_counts(count_all(self.versions())) if self.counters().versions else []

    def recount(self) -> None:
        raw = self._tables.get(ROOT, COUNTERS)
        try:
            if raw is not None:
                decode_counters(raw)
        except FormatError:
            totals = self.counters()
            self.transact(lambda txn: txn.set_counters(totals))
        self._count_profiles()
        self._count_usages()

    def _count_profiles(self) -> None:
        if not is_whole(self._tables.get(ROOT, PROFILES)) and self.counters().versions:
            raw = packed(count_all(self.versions()))
            self._tables.transact(lambda txn: txn.put(ROOT, PROFILES, raw))

    def usage(self, user: bytes) -> Usage:
        return decode_usage(self._tables.get(ROOT, usage_key(user)))

    def usages(self) -> list[Usage]:
        return [decode_usage(raw) for page in self._tables.pages(ROOT, *USAGE_RANGE) for _, raw in page]

    def _count_usages(self) -> None:
        """Count what users' files take, if an older release has changed files without counting."""
        before = self.usages()
        if sum(one.files for one in before) == self.counters().files:
            return
        found: dict[str, Usage] = {one.user_id: Usage(0, 0, one.user_id) for one in before}
        for page in self._tables.pages("files", b""):
            for key, value in page:
                entry = entry_or_problem(value)[0] if len(key) == FILE_ID_BYTES else None
                if entry is not None:
                    usage = found.get(entry.user_id, Usage())
                    found[entry.user_id] = Usage(usage.files + 1, usage.bytes + entry.counted, entry.user_id)

        def work(txn: TableTransaction) -> None:
            for user_id, usage in found.items():
                txn.put(ROOT, usage_key(user_key(user_id.encode())), encode(usage))

        self._tables.transact(work)

    def versions(self) -> Iterator[StoredEntry]:
        file_id, entry, problem = b"", None, ""
        # Small pages, as a version of a large file has 32 KiB.
        for page in self._tables.pages("files", b"", size=64):
            for key, value in page:
                if len(key) == FILE_ID_BYTES:
                    file_id, entry, problem = key, *entry_or_problem(value)
                    continue
                owner, version_id = key[:FILE_ID_BYTES], key[FILE_ID_BYTES:]
                if owner == file_id:
                    yield StoredEntry(owner, entry, version_id, value, problem)
                else:
                    yield StoredEntry(owner, None, version_id, value)

    def nodes(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[bytes]:
        for page in self._tables.pages("nodes", start, stop, size=64):
            for key, _ in page:
                yield key

    def tombstone(self, key: bytes) -> bytes | None:
        return self._tables.get("tombstones", key)

    def tombstones(self) -> Iterator[tuple[bytes, bytes]]:
        for page in self._tables.pages("tombstones", b""):
            yield from page

    def pending_tombstones(self) -> list[tuple[bytes, bytes]]:
        return [entry for page in self._tables.pages("unburied", b"") for entry in page]

    def holdings(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[Holding]:
        for page in self._tables.pages("holdings", start, stop):
            for key, value in page:
                yield holding_of(key, value)

    def uploads(self) -> dict[int, UploadRecord]:
        return {
            int.from_bytes(key, "big"): decode_upload(raw)
            for page in self._tables.pages("uploads", b"")
            for key, raw in page
        }

    def store_time(self) -> StoreTime | None:
        raw = self._tables.get(ROOT, TIME)
        try:
            return None if raw is None else decode_time(raw)
        except FormatError as error:
            log.warning("%s; interrupted uploads are kept as if they had been interrupted just now", error)
            return time_from(self.uploads(), self.holdings())

    def claims(self) -> int:
        return self._tables.entries("holdings")

    def drop_versions(self, keys: Iterable[tuple[bytes, bytes]], *, counted: bool = False) -> None:
        def drop(doomed: Sequence[bytes]) -> None:
            def work(txn: RecordTransaction) -> None:
                dropped = sum(txn.drop_version(key) for key in doomed)
                if counted:
                    counters = txn.counters()
                    txn.set_counters(msgspec.structs.replace(counters, versions=counters.versions - dropped))

            self._tables.transact(lambda txn: RecordTransaction.run(txn, work))

        _drop_all([file_id + version_id for file_id, version_id in keys], drop)

    def drop_nodes(self, node_ids: Iterable[bytes]) -> None:
        def drop(doomed: Sequence[bytes]) -> None:
            def work(txn: TableTransaction) -> None:
                for node_id in doomed:
                    txn.delete("nodes", node_id)

            self._tables.transact(work)

        _drop_all(list(node_ids), drop)

    def drop_holdings(self, holdings: Iterable[Holding]) -> None:
        def drop(doomed: Sequence[Holding]) -> None:
            def work(txn: TableTransaction) -> None:
                for holding in doomed:
                    key = holding.stripe + holding.user
                    value = txn.get("holdings", key)
                    if value is not None and holding_of(key, value) == holding:
                        txn.delete("holdings", key)
                        if holding.name and txn.get("chunk_names", holding.name) == object_id_of(key):
                            txn.delete("chunk_names", holding.name)

            self._tables.transact(work)

        _drop_all(list(holdings), drop)

    def close(self) -> None:
        self._tables.close()


def _drop_all(doomed: Sequence[D], drop: Callable[[Sequence[D]], None]) -> None:
    """Drop rows with one transaction, or with several if there is no space for the pages that one changes."""
    if not doomed:
        return
    try:
        drop(doomed)
    except StoreFull:
        if len(doomed) == 1:
            raise
        half = len(doomed) // 2
        _drop_all(doomed[:half], drop)
        _drop_all(doomed[half:], drop)


def _head(reader: TableReader, file_id: bytes) -> FileHead | StorageError | None:
    try:
        raw = reader.get("files", file_id)
        if raw is None:
            return None
        entry = decode_entry(raw)
        return FileHead(entry, reader.get("files", file_id + entry.head))
    except StorageError as error:
        return error


def _past(prefix: bytes) -> bytes | None:
    """Return the first key after all keys with a prefix; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
