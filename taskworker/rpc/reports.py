"""Protobuf messages ↔ the reports of maintenance, and statistics."""

from __future__ import annotations

from pathlib import Path

from storage.reports import (
    CollectReport,
    Damage,
    RebuildReport,
    RepairReport,
    ScrubReport,
    StoreStats,
    VolumeStats,
)
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import profile_from_proto, profile_to_proto


def damage_to_proto(damage: Damage) -> store_pb2.Damage:
    """The wire form of one damaged object."""
    return store_pb2.Damage(
        time_ms=damage.time_ms,
        kind=damage.kind,
        object_id=damage.object_id,
        slot=damage.slot,
        volume=damage.volume,
        text=damage.text,
    )


def damage_from_proto(message: store_pb2.Damage) -> Damage:
    """Inverse of :func:`damage_to_proto`."""
    return Damage(
        time_ms=message.time_ms,
        kind=message.kind,
        object_id=message.object_id,
        slot=message.slot,
        volume=message.volume,
        text=message.text,
    )


def scrub_to_proto(report: ScrubReport) -> store_pb2.ScrubReport:
    """The wire form of a scrub's report."""
    return store_pb2.ScrubReport(
        shards_checked=report.shards_checked,
        bytes_checked=report.bytes_checked,
        rotten=report.rotten,
        missing=report.missing,
        damaged=map(damage_to_proto, report.damaged),
        unreadable=report.unreadable,
        unavailable=report.unavailable,
        misplaced=report.misplaced,
    )


def scrub_from_proto(message: store_pb2.ScrubReport) -> ScrubReport:
    """Inverse of :func:`scrub_to_proto`."""
    return ScrubReport(
        shards_checked=message.shards_checked,
        bytes_checked=message.bytes_checked,
        rotten=message.rotten,
        missing=message.missing,
        damaged=[damage_from_proto(each) for each in message.damaged],
        unreadable=message.unreadable,
        unavailable=message.unavailable,
        misplaced=message.misplaced,
    )


def repair_to_proto(report: RepairReport) -> store_pb2.RepairReport:
    """The wire form of a repair's report."""
    return store_pb2.RepairReport(
        objects_examined=report.objects_examined,
        shards_rebuilt=report.shards_rebuilt,
        bytes_rebuilt=report.bytes_rebuilt,
        lost=map(damage_to_proto, report.lost),
        lost_count=report.lost_count,
        shards_moved=report.shards_moved,
        bytes_moved=report.bytes_moved,
        deferred=report.deferred,
        unavailable=report.unavailable,
        unavailable_why=report.unavailable_why,
        unwritable=report.unwritable,
    )


def repair_from_proto(message: store_pb2.RepairReport) -> RepairReport:
    """Inverse of :func:`repair_to_proto`."""
    return RepairReport(
        objects_examined=message.objects_examined,
        shards_rebuilt=message.shards_rebuilt,
        bytes_rebuilt=message.bytes_rebuilt,
        lost=[damage_from_proto(each) for each in message.lost],
        lost_count=message.lost_count,
        shards_moved=message.shards_moved,
        bytes_moved=message.bytes_moved,
        deferred=message.deferred,
        unavailable=message.unavailable,
        unavailable_why=message.unavailable_why,
        unwritable=list(message.unwritable),
    )


def collect_to_proto(report: CollectReport) -> store_pb2.CollectReport:
    """The wire form of a collect's report."""
    return store_pb2.CollectReport(
        objects_removed=report.objects_removed,
        shards_removed=report.shards_removed,
        bytes_freed=report.bytes_freed,
        segments_compacted=report.segments_compacted,
        stores_missed=report.stores_missed,
    )


def collect_from_proto(message: store_pb2.CollectReport) -> CollectReport:
    """Inverse of :func:`collect_to_proto`."""
    return CollectReport(
        objects_removed=message.objects_removed,
        shards_removed=message.shards_removed,
        bytes_freed=message.bytes_freed,
        segments_compacted=message.segments_compacted,
        stores_missed=message.stores_missed,
    )


def rebuild_to_proto(report: RebuildReport) -> store_pb2.RebuildReport:
    """The wire form of a rebuild's report."""
    return store_pb2.RebuildReport(
        files=report.files, versions=report.versions, skipped=report.skipped, undecided=report.undecided
    )


def rebuild_from_proto(message: store_pb2.RebuildReport) -> RebuildReport:
    """Inverse of :func:`rebuild_to_proto`."""
    return RebuildReport(message.files, message.versions, list(message.skipped), list(message.undecided))


def stats_to_proto(stats: StoreStats) -> store_pb2.StoreStats:
    """The wire form of a store's statistics."""
    return store_pb2.StoreStats(
        store_id=stats.store_id,
        files=stats.files,
        versions=stats.versions,
        logical_bytes=stats.logical_bytes,
        stored_bytes=stats.stored_bytes,
        accelerator=stats.accelerator,
        profile=profile_to_proto(stats.profile),
        volumes=map(_volume_to_proto, stats.volumes),
        losses_survivable=stats.losses_survivable,
        recent_damage=map(damage_to_proto, stats.recent_damage),
        needs_rebuild=stats.needs_rebuild,
        behind=stats.behind,
        unfinished=stats.unfinished,
    )


def stats_from_proto(message: store_pb2.StoreStats) -> StoreStats:
    """Inverse of :func:`stats_to_proto`."""
    return StoreStats(
        store_id=message.store_id,
        files=message.files,
        versions=message.versions,
        logical_bytes=message.logical_bytes,
        stored_bytes=message.stored_bytes,
        accelerator=message.accelerator,
        profile=profile_from_proto(message.profile),
        volumes=[_volume_from_proto(each) for each in message.volumes],
        losses_survivable=message.losses_survivable,
        recent_damage=[damage_from_proto(each) for each in message.recent_damage],
        needs_rebuild=message.needs_rebuild,
        behind=message.behind,
        unfinished=message.unfinished,
    )


def _volume_to_proto(volume: VolumeStats) -> store_pb2.VolumeStats:
    return store_pb2.VolumeStats(
        slot=volume.slot,
        path=str(volume.path),
        state=volume.state,
        segments=volume.segments,
        bytes_used=volume.bytes_used,
        bytes_live=volume.bytes_live,
        bytes_free=volume.bytes_free,
        shards=volume.shards,
        cause=volume.cause,
        takes_no_writes=volume.takes_no_writes,
    )


def _volume_from_proto(message: store_pb2.VolumeStats) -> VolumeStats:
    return VolumeStats(
        slot=message.slot,
        path=Path(message.path),
        state=message.state,
        segments=message.segments,
        bytes_used=message.bytes_used,
        bytes_live=message.bytes_live,
        bytes_free=message.bytes_free,
        shards=message.shards,
        cause=message.cause,
        takes_no_writes=message.takes_no_writes,
    )
