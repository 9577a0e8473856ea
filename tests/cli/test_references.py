"""How users point at a range of bytes."""

from __future__ import annotations

import pytest

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.references import resolve_range


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        (None, 10, (0, 10)),
        (None, 0, (0, 0)),
        ("0-0", 10, (0, 1)),
        ("3-5", 10, (3, 6)),
        ("3-", 10, (3, 10)),
        ("9-99999", 10, (9, 10)),
        ("-4", 10, (6, 10)),
        ("-40", 10, (0, 10)),
    ],
)
def test_ranges(text: str | None, size: int, expected: tuple[int, int]) -> None:
    assert resolve_range(text, size) == expected


@pytest.mark.parametrize(
    "text", [f"0-{'9' * 5000}", "", "-", "5", "a-b", "5-3", "10-", "10-12", "-0", "1-2-3", "--3", " 1-2"]
)
def test_ranges_without_a_byte(text: str) -> None:
    with pytest.raises(Failure) as caught:
        resolve_range(text, 10)
    assert caught.value.code is ExitCode.USAGE
