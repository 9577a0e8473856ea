"""The operator's client for egress: which functions may call which hosts, and the log of their requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from taskworker.auth.contexts import Access
from taskworker.client.operators import OperatorClient
from taskworker.protos import egress_pb2
from taskworker.protos.egress_pb2_grpc import EgressServiceStub


@dataclass(frozen=True, slots=True)
class EgressRule:
    """Hosts that a function may call; ``private``: also on loopback and in private networks."""

    function: str
    rule: str
    private: bool


@dataclass(frozen=True, slots=True)
class EgressRecord:
    """One request to one host; sizes of bodies in bytes, ``status`` 0 without a response.

    ``outcome`` is ``ok``, ``cache``, or the kind of error.
    """

    time_ms: int
    function: str
    user_id: str
    host: str
    method: str
    status: int
    sent: int
    received: int
    ms: float
    outcome: str


class EgressClient(OperatorClient):
    """The egress of a pool. Thread-safe; a context manager.

    Raises errors of the engine's family: ``InvalidArgument``, ``StorageUnavailable``.

    Args:
        address: address of the pool.
        access: what to show, and to whom; None: as the context for the address says.
    """

    def __init__(self, address: str, *, access: Access | None = None) -> None:
        super().__init__(address, access=access)
        self._stub = EgressServiceStub(self.channel)

    def allow(self, function: str, rule: str, *, private: bool = False) -> tuple[EgressRule, bool]:
        """Let a function call a host.

        Args:
            function: name of the function; it need not be deployed yet.
            rule: ``[http://|https://][*.]host[:port][/prefix]``.
            private: whether the host may be on loopback or in a private network.

        Returns:
            The normalized rule, and whether anything changed.
        """
        request = egress_pb2.AllowRequest(function_name=function, rule=rule, private=private)
        answer = self._call(self._stub.Allow, request)
        return _rule(answer.rule), answer.changed

    def deny(self, function: str, rule: str = "") -> list[EgressRule]:
        """Remove a rule of a function, by default all of its rules; returns the removed rules."""
        request = egress_pb2.DenyRequest(function_name=function, rule=rule)
        return [_rule(one) for one in self._call(self._stub.Deny, request).rules]

    def rules(self, function: str = "") -> list[EgressRule]:
        """All rules, or those of one function."""
        request = egress_pb2.ListRulesRequest(function_name=function)
        return [_rule(one) for one in self._call(self._stub.ListRules, request).rules]

    def log(self, function: str = "", *, follow: bool = False) -> Iterator[EgressRecord]:
        """Yield the logged requests; with ``follow``, keep yielding new ones without end."""
        request = egress_pb2.AuditLogRequest(function_name=function, follow=follow)
        for one in self._stream(self._stub.AuditLog, request):
            yield EgressRecord(
                one.time_ms,
                one.function_name,
                one.user_id,
                one.host,
                one.method,
                one.status,
                one.sent,
                one.received,
                one.ms,
                one.outcome,
            )


def _rule(one: egress_pb2.Rule) -> EgressRule:
    return EgressRule(one.function_name, one.rule, one.private)
