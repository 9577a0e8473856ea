"""The catalog in LMDB, for one machine.

A commit pays for every tree it touches, so few are touched: settings and counters lie in the root
tree, and a file's entry lies right before its versions in one tree, under time-ordered ids.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from storage.catalog.port import (
    COPIED_IN_USE,
    LEASES_BEFORE,
    USER_KEY_BYTES,
    CatalogTransaction,
    Counters,
    DamagedSettings,
    FileEntry,
    Holding,
    ProfileCount,
    StoredEntry,
    StoreSettings,
    StoreTime,
    UploadRecord,
    never,
)
from storage.catalog.profiles import (
    Profile,
    ProfileChanges,
    as_counts,
    count_all,
    is_whole,
    packed,
    profile_in,
    unpacked,
)
from storage.catalog.recount import recounted, time_from
from storage.errors import FormatError
from storage.formats.versions import FILE_ID_BYTES
from storage.keys import StripeKey, stripe_of
from storage.system.lmdb_env import ROOT, Database, Environment, Transaction

T = TypeVar("T")

log = logging.getLogger(__name__)

_TABLES = (ROOT, "files", "names", "nodes", "holdings", "tombstones", "unburied", "uploads")
_SETTINGS = b"settings"
_COUNTERS = b"counters"
_PROFILES = b"profiles"
_DOCUMENT = b"document:"
_TIME = b"time"
_LEASE_BEFORE = struct.Struct("<q")  # a claim's value before: a time, 0 for none
_CLAIM_FORMAT = b"\x01"
_NUMBER_BYTES = 8
_NO_UPLOAD = b""

_encode = msgspec.msgpack.Encoder().encode
_settings = msgspec.json.Decoder(StoreSettings)
_entries = msgspec.msgpack.Decoder(FileEntry)
_counters = msgspec.msgpack.Decoder(Counters)
_uploads = msgspec.msgpack.Decoder(UploadRecord)
_times = msgspec.msgpack.Decoder(StoreTime)


def _decode_counters(raw: bytes) -> Counters:
    return _decoded(_counters, raw, "totals")


def _decode_time(raw: bytes) -> StoreTime:
    return _decoded(_times, raw, "record of time")


def _decoded(decoder: msgspec.msgpack.Decoder[T], raw: bytes, what: str) -> T:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(
            f"the catalog's {what} cannot be read ({error}); close the store and open it again"
        ) from error


def _decode_upload(raw: bytes) -> UploadRecord:
    try:
        return _uploads.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("the record of an upload cannot be read, so that it counts as one that goes on: %s", error)
        return UploadRecord()


def _decode_entry(raw: bytes) -> FileEntry:
    try:
        return _entries.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"the catalog's entry of a file cannot be read ({error})") from error


class _Transaction:
    """A :class:`CatalogTransaction` over an LMDB write transaction, see :meth:`run`."""

    __slots__ = ("_changes", "_databases", "_last_put", "_txn")

    def __init__(self, txn: Transaction, databases: dict[str, Database]) -> None:
        self._txn = txn
        self._databases = databases
        self._changes: ProfileChanges | None = None  # once something was counted
        self._last_put: tuple[bytes, Profile | None] = b"", None  # key and profile of a version; a head's, mostly

    @classmethod
    def run(cls, txn: Transaction, databases: dict[str, Database], work: Callable[[_Transaction], T]) -> T:
        """Do some work, and write what it adds up to."""
        transaction = cls(txn, databases)
        outcome = work(transaction)
        transaction._settle()
        return outcome

    def file(self, file_id: bytes) -> FileEntry | None:
        raw = self._txn.get(file_id, db=self._databases["files"])
        return None if raw is None else _decode_entry(raw)

    def find(self, key: bytes) -> bytes | None:
        return self._txn.get(key, db=self._databases["names"])

    def version(self, file_id: bytes, version_id: bytes) -> bytes | None:
        return self._txn.get(file_id + version_id, db=self._databases["files"])

    def put_version(self, file_id: bytes, version_id: bytes, raw: bytes) -> None:
        key, profile = file_id + version_id, profile_in(raw, version_id)
        if self._txn.put(key, raw, db=self._databases["files"], overwrite=False):
            self._last_put = key, profile
            self._count(profile, 0, 1)
            return
        head, before = self._head_profile(file_id), profile_in(self.version(file_id, version_id), version_id)
        self._txn.put(key, raw, db=self._databases["files"])
        self._last_put = key, profile
        if profile != before:
            self._count(before, 0, -1)
            self._count(profile, 0, 1)
        if (head_now := self._head_profile(file_id)) != head:
            self._count(head, -1, 0)
            self._count(head_now, 1, 0)

    def drop_version(self, key: bytes) -> bool:
        """Remove a version by file id and version id; whether it was there."""
        self._last_put = b"", None
        self._count(profile_in(self._txn.get(key, db=self._databases["files"]), key[FILE_ID_BYTES:]), 0, -1)
        return self._txn.delete(key, db=self._databases["files"])

    def set_file(self, file_id: bytes, entry: FileEntry, key: bytes) -> None:
        before = self._head_profile(file_id)
        self._txn.put(file_id, _encode(entry), db=self._databases["files"])
        self._txn.put(key, file_id, db=self._databases["names"])
        after = self._version_profile(file_id, entry.head)
        if after != before:
            self._count(before, -1, 0)
            self._count(after, 1, 0)

    def delete_file(self, file_id: bytes, key: bytes, tombstone: bytes) -> None:
        self.forget_file(file_id)
        self._txn.delete(key, db=self._databases["names"])
        self.keep_tombstone(file_id, tombstone)
        self._txn.put(file_id, tombstone, db=self._databases["unburied"])

    def keep_tombstone(self, file_id: bytes, tombstone: bytes) -> None:
        self._txn.put(file_id, tombstone, db=self._databases["tombstones"])

    def tombstones_written(self, file_ids: Iterable[bytes]) -> None:
        for file_id in file_ids:
            self._txn.delete(file_id, db=self._databases["unburied"])

    def forget_file(self, file_id: bytes) -> None:
        self._count(self._head_profile(file_id), -1, 0)
        self._txn.delete(file_id, db=self._databases["files"])

    def _head_profile(self, file_id: bytes) -> Profile | None:
        raw = self._txn.get(file_id, db=self._databases["files"])
        entry = None if raw is None else _entry_or_problem(raw)[0]
        return None if entry is None else self._version_profile(file_id, entry.head)

    def _version_profile(self, file_id: bytes, version_id: bytes) -> Profile | None:
        key, profile = self._last_put
        return profile if key == file_id + version_id else profile_in(self.version(file_id, version_id), version_id)

    def _count(self, profile: Profile | None, files: int, versions: int) -> None:
        """So many more of a profile; those of an older catalog are counted when it is opened."""
        if profile is None:
            return
        if self._changes is None:
            raw = self._txn.get(_PROFILES, db=self._databases[ROOT])
            self._changes = ProfileChanges(raw, is_counted=raw is not None or not self.counters().versions)
        self._changes.add(profile, files, versions)

    def _settle(self) -> None:
        if self._changes is not None and (raw := self._changes.packed()) is not None:
            self._txn.put(_PROFILES, raw, db=self._databases[ROOT])

    def forget_name(self, key: bytes, file_id: bytes) -> None:
        if self.find(key) == file_id:
            self._txn.delete(key, db=self._databases["names"])

    def put_nodes(self, nodes: Iterable[tuple[bytes, bytes]]) -> None:
        for node_id, raw in nodes:
            self._txn.put(node_id, raw, db=self._databases["nodes"])

    def hold(self, user: bytes, stripes: Iterable[StripeKey], upload: int | None) -> None:
        database = self._databases["holdings"]
        value = _NO_UPLOAD if upload is None else _claim((upload,))
        for stripe in stripes:
            key = stripe + user
            if not self._txn.put(key, value, db=database, overwrite=False) and upload is not None:
                numbers = _holding(key, self._txn.get(key, db=database) or b"").uploads
                if upload not in numbers:
                    self._txn.put(key, _claim((*self._still_kept(numbers), upload)), db=database)

    def _still_kept(self, numbers: tuple[int, ...]) -> list[int]:
        """Those of some uploads that go on, and of the interrupted ones the latest: so that few pile up."""
        records = {number: record for number in numbers if (record := self._upload(number)) is not None}
        kept = [number for number, record in records.items() if record.interrupted_s is None]
        waiting = {number: at for number, record in records.items() if (at := record.interrupted_s) is not None}
        if waiting:
            kept.append(max(waiting, key=lambda number: waiting[number]))
        return kept

    def _upload(self, number: int) -> UploadRecord | None:
        raw = self._txn.get(_number_key(number), db=self._databases["uploads"])
        return None if raw is None else _decode_upload(raw)

    def keep_upload(self, number: int, record: UploadRecord) -> None:
        self._txn.put(_number_key(number), _encode(record), db=self._databases["uploads"])

    def end_upload(self, number: int) -> None:
        self._txn.delete(_number_key(number), db=self._databases["uploads"])

    def set_store_time(self, time: StoreTime) -> None:
        self._txn.put(_TIME, _encode(time), db=self._databases[ROOT])

    def keep_incomplete(self, slots: Iterable[int]) -> None:
        incomplete, raw = sorted(slots), self._txn.get(_SETTINGS, db=self._databases[ROOT])
        try:
            settings = None if raw is None else _settings.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if settings is not None and settings.incomplete != incomplete:
            settings = msgspec.structs.replace(settings, incomplete=incomplete)
            self._txn.put(_SETTINGS, msgspec.json.encode(settings), db=self._databases[ROOT])

    def counters(self) -> Counters:
        raw = self._txn.get(_COUNTERS, db=self._databases[ROOT])
        return Counters() if raw is None else _decode_counters(raw)

    def set_counters(self, counters: Counters) -> None:
        self._txn.put(_COUNTERS, _encode(counters), db=self._databases[ROOT])


def _entry_or_problem(raw: bytes) -> tuple[FileEntry | None, str]:
    try:
        return _decode_entry(raw), ""
    except FormatError as error:
        return None, str(error)


def _note_doubt(txn: Transaction) -> None:
    txn.put(_DOCUMENT + COPIED_IN_USE.encode(), b"1")


class LmdbCatalog:
    """A :class:`~storage.catalog.port.Catalog` in one LMDB environment.

    Raises:
        FormatError: the database is damaged (run rebuild) or of a newer format.
    """

    def __init__(self, path: Path) -> None:
        self._environment = Environment(path, _TABLES, note_doubt=_note_doubt)

    def trouble(self) -> str:
        return self._environment.probe()

    def settings(self) -> StoreSettings | None:
        raw = self._environment.get(ROOT, _SETTINGS)
        if raw is None:
            return None
        try:
            settings = _settings.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DamagedSettings(
                f"the catalog's settings are damaged ({error}); move the catalog away and rebuild"
            ) from error
        if settings.format > 1:
            raise FormatError(f"the catalog has format {settings.format}; this version reads format 1: upgrade")
        return settings

    def save_settings(self, settings: StoreSettings) -> None:
        raw = msgspec.json.encode(settings)
        self._environment.write(lambda txn: txn.put(_SETTINGS, raw, db=self._environment.databases[ROOT]))

    def document(self, name: str) -> bytes | None:
        if name == COPIED_IN_USE and self._environment.doubtful:
            return b"1"
        return self._environment.get(ROOT, _DOCUMENT + name.encode())

    def save_document(self, name: str, raw: bytes) -> None:
        self.save_documents({name: raw})

    def save_documents(self, documents: Mapping[str, bytes]) -> None:
        def work(txn: Transaction) -> None:
            for name, raw in documents.items():
                txn.put(_DOCUMENT + name.encode(), raw, db=self._environment.databases[ROOT])

        self._environment.write(work)

    def transact(self, work: Callable[[CatalogTransaction], T]) -> T:
        databases = self._environment.databases
        return self._environment.write(lambda txn: _Transaction.run(txn, databases, work))

    def file(self, file_id: bytes) -> FileEntry | None:
        raw = self._environment.get("files", file_id)
        return None if raw is None else _decode_entry(raw)

    def find(self, key: bytes) -> bytes | None:
        return self._environment.get("names", key)

    def names(self, user: bytes, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        base = user + prefix[:440]
        start = base if after is None else max(base, after + b"\0")

        def work(txn: Transaction) -> list[tuple[bytes, bytes]]:
            cursor = txn.cursor(self._environment.databases["names"])
            found: list[tuple[bytes, bytes]] = []
            if limit > 0 and cursor.set_range(start):
                for key, value in cursor:
                    if not key.startswith(base):
                        break
                    found.append((key, value))
                    if len(found) == limit:
                        break
            return found

        return self._environment.read(work)

    def version(self, file_id: bytes, version_id: bytes) -> bytes | None:
        return self._environment.get("files", file_id + version_id)

    def node(self, node_id: bytes) -> bytes | None:
        return self._environment.get("nodes", node_id)

    def is_held(self, stripe: StripeKey) -> bool:
        def work(txn: Transaction) -> bool:
            cursor = txn.cursor(self._environment.databases["holdings"])
            return bool(cursor.set_range(stripe)) and next(iter(cursor))[0].startswith(stripe)

        return self._environment.read(work)

    def holds(self, user: bytes, stripes: Sequence[StripeKey]) -> list[bool]:
        return self._environment.read(
            lambda txn: [
                txn.get(stripe + user, db=self._environment.databases["holdings"]) is not None for stripe in stripes
            ]
        )

    def counters(self) -> Counters:
        raw = self._environment.get(ROOT, _COUNTERS)
        try:
            return Counters() if raw is None else _decode_counters(raw)
        except FormatError as error:
            log.warning("%s; they are counted again", error)
            return recounted(self.versions(), self.tombstones())

    def profiles(self) -> list[ProfileCount]:
        raw = self._environment.get(ROOT, _PROFILES)
        if raw is not None:
            return as_counts(unpacked(raw))
        return as_counts(count_all(self.versions())) if self.counters().versions else []

    def recount(self) -> None:
        raw = self._environment.get(ROOT, _COUNTERS)
        try:
            if raw is not None:
                _decode_counters(raw)
        except FormatError:
            totals = self.counters()
            self.transact(lambda txn: txn.set_counters(totals))
        self._count_profiles()

    def _count_profiles(self) -> None:
        if not is_whole(self._environment.get(ROOT, _PROFILES)) and self.counters().versions:
            raw = packed(count_all(self.versions()))
            self._environment.write(lambda txn: txn.put(_PROFILES, raw, db=self._environment.databases[ROOT]))

    def versions(self) -> Iterator[StoredEntry]:
        file_id, entry, problem = b"", None, ""
        # Few a page: a version of a large file is 32 KiB.
        for page in self._environment.pages("files", b"", size=64):
            for key, value in page:
                if len(key) == FILE_ID_BYTES:
                    file_id, entry, problem = key, *_entry_or_problem(value)
                    continue
                owner, version_id = key[:FILE_ID_BYTES], key[FILE_ID_BYTES:]
                if owner == file_id:
                    yield StoredEntry(owner, entry, version_id, value, problem)
                else:
                    yield StoredEntry(owner, None, version_id, value)

    def nodes(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[bytes]:
        for page in self._environment.pages("nodes", start, stop, size=64):
            for key, _ in page:
                yield key

    def tombstones(self) -> Iterator[tuple[bytes, bytes]]:
        for page in self._environment.pages("tombstones", b""):
            yield from page

    def pending_tombstones(self) -> list[tuple[bytes, bytes]]:
        return [entry for page in self._environment.pages("unburied", b"") for entry in page]

    def holdings(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[Holding]:
        for page in self._environment.pages("holdings", start, stop):
            for key, value in page:
                yield _holding(key, value)

    def uploads(self) -> dict[int, UploadRecord]:
        return {
            int.from_bytes(key, "big"): _decode_upload(raw)
            for page in self._environment.pages("uploads", b"")
            for key, raw in page
        }

    def store_time(self) -> StoreTime | None:
        raw = self._environment.get(ROOT, _TIME)
        try:
            return None if raw is None else _decode_time(raw)
        except FormatError as error:
            log.warning("%s; interrupted uploads are kept as if they had been interrupted just now", error)
            return time_from(self.uploads(), self.holdings())

    def claims(self) -> int:
        return self._environment.entries("holdings")

    def drop_versions(self, keys: Iterable[tuple[bytes, bytes]], *, counted: bool = False) -> None:
        doomed = [file_id + version_id for file_id, version_id in keys]
        databases = self._environment.databases

        def work(totals: _Transaction) -> None:
            dropped = sum(totals.drop_version(key) for key in doomed)
            if counted:
                counters = totals.counters()
                totals.set_counters(msgspec.structs.replace(counters, versions=counters.versions - dropped))

        if doomed:
            self._environment.write(lambda txn: _Transaction.run(txn, databases, work))

    def drop_nodes(self, node_ids: Iterable[bytes], unless: Callable[[bytes], bool] = never) -> None:
        self._drop("nodes", list(node_ids), unless)

    def _drop(self, table: str, keys: list[bytes], unless: Callable[[bytes], bool] = never) -> None:
        if not keys:
            return

        def work(txn: Transaction) -> None:
            for key in keys:
                if not unless(key):
                    txn.delete(key, db=self._environment.databases[table])

        self._environment.write(work)

    def drop_holdings(self, holdings: Iterable[Holding], unless: Callable[[StripeKey], bool] = never) -> list[Holding]:
        doomed = list(holdings)
        if not doomed:
            return []

        def work(txn: Transaction) -> list[Holding]:
            kept: list[Holding] = []
            for holding in doomed:
                if unless(holding.stripe):
                    kept.append(holding)
                    continue
                key = holding.stripe + holding.user
                value = txn.get(key, db=self._environment.databases["holdings"])
                if value is not None and _holding(key, value) == holding:
                    txn.delete(key, db=self._environment.databases["holdings"])
            return kept

        return self._environment.write(work)

    def close(self) -> None:
        self._environment.close()


def _holding(key: bytes, value: bytes) -> Holding:
    stripe, user = stripe_of(key), key[-USER_KEY_BYTES:]
    try:
        return Holding(stripe, user, _claimants(value))
    except FormatError as error:
        return Holding(stripe, user, (), str(error))


def _claim(uploads: tuple[int, ...]) -> bytes:
    """A claim's value."""
    return _CLAIM_FORMAT + b"".join(_number_key(number) for number in uploads)


def _claimants(value: bytes) -> tuple[int, ...]:
    """The uploads in a claim's value."""
    if value == _NO_UPLOAD:
        return ()
    if len(value) == _LEASE_BEFORE.size:
        return (LEASES_BEFORE,) if _LEASE_BEFORE.unpack(value)[0] else ()
    if value[:1] != _CLAIM_FORMAT or len(value) % _NUMBER_BYTES != 1:
        raise FormatError("a claim in the catalog is damaged or of a newer format; upgrade, or run rebuild")
    starts = range(1, len(value), _NUMBER_BYTES)
    return tuple(int.from_bytes(value[at : at + _NUMBER_BYTES], "big") for at in starts)


def _number_key(number: int) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big")
