"""DNSService of ``taskworker.proto``: name resolution."""

from __future__ import annotations

from taskworker.outbound.dns.names import Names
from taskworker.protos import taskworker_pb2
from taskworker.services.rpc import CallerWithDeadline


class DnsService:
    """Resolves names; thread-safe. Methods raise the engine's errors; the binding turns them into status codes."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def ResolveDomain(  # noqa: N802 - the names are the contract's
        self, request: taskworker_pb2.DNSRequest, caller: CallerWithDeadline
    ) -> taskworker_pb2.DNSResponse:
        """Resolve a name."""
        found = self._names.resolve(request.domain, request.request_type or "A", timeout_s=caller.time_remaining())
        return taskworker_pb2.DNSResponse(
            resolved_ip=",".join(found.records), status=True, answers=found.records, ttl=found.ttl_s
        )
