"""status, scrub, repair, collect, rebuild, and what commands say when data is lost."""

from __future__ import annotations

import random
import shutil

from storage.reports import ScrubReport
from taskworker.cli.maintenance import scrub_lines
from tests.cli.conftest import Cli, serving


def store_of(cli: Cli) -> str:
    return cli.variables["TASKWORKER_STORE"]


def test_status_and_scrub_of_a_healthy_store(cli: Cli) -> None:
    cli.run("push", "-", "--name", "a", stdin=b"x" * 100_000)
    status = cli.json("status")
    assert status["files"] >= 1
    assert status["losses_survivable"] == 2
    assert [volume["state"] for volume in status["volumes"]] == ["ok"] * 6
    assert "any 4 of 6" in cli.text("status")
    assert cli.json("scrub")["clean"]
    assert "all intact" in cli.text("scrub")
    assert cli.json("repair")["shards_rebuilt"] == 0
    assert {"objects_removed", "bytes_freed"} <= set(cli.json("collect"))
    assert " removed, " in cli.text("collect")


def test_two_volumes_lost_and_repaired(embedded: Cli) -> None:
    data = random.Random(1).randbytes(3_000_000)
    embedded.run("push", "-", "--name", "a", stdin=data)
    for slot in (1, 4):
        shutil.rmtree(f"{store_of(embedded)}/volumes/{slot}")
    assert embedded.run("get", "a", "-o", "-").stdout == data
    assert not embedded.json("scrub", code=1)["clean"]
    assert "missing" in embedded.text("scrub", code=1)
    assert embedded.json("repair")["complete"]
    assert embedded.json("scrub")["clean"]
    assert embedded.json("status")["losses_survivable"] == 2


def test_three_volumes_lost(embedded: Cli) -> None:
    embedded.run("push", "-", "--name", "gone", stdin=random.Random(2).randbytes(3_000_000))
    for slot in (0, 2, 5):
        shutil.rmtree(f"{store_of(embedded)}/volumes/{slot}")
    said = embedded.run("get", "gone", "-o", "out", code=6).stderr.decode()
    assert "gone" in said
    assert "mount its disk, or run repair to create a new one" in said
    assert not list(embedded.directory.iterdir())
    assert embedded.json("repair", code=5)["lost_count"] > 0
    assert "is lost" in embedded.error("get", "gone", "-o", "out", code=5)


def test_collect_frees_what_was_deleted(embedded: Cli) -> None:
    embedded.run("push", "-", "--name", "a", stdin=random.Random(3).randbytes(2_000_000))
    embedded.run("rm", "a")
    assert embedded.json("collect")["objects_removed"] >= 0
    assert embedded.json("collect", "--grace", "0")["objects_removed"] >= 0
    assert embedded.json("status")["volumes"][0]["bytes_live"] < 100_000


def test_rebuild_of_a_lost_catalog(embedded: Cli) -> None:
    embedded.run("push", "-", "--name", "a", stdin=b"one")
    embedded.run("push", "-", "--name", "a", stdin=b"two")
    before = embedded.json("log", "a")
    shutil.rmtree(f"{store_of(embedded)}/catalog")
    said = embedded.error("get", "a", "-o", "-", code=1)
    assert "rebuild" in said
    assert embedded.json("status")["needs_rebuild"]
    report = embedded.json("rebuild")
    assert (report["files"], report["versions"]) == (1, 2)
    assert embedded.json("log", "a") == before
    assert embedded.run("get", "a", "-o", "-").stdout == b"two"


def test_rebuild_asks_the_pool_that_is_named(embedded: Cli) -> None:
    embedded.error("rebuild", "--pool", "127.0.0.1:9", code=6)


def test_a_store_in_use(embedded: Cli) -> None:
    embedded.run("push", "-", "--name", "a", stdin=b"x")
    with serving(embedded, embedded.directory.parent / "store") as address:
        embedded.error("ls", code=6)
        assert [each["filename"] for each in embedded.json("ls", "--pool", address)] == ["a"]
    assert embedded.names() == ["a"]


def test_scrub_says_that_misplaced_shards_are_intact() -> None:
    assert scrub_lines(ScrubReport(60, 1 << 20, 0, 0, [], misplaced=22)) == [
        "60 shards checked, 1.0 MiB: all intact, 22 not in place yet",
        "shards that are not in place are intact on other workers, and repair moves them",
    ]
    assert scrub_lines(ScrubReport(60, 1 << 20, 1, 2, [], misplaced=3))[0] == (
        "60 shards checked, 1.0 MiB: 1 rotten, 2 missing, 3 not in place yet"
    )
