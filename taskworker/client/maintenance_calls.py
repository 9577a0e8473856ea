"""The maintenance calls: long operations of a store on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from storage.progress import Progress
from taskworker.client.base import ClientBase
from taskworker.client.checked import arguments_checked
from taskworker.errors import ServerFault
from taskworker.protos import store_pb2

# taskworker.rpc.reports is loaded by the calls that need it: most programs make none of them.
if TYPE_CHECKING:
    from storage import CollectReport, RebuildReport, RepairReport, ScrubReport, StoreStats


class _Event(Protocol):
    """An event of a maintenance call."""

    @property
    def progress(self) -> store_pb2.Progress: ...

    def HasField(self, field_name: Literal["report"], /) -> bool: ...  # noqa: N802 - protobuf's name


EventT = TypeVar("EventT", bound=_Event)


class MaintenanceCalls(ClientBase):
    """The client's methods for maintenance of the whole store."""

    @arguments_checked
    def stats(self, *, timeout_s: float | None = None) -> StoreStats:
        """Statistics of the store."""
        from taskworker.rpc.reports import stats_from_proto

        response = self._channel.unary(self._channel.store.Stats, store_pb2.StatsRequest(), self._deadline(timeout_s))
        return stats_from_proto(response)

    @arguments_checked
    def scrub(self, *, progress: Progress | None = None, timeout_s: float | None = None) -> ScrubReport:
        """Verify all shards; ``progress`` gets (bytes done, total bytes). If it raises an error, the scrub stops."""
        from taskworker.rpc.reports import scrub_from_proto

        event = self._maintenance(self._channel.store.Scrub, store_pb2.ScrubRequest(), progress, timeout_s)
        return scrub_from_proto(event.report)

    @arguments_checked
    def repair(self, *, progress: Progress | None = None, timeout_s: float | None = None) -> RepairReport:
        """Rebuild missing and corrupt shards; ``progress`` gets (objects done, total objects)."""
        from taskworker.rpc.reports import repair_from_proto

        event = self._maintenance(self._channel.store.Repair, store_pb2.RepairRequest(), progress, timeout_s)
        return repair_from_proto(event.report)

    @arguments_checked
    def collect(
        self, *, progress: Progress | None = None, grace_s: float | None = None, timeout_s: float | None = None
    ) -> CollectReport:
        """Delete objects that no version reaches and that are older than ``grace_s`` seconds (default: a day)."""
        from taskworker.rpc.reports import collect_from_proto

        request = store_pb2.CollectRequest(grace_s=grace_s)
        event = self._maintenance(self._channel.store.Collect, request, progress, timeout_s)
        return collect_from_proto(event.report)

    @arguments_checked
    def rebuild(self, *, progress: Progress | None = None, timeout_s: float | None = None) -> RebuildReport:
        """Rebuild the catalog from the volumes."""
        from taskworker.rpc.reports import rebuild_from_proto

        event = self._maintenance(self._channel.store.Rebuild, store_pb2.RebuildRequest(), progress, timeout_s)
        return rebuild_from_proto(event.report)

    def _maintenance(
        self,
        method: grpc.UnaryStreamMultiCallable[Any, EventT],
        request: Message,
        progress: Progress | None,
        timeout_s: float | None,
    ) -> EventT:
        with self._channel.receive(method, request, self._deadline(timeout_s)) as events:
            for event in events:
                if event.HasField("report"):
                    return event
                if progress is not None:
                    progress(event.progress.done, event.progress.total)
        raise ServerFault("the server ended the operation without a report; its log says why")
