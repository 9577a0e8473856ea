"""Transactions of a catalog in tables. They also update everything that depends on a record, such as counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec

from storage.catalog.port import Counters, DamagedSettings, FileEntry, StoreTime, UploadRecord, Usage, user_key
from storage.catalog.profiles import Profile, ProfileChanges, profile_in
from storage.catalog.records import (
    COUNTERS,
    PROFILES,
    SETTINGS,
    TIME,
    claim,
    decode_counters,
    decode_entry,
    decode_settings,
    decode_upload,
    decode_usage,
    encode,
    encode_settings,
    entry_or_problem,
    holding_of,
    number_key,
    usage_key,
)
from storage.catalog.tables import ROOT, TableTransaction
from storage.formats.version_records import FILE_ID_BYTES
from storage.keys import StripeKey, object_id_of

T = TypeVar("T")


class RecordTransaction:
    """A :class:`~storage.catalog.port.CatalogTransaction` over a transaction of tables; see :meth:`run`."""

    __slots__ = ("_changes", "_last_put", "_txn")

    def __init__(self, txn: TableTransaction) -> None:
        self._txn = txn
        self._changes: ProfileChanges | None = None  # set when something is counted
        self._last_put: tuple[bytes, Profile | None] = b"", None  # key and profile of the version put last

    @classmethod
    def run(cls, txn: TableTransaction, work: Callable[[RecordTransaction], T]) -> T:
        """Run ``work``, then write the changed counts."""
        transaction = cls(txn)
        outcome = work(transaction)
        transaction._settle()
        return outcome

    def file(self, file_id: bytes) -> FileEntry | None:
        raw = self._txn.get("files", file_id)
        return None if raw is None else decode_entry(raw)

    def find(self, key: bytes) -> bytes | None:
        return self._txn.get("names", key)

    def version(self, file_id: bytes, version_id: bytes) -> bytes | None:
        return self._txn.get("files", file_id + version_id)

    def put_version(self, file_id: bytes, version_id: bytes, raw: bytes) -> None:
        key, profile = file_id + version_id, profile_in(raw, version_id)
        if self._txn.put("files", key, raw, overwrite=False):
            self._last_put = key, profile
            self._count(profile, 0, 1)
            return
        head, before = self._head_profile(file_id), profile_in(self.version(file_id, version_id), version_id)
        self._txn.put("files", key, raw)
        self._last_put = key, profile
        if profile != before:
            self._count(before, 0, -1)
            self._count(profile, 0, 1)
        if (head_now := self._head_profile(file_id)) != head:
            self._count(head, -1, 0)
            self._count(head_now, 1, 0)

    def drop_version(self, key: bytes) -> bool:
        """Remove a version by its key (file id and version id); return whether it existed."""
        self._last_put = b"", None
        self._count(profile_in(self._txn.get("files", key), key[FILE_ID_BYTES:]), 0, -1)
        return self._txn.delete("files", key)

    def set_file(self, file_id: bytes, entry: FileEntry, key: bytes) -> None:
        before = self._head_profile(file_id)
        self._charge(file_id, entry)
        self._txn.put("files", file_id, encode(entry))
        self._txn.put("names", key, file_id)
        after = self._version_profile(file_id, entry.head)
        if after != before:
            self._count(before, -1, 0)
            self._count(after, 1, 0)

    def delete_file(self, file_id: bytes, key: bytes, tombstone: bytes) -> None:
        self.forget_file(file_id)
        self._txn.delete("names", key)
        self.keep_tombstone(file_id, tombstone)
        self._txn.put("unburied", file_id, tombstone)

    def delete_version(self, file_id: bytes, version_id: bytes, tombstone: bytes) -> None:
        self.keep_tombstone(file_id + version_id, tombstone)
        self._txn.put("unburied", file_id + version_id, tombstone)

    def tombstone(self, key: bytes) -> bytes | None:
        return self._txn.get("tombstones", key)

    def keep_tombstone(self, key: bytes, tombstone: bytes) -> None:
        self._txn.put("tombstones", key, tombstone)

    def tombstones_written(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._txn.delete("unburied", key)

    def forget_file(self, file_id: bytes) -> None:
        self._count(self._head_profile(file_id), -1, 0)
        self._charge(file_id, None)
        self._txn.delete("files", file_id)

    def usage(self, user: bytes) -> Usage:
        return decode_usage(self._txn.get(ROOT, usage_key(user)))

    def _charge(self, file_id: bytes, entry: FileEntry | None) -> None:
        """Change what owners' files take, as an entry is about to change."""
        raw = self._txn.get("files", file_id)
        before = None if raw is None else entry_or_problem(raw)[0]
        for one, sign in ((before, -1), (entry, 1)):
            if one is not None:
                key = usage_key(user_key(one.user_id.encode()))
                usage = decode_usage(self._txn.get(ROOT, key))
                self._txn.put(
                    ROOT,
                    key,
                    encode(Usage(max(0, usage.files + sign), max(0, usage.bytes + sign * one.counted), one.user_id)),
                )

    def _head_profile(self, file_id: bytes) -> Profile | None:
        raw = self._txn.get("files", file_id)
        entry = None if raw is None else entry_or_problem(raw)[0]
        return None if entry is None else self._version_profile(file_id, entry.head)

    def _version_profile(self, file_id: bytes, version_id: bytes) -> Profile | None:
        key, profile = self._last_put
        return profile if key == file_id + version_id else profile_in(self.version(file_id, version_id), version_id)

    def _count(self, profile: Profile | None, files: int, versions: int) -> None:
        """Add to the counts of a profile. A catalog of an older release has none until it is opened."""
        if profile is None:
            return
        if self._changes is None:
            raw = self._txn.get(ROOT, PROFILES)
            self._changes = ProfileChanges(raw, is_counted=raw is not None or not self.counters().versions)
        self._changes.add(profile, files, versions)

    def _settle(self) -> None:
        if self._changes is not None and (raw := self._changes.packed()) is not None:
            self._txn.put(ROOT, PROFILES, raw)

    def forget_name(self, key: bytes, file_id: bytes) -> None:
        if self.find(key) == file_id:
            self._txn.delete("names", key)

    def put_nodes(self, nodes: Iterable[tuple[bytes, bytes]]) -> None:
        for node_id, raw in nodes:
            self._txn.put("nodes", node_id, raw)

    def hold(
        self,
        user: bytes,
        stripes: Iterable[StripeKey],
        upload: int | None,
        names: Mapping[StripeKey, bytes] | None = None,
        hashes: Mapping[StripeKey, bytes] | None = None,
    ) -> None:
        uploads = () if upload is None else (upload,)
        plain = claim(uploads)
        for stripe in stripes:
            key, name = stripe + user, names.get(stripe, b"") if names else b""
            unverified = hashes.get(stripe, b"") if hashes else b""
            if name:
                self._txn.put("chunk_names", name, object_id_of(stripe), overwrite=not unverified)
            value = claim(uploads, name, unverified) if name or unverified else plain
            if not self._txn.put("holdings", key, value, overwrite=False) and (name or upload is not None):
                self._hold_again(key, upload, name)

    def _hold_again(self, key: bytes, upload: int | None, name: bytes) -> None:
        """Add an upload and a name to a claim that exists."""
        held = holding_of(key, self._txn.get("holdings", key) or b"")
        uploads = held.uploads
        if upload is not None and upload not in uploads:
            uploads = (*self._still_kept(uploads), upload)
        if uploads != held.uploads or (name and name != held.name):
            self._txn.put("holdings", key, claim(uploads, name or held.name, held.hashes))

    def vouch(self, user: bytes, stripe: StripeKey) -> None:
        key = stripe + user
        held = holding_of(key, self._txn.get("holdings", key) or b"")
        if held.hashes:
            self._txn.put("holdings", key, claim(held.uploads, held.name))

    def _still_kept(self, numbers: tuple[int, ...]) -> list[int]:
        """Return those uploads that are under way, and the latest interrupted one, so that few accumulate."""
        records = {number: record for number in numbers if (record := self._upload(number)) is not None}
        kept = [number for number, record in records.items() if record.interrupted_s is None]
        waiting = {number: at for number, record in records.items() if (at := record.interrupted_s) is not None}
        if waiting:
            kept.append(max(waiting, key=lambda number: waiting[number]))
        return kept

    def _upload(self, number: int) -> UploadRecord | None:
        raw = self._txn.get("uploads", number_key(number))
        return None if raw is None else decode_upload(raw)

    def keep_upload(self, number: int, record: UploadRecord) -> None:
        self._txn.put("uploads", number_key(number), encode(record))

    def end_upload(self, number: int) -> None:
        self._txn.delete("uploads", number_key(number))

    def set_store_time(self, time: StoreTime) -> None:
        self._txn.put(ROOT, TIME, encode(time))

    def keep_incomplete(self, slots: Iterable[int]) -> None:
        incomplete, raw = sorted(slots), self._txn.get(ROOT, SETTINGS)
        try:
            settings = None if raw is None else decode_settings(raw)
        except DamagedSettings:
            return
        if settings is not None and settings.incomplete != incomplete:
            settings = msgspec.structs.replace(settings, incomplete=incomplete)
            self._txn.put(ROOT, SETTINGS, encode_settings(settings))

    def counters(self) -> Counters:
        raw = self._txn.get(ROOT, COUNTERS)
        return Counters() if raw is None else decode_counters(raw)

    def set_counters(self, counters: Counters) -> None:
        self._txn.put(ROOT, COUNTERS, encode(counters))
