"""For how long readers of a link may go on with a version."""

from __future__ import annotations

from taskworker.rpc.shown_versions import SHOWN_S, ShownVersions


def test_a_version_is_shown_for_a_day_after_it_was_the_newest() -> None:
    now_s = 0.0
    shown = ShownVersions(lambda: now_s)
    shown.note("link", "v1")
    now_s += SHOWN_S / 2
    shown.note("link", "v1")
    shown.note("link", "v2")
    now_s += SHOWN_S - 1
    assert [shown.has("link", version) for version in ("v1", "v2")] == [True, True]
    assert not shown.has("other", "v1")
    now_s += 2
    assert not shown.has("link", "v1")


def test_few_are_remembered_the_latest_ones() -> None:
    shown = ShownVersions()
    for number in range(20_000):
        shown.note("link", str(number))
    assert shown.has("link", "19999")
    assert not shown.has("link", "0")
