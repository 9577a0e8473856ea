"""The model of the campaign `combinations` tells what a call without an answer may have done from what it may not."""

from __future__ import annotations

import pytest

from tests.cluster.campaign.histories import Doubt, Files, Shown
from tests.cluster.campaign.ledger import Wrong

NAME = "name"


def in_doubt(doubt: Doubt) -> Files:
    """A file with two versions, and a call on it that had no answer."""
    files = Files()
    files.append(NAME, "f", "v1", b"one")
    files.append(NAME, "f", "v2", b"two")
    files.doubts[NAME] = doubt
    return files


@pytest.mark.parametrize(
    ("doubt", "shown", "left"),
    [
        (Doubt(appended=b"three"), Shown("f", ("v1", "v2"), b"two"), ["v1", "v2"]),
        (Doubt(appended=b"three"), Shown("f", ("v1", "v2", "v3"), b"three"), ["v1", "v2", "v3"]),
        (Doubt(removed="v1"), Shown("f", ("v2",), b"two"), ["v2"]),
        (Doubt(removed="v2"), Shown("f", ("v1",), b"one"), ["v1"]),
        (Doubt(deleted=True), None, []),
    ],
)
def test_a_call_was_carried_out_wholly_or_not_at_all(doubt: Doubt, shown: Shown | None, left: list[str]) -> None:
    files = in_doubt(doubt)
    files.settle(NAME, shown)
    assert (files.histories[NAME].ids if NAME in files.histories else []) == left
    assert not files.doubts


@pytest.mark.parametrize(
    ("doubt", "shown"),
    [
        (Doubt(appended=b"three"), Shown("f", ("v1", "v2", "v3"), b"thr")),
        (Doubt(appended=b"three"), Shown("f", ("v1", "v2"), b"three")),
        (Doubt(appended=b"three"), Shown("f", ("v2", "v3"), b"three")),
        (Doubt(appended=b"three"), None),
        (Doubt(removed="v1"), Shown("f", ("v1",), b"one")),
        (Doubt(removed="v1"), None),
        (Doubt(deleted=True), Shown("f", ("v2",), b"two")),
    ],
)
def test_anything_else_is_told(doubt: Doubt, shown: Shown | None) -> None:
    with pytest.raises(Wrong):
        in_doubt(doubt).settle(NAME, shown)


def test_a_new_version_is_told_from_one_that_cannot_be() -> None:
    files = in_doubt(Doubt())
    files.append(NAME, "f", "v2", b"two")  # unchanged
    for file_id, version_id, content in (("f", "v2", b"other"), ("f", "v1", b"one"), ("g", "v3", b"three")):
        with pytest.raises(Wrong):
            files.append(NAME, file_id, version_id, content)
    assert files.histories[NAME].ids == ["v1", "v2"]
