"""Reports of maintenance: a client is told all that the store reports."""

from __future__ import annotations

from typing import Any

import pytest

from storage.reports import CollectReport, Damage, RepairReport, ScrubReport
from taskworker.rpc.reports import (
    collect_from_proto,
    collect_to_proto,
    repair_from_proto,
    repair_to_proto,
    scrub_from_proto,
    scrub_to_proto,
)

DAMAGE = Damage(1, "lost", "ab" * 32, 2, 3, "why")


@pytest.mark.parametrize(
    ("report", "sent"),
    [
        (ScrubReport(1, 2, 3, 4, [DAMAGE], 5, 6, 7), lambda report: scrub_from_proto(scrub_to_proto(report))),
        (
            RepairReport(1, 2, 3, [DAMAGE], 5, 6, 7, 8, 9, "too many open files"),
            lambda report: repair_from_proto(repair_to_proto(report)),
        ),
        (CollectReport(1, 2, 3, 4, 5), lambda report: collect_from_proto(collect_to_proto(report))),
    ],
    ids=["scrub", "repair", "collect"],
)
def test_every_field_arrives(report: Any, sent: Any) -> None:
    assert sent(report) == report
