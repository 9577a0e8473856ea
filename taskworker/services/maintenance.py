"""The maintenance methods of StoreService: statistics, scrub, repair, collect, rebuild."""

from __future__ import annotations

from collections.abc import Iterator

from storage import FileStorage
from storage.engine import COLLECT_GRACE_S
from taskworker.protos import store_pb2
from taskworker.rpc.admission import Gate
from taskworker.rpc.binding import Caller
from taskworker.rpc.reports import (
    collect_to_proto,
    rebuild_to_proto,
    repair_to_proto,
    scrub_to_proto,
    stats_to_proto,
)
from taskworker.rpc.running import Run


class MaintenanceService:
    """Runs a store's maintenance, one run of each kind at a time; cancelling the call stops the run."""

    def __init__(self, store: FileStorage) -> None:
        self._store = store
        self._gates = {kind: Gate(1, f"a {kind} is running already") for kind in _KINDS}

    def Stats(  # noqa: N802 - the names are the contract's
        self, _request: store_pb2.StatsRequest, _caller: Caller
    ) -> store_pb2.StoreStats:
        """Statistics of the store."""
        return stats_to_proto(self._store.stats())

    def Scrub(  # noqa: N802
        self, _request: store_pb2.ScrubRequest, _caller: Caller
    ) -> Iterator[store_pb2.ScrubEvent]:
        """Verify all shards."""
        with self._gates["scrub"].place(), Run(lambda progress: self._store.scrub(progress=progress)) as run:
            for done, total in run.progress():
                yield store_pb2.ScrubEvent(progress=store_pb2.Progress(done=done, total=total))
            yield store_pb2.ScrubEvent(report=scrub_to_proto(run.outcome()))

    def Repair(  # noqa: N802
        self, _request: store_pb2.RepairRequest, _caller: Caller
    ) -> Iterator[store_pb2.RepairEvent]:
        """Rebuild missing and corrupt shards."""
        with self._gates["repair"].place(), Run(lambda progress: self._store.repair(progress=progress)) as run:
            for done, total in run.progress():
                yield store_pb2.RepairEvent(progress=store_pb2.Progress(done=done, total=total))
            yield store_pb2.RepairEvent(report=repair_to_proto(run.outcome()))

    def Collect(  # noqa: N802
        self, request: store_pb2.CollectRequest, _caller: Caller
    ) -> Iterator[store_pb2.CollectEvent]:
        """Delete objects that no version reaches."""
        grace_s = request.grace_s if request.HasField("grace_s") else COLLECT_GRACE_S
        with (
            self._gates["collect"].place(),
            Run(lambda progress: self._store.collect(progress=progress, grace_s=grace_s)) as run,
        ):
            for done, total in run.progress():
                yield store_pb2.CollectEvent(progress=store_pb2.Progress(done=done, total=total))
            yield store_pb2.CollectEvent(report=collect_to_proto(run.outcome()))

    def Rebuild(  # noqa: N802
        self, _request: store_pb2.RebuildRequest, _caller: Caller
    ) -> Iterator[store_pb2.RebuildEvent]:
        """Rebuild the catalog from the volumes."""
        with self._gates["rebuild"].place(), Run(lambda progress: self._store.rebuild(progress=progress)) as run:
            for done, total in run.progress():
                yield store_pb2.RebuildEvent(progress=store_pb2.Progress(done=done, total=total))
            yield store_pb2.RebuildEvent(report=rebuild_to_proto(run.outcome()))


_KINDS = ("scrub", "repair", "collect", "rebuild")
