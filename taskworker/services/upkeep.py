"""The upkeep calls of StoreService: statistics, scrub, repair, collect, rebuild."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from storage import FileStorage
from storage.reports import Progress
from taskworker import store_pb2
from taskworker.errors import CallAbandoned
from taskworker.services.admission import Gate
from taskworker.services.binding import Caller
from taskworker.wire.convert import (
    collect_to_proto,
    rebuild_to_proto,
    repair_to_proto,
    scrub_to_proto,
    stats_to_proto,
)

ReportT = TypeVar("ReportT")

_PROGRESS_PERIOD_S = 0.2  # often enough to look alive, too rare to cost anything


class UpkeepService:
    """Runs a store's maintenance for callers, one run of each kind at a time; a cancelled call stops its run."""

    def __init__(self, store: FileStorage) -> None:
        self._store = store
        self._gates = {kind: Gate(1, f"a {kind} is running already") for kind in _KINDS}

    def Stats(  # noqa: N802 - the names are the contract's
        self, _request: store_pb2.StatsRequest, _caller: Caller
    ) -> store_pb2.StoreStats:
        """The store at a glance."""
        return stats_to_proto(self._store.stats())

    def Scrub(  # noqa: N802
        self, _request: store_pb2.ScrubRequest, _caller: Caller
    ) -> Iterator[store_pb2.ScrubEvent]:
        """Verify all shards."""
        with self._gates["scrub"].place(), _Run(lambda progress: self._store.scrub(progress=progress)) as run:
            for done, total in run.progress():
                yield store_pb2.ScrubEvent(progress=store_pb2.Progress(done=done, total=total))
            yield store_pb2.ScrubEvent(report=scrub_to_proto(run.report()))

    def Repair(  # noqa: N802
        self, _request: store_pb2.RepairRequest, _caller: Caller
    ) -> Iterator[store_pb2.RepairEvent]:
        """Re-make what is missing or rotten."""
        with self._gates["repair"].place(), _Run(lambda progress: self._store.repair(progress=progress)) as run:
            for done, total in run.progress():
                yield store_pb2.RepairEvent(progress=store_pb2.Progress(done=done, total=total))
            yield store_pb2.RepairEvent(report=repair_to_proto(run.report()))

    def Collect(  # noqa: N802
        self, request: store_pb2.CollectRequest, _caller: Caller
    ) -> Iterator[store_pb2.CollectEvent]:
        """Drop what no version reaches."""
        grace = {"grace_s": request.grace_s} if request.HasField("grace_s") else {}
        with (
            self._gates["collect"].place(),
            _Run(lambda progress: self._store.collect(progress=progress, **grace)) as run,
        ):
            for done, total in run.progress():
                yield store_pb2.CollectEvent(progress=store_pb2.Progress(done=done, total=total))
            yield store_pb2.CollectEvent(report=collect_to_proto(run.report()))

    def Rebuild(  # noqa: N802
        self, _request: store_pb2.RebuildRequest, _caller: Caller
    ) -> Iterator[store_pb2.RebuildEvent]:
        """Make the catalog again from the volumes."""
        with self._gates["rebuild"].place(), _Run(lambda progress: self._store.rebuild(progress=progress)) as run:
            for done, total in run.progress():
                yield store_pb2.RebuildEvent(progress=store_pb2.Progress(done=done, total=total))
            yield store_pb2.RebuildEvent(report=rebuild_to_proto(run.report()))


_KINDS = ("scrub", "repair", "collect", "rebuild")


class _Run(Generic[ReportT]):
    """One long operation in a thread of its own, watched from the thread that answers the call.

    Leaving the context before the operation is done makes it stop at its next sign of progress.
    """

    def __init__(self, operation: Callable[[Progress], ReportT]) -> None:
        self._operation = operation
        self._latest = (0, 0)
        self._finished = threading.Event()
        self._abandoned = threading.Event()
        self._report: ReportT | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def __enter__(self) -> _Run[ReportT]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._abandoned.set()
        self._thread.join()

    def progress(self) -> Iterator[tuple[int, int]]:
        """(done, total) at once and then every so often, until the operation has ended."""
        yield self._latest
        while not self._finished.wait(_PROGRESS_PERIOD_S):
            yield self._latest
        yield self._latest

    def report(self) -> ReportT:
        """What the ended operation returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        assert self._report is not None, "the operation has ended"
        return self._report

    def _run(self) -> None:
        try:
            self._report = self._operation(self._note)
        except BaseException as error:  # handed to the caller's thread, which raises it
            self._error = error
        finally:
            self._finished.set()

    def _note(self, done: int, total: int) -> None:
        if self._abandoned.is_set():
            raise CallAbandoned("the caller went away; start the operation again to go on")
        self._latest = (done, total)
