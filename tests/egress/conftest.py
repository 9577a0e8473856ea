"""A proxy whose names lead where a test says, and to nobody's servers but the test's own."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from taskworker.calls.capabilities import ApiRequest, ApiResponse
from taskworker.outbound.egress.addresses import Address
from taskworker.outbound.egress.audit import AuditLog
from taskworker.outbound.egress.filling import Fill, no_secrets
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.outbound.egress.proxy import EgressProxy
from taskworker.outbound.egress.rules import RuleBook, parse_rule

ANN = "ann"


class Documents:
    """A catalog's documents, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def document(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def save_document(self, name: str, raw: bytes) -> None:
        self.kept[name] = raw


class Names:
    """A resolver: each name has answers, given in turn, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []

    def lead(self, name: str, *answers: list[str]) -> None:
        self.answers[name] = list(answers)

    def __call__(self, name: str) -> list[Address]:
        self.asked.append(name)
        answers = self.answers.get(name)
        if answers is None:
            raise OSError("no such name")
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        return [ipaddress.ip_address(address) for address in now]


class Egress:
    """A proxy and all around it."""

    def __init__(self, limits: EgressLimits, fill: Fill, **options: object) -> None:
        self.names = Names()
        self.rules = RuleBook(Documents())
        self.audit = AuditLog(None)
        self.proxy = EgressProxy(
            self.rules,
            self.audit,
            limits=limits,
            resolve=self.names,
            fill=fill,
            **options,  # type: ignore[arg-type]
        )

    def allow(self, rule: str, function: str = "f", *, private: bool = True) -> None:
        self.rules.allow(function, parse_rule(rule, private=private))

    def request(
        self, url: str, method: str = "GET", *, function: str = "f", user: str = ANN, **options: object
    ) -> ApiResponse:
        return self.proxy.request(function, user, ApiRequest(method, url, **options))  # type: ignore[arg-type]


Make = Callable[..., Egress]


@pytest.fixture
def make() -> Iterator[Make]:
    with ExitStack() as stack:

        def egress(limits: EgressLimits | None = None, fill: Fill = no_secrets, **options: object) -> Egress:
            made = Egress(limits or EgressLimits(), fill, **options)
            stack.callback(made.proxy.close)
            return made

        yield egress


@pytest.fixture
def egress(make: Make) -> Egress:
    return make()
