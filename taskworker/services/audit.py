"""AuditService of ``audit.proto``."""

from __future__ import annotations

from collections.abc import Iterator

from taskworker.audit.records import Record
from taskworker.audit.trail import AuditTrail
from taskworker.errors import CallAbandoned
from taskworker.protos import audit_pb2
from taskworker.rpc.admission import Gate
from taskworker.rpc.binding import Caller

_READERS = 16  # at once; each takes a thread


class AuditService:
    """Shows a pool's audit trail to auditors and operators; thread-safe."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._readers = Gate(_READERS, f"{_READERS} callers are reading the audit trail, as many as this pool allows")

    def ReadTrail(  # noqa: N802 - the names are the contract's
        self, request: audit_pb2.ReadTrailRequest, caller: Caller
    ) -> Iterator[audit_pb2.Record]:
        """The records, oldest first."""
        with self._readers.place():
            for one in self._trail.read(since_ms=request.since_ms, follow=request.follow):
                if not caller.is_active():
                    raise CallAbandoned("the caller went away")
                if one is not None:
                    yield _record(one)

    def VerifyTrail(  # noqa: N802
        self, _request: audit_pb2.VerifyTrailRequest, _caller: Caller
    ) -> audit_pb2.Verification:
        """Check the hashes of all records."""
        with self._readers.place():
            found = self._trail.verify()
        return audit_pb2.Verification(
            records=found.records, first=found.first, last=found.last, problems=found.problems
        )


def _record(one: Record) -> audit_pb2.Record:
    return audit_pb2.Record(
        number=one.n,
        time_ms=one.ms,
        who=one.who,
        token_id=one.token,
        call=one.call,
        on=one.on,
        peer=one.peer,
        outcome=one.outcome,
        count=one.count,
    )
