"""EgressService of ``egress.proto``: the pool's egress rules and the log of requests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from taskworker.errors import CallAbandoned
from taskworker.outbound.egress.audit import AuditRecord
from taskworker.outbound.egress.proxy import EgressProxy
from taskworker.outbound.egress.rules import Rule, parse_rule
from taskworker.protos import egress_pb2
from taskworker.rpc.admission import Gate
from taskworker.rpc.authorization import user_of
from taskworker.rpc.binding import Caller

_FOLLOWERS_MAX = 16
"""Each follower takes up one of the operators' concurrent calls for as long as it follows."""


class EgressService:
    """Manages the egress rules of a pool, and serves the log of requests; thread-safe."""

    def __init__(self, proxy: EgressProxy) -> None:
        self._rules = proxy.rules
        self._audit = proxy.audit
        self._followers = Gate(
            _FOLLOWERS_MAX, f"{_FOLLOWERS_MAX} logs of outside requests are being followed, as many as this pool allows"
        )

    def Allow(  # noqa: N802 - the names are the contract's
        self, request: egress_pb2.AllowRequest, _caller: Caller
    ) -> egress_pb2.AllowResponse:
        """Let a function call a host."""
        rule = parse_rule(request.rule, private=request.private)
        changed = self._rules.allow(request.function_name, rule)
        return egress_pb2.AllowResponse(rule=_rule(request.function_name, rule), changed=changed)

    def Deny(  # noqa: N802
        self, request: egress_pb2.DenyRequest, _caller: Caller
    ) -> egress_pb2.DenyResponse:
        """Remove a rule, or all rules of a function."""
        rule = parse_rule(request.rule) if request.rule else None
        gone = self._rules.deny(request.function_name, rule)
        return egress_pb2.DenyResponse(rules=[_rule(request.function_name, one) for one in gone])

    def ListRules(  # noqa: N802
        self, request: egress_pb2.ListRulesRequest, _caller: Caller
    ) -> egress_pb2.ListRulesResponse:
        """All rules, by function."""
        found = [one for one in self._rules.all() if request.function_name in ("", one[0])]
        return egress_pb2.ListRulesResponse(rules=[_rule(function, rule) for function, rule in found])

    def AuditLog(  # noqa: N802
        self, request: egress_pb2.AuditLogRequest, caller: Caller
    ) -> Iterator[egress_pb2.AuditRecord]:
        """The log of requests to outside hosts."""
        with self._followers.place(user_of(caller)) if request.follow else contextlib.nullcontext():
            for one in self._audit.read(request.function_name, follow=request.follow):
                if not caller.is_active():
                    raise CallAbandoned("the caller went away")
                if one is not None:
                    yield _record(one)


def _record(one: AuditRecord) -> egress_pb2.AuditRecord:
    return egress_pb2.AuditRecord(
        time_ms=one.time_ms,
        function_name=one.function,
        user_id=one.user_id,
        host=one.host,
        method=one.method,
        status=one.status,
        sent=one.sent,
        received=one.received,
        ms=one.ms,
        outcome=one.outcome,
    )


def _rule(function: str, rule: Rule) -> egress_pb2.Rule:
    return egress_pb2.Rule(function_name=function, rule=rule.text, private=rule.private)
