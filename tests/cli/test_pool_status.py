"""What `taskworker status` shows of a pool's background work."""

from __future__ import annotations

from typing import Any

import pytest

from taskworker.cli.pool_status import layout_lines, pool_status_lines
from taskworker.cli.screen import fitted
from taskworker.client.pool import LayoutShare, LayoutStatus, PoolStatus, WorkerStatus, WorkStatus


def work(name: str, state: str = "idle", **more: Any) -> WorkStatus:
    plain: dict[str, Any] = {
        "done": 0, "total": 0, "note": "", "seconds_left": None, "next_ms": 0, "queue": 0, "errors": 0, "error": "",
        "ended_ms": 0, "unit": "objects", "bytes_per_s": 0.0,
    }  # fmt: skip
    return WorkStatus(name, state, **(plain | more))


def worker(name: str) -> WorkerStatus:
    return WorkerStatus(name, 0, "unix:w", "", "", "alive", True, 1 << 40, 5 << 20, 4 << 20, 1 << 40, 7, 0.1, 0, 0.2, 0)


def shown(*pieces: WorkStatus) -> list[str]:
    status = PoolStatus("p", "fine", 2, 0, 0, 0, 0, 0, 4, 6, "zfec", 1, [], list(pieces), [])
    lines = pool_status_lines(status)
    return lines[6 : lines.index("", 2)]


def test_work_under_way() -> None:
    repair = work("repair", "running", done=5000, total=80_000, queue=300, seconds_left=200.0, note="making shards")
    scrub = work("scrub", "running", done=1 << 30, total=4 << 30, unit="bytes", bytes_per_s=16 << 20)
    assert shown(repair, scrub) == [
        "repair    running 5,000 of 80,000 objects, 300 wait, 3 min left: making shards",
        "scrub     running 1.0 GiB of 4.0 GiB, 16.0 MiB/s",
    ]


def test_work_that_rests() -> None:
    (line,) = shown(work("collect", ended_ms=1_000_000, next_ms=87_400_000, note="removed 3 objects"))
    assert line.startswith("collect   idle, last 1970-01-01 ")
    assert ", next 1970-01-02 " in line
    assert line.endswith(": removed 3 objects")
    assert shown(work("rebalance")) == ["rebalance idle"]


def test_work_that_failed() -> None:
    lines = shown(work("collect", "failed", errors=3, error="no space\nleft"))
    assert lines == ["collect   failed", "          ! failed 3 times in a row: no space\\nleft"]


def test_long_names_keep_the_columns_apart() -> None:
    workers = [worker("w"), worker("a" * 30), worker("b" * 100)]
    status = PoolStatus("p", "fine", 2, 0, 0, 0, 0, 0, 4, 6, "zfec", 1, workers, [], [])
    head, first, _, last = (line for line in pool_status_lines(status)[-4:])
    column = head.index("STATE")
    assert first[:column].rstrip() == "a" * 30
    assert first[column:].startswith("alive ")
    assert last.startswith("w ")
    assert last[column:].startswith("alive ")


@pytest.mark.parametrize(
    ("survivable", "said"),
    [
        ((2, 1, 1), "survives the loss of any 2 workers or of any one zone or of any one owner"),
        ((2, 1, 0), "survives the loss of any 2 workers or of any one zone, but may not survive that of one owner"),
        ((2, 0, 0), "survives the loss of any 2 workers, but may not survive that of one zone or one owner"),
        ((0, 0, 0), "may not survive the loss of one worker or one zone or one owner"),
    ],
)
def test_what_loss_is_survived(survivable: tuple[int, int, int], said: str) -> None:
    members = [LayoutShare("w1", "", 1, 0.5, "anna"), LayoutShare("w2", "", 1, 0.5, "bert")]
    workers, zones, owners = survivable
    layout = LayoutStatus(
        1, 0, members, workers_survivable=workers, zones_survivable=zones, owners_survivable=owners, former=0
    )
    assert layout_lines(layout)[1] == said


def test_a_small_screen_shows_health_and_workers_first() -> None:
    workers = [worker(f"w{number}") for number in range(4)]
    lines = pool_status_lines(PoolStatus("p", "fine", 2, 0, 0, 0, 0, 0, 4, 6, "zfec", 1, workers, [work("scrub")], []))
    assert fitted(lines, len(lines)) == lines
    table = lines[lines.index("", 2) + 1 :]
    assert fitted(lines, 8) == ["fine", "", *table, "... 5 more; a larger window shows them"]
    assert fitted(lines, 10) == ["fine", "", lines[2], "", *table, "... 4 more; a larger window shows them"]
    assert fitted(lines, 4) == ["fine", "", table[0], "... 9 more; a larger window shows them"]


def test_no_screen_is_too_small() -> None:
    lines = ["fine", "", *("a line" for _ in range(30)), "", "WORKER  STATE", "w1"]
    for height in range(1, 40):
        assert len(fitted(lines, height)) <= height
