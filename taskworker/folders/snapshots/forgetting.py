"""Forgets snapshots by rules, and deletes what only they needed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from storage import FileNotFound, Version
from storage.clocks import wall_ms
from storage.errors import InvalidArgument
from taskworker.folders.entries import Kind
from taskworker.folders.ports import Content
from taskworker.folders.problems import FolderDamaged
from taskworker.folders.snapshots.blobs import CONTAINER_BYTES, Place, split_indexes
from taskworker.folders.snapshots.directories import decode_directory
from taskworker.folders.snapshots.packing import Pack
from taskworker.folders.snapshots.records import Pending, Record, Snapshot
from taskworker.folders.snapshots.repository import PACK_BYTES_MAX, Repository

_REPACKED_BELOW = 0.5
"""A pack is written anew once less than this share of it is needed."""
_MERGED_BELOW = 4096
"""Indexes of fewer blobs become one."""
_PACK_BYTES = 16 << 20
UNFINISHED_MS = 24 * 3600 * 1000
"""Containers that no index names are kept for a day: a snapshot that is being taken may need them."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Which snapshots are kept.

    Attributes:
        last: this many of the newest.
        daily: the newest one of each of the last days that have any.
        weekly: likewise of weeks, which begin on Monday.
        monthly: likewise of months.
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    def kept(self, snapshots: Iterable[Snapshot]) -> list[Snapshot]:
        """Those to keep, the newest first. Days begin at midnight here. Those whose time no calendar has are kept.

        Raises:
            InvalidArgument: none of the rules keeps anything.
        """
        if min(self.last, self.daily, self.weekly, self.monthly) < 0 or self == Keep():
            raise InvalidArgument("say how many snapshots to keep, such as --keep-last 3 or --keep-daily 7")
        rules: list[tuple[int, Callable[[datetime, int], object]]] = [
            (self.last, lambda _, number: number),
            (self.daily, lambda when, _: when.date()),
            (self.weekly, lambda when, _: when.isocalendar()[:2]),
            (self.monthly, lambda when, _: (when.year, when.month)),
        ]
        periods: list[set[object]] = [set() for _ in rules]
        kept = []
        for number, snapshot in enumerate(sorted(snapshots, key=lambda each: each.time_ms, reverse=True)):
            try:
                when = datetime.fromtimestamp(snapshot.time_ms / 1000).astimezone()
            except (ValueError, OverflowError, OSError):  # no calendar has this time: a clock was broken
                kept.append(snapshot)
                continue
            is_kept = False
            for (count, period_of), seen in zip(rules, periods, strict=True):
                period = period_of(when, number)
                if period not in seen and len(seen) < count:
                    seen.add(period)
                    is_kept = True
            if is_kept:
                kept.append(snapshot)
        return kept


@dataclass(slots=True)
class ForgetReport:
    """What was forgotten.

    Attributes:
        folder: the folder's name.
        kept: snapshots that are left.
        forgotten: snapshots that are not.
        deleted: containers that were deleted.
        deleted_size: their bytes; the store frees them with its next collect.
        rewritten_size: bytes that were needed still, and were copied to new containers.
    """

    folder: str
    kept: list[Snapshot] = field(default_factory=list)
    forgotten: list[Snapshot] = field(default_factory=list)
    deleted: int = 0
    deleted_size: int = 0
    rewritten_size: int = 0


def forget(
    repository: Repository,
    kept: Collection[Snapshot],
    *,
    dry_run: bool = False,
    now_ms: Callable[[], int] = wall_ms,
) -> ForgetReport:
    """Forget all snapshots but these, and delete what no other one needs.

    A crash leaves either all as it was, or what the next call deletes.

    Args:
        repository: the folder.
        kept: the snapshots that stay.
        dry_run: only say what would be forgotten.
        now_ms: the clock, ms since 1970.

    Raises:
        ConflictError: somebody else changes the folder; what was not forgotten is as it was.
        FolderDamaged: a directory of a snapshot that stays cannot be read; nothing was deleted.
    """
    ids = {snapshot.id for snapshot in kept}
    report = ForgetReport(repository.folder)
    for snapshot in repository.record.snapshots:
        (report.kept if snapshot.id in ids else report.forgotten).append(snapshot)
    if not dry_run:
        _Sweep(repository, report, now_ms()).run()
    return report


@dataclass(slots=True)
class _Sweep:
    repository: Repository
    report: ForgetReport
    now_ms: int
    _marks: list[bytearray] = field(default_factory=list, init=False)

    def run(self) -> None:
        """Do it all."""
        repository = self.repository
        record = repository.record
        self._marks = [bytearray(len(index)) for index in repository.indexes]
        for snapshot in self.report.kept:
            self._mark_directory(snapshot.directory)
        there = repository.containers()
        used, whole = self._used()
        doomed = self._unneeded(there, used, whole)
        if not doomed and not self.report.forgotten and not record.doomed:
            return
        rewritten = [container for container in doomed if used.get(container)]
        moved = self._rewritten(set(rewritten))
        young = self._young(record)
        good = self._good_indexes(set(doomed), {each.index for each in young})
        indexes = [*good, *self._store_indexes(dict(self._outside(set(doomed), good)) | dict(moved))]
        doomed += {*repository.index_containers} - {each.index for each in young} - {*good}
        repository.save(
            Record(1, record.generation + 1, tuple(self.report.kept), tuple(indexes), (*record.doomed, *doomed), young)
        )
        self._delete([*record.doomed, *doomed])
        repository.save(msgspec.structs.replace(repository.record, doomed=()))

    # -- what is needed --------------------------------------------------------------------------

    def _mark(self, blob: bytes) -> bool:
        """Mark a blob as needed; returns whether it was not marked before.

        Raises:
            FolderDamaged: it is not stored.
        """
        is_new, is_stored = False, False
        for index, marks in zip(reversed(self.repository.indexes), reversed(self._marks), strict=True):
            position = index.position_of(blob)
            if position is None:
                continue
            if not is_stored:  # that a blob lies in a second place as well is not needed
                is_new, is_stored = not marks[position], True
                marks[position] = 1
        if not is_stored:
            raise FolderDamaged(
                f"blob {blob.hex()[:16]} is not stored, which a snapshot needs; nothing was deleted. Forget that "
                "snapshot by its id, or keep all as it is"
            )
        return is_new

    def _mark_directory(self, directory: bytes) -> None:
        """Mark a directory, and all that is below it; what was marked before is not read again."""
        waiting = [directory]
        while waiting:
            blob = waiting.pop()
            if not self._mark(blob):
                continue
            found = decode_directory(self.repository.load(blob))
            waiting += found.parts
            for entry in found.entries:
                if entry.kind is Kind.DIRECTORY:
                    waiting += entry.content
                else:
                    for each in entry.content:
                        self._mark(each)

    def _used(self) -> tuple[dict[bytes, int], dict[bytes, int]]:
        """Of each container, the bytes that are needed, and those that it has as far as indexes know."""
        used: dict[bytes, int] = {}
        whole: dict[bytes, int] = {}
        for index, marks in zip(self.repository.indexes, self._marks, strict=True):
            for position, mark in enumerate(marks):
                place = index.place_at(position)
                whole[place.container] = whole.get(place.container, 0) + place.length
                if mark:
                    used[place.container] = used.get(place.container, 0) + place.length
        return used, whole

    def _unneeded(self, there: dict[bytes, Version], used: dict[bytes, int], whole: dict[bytes, int]) -> list[bytes]:
        """Containers that can go, some of which after what is needed of them was copied."""
        unneeded = [
            container
            for container, size in whole.items()
            if not used.get(container) or (size <= PACK_BYTES_MAX and used[container] < size * _REPACKED_BELOW)
        ]
        known = whole.keys() | {*self.repository.index_containers} | {*self.repository.record.doomed}
        unneeded += [
            container
            for container, head in there.items()
            if container not in known and head.time_ms < self.now_ms - UNFINISHED_MS
        ]
        awaited = self._awaited()
        return [container for container in unneeded if container not in awaited]

    def _young(self, record: Record) -> tuple[Pending, ...]:
        """Indexes of what a snapshot that is being taken may consist of."""
        return tuple(each for each in record.pending if each.time_ms >= self.now_ms - UNFINISHED_MS)

    def _awaited(self) -> set[bytes]:
        """Containers that such indexes name."""
        young = {each.index for each in self._young(self.repository.record)}
        named = zip(self.repository.index_containers, self.repository.indexes, strict=True)
        return {container for name, index in named if name in young for container in index.containers}

    def _good_indexes(self, doomed: set[bytes], young: set[bytes]) -> list[bytes]:
        """Indexes that stay as they are: large ones that name no container that goes."""
        named = zip(self.repository.index_containers, self.repository.indexes, strict=True)
        return [
            name
            for name, index in named
            if name not in young and len(index) >= _MERGED_BELOW and doomed.isdisjoint(index.containers)
        ]

    def _outside(self, doomed: set[bytes], good: Sequence[bytes]) -> Iterator[tuple[bytes, Place]]:
        """What other indexes say of containers that stay, also of what is not needed there: it takes space."""
        named = zip(self.repository.index_containers, self.repository.indexes, strict=True)
        for name, index in named:  # of a blob in two places, the last counts, which is the one that was marked
            if name not in good:
                for position, blob in enumerate(index):
                    place = index.place_at(position)
                    if place.container not in doomed:
                        yield blob, place

    # -- changes ---------------------------------------------------------------------------------

    def _rewritten(self, containers: set[bytes]) -> list[tuple[bytes, Place]]:
        """Copy what is needed of packs to new ones, and return where it lies then."""
        moved: list[tuple[bytes, Place]] = []
        needed = [
            (place, index[position])
            for index, marks in zip(self.repository.indexes, self._marks, strict=True)
            for position, mark in enumerate(marks)
            if mark and (place := index.place_at(position)).container in containers
        ]
        needed.sort(key=lambda each: (each[0].container, each[0].offset))
        for outcome in self.repository.files.push_many(self._packs([blob for _, blob in needed], moved)):
            outcome.result()
        self.report.rewritten_size = sum(place.length for _, place in moved)
        return moved

    def _packs(self, blobs: Sequence[bytes], moved: list[tuple[bytes, Place]]) -> Iterator[tuple[str, Content]]:
        pack = Pack()
        for blob in blobs:
            pack.add(blob, self.repository.load(blob, with_pack=True))
            if pack.size >= _PACK_BYTES:
                moved += pack.blobs
                yield self.repository.container_name(pack.container), pack.content()
                pack = Pack()
        if pack.blobs:
            moved += pack.blobs
            yield self.repository.container_name(pack.container), pack.content()

    def _store_indexes(self, blobs: Mapping[bytes, Place]) -> list[bytes]:
        containers = []
        for data in split_indexes(list(blobs.items())):
            container = secrets.token_bytes(CONTAINER_BYTES)
            self.repository.files.push(self.repository.container_name(container), data)
            containers.append(container)
        return containers

    def _delete(self, containers: Sequence[bytes]) -> None:
        there = self.repository.containers()
        heads = [there[container] for container in dict.fromkeys(containers) if container in there]
        for outcome in self.repository.files.delete_many([head.file_id for head in heads]):
            if outcome.error is not None and not isinstance(outcome.error, FileNotFound):
                raise outcome.error
            self.report.deleted += 1
            self.report.deleted_size += heads[outcome.position].size
