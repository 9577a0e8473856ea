"""The client of a pool's audit trail, for auditors and operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from taskworker.auth.contexts import Access
from taskworker.client.operators import OperatorClient
from taskworker.protos import audit_pb2
from taskworker.protos.audit_pb2_grpc import AuditServiceStub


@dataclass(frozen=True, slots=True)
class TrailRecord:
    """A record of the audit trail.

    Attributes:
        number: its number; each is one more than the one before.
        time_ms: when it was written, milliseconds since 1970.
        who: the user, or the member by its certificate; empty: unknown.
        token_id: id of the token that was shown.
        call: the call.
        on: what it was about.
        peer: where it came from.
        outcome: ``OK``, or the status code.
        count: how many times this happened since the last such record.
    """

    number: int
    time_ms: int
    who: str
    token_id: str
    call: str
    on: str
    peer: str
    outcome: str
    count: int


@dataclass(frozen=True, slots=True)
class TrailVerification:
    """Whether the trail is what was written: it is if there are no ``problems``."""

    records: int
    first: int
    last: int
    problems: list[str]


class AuditClient(OperatorClient):
    """The audit trail of a pool. Thread-safe; a context manager.

    Raises errors of the engine's family: ``Unauthenticated``, ``PermissionDenied``, ``StorageUnavailable``.

    Args:
        address: address of the pool.
        access: what to show, and to whom; None: as the context for the address says.
    """

    def __init__(self, address: str, *, access: Access | None = None) -> None:
        super().__init__(address, access=access)
        self._stub = AuditServiceStub(self.channel)

    def records(self, *, since_ms: int = 0, follow: bool = False) -> Iterator[TrailRecord]:
        """Yield the records, oldest first; with ``follow``, keep yielding new ones without end."""
        request = audit_pb2.ReadTrailRequest(since_ms=since_ms, follow=follow)
        for one in self._stream(self._stub.ReadTrail, request):
            yield TrailRecord(
                one.number,
                one.time_ms,
                one.who,
                one.token_id,
                one.call,
                one.on,
                one.peer,
                one.outcome,
                one.count,
            )

    def verify(self) -> TrailVerification:
        """Check the hashes of all records that are kept."""
        found = self._call(self._stub.VerifyTrail, audit_pb2.VerifyTrailRequest())
        return TrailVerification(found.records, found.first, found.last, list(found.problems))
